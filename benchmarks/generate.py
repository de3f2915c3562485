"""Words written a second by beam search: filbert beside `generate` of transformers.

Why: a claim of speed is worth something only beside a peer, on the same machine, in the same run.
The peer is `EncoderDecoderModel.generate` on the same folder, opened by `from_pretrained`.

Run (needs `pip install 'filbert[demo,bench,tasks]'`; FILE has a source on each line, .gz too):

    python benchmarks/generate.py --bundle runs/en-de --data test.en.gz
    python benchmarks/generate.py --data test.en.gz --rows 24 --rounds 1      # a quick look

The arms, all with 4 beams, the same longest text and the same tokenizer:

    transformers         float32, batches of `--batch` sources in the order of the file, padded
    transformers-sorted  the same, sources sorted by length first
    filbert              `filbert.load(bundle)` in float32, batches of its own choosing
    filbert-bf16         the same in bfloat16, where the processor multiplies it natively

Tokenizing and turning ids into text count in each. The arms alternate from round to round in one
process; medians of seconds are shown, wall clock and processor (which is not hurt by others on the
machine), the words written (end tokens among them), and how many texts are the peer's to the id.
Without --bundle the decoder is drawn at random: texts then rarely end and all run to `--tokens`,
which leaves out what filbert gains by letting finished texts go.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

GOAL = 4.0  # how much faster than the peer filbert wants to be
Texts = list[list[int]]  # ids of each, without start and end


def random_bundle(folder: Path, words: int = 8000) -> None:
    """MiniLM with a decoder of three layers that has learned nothing."""
    from filbert.model.config import BertConfig
    from filbert.sources import resolve
    from filbert.tasks.translate import TARGET_TOKENIZER, head
    from filbert.text import BertTokenizer

    base = resolve("all-MiniLM-L6-v2")
    reader = BertTokenizer.from_pretrained(base)
    writer = BertTokenizer([*["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
                            *(f"w{number}" for number in range(words - 5))])  # fmt: skip
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=words, hidden_size=384, num_hidden_layers=3, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=128,
    )  # fmt: skip
    head(str(base), decoder=shape, tokenizer=writer).save_pretrained(folder)
    reader.save_pretrained(folder)
    writer.save_pretrained(folder / TARGET_TOKENIZER)


def peer(folder: Path, *, beams: int, tokens: int, batch: int, by_length: bool) -> Any:
    """`generate` of transformers as a function from texts to ids."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.EncoderDecoderModel.from_pretrained(folder).eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    other = folder / "decoder_tokenizer"
    writer = transformers.AutoTokenizer.from_pretrained(other if other.is_dir() else folder)
    end = model.generation_config.eos_token_id

    def run(texts: list[str]) -> Texts:
        order = list(range(len(texts)))
        if by_length:
            order.sort(key=lambda i: len(texts[i]))
        made: Texts = [[] for _ in texts]
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            inputs = reader(
                [texts[i] for i in places], padding=True, truncation=True, return_tensors="pt",
                return_token_type_ids=False,
            )  # fmt: skip
            out = model.generate(
                **inputs, num_beams=beams, do_sample=False, max_new_tokens=tokens,
                length_penalty=1.0, early_stopping=False,
            )  # fmt: skip
            writer.batch_decode(out, skip_special_tokens=True)
            for place, row in zip(places, out[:, 1:].tolist(), strict=True):
                made[place] = row[: row.index(end)] if end in row else row
        return made

    return run


def ours(folder: Path, *, beams: int, tokens: int, precision: str) -> Any:
    """filbert as a function from texts to ids."""
    from filbert import load
    from filbert.tasks import translate as task

    translate = load(folder, device="cpu", precision=precision)
    search = translate.search(
        beams=beams, max_tokens=tokens, length_penalty=1.0, min_tokens=0, no_repeat_ngram=0
    )

    def run(texts: list[str]) -> Texts:
        limit = translate.manifest.max_length
        encoded = task.encode(translate.tokenizer, texts, max_length=limit)
        written = task.write(translate.model, encoded, search=search)
        for row in written:
            task.decode(row[0], translate.writer, translate.settings.spacing)
        return [row[0].tokens for row in written]

    return run


def measure(arms: dict[str, Callable[[list[str]], Texts]], texts: list[str], rounds: int) -> Any:
    """Seconds of each arm in each round, (wall, processor), and what it wrote."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    wrote: dict[str, Texts] = {}
    for run in arms.values():
        run(texts[:4])  # kernels are chosen and caches filled
    names = list(arms)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            wall, own = time.perf_counter(), time.process_time()
            wrote[name] = arms[name](texts)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - own))
            print(f"  round {number + 1}, {name}: {seconds[name][-1][0]:.1f} s wall, "
                  f"{seconds[name][-1][1]:.1f} s processor", flush=True)  # fmt: skip
    return seconds, wrote


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="sources, one a line")
    parser.add_argument("--bundle", help="a folder of filbert train translate")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=60, help="longest text")
    parser.add_argument("--batch", type=int, default=32, help="sources in a batch of the peer's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arms", nargs="*", help="only these")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    from filbert.data.pairs import stream_sources

    texts = [text for _, text, _ in islice(stream_sources(args.data, format="text"), args.rows)]
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(args.bundle) if args.bundle else Path(temp)
        if args.bundle is None:
            random_bundle(folder)
        rule = {"beams": args.beams, "tokens": args.tokens}
        makers: dict[str, Callable[[], Any]] = {
            "transformers": lambda: peer(folder, batch=args.batch, by_length=False, **rule),
            "transformers-sorted": lambda: peer(folder, batch=args.batch, by_length=True, **rule),
            "filbert": lambda: ours(folder, precision="float32", **rule),
            "filbert-bf16": lambda: ours(folder, precision="bf16", **rule),
        }
        chosen = args.arms or [n for n in makers if n != "filbert-bf16" or native_bf16()]
        arms = {name: makers[name]() for name in chosen}
        seconds, wrote = measure(arms, texts, args.rounds)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    print(f"\n{platform.processor() or platform.machine()}, {args.threads} threads, {versions}")
    print(f"{len(texts)} sources, {args.beams} beams, at most {args.tokens} words, batches of "
          f"{args.batch} for transformers, {args.rounds} rounds\n")  # fmt: skip
    print("| arm | seconds, wall | seconds, processor | words/s (processor) | times | same texts |")
    print("|---|---|---|---|---|---|")
    figures: dict[str, Any] = {}
    first = next(iter(arms))
    base = statistics.median(own for _, own in seconds[first])
    for name in arms:
        wall, own = (statistics.median(pair[i] for pair in seconds[name]) for i in (0, 1))
        words = sum(len(text) + 1 for text in wrote[name])
        same = sum(a == b for a, b in zip(wrote[name], wrote[first], strict=True))
        print(f"| {name} | {wall:.1f} | {own:.1f} | {words / own:.0f} | {base / own:.2f} | "
              f"{same} of {len(texts)} |")  # fmt: skip
        figures[name] = {"rounds": seconds[name], "words": words, "same": same}
    if "filbert" in arms and first == "transformers":
        ratio = base / statistics.median(own for _, own in seconds["filbert"])
        print(f"\nfilbert: {ratio:.2f} times as fast as transformers (goal: {GOAL:.0f})")
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def native_bf16() -> bool:
    """Whether filbert takes bfloat16 for native on this processor."""
    from filbert.errors import UsageError
    from filbert.model.device import choose_precision

    try:
        choose_precision("bf16", torch.device("cpu"))
    except UsageError:
        return False
    return True


if __name__ == "__main__":
    main()
