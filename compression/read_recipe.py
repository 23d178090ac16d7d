"""A recipe's file to a recipe: TOML read into the dataclasses of `recipe`, then held against `recipe_rules`."""

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from compression.recipe import LANGUAGE_TASK, LanguageRecipe, Recipe, RecipeError
from compression.recipe_rules import check_recipe


def load_recipe(path: Path) -> Recipe | LanguageRecipe:
    """Read and check a recipe; its task decides which of the two it is.

    Raises:
        RecipeError: unreadable file, bad TOML, an unknown or missing key, a wrong type, a value out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error.strerror}") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str = "recipe") -> Recipe | LanguageRecipe:
    """Parse the text of a recipe; `where` names it in errors. Raises RecipeError as `load_recipe` does."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not valid TOML: {error}") from error
    task = table.get("task")
    language = "text" in table or (isinstance(task, dict) and task.get("name") == LANGUAGE_TASK)
    try:
        recipe: Recipe | LanguageRecipe = _build(LanguageRecipe if language else Recipe, table, "")
        check_recipe(recipe)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    return recipe


def _build(cls: Any, table: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise RecipeError(
                f"unknown key '{prefix}{key}'; did you mean '{prefix}{near[0]}'? (known: {', '.join(hints)})"
            )
    for known in dataclasses.fields(cls):
        optional = known.default is not dataclasses.MISSING or known.default_factory is not dataclasses.MISSING
        if known.name not in table and not optional:
            raise RecipeError(f"missing key '{prefix}{known.name}'")
    return cls(**{key: _convert(hints[key], value, prefix + key) for key, value in table.items()})


def _convert(kind: Any, value: Any, key: str) -> Any:
    if isinstance(kind, types.UnionType):  # of the form X | None: a table that may be absent
        kind = typing.get_args(kind)[0]
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise RecipeError(f"'{key}' must be a table, got {value!r}")
        return _build(kind, value, key + ".")
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"'{key}' must be a list, got {value!r}")
        return tuple(_convert(typing.get_args(kind)[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    # bool is an int to Python, but `epochs = true` is a mistake.
    if type(value) is not kind:
        raise RecipeError(f"'{key}' must be {kind.__name__}, got {value!r}")
    return value
