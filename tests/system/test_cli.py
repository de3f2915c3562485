"""The command line: its options are frozen, its messages help, its exit codes tell.

The list of verbs and options stands in cli_options.txt; a wanted change is written down with

    FILBERT_WRITE_OPTIONS=1 pytest tests/system/test_cli.py -k frozen
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import filbert
from filbert import cli
from filbert.cli_verbs import VERBS
from filbert.errors import FilbertError
from filbert.train.options import ClassifyOptions
from tests.tiny_bundle import tiny_bundle, tiny_encoder

ROOT = Path(__file__).resolve().parents[2]
FROZEN = Path(__file__).with_name("cli_options.txt")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("cli") / "bundle")


def run(*words: str) -> int:
    """Run one command in this process; its exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    code = left.value.code
    return code if isinstance(code, int) else 0 if code is None else 1


def process(*words: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "filbert", *words],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        timeout=120,
    )


# --- the surface ---------------------------------------------------------------------------------


def surface() -> list[str]:
    """Every verb with its arguments and options, one a line."""
    from typer.main import get_command

    cli.add_verbs([verb.name for verb in VERBS])

    def walk(command: Any, words: list[str]) -> list[str]:
        lines = []
        for name, inner in sorted(getattr(command, "commands", {}).items()):
            lines += walk(inner, [*words, name])
        for parameter in command.params:
            names = "/".join([*parameter.opts, *parameter.secondary_opts])
            if "completion" not in names:  # typer's own
                needed = " (required)" if parameter.required else ""
                lines.append(f"{' '.join(words)} {names}{needed}".strip())
        return lines

    return walk(get_command(cli.app), [])


def test_the_options_are_frozen() -> None:
    found = "\n".join(surface()) + "\n"
    if os.environ.get("FILBERT_WRITE_OPTIONS"):
        FROZEN.write_text(found, "utf-8")
    assert found == FROZEN.read_text("utf-8"), "verbs or options changed; see this file's docstring"


def test_every_training_option_is_a_field() -> None:
    options = {line.split()[2] for line in surface() if line.startswith("train classify ")}
    for name, field in ClassifyOptions.model_fields.items():
        flag = "--" + name.replace("_", "-")
        wanted = f"{flag}/--no-{flag[2:]}" if "bool" in str(field.annotation) else flag
        assert wanted in options
    assert options - {"--recipe", "--json"} == {
        option
        for option in options
        if option.split("/")[0][2:].replace("-", "_") in ClassifyOptions.model_fields
    }


def test_help_names_every_verb_and_loads_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    told = capsys.readouterr().out
    for verb in ("train", "predict", "evaluate", "inspect", "demo", "doctor", "convert"):
        assert f"  {verb}" in told
    code = (
        "import sys\nfrom filbert.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pydantic', 'numpy', 'tokenizers', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_help_of_training_shows_defaults_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "classify", "--help") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Highest learning rate [5e-05]" in told
    assert "--schedule linear|cosine|constant" in told
    assert "--windows / --no-windows" in told and "[required]" in told


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"filbert {filbert.__version__}\n"


def test_completion_knows_the_training_options() -> None:
    done = process(
        _FILBERT_COMPLETE="complete_bash", COMP_WORDS="filbert train classify --lab", COMP_CWORD="3"
    )
    assert done.stdout.split() == ["--label-smoothing", "--label-column", "--label-separator"]


# --- training ------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[ClassifyOptions]:
    """Catches the options that reach training, instead of training."""
    import filbert.train.classify as layer

    seen: list[ClassifyOptions] = []

    def catch(options: ClassifyOptions, **others: Any) -> None:
        seen.append(options)
        raise FilbertError("caught")

    monkeypatch.setattr(layer, "train_classify", catch)
    return seen


def test_typed_options_win_over_the_recipe(trained: list[ClassifyOptions], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'data = "a.csv"\nbase = "b"\nout = "c"\nlr = 1e-3\nwindows = true\nepochs = 7\n'
        'schedule = "cosine"\n',
        "utf-8",
    )
    typed = ["--lr", "2e-5", "--no-windows", "--out", "d", "--epochs", "3.0"]
    assert run("train", "classify", "--recipe", str(recipe), *typed) == 1
    (options,) = trained
    assert (options.lr, options.windows, options.out, options.data) == (2e-5, False, "d", "a.csv")
    assert options.schedule == "cosine"
    assert options.epochs == 3.0  # typed, though it is the default: it wins all the same


def test_plain_options_reach_training(trained: list[ClassifyOptions]) -> None:
    words = "--data r.csv --base M --out o --header --label-smoothing 0.1 --batch-size 4 --seeds 3"
    assert run("train", "classify", *words.split()) == 1
    (options,) = trained
    assert options == ClassifyOptions(
        data="r.csv", base="M", out="o", header=True, label_smoothing=0.1, batch_size=4, seeds=3
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--data a --out o", "'base' is required (--base)"),
        ("--data a --base b --out o --epochs -1", "--epochs -1.0"),
        ("--data a --base b --out o --schedule round", "'linear', 'cosine', 'constant' or 'wsd'"),
        ("--recipe nowhere.toml", "no recipe at nowhere.toml"),
        ("--data a --base b --out o --learning-rate 3", "--learning-rate"),
        ("--epochs many", "Invalid value for '--epochs'"),
    ],
)
def test_wrong_training_options_are_usage_errors(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "classify", *words.split()) == 2
    assert told in capsys.readouterr().err


def test_an_unknown_key_of_a_recipe_names_its_neighbour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('data = "a"\nbase = "b"\nout = "c"\nepoch = 3\n', "utf-8")
    assert run("train", "classify", "--recipe", str(recipe)) == 2
    told = capsys.readouterr().err
    assert "unknown key 'epoch'" in told and "Did you mean 'epochs'?" in told and "r.toml" in told


def test_a_whole_round_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, evaluate, predict with what the verbs print; the base is a tiny encoder."""
    base = tiny_encoder(tmp_path / "base")
    data = tmp_path / "sms.csv"
    letters = "abcdefghijklmnopqrst"
    rows = [("spam", f"{a} free {b}") for a, b in zip(letters, letters[3:], strict=False)]
    rows += [("ham", f"{a} lunch {b}") for a, b in zip(letters, letters[5:], strict=False)]
    data.write_text("label,text\n" + "".join(f"{a},{b}\n" for a, b in rows), "utf-8")
    out = tmp_path / "run"
    words = ["--data", str(data), "--base", str(base), "--out", str(out), "--lr", "1e-2"]
    settings = [
        "--dev",
        str(data),
        "--epochs",
        "20",
        "--batch-tokens",
        "32",
        "--precision",
        "float32",
        "--json",
    ]
    assert run("train", "classify", *words, *settings) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["out"] == str(out) and result["scores"]["accuracy"] == 1.0
    assert run("evaluate", str(out), "--data", str(data), "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["rows"] == 32 and scores["scores"]["accuracy"] > 0.9
    assert run("evaluate", str(out), "--data", str(data)) == 0
    assert "accuracy" in capsys.readouterr().out
    assert run("predict", str(out), "z free z") == 0
    assert capsys.readouterr().out.startswith("spam\t")
    assert run("train", "classify", *words) == 2
    assert "--resume goes on with it, --overwrite starts again" in capsys.readouterr().err


# --- prediction ----------------------------------------------------------------------------------


def test_predict_arguments(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from filbert.infer.predict import load

    expected = load(bundle)("lunch home")
    assert run("predict", str(bundle), "lunch home", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == expected
    assert run("predict", str(bundle), "lunch home") == 0
    assert capsys.readouterr().out == f"{answer['label']}\t{answer['score']:.4f}\n"
    assert run("predict", str(bundle), "a", "b", "--all-scores") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].endswith("\tb") and "ham 0." in lines[0]


def test_predict_standard_input(bundle: Path) -> None:
    done = process("predict", str(bundle), "--json", stdin="free\n\n你好\r\nlunch")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert all(json.loads(line)["label"] in ("ham", "spam") for line in done.stdout.splitlines())


def test_predict_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tiny_bundle(tmp_path / "pairs", pair=True)
    assert run("predict", str(pairs), "the bank", "--pair", "the river", "--json") == 0
    one = json.loads(capsys.readouterr().out)

    class Piped:
        buffer = io.BytesIO(b"the bank\tthe river\n")

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Piped())
    assert run("predict", str(pairs), "--json") == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(one["score"], abs=1e-5)
    Piped.buffer = io.BytesIO(b"the bank\n")
    assert run("predict", str(pairs)) == 1
    assert "line 1: this model compares two texts" in capsys.readouterr().err
    Piped.buffer = io.BytesIO(b"a\tb\n\xff\tc\nd\te\n")
    assert run("predict", str(pairs), "--json") == 0
    told = capsys.readouterr()
    answers = [json.loads(line) for line in told.out.splitlines()]
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert answers[1]["error"].startswith("standard input, line 2: not UTF-8")
    assert "1 line has no answer but an error. standard input, line 2: not UTF-8" in told.err
    for content, *strict in ((b"a\tb\n\xff\tc\n", "--strict"), (b"\xff\n",)):
        Piped.buffer = io.BytesIO(content)
        assert run("predict", str(pairs), *strict) == 1
        assert "not UTF-8" in capsys.readouterr().err


def test_predict_files(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("text\nfree\nlunch\n", "utf-8")
    assert run("predict", str(bundle), "--file", str(source)) == 0
    told = capsys.readouterr()
    assert [json.loads(line)["row"] for line in told.out.splitlines()] == [1, 2]
    assert "2 rows" in told.err
    assert run("predict", str(bundle), "--file", str(source), "--out", str(out)) == 0
    assert out.read_text("utf-8") == told.out
    assert capsys.readouterr().out == ""
    assert run("predict", str(bundle), "--file", str(source), "--out", str(out)) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["text", "--file", "x.csv"], "texts or --file, not both"),
        (["--out", "x.jsonl"], "--out and --resume belong to --file"),
        (["a", "b", "--pair", "c"], "exactly one text"),
        (["a", "--device", "tpu"], "tpu"),
        (["--file", "nowhere.csv"], "nowhere.csv"),
        (["a", "--precision", "int3"], "int3"),
    ],
)
def test_predict_usage_errors(
    bundle: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", str(bundle), *words) == 2
    message = capsys.readouterr().err
    assert told in message and message.startswith("error: ")


def test_a_reader_that_leaves_is_no_error(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("free prize\n" * 20_000, "utf-8")
    command = f"{sys.executable} -m filbert predict {bundle} --file {source} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout)["row"] == 1
    assert "Traceback" not in done.stderr and "Broken pipe" not in done.stderr


# --- the other verbs -----------------------------------------------------------------------------


def test_inspect(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "a.svg"
    assert run("inspect", str(bundle), "the bank", "--layer", "0", "--out", str(picture)) == 0
    told = capsys.readouterr()
    assert "attention of layer 0, head 0" in told.out and "prediction:" in told.out
    assert str(picture) in told.err and picture.read_text("utf-8").startswith("<svg")
    assert run("inspect", str(bundle), "the bank", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert sum(data["attention"]["weights"][0]) == pytest.approx(1, abs=1e-4)
    assert run("inspect", str(bundle), "the bank", "--head", "9") == 2
    assert "this model has 4" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["healthy"] is True
    assert any(finding["name"] == "torch" for finding in data["findings"])


def test_convert_tells_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", str(tmp_path), str(tmp_path / "out")) in (1, 2)
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


# --- how commands end ----------------------------------------------------------------------------


def ends(
    error: BaseException, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Exit code and message of a command that raises `error`."""
    import filbert.doctor

    def fail() -> None:
        raise error

    monkeypatch.setattr(filbert.doctor, "examine", fail)
    return run("doctor"), capsys.readouterr().err


def test_endings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ends(FilbertError("no good"), capsys, monkeypatch) == (1, "error: no good\n")
    assert ends(KeyboardInterrupt(), capsys, monkeypatch) == (130, "interrupted\n")
    assert ends(KeyboardInterrupt("kept 3"), capsys, monkeypatch) == (130, "kept 3\n")
    full = OSError(28, "No space left on device", "/x/y")
    assert ends(full, capsys, monkeypatch) == (
        1,
        "error: /x/y: No space left on device. Free some space and try again\n",
    )
    assert "--batch-tokens" in ends(MemoryError(), capsys, monkeypatch)[1]


def test_a_defect_leaves_its_traceback_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("FILBERT_DEBUG", raising=False)
    code, told = ends(ZeroDivisionError("oh"), capsys, monkeypatch)
    assert (
        code == 1 and told.startswith("error: ZeroDivisionError: oh\n") and "Traceback" not in told
    )
    (log,) = tmp_path.glob("filbert-error-*.log")
    assert str(log) in told and "Traceback" in log.read_text("utf-8")
    monkeypatch.setenv("FILBERT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["predict", "no-such-folder-here", "text"], 1),
        (["evaluate", "no-such-folder-here", "--data", "x.csv"], 1),
        (["inspect", "no-such-folder-here", "text"], 1),
        (["fly"], 2),
        (["predict"], 2),
    ],
)
def test_no_traceback_for_a_users_mistake(words: list[str], code: int) -> None:
    done = process(*words, HF_HUB_OFFLINE="1")
    assert done.returncode in (code, 2), done.stderr
    assert done.stderr.strip() and "Traceback" not in done.stderr


def test_too_little_memory_is_no_defect(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torchs = "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you"
    mmap = "unable to mmap 90867952 bytes from file <m.safetensors>: Cannot allocate memory (12)"
    others = (mmap, "CUDA out of memory. Tried", "Exception during initialization: std::bad_alloc")
    for error in (RuntimeError(torchs), MemoryError(), *map(RuntimeError, others)):
        code, told = ends(error, capsys, monkeypatch)
        assert code == 1 and told.startswith("error: not enough memory") and "defect" not in told


def test_system_errors_say_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, advice in ((17, "name another place"), (21, "name a file"), (36, "shorter name")):
        code, told = ends(OSError(number, os.strerror(number), "/x"), capsys, monkeypatch)
        assert code == 1 and told.startswith("error: /x: ") and advice in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["convert", "x", ""], "OUT is empty"),
        (["predict", "m", "a", "--out", ""], "--out and --resume belong to --file"),
        (["train", "classify", "--recipe", "/"], "recipe /: Is a directory"),
        (["train", "classify", "--recipe", "r" * 5000], "File name too long"),
    ],
)
def test_empty_and_impossible_paths(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("ending", "code", "told"),
    [
        ("a < /dev/null > /dev/full", 1, "standard output: No space left on device. It took"),
        ("--file README.md --format text < /dev/null > /dev/full", 1, "No space left on device"),
        ("a >&-", 1, "standard output: Bad file descriptor. It took"),
        ("--json a <&-", 0, ""),
        ("<&-", 1, "standard input is closed"),
        ("--file - <&-", 1, "standard input is closed"),
        ("a --threads 99999999999999 <&-", 2, "threads must be at least 1 and at most 1,024"),
        ("a 2>&-", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(bundle: Path, ending: str, code: int, told: str) -> None:
    command = f"{sys.executable} -m filbert predict {bundle} {ending}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # else the answer fails before it is whole
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert told in done.stderr and "defect" not in done.stderr


def test_an_output_that_lacks_characters(bundle: Path) -> None:
    done = process("predict", str(bundle), "你", "é", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[2] for line in done.stdout.splitlines()] == ["\\u4f60", "\\xe9"]
