"""The files of the pages: headers, caching, and nothing from outside. What they do is in tests/page."""

import re

import httpx
import pytest

from service.pages import FOLDER, PATHS
from tests.service import fake


def get(path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async def conversation(http: httpx.AsyncClient) -> httpx.Response:
        return await http.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})

    response = fake.talk([], conversation)
    assert isinstance(response, httpx.Response)
    return response


@pytest.mark.parametrize(("path", "name"), PATHS.items())
def test_a_file_comes_with_a_policy_and_a_tag(path: str, name: str) -> None:
    response = get(path)
    assert (response.status_code, response.content) == (200, (FOLDER / name).read_bytes())
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    again = get(path, if_none_match=f'"other", W/{response.headers["etag"]}')
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", response.headers["etag"])
    assert get(path, if_none_match='"other"').status_code == 200
    head = get(path, "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(response.content))


def test_every_file_is_served_and_names_nothing_outside() -> None:
    assert sorted(PATHS.values()) == sorted(file.name for file in FOLDER.iterdir())
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|document\.write|eval\(", text), file.name


@pytest.mark.parametrize("path", ["/page/", "/page/index.html", "/page/../settings.py", "/page/%2e%2e/settings.py"])
def test_nothing_else_is_served(path: str) -> None:
    assert get(path).status_code == 404


def test_other_methods_are_refused() -> None:
    assert get("/", "DELETE").status_code == 405
