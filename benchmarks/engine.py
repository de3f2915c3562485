"""Texts a second through an encoder: filbert beside OpenVINO, ONNX Runtime and transformers.

Why: a claim of speed is worth something only beside a peer, on the same machine, in the same run.
Text goes in and vectors come out, tokenising and pooling included; each peer gets its texts sorted
by length, the better of batches of 8 and of 32, and the threads that filbert has. The arms are
those of `filbert benchmark` (filbert/infer/benchmark_peers.py says how each peer is used), and two
more.

Run (needs `pip install 'filbert[demo,bench]'`; DIR holds glue/SST-2 and imdb):

    python benchmarks/engine.py --data DIR --json engine.json
    python benchmarks/engine.py --data DIR --single          # one text at a time instead
    python benchmarks/engine.py --data DIR --sentences 64 --passages 16 --rounds 1   # a quick look
    python benchmarks/engine.py --data DIR --peers openvino  # sooner done: one peer alone

Two models: all-MiniLM-L6-v2, and a BERT-base (12 layers of 768) whose weights are drawn at random:
the speed is the same. Two sets of texts: 1,820 sentences of SST-2 (its dev set, then its first
training sentences) and 370 passages of 129 tokens on average, 512 at most, cut from the beginnings
of IMDB reviews. Both models read up to 512 tokens here. The arms:

    filbert            `filbert.load(folder)`, precision and encoder chosen by itself
    filbert, PyTorch   the same without the native encoder (`core="torch"`)
    filbert, int8      `precision="int8"`
    filbert, float32   `precision="float32"`
    openvino           float32, and bfloat16 where that is multiplied natively
    onnxruntime        float32, and dynamic int8
    transformers       float32, and bfloat16
    transformers float32, as they come    not sorted, batches of 32: what its users type first

The arms alternate within a round; ratios are taken within a round, to that round's best peer of the
same precision and to transformers as they come, and the median of them stated. The machine's
ceiling (of bfloat16 where that is multiplied) is measured in the same round.

All rounds have the same texts. filbert's tokenizer remembers words, peers tokenise anew, so that
memory is emptied before each round. With --single, a text of 16 and one of 128 tokens: median and
99th percentile of the milliseconds; the memory is emptied before each round there too, so of the
calls of a round all but the first of each text find their words in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from filbert import load
from filbert.infer import benchmark as bench
from filbert.infer import benchmark_measure as measure
from filbert.infer.benchmark_measure import Arm, Timed
from filbert.infer.benchmark_peers import arms_of, hushed
from filbert.infer.benchmark_subject import Subject, encoded, grid_of
from filbert.infer.benchmark_subject import opened as in_transformers
from filbert.model import native, sentence_folder
from filbert.model.bert import BertModel
from filbert.model.config import BertConfig
from filbert.model.sentence_folder import SentenceSettings
from filbert.sources import resolve
from filbert.text import BertTokenizer

BASE = "all-MiniLM-L6-v2"
LONGEST, MEAN, SPREAD = 512, 129, 0.8  # tokens of a passage; SPREAD: of the logarithm of its length
PEERS = ("openvino", "onnxruntime", "transformers")
PLAIN, PLAIN_BATCH = "transformers float32, as they come", 32
PRECISIONS = ("bf16", "float32", "int8")
SINGLE = (16, 128)  # tokens of a text


# --- texts and models ----------------------------------------------------------------------------


def sentences(data: Path, count: int) -> list[str]:
    """The sentences of SST-2: those of its dev set, then the first ones to train on."""
    found: list[str] = []
    for name in ("dev", "train"):
        with open(data / "glue" / "SST-2" / f"{name}.tsv", encoding="utf-8") as file:
            next(file)
            found += [line.rstrip("\n").rpartition("\t")[0] for line in file if line.strip()]
        if len(found) >= count:
            break
    return found[:count]


def passages(data: Path, count: int, tokenizer: Tokenizer) -> list[str]:
    """Beginnings of IMDB reviews, with lengths drawn (lognormal) so that their mean is `MEAN`."""
    draw = np.random.Generator(np.random.PCG64(0))
    sizes = np.exp(draw.normal(0, SPREAD, count))
    wanted = np.ones(count)
    for _ in range(20):  # what is cut at LONGEST is given to the others
        wanted = np.minimum(sizes, LONGEST)
        sizes *= MEAN / wanted.mean()
    texts = longer_than(data, wanted.astype(int).tolist(), tokenizer)
    return [cut(text, int(size), tokenizer) for text, size in zip(texts, wanted, strict=True)]


def longer_than(data: Path, sizes: list[int], tokenizer: Tokenizer) -> list[str]:
    """For each size the next review that has as many tokens."""
    found: list[str] = []
    with gzip.open(data / "imdb" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            if len(tokenizer.encode(text)) >= sizes[len(found)]:
                found.append(text)
                if len(found) == len(sizes):
                    return found
    raise SystemExit(f"{data}: only {len(found)} reviews are long enough, not {len(sizes)}")


def cut(text: str, size: int, tokenizer: Tokenizer) -> str:
    """The beginning of `text` that has `size` tokens, [CLS] and [SEP] included."""
    offsets = tokenizer.encode(text).offsets
    return text[: offsets[max(size - 2, 1)][1]]


def bert_base(folder: Path) -> Path:
    """A BERT-base of random weights with MiniLM's tokenizer, as a model of sentence vectors."""
    tokenizer = BertTokenizer.from_pretrained(resolve(BASE))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer.get_vocab()))
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = SentenceSettings("mean", True, LONGEST)
    sentence_folder.write(folder, settings, hidden_size=config.hidden_size)
    return folder


# --- arms ----------------------------------------------------------------------------------------


def opened(folder: Path, threads: int, precision: str = "auto", core: str = "auto") -> Any:
    """The model of sentence vectors, reading up to `LONGEST` tokens."""
    predictor = load(folder, device="cpu", threads=threads, precision=precision, core=core)
    predictor.settings = dataclasses.replace(predictor.settings, max_length=LONGEST)
    return predictor


def all_arms(
    folder: Path, scratch: Path, threads: int, peers: list[str]
) -> tuple[list[Any], list[Arm], list[str]]:
    """filbert's predictors, the one that chose by itself first; all arms, and those that are not
    here, in words."""
    ours = {"filbert": opened(folder, threads)}
    if not isinstance(native.library(), str):
        ours["filbert, PyTorch"] = opened(folder, threads, core="torch")
        ours["filbert, int8"] = opened(folder, threads, "int8")
    if ours["filbert"].dtype != torch.float32:
        ours["filbert, float32"] = opened(folder, threads, "float32")
    arms = [bench.our_arm(predictor, name) for name, predictor in ours.items()]
    subject = bench.subject_of(ours["filbert"], scratch, threads)
    told: list[str] = []
    for peer in peers:
        found, reason = arms_of(peer, subject)
        arms += found
        told += [reason] if reason else []
    if "transformers" in peers and importlib.util.find_spec("transformers") is not None:
        arms.append(as_they_come(subject))
    return list(ours.values()), arms, told


def as_they_come(subject: Subject) -> Arm:
    """transformers with nothing done for speed: float32, texts in the order in which they stand."""
    model = in_transformers(subject)

    @torch.inference_mode()
    def run(rows: Any) -> Any:
        blocks = []
        for start in range(0, len(rows), PLAIN_BATCH):
            grid = grid_of(subject, encoded(subject, rows[start : start + PLAIN_BATCH]))
            blocks.append(model(*map(torch.from_numpy, grid)).numpy())
        return np.concatenate(blocks)

    return Arm(PLAIN, {f"batches of {PLAIN_BATCH}, not sorted": run}, run)


def forget(ours: list[Any]) -> None:
    """Empty the memory of words of filbert's tokenizers."""
    for predictor in ours:
        predictor.tokenizer.forget_words()


def precision_of(arm: str, chosen: str) -> str:
    """What an arm computes in: its name says it, or it is what filbert has chosen by itself."""
    return next((kind for kind in PRECISIONS if kind in arm), chosen)


# --- measuring -----------------------------------------------------------------------------------


def many(
    arms: list[Arm], ours: list[Any], truth: Any, texts: list[str], given: Any
) -> dict[str, Any]:
    """Rounds over all texts: seconds of each arm, the machine's rates, tokens and operations."""
    predictor = ours[0]
    kept, apart, told = bench.checked(arms, texts, truth)
    with measure.staged(predictor) as stages:
        predictor.vectors(texts)
    seen = {arm.name: Timed(measure.pick(arm, texts)) for arm in kept}
    by_name = {arm.name: arm for arm in kept}
    for name, arm in by_name.items():
        arm.ways[seen[name].way](texts)
    rates = []
    for turn in range(given.rounds):
        rates.append(measure.ceiling(predictor.dtype, predictor.device, given.threads))
        forget(ours)
        for name in measure.rotated(list(by_name), turn):
            measure.clocked(seen[name], by_name[name].ways[seen[name].way], texts)
    return {
        "texts": len(texts), "tokens": stages.tokens, "left_out": told, "rates": rates,
        "operations": measure.operations(predictor.model, stages),
        "arms": {
            name: {
                **dataclasses.asdict(one), "apart": apart[name],
                "precision": precision_of(name, measure.name_of(predictor.dtype)),
            }
            for name, one in seen.items()
        },
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Each arm in Markdown; ratios: seconds of others in a round, the least, over the arm's."""
    arms, count = found["arms"], found["texts"]
    by = max(found["rates"][0], key=lambda name: statistics.median(r[name] for r in found["rates"]))
    rates = [rate[by] for rate in found["rates"]]
    lines = [
        f"{count:,} texts, {found['tokens'] / count:.1f} tokens on average; ceiling "
        f"{statistics.median(rates):,.0f} GFLOP/s ({by})",
        "",
        "| arm | precision | way | texts/s (each round) | to the best peer of this precision (each "
        "round) | the same, processor time | to transformers as they come | of ceiling | relative "
        "difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in arms.items():
        speeds = [count / taken for taken in arm["seconds"]]
        shares = [found["operations"] / taken / 1e9 / rate
                  for taken, rate in zip(arm["seconds"], rates, strict=True)]  # fmt: skip
        cells = [name, arm["precision"], arm["way"], _each(speeds, ".1f")]
        peers = [peer for peer in arms if not peer.startswith("filbert")
                 and arms[peer]["precision"] == arm["precision"]]  # fmt: skip
        cells += [
            _each(ratios(arms, name, peers, kind), ".2f") for kind in ("seconds", "processor")
        ]
        cells.append(_each(ratios(arms, name, [peer for peer in arms if peer == PLAIN]), ".2f"))
        cells += [f"{statistics.median(shares):.1%}", f"{arm['apart']['relative']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    if "filbert, int8" in arms:
        gain = _each(ratios(arms, "filbert, int8", ["filbert"]), ".2f")
        lines.append(f"\nfilbert, int8, to filbert: {gain}")
    return "\n".join([*lines, *(f"\nleft out: {text}" for text in found["left_out"])])


def ratios(arms: Any, name: str, others: list[str], kind: str = "seconds") -> list[float]:
    """Of each round the least of the others' seconds over those of `name`; none without others."""
    if not others:
        return []
    rounds = zip(arms[name][kind], *(arms[other][kind] for other in others), strict=True)
    return [min(theirs) / own for own, *theirs in rounds]


def _each(values: list[float], form: str) -> str:
    if not values:
        return "-"
    each = ", ".join(f"{value:{form}}" for value in values)
    return f"**{statistics.median(values):{form}}** ({each})"


def single(arms: list[Arm], ours: list[Any], texts: dict[int, str], given: Any) -> dict[str, Any]:
    """Seconds of each call with one text, by arm and by tokens."""
    found: dict[str, Any] = {arm.name: {size: [] for size in texts} for arm in arms}
    for turn in range(given.rounds + 1):
        forget(ours)
        for place in measure.rotated([str(number) for number in range(len(arms))], turn):
            arm = arms[int(place)]
            for size, text in texts.items():
                calls = [measure.seconds_of(arm.few, [text]) for _ in range(given.repeats)]
                found[arm.name][size] += calls if turn else []  # the first round warms up
    return found


def single_table(found: dict[str, Any]) -> str:
    """Median and 99th percentile in milliseconds."""
    sizes = list(next(iter(found.values())))
    head = " | ".join(f"{size} tokens: p50, p99 ms" for size in sizes)
    lines = [f"| arm | {head} |", "|---" * (len(sizes) + 1) + "|"]
    for name, one in found.items():
        cells = []
        for size in sizes:
            percent = measure.percentiles(one[size])
            cells.append(f"{percent['p50']:.3f}, {percent['p99']:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def models(wanted: list[str], scratch: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each model."""
    if "minilm" in wanted:
        yield BASE, resolve(BASE)
    if "base" in wanted:
        yield "BERT-base, random weights", bert_base(scratch / "base")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="holds glue/SST-2 and imdb")
    parser.add_argument("--models", nargs="+", default=["minilm", "base"],
                        choices=["minilm", "base"])  # fmt: skip
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, help="(all)")
    parser.add_argument("--sentences", type=int, default=1820, help="of SST-2; 0: leave them out")
    parser.add_argument("--passages", type=int, default=370, help="of IMDB; 0: leave them out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--single", action="store_true", help="one text at a time instead")
    parser.add_argument("--repeats", type=int, default=100, help="--single: calls in a round")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure and print."""
    given = parse_arguments()
    tokenizer = Tokenizer.from_file(str(resolve(BASE) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    sets: dict[str, list[str]] = {}
    if given.sentences and not given.single:
        sets["sentences of SST-2"] = sentences(given.data, given.sentences)
    if given.passages and not given.single:
        sets["passages of IMDB"] = passages(given.data, given.passages, tokenizer)
    report: dict[str, Any] = {"machine": bench.machine(), "threads": given.threads, "found": {}}
    print(f"{report['machine']}\n{given.threads} threads, {given.rounds} rounds\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="engine-") as folder, hushed():
        for model, where in models(given.models, Path(folder)):
            scratch = Path(folder) / f"graphs-{len(report['found'])}"
            scratch.mkdir()
            ours, arms, told = all_arms(where, scratch, given.threads, given.peers)
            print(f"## {model}: {bench.path_of(ours[0])}\n", flush=True)
            print("".join(f"left out: {text}\n" for text in told), end="")
            if given.single:
                reviews = longer_than(given.data, list(SINGLE), tokenizer)
                texts = {size: cut(text, size, tokenizer)
                         for size, text in zip(SINGLE, reviews, strict=True)}  # fmt: skip
                found = single(arms, ours, texts, given)
                print(single_table(found) + "\n", flush=True)
                report["found"][model] = found
                continue
            exact = opened(where, given.threads, "float32")
            for name, texts_of in sets.items():
                found = many(arms, ours, exact.vectors(texts_of), texts_of, given)
                print(f"{name}: {table(found)}\n", flush=True)
                report["found"][f"{model}, {name}"] = found
    if given.json:
        given.json.write_text(json.dumps(report, indent=1), "utf-8")


if __name__ == "__main__":
    main()
