"""The command line: verbs only; each calls the layer that does the work.

    filbert train classify --data reviews.csv --base all-MiniLM-L6-v2 --out runs/reviews
    filbert predict runs/reviews "Great film."
    filbert --help

torch, pydantic and the rest load inside the verb that needs them, so that `--help` answers at once.
Exit codes: 0 done, 1 failed, 2 not understood, 130 interrupted. A mistake is told in one message; a
defect of filbert leaves its traceback in a file (FILBERT_DEBUG=1 shows it at once).
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Annotated, NoReturn, ParamSpec

import typer

from filbert import __version__
from filbert.cli_options import print_json
from filbert.cli_verbs import VERBS
from filbert.errors import FilbertError, UsageError, short_of_memory

# what to do about an OSError that nothing nearer to its cause has put into words
_ADVICE = {
    errno.ENOSPC: "Free some space and try again",
    errno.EEXIST: "A file stands where a folder is needed; name another place",
    errno.ENOTDIR: "A file stands where a folder is needed; name another place",
    errno.EISDIR: "That is a folder; name a file",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EACCES: "Choose another place or mend its permissions",
    errno.EPERM: "Choose another place or mend its permissions",
    errno.EROFS: "Nothing can be written there; choose another place",
    errno.ENOENT: "Mend the path",
}
STDOUT = "standard output"  # where an OSError has the name of a file
_MEMORY = (
    "error: not enough memory. A smaller --batch-tokens, where the command has it, or fewer "
    "--threads need less"
)

P = ParamSpec("P")

make = partial(
    typer.Typer, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app = make(help="Train, use and look into BERT models.")
train = make(help="Fine-tune a model on labelled rows.")
app.add_typer(train, name="train")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON")]


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the ways in which a command can end into a message and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            _flush()
            return
        except typer.Exit:
            raise
        except FilbertError as error:
            code, stopped = error.exit_code, error.exit_code == 130  # a run that saved, then left
            message = str(error) if stopped else f"error: {error}"
        except KeyboardInterrupt as error:
            code, message = 130, str(error) or "interrupted"
        except BrokenPipeError:  # the reader has seen enough, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code, message = 141, ""
        except OSError as error:
            code, message = 1, f"error: {_system_error(error)}"
        except Exception as error:
            code, message = 1, _MEMORY
            if not short_of_memory(error):
                if os.environ.get("FILBERT_DEBUG"):
                    raise
                message = _defect(error)
        if message:
            print(message, file=sys.stderr, flush=True)
        raise typer.Exit(code)

    return run


def _system_error(error: OSError) -> str:
    """What the system refused and what to do; a standard output that fails is written off."""
    where, advice = error.filename, _ADVICE.get(error.errno or 0, "Mend that and try again")
    try:
        _flush()
    except OSError as failed:
        where = where or failed.filename
    if where == STDOUT:  # else Python would try again at its end, and leave with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        advice = "It took not all of the answer; lead it to a file or a pipe, on a disk with space"
    return f"{f'{where}: ' if where else ''}{error.strerror or error}. {advice}"


def _flush() -> None:
    """Write standard output out; an `OSError` then says that it was this."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = STDOUT
        raise


def _prepare_streams() -> None:
    """Make the standard streams safe to write to: a closed one, one that lacks most characters."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole process
    if sys.stdout is None:  # a handle that cannot be written: an answer lost is an error
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _defect(error: Exception) -> str:
    import tempfile
    import traceback

    lines = str(error).strip().splitlines()
    with tempfile.NamedTemporaryFile(
        "w", prefix="filbert-error-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"filbert {__version__}: {' '.join(sys.argv)}\n\n{traceback.format_exc()}")
    return (
        f"error: {type(error).__name__}: {lines[0] if lines else '(no message)'}\n"
        f"This is a defect of filbert, not of your input. Please report it with {file.name} "
        "(FILBERT_DEBUG=1 shows the traceback at once)."
    )


def _version(wanted: bool) -> None:
    if wanted:
        print(f"filbert {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    """Train, use and look into BERT models."""


def add_verbs(typed: list[str]) -> None:
    """Register the verbs whose options stand in a model of options (filbert/cli_verbs.py). They are
    built only for a verb that is among the words typed, or for a shell that asks for completions:
    that needs pydantic."""
    everything = "_FILBERT_COMPLETE" in os.environ
    for verb in VERBS:
        place = train if verb.group == "train" else app
        full = everything or verb.name in typed
        command = guarded(verb.command()) if full else lambda: None
        place.command(verb.name, help=verb.help)(command)


@app.command()
@guarded
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, hub name or installed name of a BERT")
    ],
    text: Annotated[
        str, typer.Argument(help="A text; write [MASK] for a masked-word model to fill")
    ],
    pair: Annotated[str | None, typer.Option(help="Second text")] = None,
    layer: Annotated[
        int, typer.Option(help="Layer whose attention is shown, from 0; -1 is the last")
    ] = -1,
    head: Annotated[int, typer.Option(help="Attention head, from 0")] = 0,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw the attention into a .svg or .html file"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a model does to a text.

    Tokens, ids and offsets; the shape and the formula of each step; the attention of one head as a
    table and a picture; the prediction. Any BERT will do, with or without a head.
    """
    from filbert.infer import inspect as layer_of_work
    from filbert.infer import inspect_table

    found = layer_of_work.inspect_text(model, text, pair=pair, layer=layer, head=head)
    if as_json:
        print_json(found.to_dict())
    else:
        from rich.console import Console

        inspect_table.show(found, Console())
    if out is not None:
        path = inspect_table.draw(found, out)
        print(f"attention drawn into {path}", file=sys.stderr)


@app.command()
@guarded
def demo(
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where to (else in the user's cache)")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train again, even if it was done before")
    ] = False,
    text: Annotated[
        list[str] | None, typer.Option(help="A message to classify; may be repeated")
    ] = None,
) -> None:
    """Train a spam filter in a minute and try it."""
    from filbert.demo import run

    run(out, retrain=retrain, texts=text or [])


@app.command()
@guarded
def convert(
    source: Annotated[
        str, typer.Argument(metavar="DIR", help="Google TensorFlow checkpoint, or its folder")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write")],
) -> None:
    """Read a Google TensorFlow checkpoint.

    Writes a folder that filbert and Transformers open.
    """
    for what, path in (("DIR", source), ("OUT", out)):
        if not path.strip():
            raise UsageError(f"{what} is empty; a folder was expected")
    from filbert.model.convert import convert as work

    print(work(source, out))


@app.command()
@guarded
def doctor(as_json: Json = False) -> None:
    """Tell what this machine offers.

    Processor, libraries, compute path and why, caches, missing extras.
    """
    from filbert import doctor as layer

    findings = layer.examine()
    if as_json:
        print_json(layer.as_data(findings))
    else:
        layer.print_findings(findings)
    if not layer.healthy(findings):
        raise typer.Exit(1)


def main(words: list[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code. `words`: the arguments, else the process's."""
    _prepare_streams()
    typed = sys.argv[1:] if words is None else words
    add_verbs(typed)
    app(typed, prog_name="filbert")
    raise SystemExit(0)


if __name__ == "__main__":
    main()
