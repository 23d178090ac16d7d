"""GET /v1/models says what the manifests say, and never fails on what no one has checked in them."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.loading import load_models
from tests.service import artifacts, fake
from tests.service.artifacts import CLS, NER, QA


def listed(folder: Path) -> list[dict[str, Any]]:
    async def conversation(http: httpx.AsyncClient) -> list[dict[str, Any]]:
        response = await http.get("/v1/models")
        assert response.status_code == 200, response.text
        return list(response.json()["models"])

    models = load_models(folder, threads=1)
    assert models.failures == {}
    shown = fake.talk(list(models.serving.values()), conversation)
    assert isinstance(shown, list)
    return shown


def test_models_are_listed_by_name_with_what_their_manifests_say(tmp_path: Path) -> None:
    artifacts.write_all(tmp_path)
    artifacts.write(tmp_path, CLS, name="a-second", seed=1)
    shown = listed(tmp_path)
    assert [(model["name"], model["task"], model["default"]) for model in shown] == [
        ("a-second", CLS, True),
        ("ner", NER, True),
        ("qa", QA, True),
        ("sentiment", CLS, False),
    ]
    for model in shown:
        manifest = json.loads((tmp_path / model["name"] / "manifest.json").read_text())
        assert model["labels"] == manifest["task"]["labels"]
        assert model["sparsity"] == manifest["sparsity"]["overall"]
        assert (model["bytes"], model["dense_bytes"]) == (
            manifest["size"]["total_bytes"],
            manifest["size"]["dense_fp32_bytes"],
        )
        assert (model["layers"], model["hidden"], model["window"], model["threads"]) == (1, 32, 64, 1)
        assert model["quality"]["metric"] == "none"
        assert model["isa"]


@pytest.mark.parametrize("quality", [{}, {"metric": 7}, {"dense": "high"}])
def test_what_a_manifest_says_badly_is_not_shown(tmp_path: Path, quality: Any) -> None:
    path = artifacts.write(tmp_path, CLS)
    artifacts.edit(
        path, lambda manifest: manifest["quality"].update(quality) if quality else manifest["quality"].clear()
    )
    artifacts.edit(path, lambda manifest: manifest["size"].update(dense_fp32_bytes="many"))
    (model,) = listed(tmp_path)
    assert (model["quality"], model["dense_bytes"]) == (None, None)


def test_a_model_without_an_artifact_is_listed_too(tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient) -> Any:
        return (await http.get("/v1/models")).json()

    (model,) = fake.talk([fake.model(tmp_path, QA)[0]], conversation)["models"]
    assert (model["name"], model["sparsity"], model["bytes"], model["threads"]) == ("question", None, None, None)
