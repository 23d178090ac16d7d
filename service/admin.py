"""The calls that change a running server: which models it serves. Access lets admins alone come here."""

import asyncio
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel

from service.models import Models
from service.reloading import Change, Reloader, State


class ModelState(BaseModel):
    """A model and how it stands: `version` is the sha256 of the manifest that serves, `why` what was refused last."""

    name: str
    state: Literal["serving", "failed"]
    task: str | None = None
    version: str | None = None
    why: str | None = None


class ModelChange(BaseModel):
    """What became of a model; `seconds` is what loading and proving took."""

    name: str
    state: State
    version: str | None = None
    seconds: float = 0.0


class ModelStates(BaseModel):
    """All models."""

    models: list[ModelState]


class ModelChanges(BaseModel):
    """What became of each model."""

    models: list[ModelChange]


def add_admin_routes(app: FastAPI, models: Models, reloader: Reloader, problems: dict[int | str, Any]) -> None:
    """Add /admin/...; `problems` documents the bodies of errors."""
    options: dict[str, Any] = {"responses": problems, "tags": ["admin"]}

    @app.get("/admin/models", **options)
    async def admin_models() -> ModelStates:
        """List the models that serve, and those that do not, with the reason."""
        return _states(models)

    @app.post("/admin/models/{name}/load", **options)
    async def admin_load(name: str) -> ModelChange:
        """Load a model of the models folder, prove it on its golden examples, and serve it."""
        return _change(await _to_its_end(reloader.load(name)))

    @app.post("/admin/models/{name}/reload", **options)
    async def admin_reload_one(name: str) -> ModelChange:
        """Replace a model that serves by what the models folder has under its name now; no request is dropped."""
        return _change(await _to_its_end(reloader.reload(name)))

    @app.post("/admin/models/{name}/unload", **options)
    async def admin_unload(name: str) -> ModelChange:
        """Serve a model no longer; requests that it has are still answered."""
        return _change(await _to_its_end(reloader.unload(name)))

    @app.post("/admin/reload", **options)
    async def admin_reload() -> ModelChanges:
        """Read the keys file and the models folder again, as SIGHUP does."""
        return ModelChanges(models=[_change(change) for change in await _to_its_end(reloader.reload_all())])


async def _to_its_end(work: Any) -> Any:
    """Go on where the admin's connection breaks: half a reload helps nobody."""
    return await asyncio.shield(asyncio.ensure_future(work))


def _change(change: Change) -> ModelChange:
    return ModelChange(name=change.name, state=change.state, version=change.version, seconds=round(change.seconds, 3))


def _states(models: Models) -> ModelStates:
    why = {**models.failures, **models.refused}
    serving = [
        ModelState(name=m.name, state="serving", task=m.task, version=m.version, why=why.get(m.name))
        for m in models.serving.values()
    ]
    failed = [ModelState(name=n, state="failed", why=w) for n, w in why.items() if n not in models.serving]
    return ModelStates(models=sorted([*serving, *failed], key=lambda state: state.name))
