"""The verbs whose options stand in a model of options: each a few lines that call the layer below.

    filbert vocab corpus/ --out vocab/
    filbert prepare corpus/ --vocab vocab/ --out shards/
    filbert pretrain recipes/bert-mini.toml --data shards/ --out runs/mini
    filbert train classify --data reviews.csv --base runs/mini --out runs/reviews

`cli.py` registers them; nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from filbert import cli_predict
from filbert.cli_options import command_from_fields, print_json
from filbert.errors import UsageError

Options = TypeVar("Options")


@dataclass(frozen=True)
class Instead:
    """An option that names a folder and does something else with it than the verb does."""

    help: str
    # takes the folder, what else was typed, the recipe's path and whether --json was given
    run: Callable[[str, dict[str, Any], str | None, bool], None]
    options: str = ""  # module:class of the options that go with it
    takes: tuple[str, ...] = ()  # the names of those


@dataclass(frozen=True)
class Verb:
    """A verb: its help, where its options stand, and what carries it out."""

    name: str
    help: str
    options: str  # module:class
    run: Callable[[Any, bool], None]  # takes the options and whether --json was given
    arguments: tuple[str, ...] = ()
    recipes: bool = True
    group: str = ""
    instead: dict[str, Instead] = field(default_factory=dict)

    def command(self) -> Callable[..., None]:
        """The command, with an option for each field."""
        model = load(self.options)
        further: dict[str, Any] = {}  # options of what is done instead
        belongs: dict[str, str] = {}  # to which
        for option, other in self.instead.items():
            for name in other.takes:
                if name not in {*model.model_fields, "recipe"}:
                    further[name] = copy(load(other.options).model_fields[name])
                    further[name].description = f"With --{option}: {further[name].description}"
                    belongs[name] = option

        def carry_out(values: dict[str, Any], recipe: str | None, as_json: bool) -> None:
            option = next((name for name in self.instead if name in values), None)
            if option is not None:
                other, folder = self.instead[option], values.pop(option)
                given = [*values, *(["recipe"] if recipe else [])]
                if strange := [name for name in given if name not in other.takes]:
                    takes = ", ".join(map(flag, other.takes)) or "no other option"
                    raise UsageError(
                        f"{', '.join(map(flag, strange))} cannot stand beside --{option}, which "
                        f"takes {takes}"
                    )
                other.run(folder, values, recipe, as_json)
                return
            if strange := [name for name in values if name in belongs]:
                raise UsageError(f"{flag(strange[0])} goes with --{belongs[strange[0]]} FOLDER")
            options = parse(values, recipe, model, verb=self.name, arguments=self.arguments)
            self.run(options, as_json)

        def flag(name: str) -> str:
            return name.upper() if name in self.arguments else f"--{name.replace('_', '-')}"

        return command_from_fields(
            model, carry_out, help=self.help, arguments=self.arguments, recipes=self.recipes,
            instead={name: other.help for name, other in self.instead.items()}, further=further,
        )  # fmt: skip


def load(where: str) -> Any:
    """The class or function `module:name`."""
    module, name = where.split(":")
    return getattr(import_module(module), name)


def parse(
    values: dict[str, Any],
    recipe: str | None,
    model: type[Any],
    *,
    verb: str,
    arguments: tuple[str, ...] = (),
) -> Any:
    """The options that were typed, over those of the recipe. `arguments`: typed without a name."""
    from filbert.recipes import merged, parse_options, read_recipe

    try:
        given = merged(read_recipe(recipe) if recipe is not None else {}, values, model)
    except OSError as error:
        raise UsageError(
            f"recipe {recipe}: {error.strerror or error}; a TOML file was expected"
        ) from None
    return parse_options(
        given, model, source=recipe or verb, typed=values.keys(), arguments=arguments
    )


def trainer(where: str, then: str) -> Callable[[Any, bool], None]:
    """What carries out `filbert train TASK`. `where`: module:function, called with the options;
    `then`: what to type next, with {out} in it."""

    def run(options: Any, as_json: bool) -> None:
        result = load(where)(options, quiet=False)
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
    unknown = counts["unknown_tokens"] / max(1, counts["tokens"])
    print(
        f"{counts['documents']:,} documents, {counts['sentences']:,} sentences, "
        f"{counts['tokens']:,} tokens ({unknown:.1%} [UNK]) in {len(shown['shards'])} shards; "
        "left out: " + ", ".join(f"{number:,} {reason}" for reason, number in left_out.items())
    )
    print(f"next: filbert pretrain recipes/bert-mini.toml --data {options.out} --out FOLDER")


def _verify(folder: str, typed: dict[str, Any], recipe: str | None, as_json: bool) -> None:
    from filbert.data.shards import open_shards

    shards = open_shards(folder, verify="full")
    found = {"out": folder, "whole": True, **shards.manifest.counts.model_dump()}
    if as_json:
        print_json(found)
    else:
        print(f"{folder}: {len(shards.shards)} shards, every file is what its checksum says")


def _join(folder: str, typed: dict[str, Any], recipe: str | None, as_json: bool) -> None:
    from filbert.data.join_shards import join_shards

    manifest = join_shards(typed.get("corpus", []), folder)
    if as_json:
        print_json({"out": folder, **manifest.counts.model_dump()})
        return
    counts = manifest.counts
    print(
        f"{folder}: {counts.documents:,} documents, {counts.tokens:,} tokens in "
        f"{len(manifest.shards)} shards of {len(typed['corpus'])} folders; duplicates between the "
        "folders were not looked for"
    )


# Options of a run on which its samples depend.
SAMPLE_OPTIONS = (
    *("objective", "masking", "mask_rate", "short_prob", "mix"),
    *("max_length", "seed", "sample", "recipe"),
)


def _inspect_shards(folder: str, typed: dict[str, Any], recipe: str | None, as_json: bool) -> None:
    from filbert.tasks.inspect_shards import as_text
    from filbert.train.pretrain_inspect import inspect_samples
    from filbert.train.pretrain_options import InspectOptions

    # nothing is trained: samples may be of any length
    given = {"data": folder, "out": "", "steps": 1, "max_position_embeddings": 2**20, **typed}
    found = inspect_samples(parse(given, recipe, InspectOptions, verb="prepare --inspect"))
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


def _search(options: Any, as_json: bool) -> None:
    from filbert.infer.search import run_search

    run_search(options, as_json)


def _rank(options: Any, as_json: bool) -> None:
    from filbert.infer.rank import run_rank

    run_rank(options, as_json)


def _ask(options: Any, as_json: bool) -> None:
    from filbert.infer.ask import ask

    ask(options, as_json)


def _prune(options: Any, as_json: bool) -> None:
    from filbert.infer.prune import prune

    done = prune(options)
    if as_json:
        print_json({"out": str(done.out), **done.record, "seconds": round(done.seconds, 3)})
    else:
        print(done)


def _export(options: Any, as_json: bool) -> None:
    from filbert.infer.export import export

    done = export(options)
    if as_json:
        print_json({"out": str(done.out), **done.record, "seconds": round(done.seconds, 3)})
    else:
        print(done)


def _quantize(options: Any, as_json: bool) -> None:
    from filbert.infer.quantize import quantize

    done = quantize(options)
    if as_json:
        print_json(
            {"out": str(done.out), **done.int8.model_dump(), "seconds": round(done.seconds, 3)}
        )
    else:
        print(done)


def _benchmark(options: Any, as_json: bool) -> None:
    from filbert.infer.benchmark import benchmark
    from filbert.infer.benchmark_picture import as_markdown

    report = benchmark(options, quiet=False)
    if as_json:
        print_json(report)
        return
    print(as_markdown(report))
    if options.out is not None:
        print(f"\n{options.out}: benchmark.json, benchmark.md, benchmark.svg")


def task(name: str, help: str, then: str) -> Verb:
    """The verb `filbert train NAME`: its options and its function have the task's name."""
    module = name.replace("-", "_")
    kind = "".join(part.title() for part in name.split("-"))
    return Verb(
        name,
        help,
        f"filbert.train.{module}_options:{kind}Options",
        trainer(f"filbert.train.{module}:train_{module}", then),
        group="train",
    )


VERBS = (
    Verb(
        "vocab",
        "Learn a WordPiece vocabulary from plain text.",
        "filbert.data.vocab_options:VocabOptions",
        _vocab,
        arguments=("corpus",),
    ),
    Verb(
        "prepare",
        "Turn plain text into shards of token ids to pre-train on.",
        "filbert.data.prepare_options:PrepareOptions",
        _prepare,
        arguments=("corpus",),
        instead={
            "inspect": Instead(
                "Show what is in these shards, and samples as a run draws them",
                _inspect_shards,
                "filbert.train.pretrain_options:InspectOptions",
                SAMPLE_OPTIONS,
            ),
            "verify": Instead("Read every file of these shards against its checksum", _verify),
            "join": Instead(
                "Make one folder of several: CORPUS are the folders of shards",
                _join,
                takes=("corpus",),
            ),
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
        arguments=("recipe",),
    ),
    task(
        "tag",
        "Fine-tune a model that labels words: entities, parts of speech.",
        'filbert predict {out} "a text of yours"',
    ),
    task(
        "answer",
        "Fine-tune a model that answers questions from a text.",
        'filbert predict {out} --context FILE "a question of yours"',
    ),
    task(
        "embed",
        "Train sentence vectors.",
        'filbert search FILE "a query of yours" --bundle {out}',
    ),
    task(
        "few-shot",
        "Train a classifier from a few examples of each class.",
        'filbert predict {out} "a text of yours"',
    ),
    task(
        "summarize",
        "Fine-tune a model that picks the sentences of a summary.",
        "filbert predict {out} --file FILE",
    ),
    task(
        "translate",
        "Train a model that writes: translations, or summaries in its own words.",
        'filbert predict {out} "a text of yours"',
    ),
    Verb(
        "predict",
        "Answer texts, standard input or a file with a trained model.",
        "filbert.infer.predict_options:PredictOptions",
        cli_predict.predict,
        arguments=("bundle", "texts"),
        recipes=False,
    ),
    Verb(
        "evaluate",
        "Score a model on a labelled file.",
        "filbert.infer.predict_options:EvaluateOptions",
        cli_predict.evaluate,
        arguments=("bundle",),
        recipes=False,
    ),
    Verb(
        "ask",
        "Ask a folder of documents a question.",
        "filbert.infer.ask_options:AskOptions",
        _ask,
        arguments=("documents", "question"),
        recipes=False,
    ),
    Verb(
        "search",
        "Find the texts of a file that are nearest in meaning.",
        "filbert.infer.search_options:SearchOptions",
        _search,
        arguments=("file", "query"),
        recipes=False,
    ),
    Verb(
        "rank",
        "Order texts by how well they fit a query, with a model of pairs.",
        "filbert.infer.rank_options:RankOptions",
        _rank,
        arguments=("bundle", "query"),
        recipes=False,
    ),
    Verb(
        "prune",
        "Make a smaller model: fewer layers, heads or words.",
        "filbert.infer.prune_options:PruneOptions",
        _prune,
        arguments=("bundle",),
        recipes=False,
    ),
    Verb(
        "export",
        "Write a model for ONNX Runtime, OpenVINO, torch.export or TensorFlow.",
        "filbert.infer.export_options:ExportOptions",
        _export,
        arguments=("bundle",),
        recipes=False,
    ),
    Verb(
        "quantize",
        "Let a model compute in int8 where that loses next to nothing.",
        "filbert.infer.quantize_options:QuantizeOptions",
        _quantize,
        arguments=("bundle",),
        recipes=False,
    ),
    Verb(
        "benchmark",
        "Measure how fast a model answers here, beside other programs.",
        "filbert.infer.benchmark_options:BenchmarkOptions",
        _benchmark,
        arguments=("bundle",),
        recipes=False,
    ),
)
