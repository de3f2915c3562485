"""Command-line options out of a pydantic model, so that an option is written down once.

    command = command_from_fields(ClassifyOptions, run, help="Fine-tune a classifier.")
    app.command("classify")(command)

Every field becomes an option with the field's own description, default and choices; a boolean
becomes --name / --no-name. `--recipe FILE` gives values too, and typed ones win over it, so an
option that was not typed must be told from one typed with its default: all are None until typed.
Building them needs pydantic, therefore `filbert/cli.py` does it for the verb that is asked for.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

Run = Callable[[dict[str, Any], str | None, bool], None]
RECIPE = "TOML file with any of the options below"


def command_from_fields(
    model: type[BaseModel],
    run: Run,
    *,
    help: str,
    arguments: Sequence[str] = (),
    recipes: bool = True,
    instead: dict[str, str] | None = None,
    further: dict[str, FieldInfo] | None = None,
) -> Callable[..., None]:
    """A function that typer reads as a command with one option for each field of `model`.

    It calls `run(values, recipe, as_json)`: the values that were typed, by field name, the
    recipe's path or None, and whether `--json` was given. `arguments` name what is typed without an
    option, in this order: fields that are a text or, the last one, a list; or "recipe". `recipes`:
    whether there is a --recipe at all. `instead`: more options, each with its help, that are no
    fields; they name a folder. `further`: fields of another model that are options too.
    """
    options: dict[str, Any] = {}
    needed: list[str] = []
    for name in arguments:
        field = model.model_fields.get(name)
        shown: Any = typer.Argument(
            metavar=name.upper(), help=RECIPE if field is None else field.description
        )
        several = field is not None and get_origin(field.annotation) is list
        kind: Any = list[str] if several else str
        if not recipes and field is not None and field.is_required():
            needed.append(name)
        else:  # it may stand in the recipe
            kind = kind | None
        options[name] = Annotated[kind, shown]
    if recipes and "recipe" not in arguments:
        recipe: Any = typer.Option("--recipe", metavar="FILE", help=RECIPE)
        options["recipe"] = Annotated[str | None, recipe]
    for name, field in [*model.model_fields.items(), *(further or {}).items()]:
        if name in arguments:
            continue
        options[name] = Annotated[
            optional(plain(field.annotation)),
            typer.Option(
                *declarations(name, field.annotation),
                metavar=choices(field.annotation),
                help=f"{field.description}{default_text(field)}",
                show_default=False,
            ),
        ]
    for name, told in (instead or {}).items():
        shown = typer.Option(f"--{name}", metavar="FOLDER", help=told)
        options[name] = Annotated[str | None, shown]
    options["as_json"] = Annotated[bool, typer.Option("--json", help="Print the result as JSON")]

    def command(**typed: Any) -> None:
        recipe, as_json = typed.pop("recipe", None), typed.pop("as_json")
        given = {name: value for name, value in typed.items() if value not in (None, [])}
        run(given, recipe, as_json)

    defaults: dict[str, Any] = {"as_json": False, **dict.fromkeys(needed, inspect.Parameter.empty)}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=note
            )
            for name, note in options.items()
        ]
    )
    command.__annotations__ = options
    command.__doc__ = help
    return command


def declarations(name: str, annotation: Any) -> list[str]:
    """`--batch-tokens`, or `--windows/--no-windows` for a boolean."""
    flag = "--" + name.replace("_", "-")
    return [f"{flag}/--no-{flag[2:]}" if bool in members(annotation) else flag]


def members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def choices(annotation: Any) -> str | None:
    """`linear|cosine|constant` for a Literal of strings; None for any other type."""
    for member in members(annotation):
        if get_origin(member) is Literal:
            return "|".join(get_args(member))
    return None


def plain(annotation: Any) -> Any:
    """A Literal or a table becomes a string, which every typer takes: the model itself reads it."""
    table = any(get_origin(member) is dict for member in members(annotation))
    return str if choices(annotation) or table else annotation


def optional(annotation: Any) -> Any:
    """The type or None, for typer."""
    return annotation if type(None) in members(annotation) else annotation | None


def default_text(field: FieldInfo) -> str:
    """The default as the help shows it."""
    if field.is_required():
        return " [required]"
    if field.default is None:
        return ""
    if field.default in ({}, []):
        return ""
    if isinstance(field.default, bool):
        return " [on]" if field.default else " [off]"
    return f" [{field.default}]"


def print_json(value: Any) -> None:
    """`value` as JSON that any output encoding can hold."""
    plain = "utf" not in (sys.stdout.encoding or "utf-8").lower()  # stays JSON in any encoding
    print(json.dumps(value, ensure_ascii=plain, indent=2, default=str))
