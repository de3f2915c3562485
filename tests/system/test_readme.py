"""What the documents tell people to type is true.

- Every `filbert ...` line of a ```bash block in README, docs and recipes is parsed by the command
  line as it is now: verbs, options, values. Nothing runs.
- Every `make ...` line names a target that exists, every link to a file leads to one, and every
  name that a ```python block imports from filbert is there.
- The ```bash blocks of README.md between two `<!-- test: commands -->` comments do run, in order,
  in one empty folder. README.zh-CN.md holds the same commands.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import filbert

ROOT = Path(__file__).resolve().parents[2]
MARK = "<!-- test: commands -->"
RUN_SECONDS = 500

DOCUMENTS = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
        *(ROOT / "recipes").rglob("*.md"),
    }
)
# a line "command  filbert ..." of a recipe's header, with the lines that it goes on in
COMMAND_OF_RECIPE = re.compile(r"^\s*(?:command:?\s+)?(filbert (?:.*\\\n)*.*)$", re.I | re.M)
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document, with the number of its first line."""

    language: str
    line: int
    code: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document."""
    found = []
    fence, language, start = "", "", 0
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.match(r"\s*(```+|~~~+)\s*([\w+-]*)", line)
        if match and not fence:
            fence, language, start, lines = match[1], match[2], number + 1, []
        elif fence and line.strip() == fence:
            found.append(Block(language, start, "\n".join(lines)))
            fence = ""
        elif fence:
            lines.append(line)
    assert not fence, f"the block at line {start} is never closed"
    return found


def shell_commands(code: str) -> list[list[str]]:
    """The words of every simple command in a piece of shell; heredocs and redirections left out."""
    commands: list[list[str]] = []
    pending, heredoc = "", ""
    for line in code.splitlines():
        if heredoc:
            heredoc = "" if line.strip() == heredoc else heredoc
            continue
        pending += line.removeprefix("$ ")
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        opened = re.search(r"<<-?\s*(['\"]?)(\w+)\1", pending)
        shell = re.sub(r"<<-?\s*(['\"]?)\w+\1|\d?>&\d", " ", pending)
        lexer = shlex.shlex(shell, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation that goes on in the next line
            pending += "\n"
            continue
        pending, heredoc = "", opened[2] if opened else ""
        command: list[str] = []
        skip = False
        for word in [*words, ";"]:
            if skip:
                skip = False
            elif set(word) <= set("<>"):
                skip = True  # the file of a redirection
            elif set(word) <= set(";&|()"):
                commands += [command] if command else []
                command = []
            else:
                command.append(word)
    assert not pending, f"never closed: {pending}"
    return commands


def filbert_words(command: list[str]) -> list[str] | None:
    """What follows `filbert` in a command, or None if it is another program's."""
    words = list(command)
    while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] in {"time", "nice"}):
        words.pop(0)
    if words[:1] == ["filbert"]:
        return words[1:]
    for index in range(len(words) - 1):
        if words[index : index + 2] == ["-m", "filbert"]:
            return words[index + 2 :]
    return None


@pytest.fixture(scope="module")
def command_line() -> Any:
    """The whole tree of commands, as the parser sees it."""
    from typer.main import get_command

    from filbert import cli
    from filbert.cli_verbs import VERBS

    cli.add_verbs([verb.name for verb in VERBS])
    return get_command(cli.app)


def parse(command: Any, words: list[str]) -> None:
    """Parse `words` and run nothing; AssertionError says what the command line does not know."""
    rest = list(words)
    names = ["filbert"]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no verb '{' '.join([*names, rest[0]])}'"
        names.append(rest[0])
        command = command.commands[rest.pop(0)]
    try:
        command.make_context(" ".join(names), rest)
    except Exception as error:  # noqa: BLE001 - told below, whichever it is
        # --help and --version end the parsing with success
        code = getattr(error, "exit_code", 1)
        message = error.format_message() if hasattr(error, "format_message") else repr(error)
        assert code == 0, f"filbert {shlex.join(words)}: {message}"


def mistakes(command_line: Any, code: str) -> list[str]:
    """Every filbert command of a piece of shell that does not parse, with the reason."""
    found = []
    for command in shell_commands(code):
        words = filbert_words(command)
        if words is not None:
            try:
                parse(command_line, words)
            except AssertionError as error:
                found.append(str(error))
    return found


@each_document
def test_commands_parse(document: Path, command_line: Any) -> None:
    text = document.read_text(encoding="utf-8")
    wrong = [
        f"line {block.line}: {mistake}"
        for block in blocks(text)
        if block.language in {"bash", "sh", "shell", "console"}
        for mistake in mistakes(command_line, block.code)
    ]
    assert wrong == []


@each_document
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.language in {"bash", "sh", "shell", "console"}:
            for command in shell_commands(block.code):
                if command[0] == "make":
                    named = {word for word in command[1:] if re.fullmatch("[a-z]+", word)}
                    assert named <= targets, f"line {block.line}: {shlex.join(command)}"


@each_document
def test_python_names_exist(document: Path) -> None:
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.language not in {"python", "py"}:
            continue
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("filbert"):
                module = __import__(str(node.module), fromlist=["_"])
                for alias in node.names:
                    assert hasattr(module, alias.name), f"line {block.line}: {ast.unparse(node)}"


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (document.parent / target).exists(), f"{target} is not there"


def marked_code(document: Path) -> list[str]:
    """The bash code between pairs of marks."""
    parts = document.read_text(encoding="utf-8").split(MARK)
    assert len(parts) % 2 == 1, f"{document.name}: a mark is never closed"
    regions = parts[1::2]
    assert regions, f"{document.name} marks no commands with {MARK}"
    return [
        block.code for region in regions for block in blocks(region) if block.language == "bash"
    ]


def test_both_readmes_hold_the_same_commands() -> None:
    english, chinese = (
        [shell_commands(code) for code in marked_code(ROOT / name)]
        for name in ("README.md", "README.zh-CN.md")
    )
    assert english == chinese


def test_readme_commands_run(tmp_path: Path, minilm: Path) -> None:
    code = "\n".join(marked_code(ROOT / "README.md"))
    programs = {command[0] for command in shell_commands(code)}
    assert "filbert" in programs
    assert not programs & {"make", "git", "pip", "curl", "wget"}, "these are no part of a test"

    # `filbert` is this checkout, whatever is installed
    shim = tmp_path / "bin" / "filbert"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m filbert "$@"\n')
    shim.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe(recipe: Path, command_line: Any) -> None:
    from filbert.cli_verbs import VERBS
    from filbert.train.options import parse_options, read_recipe

    values = read_recipe(recipe)
    # what a recipe leaves to the command line
    told = re.search(r"filbert (?:train )?([a-z-]+)", recipe.read_text(encoding="utf-8"))
    assert told is not None
    verb = next(verb for verb in VERBS if verb.name == told[1])
    module, name = verb.options.split(":")
    kind, pretrains = getattr(importlib.import_module(module), name), verb.name == "pretrain"
    wanted = ("data", "out") if pretrains else ("data", "base", "out")
    typed = {name: "typed" for name in wanted if name not in values}
    options = parse_options({**typed, **values}, kind, source=str(recipe))
    assert {name: getattr(options, name) for name in values} == values

    lines = recipe.read_text(encoding="utf-8").splitlines()
    header = "\n".join(re.sub(r"^#\s?", "", line) for line in lines if line.startswith("#"))
    commands = re.findall(COMMAND_OF_RECIPE, header)
    assert commands, "the header does not say how to run it"
    assert any(recipe.name in command for command in commands)
    for command in commands:
        assert mistakes(command_line, command) == []


# The reading of shell itself


def test_shell_is_read_as_a_shell_reads_it() -> None:
    code = """\
# a comment
cat > reviews.csv <<'END'
filbert not a command
END
filbert train classify --data reviews.csv \\
    --out runs/a   # another comment
HF_HUB_OFFLINE=1 filbert predict runs/a "one; two" | head -3 && echo done
printf 'a\\nb\\n' | filbert predict runs/a > out.txt 2>&1
$ filbert doctor
torchrun --nproc-per-node 8 -m filbert pretrain recipes/bert-mini.toml
filbert predict runs/a "two
lines"
"""
    ours = [words for c in shell_commands(code) if (words := filbert_words(c)) is not None]
    assert ours == [
        ["train", "classify", "--data", "reviews.csv", "--out", "runs/a"],
        ["predict", "runs/a", "one; two"],
        ["predict", "runs/a"],
        ["doctor"],
        ["pretrain", "recipes/bert-mini.toml"],
        ["predict", "runs/a", "two\nlines"],
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("filbert doctor", ""),
        ("filbert --help", ""),
        ("filbert predict --help", ""),
        ("filbert dokter", "no verb 'filbert dokter'"),
        ("filbert train regress --data x", "no verb 'filbert train regress'"),
        ("filbert doctor --jsn", "--jsn"),
        ("filbert predict", "BUNDLE"),
        ("filbert train classify --data a.csv --base b --out c --epochs many", "many"),
        ("filbert train classify --data a.csv --base b --out c --epochs 2", ""),
    ],
)
def test_wrong_commands_are_noticed(line: str, complaint: str, command_line: Any) -> None:
    found = mistakes(command_line, line)
    if complaint:
        assert len(found) == 1
        assert complaint in found[0]
    else:
        assert found == []


def test_names_that_are_promised_are_public() -> None:
    assert {"BertTokenizer", "BertForSequenceClassification", "load"} <= set(filbert.__all__)
