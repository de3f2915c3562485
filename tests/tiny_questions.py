"""Small files of questions that a very small model can learn: which mood does the text tell?"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.tiny import WORDS

MOODS, THINGS = WORDS[:10], [*WORDS[10:], "the", "a", "was"]


def moods(path: Path, count: int, *, seed: int = 0, silent: float = 0.0, longest: int = 12) -> Path:
    """A SQuAD file of `count` questions; a share of `silent` has no answer."""
    draw = random.Random(seed)
    paragraphs = []
    for number in range(count):
        words = [draw.choice(THINGS) for _ in range(draw.randint(3, longest))]
        answers = []
        if draw.random() >= silent:
            place = draw.randrange(len(words))
            words[place] = draw.choice(MOODS)
            start = len(" ".join([*words[:place], ""])) if place else 0
            answers = [{"text": words[place], "answer_start": start}]
        item = {
            "id": f"{path.stem}-{number}", "question": "was the film good ?", "answers": answers,
            "is_impossible": not answers,
        }  # fmt: skip
        paragraphs.append({"context": " ".join(words), "qas": [item]})
    data = {"version": "v2.0", "data": [{"title": "moods", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(data), "utf-8")
    return path
