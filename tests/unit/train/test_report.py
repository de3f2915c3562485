"""The report page: what it says, that it is whole and safe whatever the run folder holds."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from filbert.tasks.calibrate import calibration_record
from filbert.tasks.metrics import classification_scores, examine
from filbert.train.report import write_report
from filbert.train.report_inputs import Run, class_rows
from filbert.train.track import Tracker

SINGLE = "single_label_classification"
VOID = {"meta", "link", "br", "hr", "img"}


class Nesting(HTMLParser):
    """Fails on a tag that is closed out of order or never."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def write(run: Path) -> str:
    """The page of `run`, checked to be well formed, complete in itself and without a script."""
    path = write_report(run)
    assert path == run / "report.html"
    page = path.read_bytes().decode("utf-8")
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []
    assert not nesting.seen & {"script", "img", "link", "iframe", "object", "style-src"}
    assert "default-src 'none'" in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(drawing)  # well-formed XML, too
    return page


def section(page: str, title: str) -> str:
    start = page.index(f"<h2>{title}</h2>")
    return page[start : page.index("</section>", start)]


def evaluated(run: Path, gold: list[int], predicted: list[int], labels: list[str]) -> None:
    """An evaluation in which row k is of class gold[k] and taken for predicted[k]."""
    logits = 3.0 * np.eye(len(labels))[predicted]
    record = examine(
        logits,
        np.array(gold),
        problem_type=SINGLE,
        labels=labels,
        texts=[f"text {k}" for k in range(len(gold))],
        ids=[f"folder/dev.csv:{k + 1}" for k in range(len(gold))],
        temperature=2.0,
    )
    (run / "evaluation.json").write_text(json.dumps(record))


def test_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    page = write(tmp_path)
    names = ("metrics.jsonl", "evaluation.json", "recipe.toml", "environment.json", "filbert.json")
    for name in names:
        assert f"No <code>{name}</code> in this folder yet" in page
    assert "<svg" not in page


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"problem_type": ')
    (tmp_path / "recipe.toml").write_text("a = = <b>")
    (tmp_path / "environment.json").write_text("[1, 2]")
    (tmp_path / "filbert.json").write_bytes(b"\xff\xfe{}")
    (tmp_path / "metrics.jsonl").write_text('nonsense\n{"kind":"train","step":1,"loss":0.5}\n')
    page = write(tmp_path)
    assert "<code>evaluation.json</code> could not be read" in page
    assert "<code>recipe.toml</code> could not be read" in page
    assert "<code>environment.json</code> could not be read: it holds no object" in page
    assert "<code>filbert.json</code> could not be read" in page
    assert "<code>metrics.jsonl</code> unreadable lines were left out: 1" in page
    assert "a = = &lt;b&gt;" in page  # shown as it stands


@pytest.mark.parametrize(
    "record",
    [
        {"problem_type": SINGLE},
        {"problem_type": SINGLE, "labels": ["a"], "confusion": [[1, 2]], "calibration": []},
        {"problem_type": SINGLE, "labels": 3, "scores": [], "worst": {"a": 1}, "per_class": [1]},
        {"problem_type": "regression", "scatter": {"gold": [1, None], "predicted": "x"}},
        {"problem_type": "multi_label_classification", "calibration": {"bins_before": [1]}},
        {"problem_type": ["?"], "scores": {"accuracy": "high"}, "rows": True},
    ],
)
def test_half_an_evaluation_is_shown_as_far_as_it_goes(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    assert "The evaluation holds no" in write(tmp_path)


def test_header_and_tiles(tmp_path: Path) -> None:
    evaluated(tmp_path, [0, 0, 1, 1], [0, 1, 1, 1], ["ham", "spam"])
    (tmp_path / "recipe.toml").write_text(
        'data = "sms.csv"\nbase = "some/base"\nholdout = 0.1\nmetric = "f1"\n'
    )
    (tmp_path / "environment.json").write_text(
        '{"started": "2025-03-04T09:11:12+00:00", "gpu": null, "nested": {"a": 1}}'
    )
    origin = {"made": "2025-03-04T09:15:40+00:00", "scored_on": "dev set, 4 rows"}
    (tmp_path / "filbert.json").write_text(json.dumps({"provenance": origin}))
    page = write(tmp_path)
    for fact in ("sms.csv", "some/base", "2025-03-04 09:11:12 UTC", "dev set, 4 rows"):
        assert f"<dd>{fact}</dd>" in page
    assert "<dd>10% of the training rows, held out</dd>" in page
    tiles = re.findall(r'<div class="(tile[^"s]*)"><b>(.*?)</b><span>(.*?)</span>', page)
    assert tiles[0] == ("tile main", "0.8000", "F1")  # 2 of 3 found right, both found
    assert ("tile", "0.7500", "Accuracy") in tiles
    assert "F1, micro" not in page  # it is the accuracy
    assert '<td data-name="Key">nested.a</td><td data-name="Value">1</td>' in page
    assert "base = &quot;some/base&quot;" in section(page, "Settings")


def test_undefined_score(tmp_path: Path) -> None:
    evaluated(tmp_path, [0, 0], [0, 1], ["ham", "spam"])
    assert "<b>undefined</b><span>Area under ROC</span>" in write(tmp_path)


def test_curves_mark_the_best(tmp_path: Path) -> None:
    with Tracker(tmp_path, total_steps=60, tensorboard=False, quiet=True) as tracker:
        for step in range(1, 61):
            tracker.train(step, step / 20, 1 / step, 5e-5, 1.0, 100, 0.1 * step)
            if step % 20 == 0:
                scores = {20: (0.5, 0.9), 40: (0.4, 0.95), 60: (0.45, 0.95)}[step]
                tracker.evaluation(step, step / 20, {"loss": scores[0], "accuracy": scores[1]})
    training = section(write(tmp_path), "Training")
    titles = re.findall(r"<figcaption>(.*?)<", training)
    assert titles == [
        "Training loss",
        "Loss on the dev set",
        "Accuracy on the dev set",
        "Learning rate",
        "Gradient norm before clipping",
        "Speed",
    ]
    best = re.findall(r'class="best">best</span> (.*?)</p>', training)
    # the lowest loss, the highest accuracy; of equals the first, as in training
    assert best == ["0.4000 after step 40", "0.9500 after step 40"]
    assert "learning rate (×10⁻⁵)" in training
    assert training.count("optimizer step") == 6


def test_a_metric_for_which_less_is_better(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('metric = "mse"\nproblem_type = "regression"\n')
    with Tracker(tmp_path, total_steps=2, tensorboard=False, quiet=True) as tracker:
        tracker.evaluation(1, 0.5, {"pearson": 0.9, "mse": 0.25})
        tracker.evaluation(2, 1.0, {"pearson": 0.8, "mse": 0.5})
    assert "best</span> 0.2500 after step 1" in write(tmp_path)


def test_a_long_record_stays_a_small_page(tmp_path: Path) -> None:
    row = '{{"kind": "train", "step": {}, "loss": {}, "lr": 1e-05, "grad_norm": null}}\n'
    lines = (row.format(k, 2 + math.sin(k)) for k in range(1, 30_001))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    page = write(tmp_path)
    assert len(page) < 60_000
    assert "Gradient norm" not in page  # not one of its values is a number


def test_confusion_shows_counts_and_shares(tmp_path: Path) -> None:
    evaluated(tmp_path, [0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 2, 0], ["a", "b", "c"])
    cells = re.findall(r'<td class="(\w+)" title=".*?">(.*?)</td>', write(tmp_path))
    assert cells == [
        ("r7", "2<small>67%</small>"),
        ("w3", "1<small>33%</small>"),
        ("zero", "·"),
        ("zero", "·"),
        ("r10", "1<small>100%</small>"),
        ("zero", "·"),
        ("w5", "1<small>50%</small>"),
        ("zero", "·"),
        ("r5", "1<small>50%</small>"),
    ]


def test_many_classes_show_the_confused_pairs(tmp_path: Path) -> None:
    labels = [f"c{k}" for k in range(31)]
    gold = [*range(31), 4, 4, 4, 7]
    predicted = [*range(31), 5, 5, 6, 8]
    evaluated(tmp_path, gold, predicted, labels)
    page = write(tmp_path)
    confusion = section(page, "Confusion")
    assert 'class="heat' not in confusion
    rows = re.findall(
        r'"Gold">(\w+)<.*?"Predicted">(\w+)<.*?"Rows">(\d+)<.*?">([\d.]+)<', confusion
    )
    assert rows == [
        ("c4", "c5", "2", "0.500"),
        ("c4", "c6", "1", "0.250"),
        ("c7", "c8", "1", "0.500"),
    ]
    assert "The 3 most frequent of 3 confused pairs (4 of 4 mistakes)" in confusion
    assert "<summary>31 classes, lowest F1 first</summary>" in section(page, "By class")
    assert section(page, "By class").index(">c4<") < section(page, "By class").index(">c0<")


def test_classes_counted_from_the_matrix_equal_the_scorer() -> None:
    rng = np.random.default_rng(0)
    labels = list("abcd")
    scores = classification_scores(
        rng.normal(size=(90, 4)), rng.integers(0, 4, size=90), labels=labels
    )
    run = Run("x", evaluation={"labels": labels, "confusion": scores["confusion"]})
    for name, row in class_rows(run):
        assert row == pytest.approx(scores["per_class"][name], abs=1e-12)


def test_calibration_shows_both_sides(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    logits, gold = 4 * rng.normal(size=(300, 3)), rng.integers(0, 3, size=300)
    record = examine(
        logits, gold, problem_type=SINGLE, labels=["a", "b", "c"],
        texts=[""] * 300, ids=[""] * 300, temperature=4.0,
    )  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    shown = section(write(tmp_path), "Calibration")
    calibration = record["calibration"]
    assert f"Before: error {calibration['ece_before']:.4f}" in shown
    assert f"With temperature 4.00: error {calibration['ece_after']:.4f}" in shown
    filled = [b for side in ("before", "after") for b in calibration[f"bins_{side}"] if b["count"]]
    assert shown.count('<rect class="bar"') == len(filled)
    assert shown.count('class="few"') == sum(part["count"] < 10 for part in filled)


@pytest.mark.parametrize("task", ["answer", "tag"])
def test_calibration_and_worst_of_answers_and_tags(tmp_path: Path, task: str) -> None:
    rng = np.random.default_rng(2)
    before = rng.random(400)
    right = rng.random(400) < before**2  # too sure of itself
    told = calibration_record(before, before**2, right, temperature=1.5)
    assert told is not None and told["ece_after"] < told["ece_before"]
    worst = [{"id": "q7", "text": "Who <b>?", "pair": None, "gold": "Ada", "predicted": "Bob",
              "probability": 0.97}]  # fmt: skip
    record = {"task": task, "scores": {"f1": 0.5}, "calibration": told, "worst": worst}
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    (tmp_path / "filbert.json").write_text(json.dumps({"task": task}))
    page = write(tmp_path)
    shown = section(page, "Calibration")
    name = {"answer": "With temperature 1.50", "tag": "As answered"}[task]
    assert f"Before: error {told['ece_before']:.4f}" in shown
    assert f"{name}: error {told['ece_after']:.4f}" in shown
    assert {"answer": "share that is exactly right", "tag": "share that is right"}[task] in shown
    assert "Who &lt;b&gt;?" in section(page, "Surest mistakes")
    # labels of words have nothing that mends them: one chart
    told = calibration_record(before, before, right, temperature=1.5)
    (tmp_path / "evaluation.json").write_text(json.dumps({**record, "calibration": told}))
    assert ("Before: error" in section(write(tmp_path), "Calibration")) == (task == "answer")
    (tmp_path / "evaluation.json").write_text(json.dumps({**record, "calibration": None}))
    assert "Calibration</h2>" not in write(tmp_path)  # no entity was found


def test_several_labels(tmp_path: Path) -> None:
    record = examine(
        [[2.0, -2.0], [3.0, -1.0]], [[1, 0], [0, 1]],
        problem_type="multi_label_classification", labels=["x", "y"],
        texts=["right", "wrong"], ids=["1", "2"], thresholds=[0.25, 0.5],
    )  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    page = write(tmp_path)
    assert "<h2>Confusion</h2>" not in page
    assert '<td class="number" data-name="Threshold">0.250</td>' in section(page, "By class")
    assert "share that has the label" in section(page, "Calibration")
    mistakes = section(page, "Surest mistakes")
    assert "wrong" in mistakes
    assert ">right<" not in mistakes


def test_regression(tmp_path: Path) -> None:
    gold = np.linspace(0, 5, 40)
    record = examine(
        gold + np.where(np.arange(40) == 7, -2.0, 0.1), gold, problem_type="regression", labels=[],
        texts=[f"text {k}" for k in range(40)], pairs=["other"] * 40, ids=["r"] * 40,
    )  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    page = write(tmp_path)
    assert section(page, "Predictions").count('class="point"') == 40
    assert "<h2>Calibration</h2>" not in page
    errors = section(page, "Largest errors")
    assert errors.index("text 7<") < errors.index("text 8<")
    assert "Probability" not in errors
    assert 'class="pair" dir="auto">other' in errors


HOSTILE = [
    "<script>alert(1)</script>",
    "</style></svg></td>&amp;<!--",
    "\" onmouseover='x' `y`",
    "bell \x07 escape \x1b[31m null \x00 and \x85 c1 \x9b",
    "right-to-left \u202e override",
    "half a pair \ud800",
    "x" * 5000,
    "",
    "line\nbreak\r\n\ttab",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(tmp_path: Path, text: str) -> None:
    run = tmp_path / "run <b> & 'x'"
    run.mkdir()
    evaluated(run, [0, 1, 1], [0, 0, 1], ["a", "b"])
    record = json.loads((run / "evaluation.json").read_text())
    record["labels"] = [text + "a", text + "b"]
    record["per_class"] = {text: {"precision": 1, "recall": 1, "f1": 1, "support": 1}}
    record["scores"][text + "?"] = 0.5
    record["worst"] = [
        {
            "id": text,
            "text": text,
            "pair": text,
            "gold": text,
            "predicted": [text],
            "probability": 1,
        }
    ]
    (run / "evaluation.json").write_text(json.dumps(record))
    recipe = text.replace("\x00", "").encode("utf-8", "replace")
    (run / "recipe.toml").write_bytes(b"# " + recipe)
    (run / "environment.json").write_text(json.dumps({text: text}))
    page = write(run)
    assert "<script" not in page
    assert "onmouseover='" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert len(page) < 80_000


def test_an_earlier_page_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    assert write(tmp_path).startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
