"""The sections of the report page that draw: curves, confusion, calibration, mistakes.

Each takes the `Run` and returns HTML; where a file or a part of it is missing, a line that says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from filbert.tasks.metrics import lower_is_better
from filbert.train.report_inputs import NAMES, Run, class_rows, main_score, matrix_of, number
from filbert.train.report_parts import (
    Line,
    heat_map,
    line_chart,
    meter,
    reliability,
    scatter,
    shown,
    smoothed,
    table,
)
from filbert.train.track import METRICS_FILE

LARGEST_HEAT_MAP = 30
MOST_CONFUSED_PAIRS = 20
MOST_WORST = 30
SCORED = {  # task -> the axes of its calibration
    "answer": ("score of the answer", "share that is exactly right"),
    "tag": ("score", "share that is right"),
}


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading."""
    return f"<section>\n<h2>{title}</h2>\n{''.join(parts)}\n</section>"


def absent(run: Run, what: str, writer: str) -> str:
    """The line in the place of a file that is not there, or is damaged."""
    if what in run.notes:
        return f'<p class="absent"><code>{what}</code> {shown(run.notes[what])}</p>'
    return f'<p class="absent">No <code>{what}</code> in this folder yet: {writer} writes it.</p>'


def scrolled(content: str, *, fit: bool = False) -> str:
    """A box in which a wide table scrolls by itself; `fit`: no wider than a line of text."""
    return f'<div class="scroll{" medium" if fit else ""}">{content}</div>'


def curves(run: Run) -> str:
    """Loss, learning rate, gradient norm, speed; loss and main score on the dev set."""
    if run.pretrains:
        return pretraining_curves(run)
    loss = run.points("train", "loss")
    unit = "loss" if run.problem_type == "regression" else "loss (nats)"
    charts = []
    if loss:
        lines = [Line("each record", loss, "faint"), Line("smoothed", smoothed(loss))]
        charts.append(line_chart("Training loss", lines, y_label=unit))
    names = {name: None for row in run.rows if row["kind"] == "eval" for name in row}
    main = main_score(run, names)
    for name, label in (("loss", unit), (main, NAMES.get(main, main))):
        if points := run.points("eval", name):
            pick = min if lower_is_better(name) else max
            best = pick(points, key=lambda point: point[1])
            title = f"{NAMES.get(name, name)} on the dev set"
            charts.append(line_chart(title, [Line(title, points)], y_label=label, best=best))
    return charts_section(run, charts + course(run))


def course(run: Run) -> list[str]:
    """How the run went, whatever it learned: rate, gradients, speed."""
    return [
        line_chart(title, [Line(title, points)], y_label=label)
        for name, title, label in (
            ("lr", "Learning rate", "learning rate"),
            ("grad_norm", "Gradient norm before clipping", "gradient norm"),
            ("tokens_per_second", "Speed", "tokens a second"),
            ("mfu", "Share of the matrix-product rate in use", "share"),
        )
        if (points := run.points("train", name))
    ]


def pretraining_curves(run: Run) -> str:
    """Losses and accuracies in training and on held-out documents, then the course of the run."""
    charts = []
    for name, label in (
        ("mlm_loss", "nats a masked word"), ("mlm_accuracy", "share of masked words"),
        ("pair_loss", "nats a pair"), ("pair_accuracy", "share of pairs"),
    ):  # fmt: skip
        seen, held_out = run.points("train", name), run.points("eval", name)
        lines = []
        if seen:
            lines.append(Line("training", smoothed(seen), "faint"))
        if held_out:
            lines.append(Line("held-out documents", held_out))
        if lines:
            charts.append(line_chart(NAMES[name], lines, y_label=label))
    return charts_section(run, charts + course(run))


def charts_section(run: Run, charts: list[str]) -> str:
    """The section of the curves, or a line that says where they would come from."""
    if not charts:
        return section("Training", absent(run, METRICS_FILE, "training"))
    noted = absent(run, METRICS_FILE, "") if METRICS_FILE in run.notes else ""
    return section("Training", noted, f'<div class="charts">{"".join(charts)}</div>')


def confusion(run: Run) -> str:
    """Which class is taken for which: a heat map, or the most confused pairs of many classes."""
    title = "Confusion"
    if run.problem_type == "multi_label_classification":
        return ""  # a text has several labels: no cell to count it in
    found = matrix_of(run)
    if found is None:
        return section(title, '<p class="absent">The evaluation holds no confusion matrix.</p>')
    labels, matrix = found
    if len(labels) <= LARGEST_HEAT_MAP:
        return section(title, heat_map(labels, matrix))
    pairs = sorted(
        (
            (row[j], i, j)
            for i, row in enumerate(matrix)
            for j in range(len(row))
            if i != j and row[j]
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    if not pairs:
        return section(title, "<p>Not one row was given a wrong class.</p>")
    rows = [
        [shown(labels[i], 60), shown(labels[j], 60), f"{count:,}", meter(count / sum(matrix[i]))]
        for count, i, j in pairs[:MOST_CONFUSED_PAIRS]
    ]
    wrong = sum(count for count, _, _ in pairs)
    told = (
        f'<p class="soft">The {len(rows)} most frequent of {len(pairs):,} confused pairs '
        f"({sum(count for count, _, _ in pairs[: len(rows)]):,} of {wrong:,} mistakes).</p>"
    )
    columns = ["Gold", "Predicted", "#Rows", "#Share of the gold class"]
    return section(title, told, scrolled(table(columns, rows, style="list"), fit=True))


def by_class(run: Run) -> str:
    """Precision, recall and F1 of each class, the worst first; folded where there are many."""
    title = "By class"
    rows = list(class_rows(run))
    if not rows:
        return section(title, '<p class="absent">The evaluation holds no scores by class.</p>')
    rows.sort(key=lambda row: (row[1]["f1"], row[0]))
    thresholds = all("threshold" in row for _, row in rows)
    columns = ["Class", "#Precision", "#Recall", "#F1", "#Rows"]
    cells = [
        [
            shown(name, 80),
            *(meter(row[key]) for key in ("precision", "recall", "f1")),
            f"{row['support']:,.0f}",
            *([f"{row['threshold']:.3f}"] if thresholds else []),
        ]
        for name, row in rows
    ]
    content = scrolled(
        table(columns + ["#Threshold"] * thresholds, cells, style="list narrow"), fit=True
    )
    if len(rows) > LARGEST_HEAT_MAP:
        content = (
            f"<details><summary>{len(rows)} classes, lowest F1 first</summary>{content}</details>"
        )
    return section(title, content)


def calibration(run: Run) -> str:
    """How often the model is right at each level of confidence, before and after scaling: of its
    labels, or of what the task scores."""
    title = "Calibration"
    record = run.evaluation.get("calibration")
    if not isinstance(record, Mapping):
        return section(title, '<p class="absent">The evaluation holds no calibration.</p>')
    temperature = number(record.get("temperature")) or 1.0
    several = run.problem_type == "multi_label_classification"
    axes = (
        ("probability of the label", "share that has the label")
        if several
        else SCORED.get(run.task, ("confidence", "share that is right"))
    )
    sides = [("bins_before", "Before"), ("bins_after", f"With temperature {temperature:.2f}")]
    if run.task == "tag":  # entities have a scale and a shift of their own chance, words nothing
        alike = record.get("bins_before") == record.get("bins_after")
        sides = [*sides[: not alike], ("bins_after", "As answered")]
    charts = []
    for key, name in sides:
        bins = [
            (
                number(b.get("confidence")),
                number(b.get("accuracy")),
                int(number(b.get("count")) or 0),
            )
            for b in record.get(key) or []
            if isinstance(b, Mapping)
        ]
        rows = sum(count for _, _, count in bins)
        if rows:
            error = (
                sum(n * abs(a - c) for c, a, n in bins if c is not None and a is not None) / rows
            )
            charts.append(reliability(f"{name}: error {error:.4f}", bins, labels=axes))
    told = (
        "<p>Where a bar ends on the dashed line the probability can be believed; below it the "
        "model is too sure of itself, above it not sure enough. The dot marks the mean of the "
        "slice; pale bars rest on fewer than 10 cases. The error is the mean distance from the "
        "line, weighted by cases. What mends it was fitted on the development set.</p>"
    )
    return section(title, told, f'<div class="charts two">{"".join(charts)}</div>')


def worst(run: Run) -> str:
    """The mistakes of which the model was surest."""
    regression = run.problem_type == "regression"
    title = "Largest errors" if regression else "Surest mistakes"
    found = run.evaluation.get("worst")
    items = [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []
    if not items:
        return section(title, "<p>No mistake is recorded.</p>")
    rows = []
    for item in items[:MOST_WORST]:
        text = f'<div class="text" dir="auto">{_text(item.get("text"))}'
        if item.get("pair") is not None:
            text += f'<span class="pair" dir="auto">{_text(item["pair"])}</span>'
        probability = number(item.get("probability"))
        rows.append([
            _row_id(str(item.get("id", ""))),
            text + "</div>",
            _answer(item.get("gold")),
            _answer(item.get("predicted")),
            "" if probability is None else f"{probability:.3f}",
        ])  # fmt: skip
    columns = ["Row", "Text", "Gold", "Predicted", "#Probability"]
    if regression:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return section(title, scrolled(table(columns, rows, style="list texts")))


def _row_id(name: str) -> str:
    """`folder/reviews.csv:12` as `reviews.csv:12`, the whole of it on hovering."""
    end = name.replace("\\", "/").rpartition("/")[2]
    end = end if len(end) <= 28 else "…" + end[-27:]
    return f'<span class="id" title="{shown(name)}">{shown(end)}</span>'


def _text(value: object) -> str:
    return shown(value, 400) if value not in (None, "") else "<i>(empty)</i>"


def _answer(value: object) -> str:
    """A gold or predicted answer: a label, several, or a number."""
    if isinstance(value, list):
        return shown(", ".join(str(label) for label in value), 120) if value else "<i>none</i>"
    if (score := number(value)) is not None:
        return f"{score:.3f}"
    return shown("" if value is None else value, 120)


def predictions(run: Run) -> str:
    """Gold against predicted numbers."""
    title = "Predictions"
    found = run.evaluation.get("scatter")
    found = found if isinstance(found, Mapping) else {}
    gold, predicted = (
        side if isinstance(side := found.get(name), list) else [] for name in ("gold", "predicted")
    )
    both = ((number(x), number(y)) for x, y in zip(gold, predicted, strict=False))
    pairs = [(x, y) for x, y in both if x is not None and y is not None]
    if not pairs:
        return section(title, '<p class="absent">The evaluation holds no predicted values.</p>')
    chart = scatter("Gold and predicted", pairs, labels=("gold", "predicted"))
    return section(title, f'<div class="charts two">{chart}</div>')
