"""Options out of a recipe or the command line, checked against the model that lists them.

A recipe is a TOML file whose keys are the fields of a pydantic model; an unknown key is an error
that names the nearest valid one.

    options = parse_options(read_recipe("recipe.toml"), PretrainOptions, source="recipe.toml")

At the bottom of the house, since the options of `data` and of `train` are read alike.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from filbert.errors import UsageError, did_you_mean

Options = TypeVar("Options", bound=BaseModel)


def parse_options(values: dict[str, Any], kind: type[Options], *, source: str) -> Options:
    """Validate `values` as a `kind`; `UsageError` names the wrong key, its neighbour or the wrong
    value. source: where the values come from, for messages."""
    try:
        return kind(**values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                hint = did_you_mean(key, kind.model_fields)
                lines.append(f"unknown key '{key}'.{hint}")
            elif item["type"] == "missing":
                lines.append(f"'{key}' is required (--{key.replace('_', '-')})")
            else:
                lines.append(f"'{key}' = {item['input']!r}: {item['msg']}")
        raise UsageError(f"{source}: " + "; ".join(lines)) from None


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys of a TOML recipe, not yet validated. Raises `UsageError` where there is none."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise UsageError(f"no recipe at {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
