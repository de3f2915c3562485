"""What a run or an evaluation has to tell of a tagger: scores, by type, calibration, mistakes.

    record = examine(part, laid, gold, decoded, labels=labels, settings=settings)
    record["scores"]["f1"], record["per_class"], record["calibration"]["ece_after"]

The same keys as the record of a classifier (`filbert.tasks.metrics.examine`), so that one report
page shows both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.data.tag_layout import Laid
from filbert.data.tag_schemes import spans_of
from filbert.data.tagged import Tagged
from filbert.tasks.calibrate import calibration_record
from filbert.tasks.tag import Decoded, TagSettings, found_spans, join_words, score
from filbert.tasks.tag_scores import believed

Floats = NDArray[np.float64]
WORST = 20  # mistakes that are shown
LONGEST = 300  # characters of their text


def judged(
    decoded: Decoded, gold: Sequence[Sequence[str]], labels: Sequence[str]
) -> tuple[Floats, NDArray[np.bool_]]:
    """(entities,) the model's own chance of each entity that it found, and whether it is right."""
    spans, chances = found_spans(decoded, labels)
    right = [
        span in known
        for found, tags in zip(spans, gold, strict=True)
        for known in [set(spans_of(tags))]
        for span in found
    ]
    return chances, np.asarray(right, dtype=bool)


def examine(
    part: Tagged,
    laid: Laid,
    gold: Sequence[Sequence[str]],
    decoded: Decoded,
    *,
    labels: Sequence[str],
    settings: TagSettings,
    temperature: float,
    strict: bool = False,
) -> dict[str, Any]:
    """Scores of the sentences of `part`, and what the report page shows."""
    plain = settings.scheme == "plain"
    scores = score(gold, decoded.tags, plain=plain, strict=strict)
    if plain:
        before = decoded.chances.max(axis=1) if len(decoded.chances) else np.zeros(0)
        flat = [tag for tags in gold for tag in tags]
        answers = [tag for tags in decoded.tags for tag in tags]
        right = np.asarray([a == b for a, b in zip(flat, answers, strict=True)], dtype=bool)
        after = before
    else:
        before, right = judged(decoded, gold, labels)
        after = believed(before, settings.confidence)
    record: dict[str, Any] = {"task": "tag", "labels": list(labels)}
    told = calibration_record(before, after, right, temperature=temperature)
    if told is not None:
        record["calibration"] = told
        scores["ece"] = told["ece_after"]
    record["per_class"] = scores.pop("per_class")
    for name in ("rows", "words", "entities"):
        if name in scores:
            record[name] = scores.pop(name)
    record["scores"] = scores
    record["worst"] = _worst(part, laid, gold, decoded, after, right, labels, plain=plain)
    return record


def _worst(
    part: Tagged,
    laid: Laid,
    gold: Sequence[Sequence[str]],
    decoded: Decoded,
    chances: Floats,
    right: NDArray[np.bool_],
    labels: Sequence[str],
    *,
    plain: bool,
) -> list[dict[str, Any]]:
    """The wrong answers of which the model was surest, with what was right in their place."""
    places: list[tuple[int, int, int, str]] = []  # example, first item, end, answer
    if plain:
        for number, tags in enumerate(decoded.tags):
            places += [(number, item, item + 1, tag) for item, tag in enumerate(tags)]
    else:
        spans, _ = found_spans(decoded, labels)
        places = [(n, *span) for n, found in enumerate(spans) for span in found]
    wrong = np.flatnonzero(~right)
    out = []
    for number in wrong[np.argsort(-chances[wrong], kind="stable")][:WORST]:
        example, first, end, name = places[number]
        text, chars = text_of(part, laid, example)
        start, stop = int(chars[first, 0]), int(chars[end - 1, 1])
        if plain:
            answer = gold[example][first]
        else:
            near = [s for s in spans_of(gold[example]) if s[0] < end and s[1] > first]
            answer = ", ".join(
                f"{text[int(chars[a, 0]) : int(chars[b - 1, 1])]} ({kind})" for a, b, kind in near
            )
        out.append(
            {
                "id": part.id(example),
                "text": text[:LONGEST],
                "pair": None,
                "gold": answer or "(none)",
                "predicted": f"{text[start:stop]} ({name})",
                "probability": float(chances[number]),
            }
        )
    return out


def text_of(part: Tagged, laid: Laid, example: int) -> tuple[str, Any]:
    """The text of an example and the places of its items in it, (items, 2)."""
    if part.split:
        return join_words(part.words[example])
    assert laid.chars is not None
    bounds = laid.example_items
    return part.texts[example], laid.chars[bounds[example] : bounds[example + 1]]
