"""Who may call what: keys, roles, and pages of other origins."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.access import OPEN
from service.app import create_app
from service.keys import new_key
from service.models import Models
from service.settings import load_settings
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


@pytest.mark.parametrize("written", ["", '["*"]', '"*"'], ids=["environment", "list in a file", "text in a file"])
def test_a_star_lets_pages_of_all_origins_read_answers_and_refusals(tmp_path: Path, keys: Keys, written: str) -> None:
    """Without credentials: a browser's cookies are nobody's key here, and `*` beside them is an error to browsers."""
    variables = {"SPARSELANE_KEYS_FILE": str(keys.file)}
    if written:
        (tmp_path / "settings.toml").write_text(f"cors_origins = {written}")
        variables["SPARSELANE_CONFIG"] = str(tmp_path / "settings.toml")
    else:
        variables["SPARSELANE_CORS_ORIGINS"] = "*"
    model, formula = fake.model(tmp_path, CLS)
    app = create_app(load_settings(variables), Models({model.name: model}, {}))
    origin = {"origin": "https://a.example"}

    def open_to_all(headers: Mapping[str, str]) -> None:
        assert headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in headers

    async def story() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://t", headers=origin) as http,
        ):
            asked = await http.options(f"/v1/{CLS}", headers=preflight("https://a.example"))
            assert asked.status_code == 200
            open_to_all(asked.headers)
            for key, status in ((keys.user, 200), ("wrong", 401)):
                answer = await http.post(f"/v1/{CLS}", json=BODY, headers={"x-api-key": key})
                assert answer.status_code == status
                open_to_all(answer.headers)
            formula.gate.clear()
            headers = {"x-api-key": keys.user, "x-request-timeout-ms": "600000"}
            body = {"inputs": ["a " * 25] * 10}
            work = [asyncio.ensure_future(http.post(f"/v1/{CLS}", json=body, headers=headers)) for _ in range(8)]
            await fake.wait_until(lambda: b"sparselane_queue_tokens 2160.0" in app.state.health.page())
            status, found = await refused_at_the_door(app)
            assert status == 503
            open_to_all(found)
            formula.gate.set()
            assert [answer.status_code for answer in await asyncio.gather(*work)] == [200] * 8

    asyncio.run(story())


async def refused_at_the_door(app: FastAPI) -> tuple[int, dict[str, str]]:
    """Ask for what cannot be in time, as a page of another origin does; return status and headers."""
    fields = [(b"origin", b"https://a.example"), (b"x-request-timeout-ms", b"1")]
    scope = {"type": "http", "method": "POST", "path": f"/v1/{CLS}", "headers": fields, "state": {}, "scheme": "http"}
    chosen: list[Any] = []
    sent: list[Any] = []

    async def nobody(*_: Any) -> None:
        raise AssertionError("the application was asked")

    async def send(message: Any) -> None:
        sent.append(message)

    app.state.door.come(scope, nobody, chosen.append)
    await chosen[0](scope, nobody, send)
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}
