"""Who may call what: keys, roles, and pages of other origins."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from service.access import OPEN
from service.app import create_app
from service.keys import new_key
from service.models import Models
from tests.service import fake

CLS = "text-classification"
BODY = {"inputs": "a good film"}


class Keys:
    def __init__(self, folder: Path) -> None:
        self.user, user = new_key("alice")
        self.admin, admin = new_key("ops", "admin")
        self.file = folder / "keys.toml"
        self.file.write_text(user + admin)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def talk(folder: Path, conversation: Any, **overrides: Any) -> Any:
    return fake.talk([fake.model(folder, CLS)[0]], conversation, **overrides)


def test_a_key_is_taken_from_either_header_and_the_caller_is_logged_not_the_key(
    tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def conversation(http: httpx.AsyncClient) -> None:
        for headers in (
            {"authorization": f"Bearer {keys.user}"},
            {"authorization": f"bearer  {keys.user} "},
            {"x-api-key": keys.user},
            {"authorization": "Basic x", "x-api-key": keys.user},
        ):
            assert (await http.post(f"/v1/{CLS}", json=BODY, headers=headers)).status_code == 200
        for wrong in ({}, {"authorization": keys.user}, {"x-api-key": keys.user + "x"}, {"authorization": "Bearer é"}):
            encoded = {name: value.encode() for name, value in wrong.items()}
            refused = await http.post(f"/v1/{CLS}", json=BODY, headers=encoded)
            assert (refused.status_code, refused.headers["www-authenticate"][:6]) == (401, "Bearer")
            assert refused.json()["request_id"] == refused.headers["x-request-id"]
            assert keys.user not in refused.text
        page = (await http.get("/metrics")).text
        assert 'outcome="unauthorized",task="text-classification"} 4.0' in page

    talk(tmp_path, conversation, keys_file=keys.file)
    lines = [vars(record)["fields"] for record in caplog.records if "fields" in vars(record)]
    assert [line["caller"] for line in lines if line["status"] == 200 and line["method"] == "POST"] == ["alice"] * 4
    assert keys.user not in caplog.text + str(lines)


def test_every_route_needs_a_key_but_probes_metrics_and_the_reference(tmp_path: Path, keys: Keys) -> None:
    """A route that is added and forgotten here is closed."""
    model, _ = fake.model(tmp_path, CLS)
    app = create_app(fake.settings(keys_file=keys.file), Models({model.name: model}, {}))
    routes = [(method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods]
    assert len(routes) > 8

    async def story() -> dict[tuple[str, str], int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return {(method, path): (await http.request(method, path)).status_code for method, path in routes}

    for (method, path), status in asyncio.run(story()).items():
        free = method in ("GET", "HEAD") and (path in OPEN or path.startswith(("/page/", "/docs/", "/v2/health/")))
        assert (status == 401) != free, (method, path, status)


def test_admin_calls_need_an_admin_and_a_server_that_has_keys(tmp_path: Path, keys: Keys) -> None:
    async def with_keys(http: httpx.AsyncClient) -> None:
        assert (await http.get("/admin/models")).status_code == 401
        refused = await http.get("/admin/models", headers={"x-api-key": keys.user})
        assert refused.status_code == 403
        assert "the key of alice has role user" in refused.json()["detail"]
        listed = await http.get("/admin/models", headers={"x-api-key": keys.admin})
        assert [model["name"] for model in listed.json()["models"]] == ["text"]

    async def without(http: httpx.AsyncClient) -> None:
        for method, path in (("GET", "/admin/models"), ("POST", "/admin/reload"), ("GET", "/admin")):
            refused = await http.request(method, path, headers={"x-api-key": keys.admin})
            assert refused.status_code == 403
            assert "SPARSELANE_KEYS_FILE" in refused.json()["detail"]
        assert (await http.post(f"/v1/{CLS}", json=BODY)).status_code == 200

    talk(tmp_path, with_keys, keys_file=keys.file)
    talk(tmp_path, without)


def test_the_document_says_that_keys_are_needed(tmp_path: Path, keys: Keys) -> None:
    async def document(http: httpx.AsyncClient) -> Any:
        return (await http.get("/openapi.json")).json()

    assert talk(tmp_path, document, keys_file=keys.file)["security"] == [{"key": []}]
    assert "security" not in talk(tmp_path, document)


def preflight(origin: str) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-api-key,x-request-id",
    }


def test_pages_of_other_origins_are_refused_by_default(tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        answer = await http.post(f"/v1/{CLS}", json=BODY, headers={"origin": "https://a.example"})
        asked = await http.options(f"/v1/{CLS}", headers=preflight("https://a.example"))
        for response in (answer, asked):
            assert not [name for name in response.headers if name.startswith("access-control")]

    talk(tmp_path, conversation)


def test_pages_of_named_origins_may_send_keys_and_read_answers_and_errors(tmp_path: Path, keys: Keys) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        asked = await http.options(f"/v1/{CLS}", headers=preflight("https://a.example"))
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://a.example")
        assert {"authorization", "x-api-key"} <= set(asked.headers["access-control-allow-headers"].split(", "))
        assert (await http.options(f"/v1/{CLS}", headers=preflight("https://b.example"))).status_code == 400
        for key, status in ((keys.user, 200), ("wrong", 401)):
            headers = {"origin": "https://a.example", "authorization": f"Bearer {key}"}
            answer = await http.post(f"/v1/{CLS}", json=BODY, headers=headers)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, "https://a.example")
            assert "ratelimit" in answer.headers["access-control-expose-headers"]

    talk(tmp_path, conversation, keys_file=keys.file, cors_origins=["https://a.example"])
