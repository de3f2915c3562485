"""What `filbert predict` and `filbert evaluate` do with their options, whatever the task.

filbert predict runs/reviews "Great film."
filbert predict runs/qa --context file.txt "Who wrote it?"
filbert evaluate runs/reviews --data test.csv
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filbert.errors import FilbertError, UsageError

if TYPE_CHECKING:
    from filbert.infer.predict_options import EvaluateOptions, PredictOptions

READING = ("text_column", "pair_column", "format", "encoding", "header")
MACHINE = ("device", "precision", "batch_tokens", "threads", "core")
OF_A_TASK = (
    *("all_scores", "top", "targets", "threshold", "dimensions", "sentences", "max_words"),
    *("max_characters", "blocking", "best", "beams", "max_tokens", "min_tokens"),
    *("length_penalty", "no_repeat_ngram", "early_stopping", "sample", "temperature", "top_k"),
    *("top_p", "seed", "alignments"),
)


def predict(options: PredictOptions, as_json: bool) -> None:
    """Answer texts, standard input or a file."""
    texts = options.texts
    if options.file is not None and texts:
        raise UsageError("give texts or --file, not both")
    if options.file is None and (options.out is not None or options.resume):
        raise UsageError("--out and --resume belong to --file")
    if options.pair is not None and len(texts) != 1:
        raise UsageError("--pair goes with exactly one text")
    if options.context is not None and (options.file or options.pair is not None):
        raise UsageError("--context goes with neither --file nor --pair")
    from filbert.infer.empty_texts import empty_note, told
    from filbert.infer.predict import WINDOW, as_json_text, load

    if options.out is not None:
        check_not_the_model(options.out, options.bundle)
    model = load(options.bundle, **chosen(options, MACHINE))
    if options.perplexity:
        if not hasattr(model, "scorer"):
            raise not_for(model, "perplexity")
        model = model.scorer()
    given = task_options(options, model)
    if options.file is not None:
        write_file(options, model, given)
        return
    check_second(options, model)
    alone = len(texts) == 1
    window = 1 if sys.stdin is not None and sys.stdin.isatty() else WINDOW
    empty = 0
    for row, answer in answered(options, model, window=window, **given):
        if "error" not in answer and (note := empty_note(row)):
            empty += 1
            answer = {**answer, "note": note}
        asked = row[0] if options.context is not None and not isinstance(row, str) else row
        if as_json:
            print(as_json_text(answer))
        elif "error" in answer:
            print(f"error: {answer['error']}")
        else:
            print(model.line(answer, None if alone else asked))
    if empty:
        print(told(empty), file=sys.stderr)


def check_not_the_model(out: str, bundle: str) -> None:
    """`UsageError` where the answers would replace a file of the model that gives them."""
    from filbert.train.folder import is_ours

    target = Path(out)
    within = Path(bundle).is_dir() and target.resolve().is_relative_to(Path(bundle).resolve())
    if within and is_ours(target.name) and target.exists():
        raise UsageError(
            f"--out {out} is a file of the model {bundle}, which the answers would replace; name "
            "another --out"
        )


def check_second(options: PredictOptions, model: Any) -> None:
    """`UsageError` where a model of two texts is given one, or one of single texts two."""
    if not model.manifest.pair:
        for name in ("context", "pair"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name}: this model takes one text, not two")
    elif options.texts and options.context is None and options.pair is None:
        if model.manifest.task == "answer":
            raise UsageError(
                "a question is asked of a text: name its file with --context, or give the text "
                "itself with --pair"
            )
        raise UsageError("this model compares two texts; give the second one with --pair")


def answered(
    options: PredictOptions, model: Any, *, window: int, **given: Any
) -> Iterator[tuple[Any, Any]]:
    """Each text, or line of standard input, with its answer."""
    from filbert.data.tables import BadRow
    from filbert.infer.predict import stream
    from filbert.infer.typed_lines import answered_lines, typed_rows

    context = None
    if options.context is not None:
        from filbert.infer.answer import read_context

        context = read_context(options.context, encoding=options.encoding)
    if options.texts:
        second = options.pair if context is None else context
        rows = [text if second is None else (text, second) for text in options.texts]
        mine, theirs = tee(rows)  # the answers are behind by a window
        yield from zip(mine, stream(model, theirs, window=window, **given), strict=False)
        return
    lines = typed_rows(sys.stdin, pairs=model.manifest.pair and context is None)
    if context is not None:
        lines = (line if isinstance(line, BadRow) else (line, context) for line in lines)
    yield from answered_lines(model, lines, window=window, strict=options.strict, **given)


def write_file(options: PredictOptions, model: Any, given: dict[str, Any]) -> None:
    """Answer every row of a file; vectors into an array where the name says so."""
    assert options.file is not None
    reading = chosen(options, READING)
    if (options.out or "").endswith(".npy"):
        from filbert.infer.embed import Embedder, write_vectors

        if not isinstance(model, Embedder):
            raise UsageError(
                f"--out {options.out}: a model of the task {model.manifest.task} has no vectors; "
                "name a .jsonl file"
            )
        if options.resume:
            raise UsageError("--resume: an array of vectors is written whole; leave it out")
        if reading.pop("pair_column", None) is not None:
            raise UsageError("--pair-column: this model takes one text, not pairs")
        assert options.out is not None
        count = write_vectors(
            model, options.file, options.out, overwrite=options.overwrite, **reading, **given
        )
        print(f"{options.out}: {count:,} vectors", file=sys.stderr)
        return
    from filbert.infer.predict_file import predict_file

    report = predict_file(
        model, options.file, options.out, resume=options.resume, overwrite=options.overwrite,
        strict=options.strict, **reading, **given,
    )  # fmt: skip
    print(report.summary(options.out), file=sys.stderr)
    if 0 < report.rows == report.answered == report.failures:
        raise FilbertError("no row could be answered; is it the right file, column and --format?")


def task_options(options: PredictOptions, model: Any) -> dict[str, Any]:
    """The options of the task that were typed; `UsageError` for one that this model lacks."""
    given = {
        name: value
        for name in OF_A_TASK
        if (value := getattr(options, name)) is not None and value != []
    }
    if "top_k" in given and "best" not in model.OPTIONS:  # of filling it is --top
        raise not_for(model, "top_k")
    if "early_stopping" in given:
        known = {"true": True, "false": False, "never": "never"}
        given["early_stopping"] = known[given["early_stopping"]]
    if "top" in given and model.manifest.task in ("answer", "fill", "pretrain"):
        name, most = ("n_best", 1000) if model.manifest.task == "answer" else ("top_k", 100_000)
        if not 1 <= given["top"] <= most:
            raise UsageError(f"--top must be from 1 to {most:,}, got {given['top']}")
        given[name] = given.pop("top")
    for name in given:
        if name not in model.OPTIONS:
            raise not_for(model, name)
    return given


def not_for(model: Any, name: str) -> UsageError:
    """The error of an option that a task does not have."""
    return UsageError(
        f"--{name.replace('_', '-')} is not for a model of the task {model.manifest.task}"
    )


def chosen(options: Any, names: Iterable[str]) -> dict[str, Any]:
    """These fields, by name."""
    return {name: getattr(options, name) for name in names}


def evaluate(options: EvaluateOptions, as_json: bool) -> None:
    """Score a model on a labelled file."""
    from filbert.cli_options import print_json
    from filbert.infer import evaluate as layer

    rest = {
        name: value
        for name, value in options.model_dump(exclude_unset=True).items()
        if name not in ("bundle", "data", *MACHINE) and value is not None
    }
    result = layer.evaluate(options.bundle, options.data, **chosen(options, MACHINE), **rest)
    if as_json:
        print_json(result)
        return
    from rich.console import Console

    Console().print(layer.evaluation_table(result))
