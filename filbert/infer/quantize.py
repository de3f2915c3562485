"""Quantize: let those products of an encoder be int8 that lose nothing that counts.

    filbert quantize runs/reviews --data dev.tsv --out runs/reviews-int8
    filbert predict runs/reviews-int8 "Great film."          # --precision auto takes the choice

Each layer has four products. How much each disturbs the last states when it alone is int8 is
measured on texts of the data; then the most disturbing ones, for the work that they save, go back
to bfloat16 until the task's score loses at most `--max-loss` points against float32. How many that
is is found by halving, with the score on all of the data each time. The weights stay as they are:
filbert.json holds the choice, and what it changed in the score.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from filbert.atomic import beside, check_out, replace_folder
from filbert.bundle import (
    Bundle,
    Int8,
    Product,
    is_bundle,
    open_bundle,
    save_bundle,
    what_fits,
)
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.infer.evaluate import check_options
from filbert.infer.predict import predictor_of
from filbert.infer.quantize_options import QuantizeOptions
from filbert.model import native
from filbert.model.bert import BertModel
from filbert.tasks import embed
from filbert.tasks.metrics import lower_is_better

# task -> its scores, the main one first; one that the data does not give is passed over
METRICS = {
    "classify": ("accuracy", "f1_micro", "spearman"),
    "rank": ("spearman", "accuracy", "mrr@10"),
    "tag": ("f1", "accuracy"),
    "answer": ("f1",),
    "embed": ("spearman", "ndcg@10"),
}
SAMPLE = 4096  # tokens that disturbance is measured on
CPU = torch.device("cpu")
PRODUCTS: tuple[Product, ...] = get_args(Product)
Choice = list[tuple[int, Product]]  # layer and product


@dataclass(frozen=True)
class Quantized:
    """The folder, what its filbert.json says of int8, and the seconds that it took."""

    out: Path
    int8: Int8
    seconds: float

    def __str__(self) -> str:
        """What was chosen and what it costs, for people."""
        int8, kept = self.int8, sum(map(len, self.int8.layers))
        lines = [
            f"int8: {kept} of {len(int8.layers) * len(PRODUCTS)} products",
            *(
                f"  layer {number} in bfloat16: {', '.join(left)}"
                for number, layer in enumerate(int8.layers)
                if (left := [name for name in PRODUCTS if name not in layer])
            ),
            f"{int8.metric}: {int8.float32:.4f} in float32, {int8.int8:.4f} now",
            f"{self.out}: {self.seconds:.0f} s",
        ]
        return "\n".join(lines)


def quantize(options: QuantizeOptions) -> Quantized:
    """Choose, and write the bundle with its choice to `options.out`.

    Raises `FilbertError` on a machine without the native encoder, which cannot measure it, for a
    model that it does not compute, and where no choice keeps within `max_loss`.
    """
    began = time.monotonic()
    out = Path(options.out)
    reads = [options.bundle, options.data]
    check_out(out, "bundle", is_bundle, overwrite=options.overwrite, reads=reads)
    lib = native.library()
    if isinstance(lib, str):
        raise FilbertError(
            f"int8 is chosen by measuring it, which needs the native encoder: {lib}. Run this on a "
            "machine with AMX or AVX-512-BF16; its result opens everywhere"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    bundle = open_bundle(options.bundle)
    task = bundle.manifest.task
    if task not in METRICS:
        raise FilbertError(
            f"{options.bundle}: a model of the task {task}; int8 is chosen for those of "
            f"{', '.join(METRICS)}. {what_fits(options.bundle, bundle.manifest)}"
        )
    bert = bundle.model.base_model
    reason = native.why_not(bert)
    if reason is not None or not isinstance(bert, BertModel):
        raise FilbertError(f"{options.bundle} cannot be computed in int8: {reason}")
    seen: list[dict[str, Tensor]] = []
    hook = bert.register_forward_pre_hook(
        lambda _, args, given: seen.append(given), with_kwargs=True
    )
    exact = _scored(bundle, torch.float32, options)
    hook.remove()
    metric = _metric(options.metric, exact["scores"], task)
    sign = -1 if lower_is_better(metric) else 1
    order = _most_disturbing(bert, _sample(seen))
    seen.clear()
    found: dict[int, float] = {}

    def loss(count: int) -> float:
        """Points lost with the first `count` of `order` in bfloat16."""
        again = open_bundle(options.bundle)
        again.model.int8_products = [  # type: ignore[assignment]
            sum(native.PRODUCTS[name] for name in layer)
            for layer in _layers(order[count:], bert.config.num_hidden_layers)
        ]
        dtype = torch.int8 if count < len(order) else torch.bfloat16
        score = _scored(again, dtype, options)["scores"][metric]
        if score is None:  # undefined, as the correlation of a score that is the same everywhere
            return math.inf
        found[count] = score
        return 100 * sign * (exact["scores"][metric] - found[count])

    low, high = 0, len(order)
    if loss(0) <= options.max_loss:
        high = 0
    while high - low > 1:
        middle = (low + high) // 2
        if loss(middle) <= options.max_loss:
            high = middle
        else:
            low = middle
    if high == len(order):
        raise FilbertError(
            f"{metric} is {exact['scores'][metric]:.4f} in float32, and with a single product in "
            f"int8 it loses more than {options.max_loss} points; give a larger --max-loss, or stay "
            "with bfloat16"
        )
    int8 = Int8(
        layers=_layers(order[high:], bert.config.num_hidden_layers),
        metric=metric,
        float32=exact["scores"][metric],
        int8=found[high],
        rows=exact.get("rows", 0),
        data=Path(options.data).name,
    )
    _write(out, options.bundle, int8)
    return Quantized(out, int8, time.monotonic() - began)


def _scored(bundle: Bundle, dtype: torch.dtype, options: QuantizeOptions) -> dict[str, Any]:
    """What the predictor's `evaluate` says of the data, in this precision."""
    predictor = predictor_of(bundle, CPU, dtype, "measured", options.batch_tokens)
    names = ("text_column", "pair_column", "label_column", "score_column", "format", "header")
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    check_options(predictor, given)
    found: dict[str, Any] = predictor.evaluate(options.data, encoding=options.encoding, **given)
    native.close(predictor.model)
    return found


def _metric(asked: str | None, scores: dict[str, Any], task: str) -> str:
    known = [
        name for name, value in scores.items()
        if isinstance(value, int | float) and name != "rows"  # a count, which nothing changes
    ]  # fmt: skip
    if asked is not None and asked not in known:
        raise UsageError(
            f"--metric {asked!r}: there are {', '.join(known)}.{did_you_mean(asked, known)}"
        )
    return asked or next((name for name in METRICS[task] if name in known), known[0])


def _sample(seen: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Some `SAMPLE` tokens of the packed batches that went through an encoder, evenly from all."""
    texts = [
        (ids, types)
        for given in seen
        if given.get("lengths") is not None
        for ids, types in zip(
            given["input_ids"].split(given["lengths"].tolist()),
            given["token_type_ids"].split(given["lengths"].tolist()),
            strict=True,
        )
    ]
    total = sum(len(ids) for ids, _ in texts)
    texts = texts[:: max(1, total // SAMPLE)]
    return {
        "input_ids": torch.cat([ids for ids, _ in texts]),
        "token_type_ids": torch.cat([types for _, types in texts]),
        "lengths": torch.tensor([len(ids) for ids, _ in texts]),
    }


def _most_disturbing(bert: BertModel, batch: dict[str, Tensor]) -> Choice:
    """Every layer's products, in falling order of what int8 in this one alone changes in the last
    states (squared), for the work that it saves."""
    config = bert.config
    inner, hidden = config.intermediate_size, config.hidden_size
    work = {"projections": 3 * hidden, "output": hidden, "inner": inner, "outer": inner}
    encoder = native.NativeEncoder(bert)

    def states() -> Tensor:
        return encoder(batch["input_ids"], batch["lengths"], batch["token_type_ids"])

    plain = states()
    disturbed = {}
    for number, layer in enumerate(bert.encoder.layer):
        for name in PRODUCTS:
            encoder.pack(number, layer, native.PRODUCTS[name])
            change = float((states() - plain).square().sum())
            disturbed[number, name] = change / work[name]
        encoder.pack(number, layer, 0)
    encoder.close()
    return sorted(disturbed, key=lambda each: -disturbed[each])


def _layers(chosen: Choice, count: int) -> list[list[Product]]:
    return [[name for name in PRODUCTS if (number, name) in chosen] for number in range(count)]


def _write(out: Path, source: str, int8: Int8) -> None:
    bundle = open_bundle(source)
    manifest = bundle.manifest.model_copy(update={"int8": int8})
    with beside(out) as temp:
        save_bundle(
            temp, model=bundle.model, tokenizer=bundle.tokenizer, manifest=manifest, name=out.name
        )
        if manifest.task == "embed":
            embed.write_settings(temp, bundle.model, bundle.tokenizer, manifest, of=bundle.folder)
        replace_folder(temp, out)
