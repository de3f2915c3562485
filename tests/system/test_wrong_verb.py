"""A verb that is given a model of another task says which command fits that model."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from filbert.bundle import COMMANDS, Manifest, Task, what_fits
from filbert.cli import main
from filbert.model import native
from tests.tiny_tasks import TASKS, task_bundle

# what is typed, with {b} for the bundle and {qa} for a model of questions; the tasks that it takes
VERBS = {
    "ask": ("ask docs who --bundle {b}", "answer"),
    "ask --embed": ("ask docs who --bundle {qa} --embed {b}", "embed"),
    "search": ("search a.txt who --bundle {b}", "embed"),
    "rank": ("rank {b} who --file a.txt", "rank"),  # not a classifier of single texts
    "quantize": ("quantize {b} --data a.tsv --out o", "classify rank tag answer embed"),
    "export": (
        "export {b} --format torch --out o",
        "classify rank tag answer embed fill pretrain",
    ),
}
ANSWERING = [task for task in TASKS if task != "encode"]  # which `load` refuses, for every verb
REFUSED = [
    (verb, task)
    for verb, (_, fits) in VERBS.items()
    for task in ANSWERING
    if task not in fits.split()
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tasks")
    return {task: str(task_bundle(folder / task, task)) for task in ANSWERING}


@pytest.mark.parametrize(("verb", "task"), REFUSED)
def test_the_command_that_fits_is_named(
    bundles: dict[str, str], verb: str, task: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if verb == "quantize":  # as if it were there
        monkeypatch.setattr(native, "library", lambda: None)
    words = VERBS[verb][0].format(b=bundles[task], qa=bundles["answer"])
    with pytest.raises(SystemExit) as left:
        main(words.split())
    told = capsys.readouterr().err.strip()
    assert left.value.code in (1, 2)
    assert told.endswith(f". What fits it: {COMMANDS[task].format(bundle=bundles[task])}")
    assert not list(tmp_path.iterdir())


def test_the_command_of_every_task() -> None:
    assert list(COMMANDS) == list(get_args(Task))
    pairs = Manifest(task="classify", problem_type="regression", pair=True)
    assert what_fits("my runs/a", pairs) == (
        'What fits it: filbert predict \'my runs/a\' "a text" --pair "another text"'
    )
