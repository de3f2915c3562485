"""The verbs whose options stand in a model of options: each a few lines that call the layer below.

    filbert vocab corpus/ --out vocab/
    filbert prepare corpus/ --vocab vocab/ --out shards/
    filbert pretrain recipes/bert-mini.toml --data shards/ --out runs/mini
    filbert train classify --data reviews.csv --base runs/mini --out runs/reviews

`cli.py` registers them; nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from filbert.cli_options import command_from_fields
from filbert.errors import UsageError

Options = TypeVar("Options")


@dataclass(frozen=True)
class Verb:
    """A verb: its help, where its options stand, and what carries it out."""

    name: str
    help: str
    options: str  # module:class
    run: Callable[[Any, bool], None]  # takes the options and whether --json was given
    argument: str | None = None
    group: str = ""
    # options that name a folder and do something else with it: help, and what
    instead: dict[str, tuple[str, Callable[[str, bool], None]]] = field(default_factory=dict)

    def command(self) -> Callable[..., None]:
        """The command, with an option for each field."""
        module, name = self.options.split(":")
        model = getattr(import_module(module), name)

        def carry_out(values: dict[str, Any], recipe: str | None, as_json: bool) -> None:
            other = [name for name in self.instead if name in values]
            if other and len(values) > 1:
                raise UsageError(f"--{other[0]} stands alone, without other options")
            if other:
                self.instead[other[0]][1](values[other[0]], as_json)
            else:
                self.run(parse(values, recipe, model, verb=self.name), as_json)

        return command_from_fields(
            model, carry_out, help=self.help, argument=self.argument,
            instead={name: told for name, (told, _) in self.instead.items()},
        )  # fmt: skip


def parse(values: dict[str, Any], recipe: str | None, model: type[Any], *, verb: str) -> Any:
    """The options that were typed, over those of the recipe."""
    from filbert.train.options import parse_options, read_recipe

    try:
        given = {**(read_recipe(recipe) if recipe is not None else {}), **values}
    except OSError as error:
        raise UsageError(
            f"recipe {recipe}: {error.strerror or error}; a TOML file was expected"
        ) from None
    return parse_options(given, model, source=recipe or verb)


def trainer(where: str, then: str) -> Callable[[Any, bool], None]:
    """What carries out `filbert train TASK`. `where`: module:function, called with the options;
    `then`: what to type next, with {out} in it."""

    def run(options: Any, as_json: bool) -> None:
        module, name = where.split(":")
        result = getattr(import_module(module), name)(options, quiet=False)
        if as_json:
            names = ("scores", "best_step", "steps", "seeds")
            shown = {name: getattr(result, name) for name in names}
            print_json({"out": str(result.out), **shown, "seconds": round(result.seconds, 3)})
            return
        if len(result.seeds) > 1:
            print(f"mean of {len(result.seeds)} seeds; each of them: {result.out}/seeds.json")
        print_scores(result)
        print("next: " + then.format(out=result.out))

    return run


def _pretrain(options: Any, as_json: bool) -> None:
    from filbert.train.pretrain import pretrain

    result = pretrain(options, quiet=False)
    if not result.speaks:
        return
    if as_json:
        shown = {name: getattr(result, name) for name in ("scores", "best_step", "steps")}
        print_json({"out": str(result.out), **shown, "seconds": round(result.seconds, 3)})
        return
    print_scores(result)
    print(f"next: filbert train classify --base {result.out} --data FILE --out FOLDER")


def _vocab(options: Any, as_json: bool) -> None:
    from filbert.data.learn_vocab import learn_vocabulary

    result = learn_vocabulary(options, quiet=False)
    if as_json:
        print_json(result.report)
    else:
        print(result)


def _prepare(options: Any, as_json: bool) -> None:
    from filbert.data.prepare import prepare

    shown = prepare(options, quiet=False).model_dump()
    counts = shown["counts"]
    if as_json:
        print_json({"out": options.out, "sources": shown["sources"], **counts})
        return
    left_out = {"duplicates": counts["duplicates"], "near duplicates": counts["near_duplicates"],
                **counts["filtered"]}  # fmt: skip
    print(
        f"{counts['documents']:,} documents, {counts['sentences']:,} sentences, "
        f"{counts['tokens']:,} tokens in {len(shown['shards'])} shards; left out: "
        + ", ".join(f"{number:,} {reason}" for reason, number in left_out.items())
    )
    print(f"next: filbert pretrain recipes/bert-mini.toml --data {options.out} --out FOLDER")


def _verify(folder: str, as_json: bool) -> None:
    from filbert.data.shards import open_shards

    shards = open_shards(folder, verify="full")
    found = {"out": folder, "whole": True, **shards.manifest.counts.model_dump()}
    if as_json:
        print_json(found)
    else:
        print(f"{folder}: {len(shards.shards)} shards, every file is what its checksum says")


def _inspect_shards(folder: str, as_json: bool) -> None:
    from filbert.tasks.inspect_shards import as_text, inspect_shards

    found = inspect_shards(folder)
    if as_json:
        print_json(found)
    else:
        print(as_text(found))


def print_scores(result: Any) -> None:
    """A table of scores and where they were reached."""
    from rich.console import Console

    from filbert.tasks.metrics import score_table

    Console().print(score_table(result.scores))
    steps = f"best at step {result.best_step:,} of {result.steps:,}"
    print(f"{result.out}: {steps}, {result.seconds:.0f} s")


def print_json(value: Any) -> None:
    """`value` as JSON that any output encoding can hold."""
    import sys

    plain = "utf" not in (sys.stdout.encoding or "utf-8").lower()  # stays JSON in any encoding
    print(json.dumps(value, ensure_ascii=plain, indent=2, default=str))


VERBS = (
    Verb(
        "vocab",
        "Learn a WordPiece vocabulary from plain text.",
        "filbert.data.vocab_options:VocabOptions",
        _vocab,
        argument="corpus",
    ),
    Verb(
        "prepare",
        "Turn plain text into shards of token ids to pre-train on.",
        "filbert.data.prepare_options:PrepareOptions",
        _prepare,
        argument="corpus",
        instead={
            "inspect": ("Show what is in these shards, and samples", _inspect_shards),
            "verify": ("Read every file of these shards against its checksum", _verify),
        },
    ),
    Verb(
        "classify",
        "Fine-tune a classifier: one label, several labels or a number for a text or a pair.",
        "filbert.train.options:ClassifyOptions",
        trainer("filbert.train.classify:train_classify", 'filbert predict {out} "a text of yours"'),
        group="train",
    ),
    Verb(
        "pretrain",
        "Pre-train a BERT on prepared text, or go on with one.",
        "filbert.train.pretrain_options:PretrainOptions",
        _pretrain,
        argument="recipe",
    ),
)
