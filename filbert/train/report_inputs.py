"""What the report page reads: the files of a run folder, as far as they are there.

Each file may be absent (a run that was stopped, a folder from elsewhere) or damaged; the page says
so in its place. Everything read here is only data to show, so shapes are checked where it is used.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filbert.tasks.metrics import MAIN_METRICS
from filbert.train.report_parts import Point
from filbert.train.track import METRICS_FILE, read_metrics

NAMES = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "f1_macro": "F1, macro",
    "f1_micro": "F1, micro",
    "mcc": "Matthews correlation",
    "auc": "Area under ROC",
    "ece": "Calibration error",
    "log_loss": "Log loss (nats)",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "Mean squared error",
    "mae": "Mean absolute error",
    "exact_match": "Exact match",
    "f1_answerable": "F1, answerable",
    "accuracy_unanswerable": "Left unanswered rightly",
    "precision": "Precision",
    "recall": "Recall",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "chrf": "chrF",
    "word_accuracy": "Words, accuracy",
    "recall@1": "Recall at 1",
    "recall@5": "Recall at 5",
    "recall@10": "Recall at 10",
    "mrr@10": "Mean reciprocal rank",
    "ndcg@10": "nDCG at 10",
    "loss": "Loss",
    "mlm_loss": "Masked words, loss",
    "mlm_accuracy": "Masked words, accuracy",
    "mlm_perplexity": "Masked words, perplexity",
    "pair_loss": "Pairs, loss",
    "pair_accuracy": "Pairs, accuracy",
}
TASKS = {
    "single_label_classification": "Classification, one label a text",
    "multi_label_classification": "Classification, several labels a text",
    "regression": "Regression",
}
OTHER_TASKS = {
    "answer": "Question answering",
    "embed": "Sentence vectors",
    "summarize": "Summaries",
    "tag": "Entities and other labels of words",
    "translate": "Translation",
}


@dataclass
class Run:
    """What the files of a run folder hold; an absent file is an empty value."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    notes: dict[str, str] = field(default_factory=dict)  # file -> what is wrong with it

    @property
    def pretrains(self) -> bool:
        """Whether this is a run of pre-training: its recipe alone has an objective."""
        return "objective" in self.recipe

    @property
    def task(self) -> str:
        """The task that the bundle names."""
        return str(self.manifest.get("task", ""))

    @property
    def problem_type(self) -> str:
        """A key of `TASKS`, or an empty string where no file tells."""
        for source in (self.evaluation, self.manifest, self.recipe):
            kind = source.get("problem_type")
            if isinstance(kind, str) and kind in TASKS:
                return kind
        return ""

    def points(self, kind: str, name: str) -> list[Point]:
        """(step, value) of the rows of a kind that have a finite number under `name`."""
        return [
            (float(row["step"]), value)
            for row in self.rows
            if row["kind"] == kind and (value := number(row.get(name))) is not None
        ]


def read_run(folder: Path) -> Run:
    """Read the files of a run folder; what is there but unreadable is noted."""
    run = Run(folder.resolve().name)
    run.rows, bad = read_metrics(folder / METRICS_FILE)
    if bad:
        lines = ", ".join(str(line) for line in bad[:10])
        run.notes[METRICS_FILE] = f"unreadable lines were left out: {lines}"
    run.evaluation = _read(folder / "evaluation.json", json.loads, run.notes)
    run.environment = _read(folder / "environment.json", json.loads, run.notes)
    run.manifest = _read(folder / "filbert.json", json.loads, run.notes)
    recipe = folder / "recipe.toml"
    run.recipe = _read(recipe, tomllib.loads, run.notes)
    if recipe.is_file():
        run.recipe_text = recipe.read_text(encoding="utf-8", errors="replace")
    return run


def _read(path: Path, parse: Callable[[str], Any], notes: dict[str, str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not TOML, not UTF-8, nested too deep
        notes[path.name] = f"could not be read: {error}"
        return {}
    if not isinstance(content, dict):
        notes[path.name] = "could not be read: it holds no object with keys"
        return {}
    return content


def number(value: object) -> float | None:
    """`value` as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def main_score(run: Run, among: Mapping[str, Any]) -> str:
    """The score that picked the best checkpoint: the recipe's, or the usual one of the task."""
    chosen = run.recipe.get("metric")
    usual = MAIN_METRICS.get(run.problem_type, "")
    first = next((name for name in among if name not in ("loss", "kind", "step", "epoch")), "")
    return next((str(m) for m in (chosen, usual, first) if m in among), "")


def matrix_of(run: Run) -> tuple[list[str], list[list[int]]] | None:
    """Labels and confusion matrix, if the evaluation holds a well-formed one."""
    labels, matrix = run.evaluation.get("labels"), run.evaluation.get("confusion")
    if not isinstance(labels, list) or not isinstance(matrix, list) or not labels:
        return None
    square = len(matrix) == len(labels) and all(
        isinstance(row, list) and len(row) == len(labels) and all(isinstance(n, int) for n in row)
        for row in matrix
    )
    return ([str(label) for label in labels], matrix) if square else None


def class_rows(run: Run) -> Iterator[tuple[str, dict[str, float]]]:
    """(label, scores): as the evaluation tells them, or counted from the confusion matrix."""
    per_class = run.evaluation.get("per_class")
    if isinstance(per_class, Mapping):
        for name, row in per_class.items():
            values = {k: number(v) for k, v in row.items()} if isinstance(row, Mapping) else {}
            known = {k: v for k, v in values.items() if v is not None}
            if {"precision", "recall", "f1", "support"} <= known.keys():
                yield str(name), known
    elif (found := matrix_of(run)) is not None:
        labels, matrix = found
        for k, name in enumerate(labels):
            right, support = matrix[k][k], sum(matrix[k])
            given = sum(row[k] for row in matrix)
            yield (
                name,
                {
                    "precision": right / given if given else 0.0,
                    "recall": right / support if support else 0.0,
                    "f1": 2 * right / (given + support) if given + support else 0.0,
                    "support": float(support),
                },
            )
