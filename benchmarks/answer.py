"""Questions a second over long texts: filbert beside the question-answering recipe of transformers.

Why: a claim of speed is worth something only beside a peer, on the same machine, in the same run.
transformers 5 has no question-answering pipeline any more, so the peer is what its example script
run_qa.py does: tokenise each pair of question and context into windows of 384 tokens that share
128, padded; compute them in batches of 8; pair the 20 best starts and ends of each window in
Python; take the best.

Run (needs `pip install 'filbert[demo,bench]'`; DIR holds SQuAD's dev-v1.1.json or .json.gz):

    python benchmarks/answer.py --data DIR/dev-v1.1.json --bundle runs/qa
    python benchmarks/answer.py --data DIR/dev-v1.1.json --questions 8 --rounds 1     # a quick look

A text is a whole article of SQuAD, cut after `--characters`; each is asked several of its own
questions. The arms:

    transformers       the recipe's defaults: float32, padded to 384
    transformers-bf16  the same model in bfloat16, padded to the longest of a batch
    filbert            `filbert.load(bundle)`, precision chosen by itself
    filbert-float32    the same in float32

Same weights, texts, questions, windows, threads. The arms alternate from round to round in one
process; medians of seconds are shown, wall clock and processor (which is not hurt by others on the
machine), and on how many questions an arm gives the same answer as the peer in float32. Without
--bundle the head is drawn at random: the speed is the same, the answers mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

LENGTH, STRIDE, BATCH, N_BEST, LONGEST = 384, 128, 8, 20, 30
GOAL = 4.0  # how much faster than the recipe filbert wants to be
Pairs = list[tuple[str, str]]


def long_pairs(path: str, *, questions: int, characters: int, each: int) -> Pairs:
    """(question, context) with articles as contexts; every answer lies in its context."""
    from filbert.data.questions import read_questions

    found = read_questions(path)
    starts: dict[str, int] = {}  # article -> its first question
    for place, where in enumerate(found.places):
        starts.setdefault(where.partition(",")[0], place)
    bounds = [*starts.values(), len(found)]
    pairs: Pairs = []
    for first, last in itertools.pairwise(bounds):
        numbers = list(dict.fromkeys(found.owner[first:last].tolist()))
        text, kept = "", set()
        for number in numbers:
            if len(text) + len(found.contexts[number]) > characters:
                break
            text += found.contexts[number] + "\n"
            kept.add(number)
        usable = [i for i in range(first, last) if found.owner[i] in kept]
        pairs += [(found.texts[i], text) for i in usable[:: max(1, len(usable) // each)][:each]]
        if len(pairs) >= questions:
            break
    return pairs[:questions]


def recipe(folder: str, *, dtype: torch.dtype, pad_all: bool) -> Callable[[Pairs], list[str]]:
    """The peer: what run_qa.py does between the texts and the answers."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, dtype=dtype).eval()

    @torch.no_grad()
    def answer(pairs: Pairs) -> list[str]:
        features = tokenizer(
            [question for question, _ in pairs], [context for _, context in pairs],
            truncation="only_second", max_length=LENGTH, stride=STRIDE,
            return_overflowing_tokens=True, return_offsets_mapping=True,
            padding="max_length" if pad_all else False,
        )  # fmt: skip
        count = len(features["input_ids"])
        names = ("input_ids", "token_type_ids", "attention_mask")
        logits: list[tuple[Any, Any]] = []
        for begin in range(0, count, BATCH):
            rows = {name: features[name][begin : begin + BATCH] for name in names}
            out = model(**tokenizer.pad(rows, return_tensors="pt"))
            both = out.start_logits.float().numpy(), out.end_logits.float().numpy()
            logits += zip(*both, strict=True)
        best: list[tuple[float, str]] = [(-np.inf, "")] * len(pairs)
        for place in range(count):
            sample = features["overflow_to_sample_mapping"][place]
            kinds = features.sequence_ids(place)
            offsets = [
                span if kind == 1 else None
                for span, kind in zip(features["offset_mapping"][place], kinds, strict=True)
            ]
            start, end = logits[place]
            firsts = np.argsort(start)[-1 : -N_BEST - 1 : -1].tolist()
            lasts = np.argsort(end)[-1 : -N_BEST - 1 : -1].tolist()
            for first in firsts:
                for last in lasts:
                    if first >= len(offsets) or last >= len(offsets):
                        continue
                    if offsets[first] is None or offsets[last] is None:
                        continue
                    if last < first or last - first + 1 > LONGEST:
                        continue
                    score = start[first] + end[last]
                    if score > best[sample][0]:
                        text = pairs[sample][1][offsets[first][0] : offsets[last][1]]
                        best[sample] = (score, text)
        return [text for _, text in best]

    return answer


def ours(folder: str, precision: str) -> Callable[[Pairs], list[str]]:
    """filbert, as a user calls it."""
    from filbert import load

    model = load(folder, device="cpu", precision=precision)
    return lambda pairs: [found["answer"] for found in model(pairs)]


def drawn_bundle(base: str, folder: str) -> str:
    """A bundle with the encoder of `base` and a random head."""
    from filbert.bundle import Manifest, save_bundle
    from filbert.sources import resolve
    from filbert.tasks.answer import head
    from filbert.text import BertTokenizer

    torch.manual_seed(0)
    manifest = Manifest(task="answer", pair=True, max_length=LENGTH, stride=STRIDE)
    tokenizer = BertTokenizer.from_pretrained(resolve(base))
    save_bundle(folder, model=head(base), tokenizer=tokenizer, manifest=manifest)
    return folder


def measure(
    arms: dict[str, Callable[[Pairs], list[str]]], pairs: Pairs, rounds: int
) -> dict[str, dict[str, Any]]:
    """Seconds of each round and the answers of each arm; the order turns from round to round."""
    found: dict[str, dict[str, Any]] = {
        name: {"wall": [], "processor": [], "answers": arm(pairs[:2])} for name, arm in arms.items()
    }  # each is warm now
    names = list(arms)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall, processor = time.perf_counter(), time.process_time()
            answers = arms[name](pairs)
            found[name]["wall"].append(time.perf_counter() - wall)
            found[name]["processor"].append(time.process_time() - processor)
            found[name]["answers"] = answers
    return found


def table(found: dict[str, dict[str, Any]], count: int) -> str:
    """The result as Markdown; ratios are taken within a round, and the median of them stated."""
    peer = found["transformers"]
    lines = [
        "| arm | questions/s | s, wall | s, processor | times faster, wall | processor | same |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        wall, processor = statistics.median(row["wall"]), statistics.median(row["processor"])
        faster = [
            statistics.median(a / b for a, b in zip(peer[kind], row[kind], strict=True))
            for kind in ("wall", "processor")
        ]
        same = sum(a == b for a, b in zip(row["answers"], peer["answers"], strict=True))
        lines.append(
            f"| {name} | {count / wall:.2f} | {wall:.2f} | {processor:.2f} | {faster[0]:.2f} | "
            f"{faster[1]:.2f} | {same}/{count} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="SQuAD's dev-v1.1.json(.gz)")
    parser.add_argument("--bundle", help="a model of the task answer (else a random head)")
    parser.add_argument("--base", default="all-MiniLM-L6-v2", help="encoder without --bundle")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--each", type=int, default=8, help="questions for each text")
    parser.add_argument("--characters", type=int, default=12_000, help="of a text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pairs = long_pairs(
        given.data, questions=given.questions, characters=given.characters, each=given.each
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.bundle or drawn_bundle(given.base, scratch)
        arms = {
            "transformers": recipe(folder, dtype=torch.float32, pad_all=True),
            "transformers-bf16": recipe(folder, dtype=torch.bfloat16, pad_all=False),
            "filbert": ours(folder, "auto"),
            "filbert-float32": ours(folder, "float32"),
        }
        found = measure(arms, pairs, given.rounds)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    print(
        f"{len(pairs)} questions over texts of {len(pairs[0][1]):,} characters or so, windows of "
        f"{LENGTH} sharing {STRIDE}, {given.threads} threads, {platform.machine()}, {versions}\n"
    )
    print(table(found, len(pairs)))
    fast = [a / b for a, b in zip(
        found["transformers"]["wall"], found["filbert"]["wall"], strict=True
    )]  # fmt: skip
    print(f"\nfilbert is {statistics.median(fast):.2f} times as fast as the recipe; goal {GOAL}")
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1), "utf-8")


if __name__ == "__main__":
    main()
