"""Models come and go while requests are answered: real artifacts, the real engine, over HTTP."""

import asyncio
import gc
import logging
import shutil
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import reloading
from service.keys import new_key
from service.loading import load_model, load_models
from tests.service import artifacts, fake
from tests.service.artifacts import CLS, NER

TEXT = {"inputs": "john and mary was in london, who was good"}
Story = Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    artifacts.write(path, CLS)
    artifacts.write(path, NER)
    return path


def tell(folder: Path, story: Story, preferred: Sequence[str] = ()) -> None:
    """Run `story` with an admin's client of an app that serves the folder."""
    secret, entry = new_key("ops", "admin")
    keys_file = folder.parent / "keys.toml"
    keys_file.write_text(entry)

    async def run() -> None:
        limits = fake.settings(models_dir=folder, threads=1, keys_file=keys_file)
        async with fake.client(load_models(folder, 1, preferred), limits) as http:
            http.headers["x-api-key"] = secret
            await story(http)

    asyncio.run(run())


async def admin(http: httpx.AsyncClient, path: str) -> tuple[int, Any]:
    answer = await http.post(f"/admin/{path}")
    return answer.status_code, answer.json()


async def metric(http: httpx.AsyncClient, name: str) -> float | None:
    lines = (await http.get("/metrics")).text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), None)


async def listed(http: httpx.AsyncClient) -> dict[str, Any]:
    return {model["name"]: model for model in (await http.get("/admin/models")).json()["models"]}


def spoil(path: Path) -> None:
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))


def test_a_reload_swaps_the_version_and_lets_go_of_the_old_one(folder: Path) -> None:
    async def story(http: httpx.AsyncClient) -> None:
        models = http.app.state.reloader._models  # type: ignore[attr-defined]
        old = weakref.ref(models.serving["sentiment"])
        before = (await listed(http))["sentiment"]["version"]
        first = (await http.post(f"/v1/{CLS}", json=TEXT)).json()
        artifacts.write(folder, CLS, seed=1)
        status, change = await admin(http, "models/sentiment/reload")
        assert (status, change["state"]) == (200, "serving")
        assert change["version"] != before
        assert (await http.post(f"/v1/{CLS}", json=TEXT)).json() != first
        assert (await listed(http))["sentiment"]["version"] == change["version"]
        page = (await http.get("/metrics")).text
        assert page.count('sparselane_model_info{model="sentiment"') == 1
        assert await metric(http, 'sparselane_model_loads_total{model="sentiment",outcome="ok"}') == 1
        assert await metric(http, 'sparselane_requests_total{model="sentiment",outcome="ok",task="' + CLS + '"}') == 2
        gc.collect()
        assert old() is None

    tell(folder, story)


def test_a_request_in_flight_finishes_on_the_model_that_it_began_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service import pipeline

    async def story(http: httpx.AsyncClient) -> None:
        alone = (await http.post(f"/v1/{NER}", json=TEXT)).json()
        began, go_on = asyncio.Event(), asyncio.Event()
        original = pipeline.Pipeline._in_thread

        async def held(self: Any, characters: int, work: Any, *arguments: Any) -> Any:
            began.set()
            await go_on.wait()
            return await original(self, characters, work, *arguments)

        monkeypatch.setattr(pipeline.Pipeline, "_in_thread", held)
        asked = asyncio.ensure_future(http.post(f"/v1/{NER}", json=TEXT))
        await began.wait()
        artifacts.write(folder, NER, seed=1)
        assert (await admin(http, "models/ner/reload"))[0] == 200
        assert (await admin(http, "models/ner/unload"))[0] == 200
        go_on.set()
        assert (await asked).json() == alone
        assert (await http.post(f"/v1/{NER}", json=TEXT)).status_code == 404

    tell(folder, story)


@pytest.mark.parametrize("damage", ["checksum", "golden", "manifest"])
def test_what_cannot_serve_is_refused_and_the_old_version_goes_on(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    async def story(http: httpx.AsyncClient) -> None:
        before = (await http.post(f"/v1/{CLS}", json=TEXT)).json()
        path = folder / "sentiment"
        if damage == "checksum":
            spoil(path)
        elif damage == "golden":
            artifacts.edit(path, lambda manifest: manifest["golden"][0].update(expected={"label": "neutral"}))
        else:
            (path / "manifest.json").write_text("{")
        reason = {"checksum": "ChecksumError", "golden": "GoldenError", "manifest": "ManifestSyntaxError"}[damage]
        for call in ("models/sentiment/reload", "models/sentiment/load", "reload"):
            status, body = await admin(http, call)
            assert (status, body["title"]) == (409, "Model refused")
            assert reason in body["detail"] and "the former version goes on" in body["detail"]
        assert reason in (await listed(http))["sentiment"]["why"]
        assert f"model sentiment is refused: {reason}" in caplog.text
        assert await metric(http, 'sparselane_model_loads_total{model="sentiment",outcome="failed"}') == 3
        assert await metric(http, 'sparselane_model_ready{model="sentiment"}') == 1
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.post(f"/v1/{CLS}", json=TEXT)).json() == before
        shutil.rmtree(path)
        artifacts.write(folder, CLS)
        assert (await admin(http, "reload"))[0] == 200
        assert (await listed(http))["sentiment"]["why"] is None

    tell(folder, story)


def test_a_model_that_failed_at_the_start_is_mended_or_taken_out(folder: Path) -> None:
    (folder / "ner" / "manifest.json").write_text("{")
    artifacts.write(folder, CLS, name="other")
    spoil(folder / "other")

    async def story(http: httpx.AsyncClient) -> None:
        assert (await http.get("/readyz")).status_code == 503
        assert await metric(http, 'sparselane_model_ready{model="ner"}') == 0
        assert {name: model["state"] for name, model in (await listed(http)).items()} == {
            "ner": "failed",
            "other": "failed",
            "sentiment": "serving",
        }
        assert (await admin(http, "models/ner/reload"))[0] == 404
        shutil.rmtree(folder / "ner")
        artifacts.write(folder, NER)
        assert (await admin(http, "models/ner/load"))[0] == 200
        assert (await http.get("/readyz")).status_code == 503
        assert (await admin(http, "models/other/unload"))[1]["state"] == "unloaded"
        assert (await http.get("/readyz")).json()["models"] == ["ner", "sentiment"]
        assert await metric(http, 'sparselane_model_ready{model="other"}') is None

    tell(folder, story)


def test_models_are_loaded_and_unloaded_by_name(folder: Path) -> None:
    async def story(http: httpx.AsyncClient) -> None:
        status, body = await admin(http, "models/sentimen/reload")
        assert status == 404 and "did you mean 'sentiment'" in body["detail"]
        status, body = await admin(http, "models/..%2Fkeys.toml/load")
        assert status == 404
        artifacts.write(folder, CLS, name="other").rename(folder / "a-folder")
        assert (await http.post(f"/v1/{CLS}", json={**TEXT, "model": "other"})).status_code == 404
        assert (await admin(http, "models/other/load"))[0] == 200
        assert (await http.post(f"/v1/{CLS}", json={**TEXT, "model": "other"})).status_code == 200
        assert (await admin(http, "models/other/unload"))[0] == 200
        assert (await admin(http, "models/other/unload"))[0] == 404
        assert (await http.post(f"/v1/{CLS}", json={**TEXT, "model": "other"})).status_code == 404
        assert 'model="other"' not in (await http.get("/metrics")).text
        # A new model that cannot serve takes nobody out of the traffic.
        spoil(folder / "a-folder")
        assert (await admin(http, "models/other/load"))[0] == 409
        assert (await http.get("/readyz")).status_code == 200
        unknown = await http.post(f"/v1/{CLS}", json={**TEXT, "model": "other"})
        assert "failed to load: other" in unknown.json()["detail"]

    tell(folder, story)


def test_a_reload_of_everything_follows_the_folder(folder: Path) -> None:
    async def story(http: httpx.AsyncClient) -> None:
        async def changes() -> dict[str, str]:
            status, body = await admin(http, "reload")
            assert status == 200, body
            return {model["name"]: model["state"] for model in body["models"]}

        assert await changes() == {"ner": "unchanged", "sentiment": "unchanged"}
        artifacts.write(folder, CLS, name="new")
        artifacts.write(folder, CLS, seed=1)
        shutil.rmtree(folder / "ner")
        assert await changes() == {"new": "serving", "sentiment": "serving", "ner": "unloaded"}
        # One that is refused does not stop the others.
        spoil(folder / "new")
        artifacts.write(folder, NER)
        status, body = await admin(http, "reload")
        assert status == 409
        assert [error["pointer"] for error in body["errors"]] == ["/models/new"]
        assert [model["state"] for model in (await listed(http)).values()] == ["serving"] * 3
        # A folder that is away for a moment, or two models of one name, are no reason to unload anything.
        artifacts.write(folder, CLS).rename(folder / "again")
        artifacts.write(folder, CLS)
        status, body = await admin(http, "reload")
        assert status == 409 and "are both called 'sentiment'; rename one" in body["detail"]
        folder.rename(folder.parent / "away")
        for call in ("reload", "models/ner/load"):
            status, body = await admin(http, call)
            assert status == 409 and "there is no models folder" in body["detail"]
        assert len(await listed(http)) == 3

    tell(folder, story)


def test_a_folder_with_a_torn_manifest_stands_for_the_model_that_it_served(folder: Path) -> None:
    path = (folder / "sentiment").rename(folder / "my-folder")

    async def story(http: httpx.AsyncClient) -> None:
        before = (await http.post(f"/v1/{CLS}", json=TEXT)).json()
        whole = (path / "manifest.json").read_text()
        (path / "manifest.json").write_text(whole[:100])
        for call in ("reload", "models/sentiment/reload", "models/sentiment/load"):
            status, body = await admin(http, call)
            assert status == 409 and "model sentiment is refused: ManifestSyntaxError" in body["detail"]
            assert "the former version goes on" in body["detail"]
        assert {name: model["state"] for name, model in (await listed(http)).items()} == {
            "ner": "serving",
            "sentiment": "serving",
        }
        assert (await http.post(f"/v1/{CLS}", json=TEXT)).json() == before
        (path / "manifest.json").write_text(whole)
        changes = (await admin(http, "reload"))[1]["models"]
        assert {change["state"] for change in changes} == {"unchanged"}
        assert (await listed(http))["sentiment"]["why"] is None
        # A model that moved is remembered where it is now.
        moved = path.rename(folder / "moved")
        assert (await admin(http, "reload"))[0] == 200
        (moved / "manifest.json").write_text("{")
        assert (await admin(http, "reload"))[0] == 409
        assert (await http.post(f"/v1/{CLS}", json=TEXT)).json() == before

    tell(folder, story)


@pytest.mark.parametrize("stays", ["first", "sentiment"])
def test_of_two_artifacts_of_one_name_one_is_taken_away(folder: Path, stays: str) -> None:
    shutil.copytree(folder / "sentiment", folder / "first")

    async def story(http: httpx.AsyncClient) -> None:
        ready = 'sparselane_model_ready{model="sentiment"}'
        assert "is called 'sentiment' too" in (await http.get("/readyz")).json()["detail"]
        assert await metric(http, ready) == 0
        shutil.rmtree(folder / ({"first", "sentiment"} - {stays}).pop())
        assert (await admin(http, "reload"))[0] == 200
        assert (await http.get("/readyz")).status_code == 200
        assert await metric(http, ready) == 1
        assert (await listed(http))["sentiment"]["why"] is None

    tell(folder, story)


def test_a_mended_folder_takes_no_model_with_it_that_has_its_name(folder: Path) -> None:
    (folder / "ner").rename(folder / "x")
    (folder / "ner").mkdir()
    (folder / "ner" / "manifest.json").write_text("{")
    artifacts.write(folder.parent, CLS, name="other")

    async def story(http: httpx.AsyncClient) -> None:
        counted = 'sparselane_requests_total{model="ner",outcome="ok",task="' + NER + '"}'
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.post(f"/v1/{NER}", json=TEXT)).status_code == 200
        shutil.rmtree(folder / "ner")
        (folder.parent / "other").rename(folder / "ner")
        assert (await admin(http, "models/other/load"))[0] == 200
        assert (await http.get("/readyz")).json()["models"] == ["ner", "other", "sentiment"]
        assert (await http.post(f"/v1/{NER}", json=TEXT)).status_code == 200
        assert await metric(http, counted) == 2
        assert await metric(http, 'sparselane_model_ready{model="ner"}') == 1

    tell(folder, story)


def test_a_name_that_stood_for_a_mended_folder_is_forgotten(folder: Path) -> None:
    (folder / "ner").rename(folder / "x")
    whole = (folder / "x" / "manifest.json").read_text()
    (folder / "x" / "manifest.json").write_text("{")

    async def story(http: httpx.AsyncClient) -> None:
        assert await metric(http, 'sparselane_model_ready{model="x"}') == 0
        (folder / "x" / "manifest.json").write_text(whole)
        assert (await admin(http, "models/ner/load"))[0] == 200
        assert (await http.get("/readyz")).json()["models"] == ["ner", "sentiment"]
        assert await metric(http, 'sparselane_model_ready{model="x"}') is None

    tell(folder, story)


def test_no_other_model_answers_for_a_default_that_is_away(folder: Path) -> None:
    artifacts.write(folder, CLS, name="intent")

    async def story(http: httpx.AsyncClient) -> None:
        async def answering() -> str:
            answer = await http.post(f"/v1/{CLS}", json=TEXT)
            assert answer.status_code in (200, 404)
            defaults = [m["name"] for m in (await http.get("/v1/models")).json()["models"] if m["default"]]
            if answer.status_code == 200:
                assert answer.json()["model"] in defaults
                return str(answer.json()["model"])
            assert defaults == ["ner"]
            return str(answer.json()["detail"])

        away = "the default for text-classification, sentiment, does not serve; name one: intent"
        assert await answering() == "sentiment"
        assert (await admin(http, "models/sentiment/unload"))[0] == 200
        assert await answering() == away
        assert (await http.post(f"/v1/{CLS}", json={**TEXT, "model": "intent"})).status_code == 200
        assert (await admin(http, "models/sentiment/load"))[0] == 200
        assert await answering() == "sentiment"
        # Between the two renames of a swap.
        (folder / "sentiment").rename(folder.parent / "old")
        assert (await admin(http, "reload"))[0] == 200
        assert await answering() == away
        (folder.parent / "old").rename(folder / "sentiment")
        assert (await admin(http, "reload"))[0] == 200
        assert await answering() == "sentiment"

    tell(folder, story, ["sentiment"])


def test_a_reload_reads_the_keys_again_too(folder: Path) -> None:
    secret, entry = new_key("new", "admin")

    async def story(http: httpx.AsyncClient) -> None:
        file = folder.parent / "keys.toml"
        old = file.read_text()
        file.write_text("[broken")
        status, body = await admin(http, "reload")
        assert status == 409 and "the keys stay as they were" in body["detail"]
        file.write_text(entry)
        assert (await admin(http, "reload"))[0] == 200
        assert (await http.get("/admin/models")).status_code == 401
        http.headers["x-api-key"] = secret
        file.write_text(old)
        assert (await admin(http, "reload"))[0] == 200
        assert (await http.get("/admin/models")).status_code == 401

    tell(folder, story)


def test_admin_calls_wait_for_each_other_and_never_for_the_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    async def story(http: httpx.AsyncClient) -> None:
        loop = asyncio.get_running_loop()
        gate, entered = asyncio.Event(), asyncio.Event()

        def gated(path: Path, threads: int | None) -> Any:
            loads.append(f"begin {path.name}")
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)
            model = load_model(path, threads)
            loads.append(f"end {path.name}")
            return model

        monkeypatch.setattr(reloading, "load_model", gated)
        calls = [asyncio.ensure_future(admin(http, f"models/{name}/reload")) for name in ("ner", "sentiment", "ner")]
        unload = asyncio.ensure_future(admin(http, "models/ner/unload"))
        await entered.wait()
        # While a model loads, requests are answered by the one that serves.
        assert (await http.post(f"/v1/{NER}", json=TEXT)).status_code == 200
        assert not any(call.done() for call in [*calls, unload])
        gate.set()
        assert [status for status, _ in await asyncio.gather(*calls, unload)] == [200] * 4
        assert loads == [f"{word} {name}" for name in ("ner", "sentiment", "ner") for word in ("begin", "end")]
        assert list(await listed(http)) == ["sentiment"]

    tell(folder, story)


def test_an_admin_who_hangs_up_does_not_stop_a_reload_half_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def story(http: httpx.AsyncClient) -> None:
        loop = asyncio.get_running_loop()
        gate, entered = asyncio.Event(), asyncio.Event()

        def gated(path: Path, threads: int | None) -> Any:
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)
            return load_model(path, threads)

        monkeypatch.setattr(reloading, "load_model", gated)
        artifacts.write(folder, CLS, seed=1)
        before = (await listed(http))["sentiment"]["version"]
        call = asyncio.ensure_future(admin(http, "models/sentiment/reload"))
        await entered.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        gate.set()
        async with asyncio.timeout(30):
            while (await listed(http))["sentiment"]["version"] == before:
                await asyncio.sleep(0.01)

    tell(folder, story)
