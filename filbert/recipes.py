"""Options out of a recipe or the command line, checked against the model that lists them.

A recipe is a TOML file whose keys are the fields of a pydantic model; an unknown key is an error
that names the nearest valid one.

    options = parse_options(read_recipe("recipe.toml"), PretrainOptions, source="recipe.toml")

At the bottom of the house, since the options of `data` and of `train` are read alike.
"""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from filbert.errors import UsageError, did_you_mean

Options = TypeVar("Options", bound=BaseModel)
_NUMBERS = {int, float}


def parse_options(
    values: dict[str, Any],
    kind: type[Options],
    *,
    source: str,
    typed: Collection[str] = (),
    arguments: Collection[str] = (),
) -> Options:
    """Validate `values` as a `kind`; `UsageError` names the wrong key, its neighbour or the wrong
    value.

    source: where the values come from, for messages, but for those in `typed`, which came from the
    command line; a `kind` with the attribute `_typed` keeps their names. arguments: what is typed
    there without an option's name.
    """
    wrong = [
        f"{source}: '{name}' = {value!r}: {told}"
        for name, value in values.items()
        if name not in typed
        and name in kind.model_fields
        and (told := _other_type(value, kind.model_fields[name].annotation))
    ]
    if wrong:
        raise UsageError(_joined(wrong, source))
    try:
        options = kind(**values)
    except ValidationError as error:
        lines = [_line(item, kind, source, typed, arguments) for item in error.errors()]
        raise UsageError(_joined(lines, source)) from None
    if "_typed" in kind.__private_attributes__:
        setattr(options, "_typed", frozenset(typed))  # noqa: B010 - not every model has it
    return options


def _line(
    item: Any,
    kind: type[BaseModel],
    source: str,
    typed: Collection[str],
    arguments: Collection[str],
) -> str:
    """What is wrong with one value, in words, and whose it is."""
    key = ".".join(str(part) for part in item["loc"])
    told = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{source}: unknown key '{key}'.{did_you_mean(key, kind.model_fields)}"
    if item["type"] == "missing":
        way = f"{key.upper()}, without an option's name" if key in arguments else _flag(key)
        return f"{source}: '{key}' is required ({way})"
    if not key:  # of several values together
        options = set(typed) - set(arguments)
        named = [_flag(name) for name in sorted(options) if re.search(rf"\b{name}\b", told)]
        return f"{', '.join(named) or source}: {told}"
    if (name := str(item["loc"][0])) in typed:
        said = name.upper() if name in arguments else _flag(name)
        return f"{said} {_shown(item['input'])}: {told}"
    return f"{source}: '{key}' = {item['input']!r}: {told}"


def _joined(lines: list[str], source: str) -> str:
    """The lines as one message, the source named once for those that follow each other."""
    prefix = f"{source}: "
    before = ["", *lines]
    return "; ".join(
        line.removeprefix(prefix) if last.startswith(prefix) else line
        for last, line in zip(before, lines, strict=False)
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    """A value as it was typed."""
    return value if isinstance(value, str) and value.isprintable() and value else repr(value)


def _other_type(value: Any, annotation: Any) -> str | None:
    """What is wrong with the type of a value of a recipe that pydantic would convert."""
    union = get_origin(annotation) in (Union, types.UnionType)
    kinds = set(get_args(annotation)) if union else {annotation}
    kinds.discard(type(None))
    plain = ", without quotation marks" if isinstance(value, str) else ""
    if isinstance(value, bool | str) and kinds <= _NUMBERS:
        return f"a number was expected{plain}"
    if not isinstance(value, bool) and kinds == {bool}:
        return f"true or false was expected{plain}"
    return None


def merged(recipe: dict[str, Any], typed: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """The values of a recipe with the typed ones over them. Of options that stand in each other's
    place (`EITHER` of the model), a typed one also replaces the other of the recipe."""
    replaced = {
        name
        for group in getattr(kind, "EITHER", ())
        if any(name in typed for name in group)
        for name in group
    }
    return {**{name: v for name, v in recipe.items() if name not in replaced}, **typed}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys of a TOML recipe, not yet validated. Raises `UsageError` where there is none."""
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"no recipe at {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
