"""The report page of a run: one self-contained HTML file, drawn from the files in the run folder.

It shows the scores, the training curves, which classes are confused, how far the probabilities can
be believed, and the worst mistakes. No network, no script, no plotting library; it can be mailed.

    write_report(Path("runs/reviews"))     # -> runs/reviews/report.html

Inputs: metrics.jsonl (`track.py`), evaluation.json (`tasks/metrics.py`, `examine`), recipe.toml,
environment.json, filbert.json, read by `report_inputs.py`. The sections are in
`report_sections.py`, their drawings in `report_parts.py`, the colours in `report.css`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filbert.atomic import write_file
from filbert.train.report_inputs import (
    NAMES,
    OTHER_TASKS,
    TASKS,
    Run,
    main_score,
    number,
    read_run,
)
from filbert.train.report_parts import heat_css, shown, table
from filbert.train.report_sections import (
    absent,
    by_class,
    calibration,
    confusion,
    curves,
    predictions,
    scrolled,
    section,
    worst,
)
from filbert.train.track import clock

REPORT_FILE = "report.html"
MOST_TILES = 8


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder, atomically, and return its path.

    Raises `FilbertError` if the file cannot be written; damaged inputs are named on the page.
    """
    folder = Path(run)
    target = folder / REPORT_FILE
    write_file(target, page(read_run(folder)))
    return target


def page(run: Run) -> str:
    """The whole page as HTML."""
    style = (Path(__file__).with_name("report.css")).read_text(encoding="utf-8")
    kind = run.problem_type
    sections = [header(run), tiles(run), curves(run)]
    if run.pretrains:
        pass  # the curves say it all
    elif not run.evaluation:
        sections.append(section("Evaluation", absent(run, "evaluation.json", "the end of a run")))
    elif kind == "regression":
        sections += [predictions(run), worst(run)]
    elif run.task in OTHER_TASKS:  # what the evaluation of this one has
        has = run.evaluation
        sections += [by_class(run)] if has.get("per_class") else []
        sections += [calibration(run)] if has.get("calibration") else []
        sections += [worst(run)] if has.get("worst") else []
    else:
        sections += [confusion(run), by_class(run), calibration(run), worst(run)]
    sections += [settings(run), environment(run)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # the page can load nothing, whatever text it shows
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown(run.name, 80)}: filbert report</title>\n"
        f"<style>\n{style}{heat_css()}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def header(run: Run) -> str:
    """Name and facts: task, base, data, dates."""
    origin = run.manifest.get("provenance")
    origin = origin if isinstance(origin, Mapping) else {}
    labels = run.evaluation.get("labels") or run.manifest.get("labels") or []
    steps = run.points("train", "loss")
    seconds = run.points("train", "seconds")
    data = run.recipe.get("data") or origin.get("data")
    held_out = run.recipe.get("dev")
    if data and not held_out and (share := number(run.recipe.get("holdout"))):
        held_out = f"{share:.0%} of the training rows, held out"
    rows = number(run.evaluation.get("rows"))
    facts = {
        **pretraining_facts(run, origin),
        "Task": "Pre-training"
        if run.pretrains
        else {**TASKS, **OTHER_TASKS}.get(run.problem_type or run.task),
        "Classes": f"{len(labels):,}" if isinstance(labels, list) and labels else None,
        "Base model": run.recipe.get("base") or origin.get("base"),
        "Training data": data,
        "Development data": held_out,
        "Scored on": origin.get("scored_on") or (f"{rows:,.0f} rows" if rows else None),
        "Started": _date(run.environment.get("started")),
        "Finished": _date(origin.get("made")),
        "Training time": clock(seconds[-1][1]) if seconds else None,
        "Optimizer steps": f"{steps[-1][0]:,.0f}" if steps else None,
        "Seed": origin.get("seed", run.recipe.get("seed")),
        "Compute precision": run.environment.get("precision"),
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd>{shown(value)}</dd></div>"
        for name, value in facts.items()
        if value is not None
    )
    facts_list = f'<dl class="facts">{items}</dl>' if items else ""
    return (
        f'<header>\n<p class="soft">filbert report</p>\n<h1>{shown(run.name, 120)}</h1>\n'
        f"{facts_list}\n</header>"
    )


def pretraining_facts(run: Run, origin: Mapping[str, Any]) -> dict[str, str | None]:
    """What was learned, from how much text."""
    if not run.pretrains:
        return {}
    shape = [
        run.recipe.get(key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    ]
    tokens, samples = number(origin.get("corpus_tokens")), number(origin.get("samples"))
    rate = number(run.recipe.get("mask_rate"))
    return {
        "Encoder": None if origin.get("base") else "{} layers, width {}, {} heads".format(*shape),
        "Sentence objective": str(run.recipe.get("objective")),
        "Masks": f"{run.recipe.get('masking')}, {rate:.0%} of the tokens" if rate else None,
        "Corpus": f"{tokens:,.0f} tokens" if tokens else None,
        "Samples read": f"{samples:,.0f} of {lengths_read(run)}" if samples else None,
        "Average speed": average_speed(run),
    }  # fmt: skip


def lengths_read(run: Run) -> str:
    """How long samples were at most, in both phases."""
    told = f"at most {run.recipe.get('max_length')} tokens"
    last, share = number(run.recipe.get("last_length")), number(run.recipe.get("last_share"))
    return (
        told if last is None else f"{told}, {last:,.0f} in the last {share or 0.1:.0%} of the run"
    )


def average_speed(run: Run) -> str | None:
    """Tokens a second over all training steps, evaluation and saving left out."""
    tokens = sum(value for _, value in run.points("train", "tokens"))
    seconds = run.points("train", "seconds")
    if not tokens or not seconds or not seconds[-1][1]:
        return None
    return f"{tokens / seconds[-1][1]:,.0f} tokens a second"


def _date(value: object) -> str | None:
    """An ISO date and time as people read it."""
    if not isinstance(value, str):
        return None
    return value.replace("T", " ", 1).replace("+00:00", " UTC")


def tiles(run: Run) -> str:
    """The scores, the main one first."""
    scores = run.evaluation.get("scores")
    if not isinstance(scores, Mapping) or not scores:
        return ""
    if run.pretrains:
        loss = number(scores.get("mlm_loss"))
        scores = {k: v for k, v in scores.items() if k != "loss"}
        if loss is not None and loss < 100:
            scores["mlm_perplexity"] = math.exp(loss)
    main = main_score(run, scores)
    names = [main] if main in scores else []
    hidden = {main, "rows"}
    if run.problem_type == "single_label_classification":
        hidden.add("f1_micro")  # it equals the accuracy
    names += [name for name in scores if name not in hidden]
    parts = []
    for name in names[:MOST_TILES]:
        value = number(scores[name])
        text = "undefined" if value is None else f"{value:.4f}" if value < 100 else f"{value:,.1f}"
        style = "tile main" if name == main else "tile"
        label = shown(NAMES.get(name, name), 40)
        parts.append(f'<div class="{style}"><b>{text}</b><span>{label}</span></div>')
    return f'<div class="tiles">{"".join(parts)}</div>'


def settings(run: Run) -> str:
    """The recipe, folded."""
    if not run.recipe_text:
        return section("Settings", absent(run, "recipe.toml", "training"))
    text = shown(run.recipe_text, 20_000)
    damaged = absent(run, "recipe.toml", "") if "recipe.toml" in run.notes else ""
    body = (
        damaged + f'<details><summary>recipe.toml</summary><pre tabindex="0">{text}</pre></details>'
    )
    return section("Settings", body)


def environment(run: Run) -> str:
    """Versions and machine, and what the bundle says of itself; folded."""
    parts = []
    for name, content in (("environment.json", run.environment), ("filbert.json", run.manifest)):
        if content:
            rows = [[shown(key, 80), shown(value, 300)] for key, value in _flat(content)]
            body = scrolled(table(["Key", "Value"], rows, style="list narrow"))
            parts.append(f"<details><summary>{name}</summary>{body}</details>")
        else:
            parts.append(absent(run, name, "training"))
    return section("Environment", *parts)


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys as `outer.inner`, values as text."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield (
                f"{before}{key}",
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            )
