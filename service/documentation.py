"""What the OpenAPI document says of bodies that FastAPI does not see: errors, and those that a route reads itself."""

from typing import Any, Final

from pydantic import BaseModel

from service.middleware import PROBLEM_JSON


def _problem_responses(*meanings: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": text, "content": content} for status, text in meanings}


PROBLEMS: Final = _problem_responses(
    (400, "The body is no JSON."),
    (401, "This server needs a key, and there was none, or an unknown one."),
    (403, "The key may not do this."),
    (404, "No such model here."),
    (408, "The body did not arrive in time, or the deadline passed before it had."),
    (413, "Over a limit of this server."),
    (415, "The body does not say that it is JSON."),
    (422, "A field or parameter is wrong: `errors` has its pointer, value and limit."),
    (429, "The key's tokens are used up; `Retry-After` says when to try again."),
    (431, "The headers are over the limit."),
    (503, "It could not be answered before its deadline; `Retry-After` says when to try again."),
    (504, "The deadline passed before the answer was ready."),
)
ADMIN_PROBLEMS: Final = _problem_responses((409, "A model is not replaced: what is in the folder cannot serve."))


def documented_body(*models: type[BaseModel]) -> dict[str, Any]:
    """Return what a route's `openapi_extra` must be where its body is JSON of one of `models`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema(*models)}}}}


def documented_answer(*models: type[BaseModel]) -> dict[str, Any]:
    """Return the entry of a route's `responses` whose body is JSON of one of `models`."""
    return {"description": "The answer.", "content": {"application/json": {"schema": _schema(*models)}}}


def _schema(*models: type[BaseModel]) -> dict[str, Any]:
    schemas = []
    for model in models:
        schema = model.model_json_schema()
        schemas.append(_inlined(schema, schema.pop("$defs", {})))
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema with its definitions in place of references, which would have to be in the whole document."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(part, definitions) for name, part in schema.items()}
