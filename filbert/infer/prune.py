"""Prune: a smaller bundle out of one, its parts chosen by what they do for the answers.

    filbert prune runs/reviews --layers 4 --data dev.csv --out runs/small
    filbert prune runs/reviews --heads 40 --data dev.csv --out runs/fewer-heads
    filbert prune runs/reviews --vocab corpus/ --out runs/trimmed

*Layers* are taken out one after the other: each of those left is left out in turn, and the one
whose absence costs the score least goes (equal scores: the smaller loss). *Heads* go by their
importance, the expected size of the loss's gradient at a gate on the head (Michel et al. 2019,
arXiv 1905.10650, equation 2), each layer's numbers divided by their norm as there; see
`filbert/model/prune.py` for why they are silenced and not removed. *Words* go where a corpus does
not use them; its texts get the answers that they got before, to the bit.

Scores before and after are told and kept in `filbert.json`. They are of the rows that the choice
was made on, which flatters them a little, unless `--test` names others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from filbert.atomic import beside, check_out, replace_folder
from filbert.bundle import (
    Bundle,
    Manifest,
    is_bundle,
    open_bundle,
    save_bundle,
    write_manifest,
)
from filbert.data.corpus import corpus_files, read_documents
from filbert.data.examples import REGRESSION, check_known_labels, read_examples
from filbert.data.packing import Encoded, plan_once
from filbert.data.tables import kind_of
from filbert.errors import FilbertError, UsageError
from filbert.infer.evaluate import evaluate
from filbert.infer.predict import predictor_of
from filbert.infer.prune_options import PruneOptions
from filbert.model.device import choose_device
from filbert.model.modern_config import ModernBertConfig
from filbert.model.pretrained import PretrainedModel
from filbert.model.prune import (
    head_gates,
    keep_layers,
    keep_words,
    layers_of,
    only_layers,
    silence_heads,
)
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.tasks import classify, embed, metrics
from filbert.tasks.calibrate import fit_temperature, fit_thresholds
from filbert.text import BertTokenizer
from filbert.text.trim_vocabulary import UsedTokens, check_same, trim_tokenizer

BLOCK = 1000  # documents that are encoded together
# task -> the score that layers are chosen by; classification: metrics.main_metric
MAIN = {
    "tag": "f1", "answer": "f1", "embed": "spearman", "summarize": "rouge1", "fill": "perplexity",
    "pretrain": "perplexity",
}  # fmt: skip
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Pruned:
    """What was done: the record that `filbert.json` keeps, in `provenance` under "pruned"."""

    out: Path
    record: dict[str, Any]
    seconds: float

    def __str__(self) -> str:
        """What was taken out and what it cost, for people."""
        record, lines = self.record, []
        if "layers" in record:
            lines.append(f"layers left: {', '.join(map(str, record['layers']))} (counted from 0)")
        if "silenced_heads" in record:
            silent = sum(map(len, record["silenced_heads"].values()))
            lines.append(f"{silent} heads silenced; size and speed stay as they were")
        if "vocabulary" in record:
            before, after = record["vocabulary"]
            lines.append(f"vocabulary: {after:,} of {before:,} tokens")
        before, after = record["parameters"]
        lines.append(f"parameters: {after:,} of {before:,}")
        if "before" in record:
            for name, value in record["before"].items():
                lines.append(f"{name}: {_shown(value)} before, {_shown(record['after'][name])} now")
            lines.append(f"scores of {record['scored_on']}")
        return "\n".join([*lines, f"{self.out}: {self.seconds:.0f} s"])


@dataclass(frozen=True)
class Rows:
    """Labelled rows, encoded, and how answers to them are scored."""

    name: str
    encoded: Encoded
    gold: NDArray[Any]
    manifest: Manifest
    batch_tokens: int

    def scores(self, model: classify.Classifier) -> Scores:
        """`loss` and the field's measures, as plain numbers."""
        logits = classify.predict_logits(model, self.encoded, batch_tokens=self.batch_tokens)
        kind = self.manifest.problem_type
        assert kind is not None
        losses = classify.loss(
            torch.from_numpy(logits), torch.from_numpy(self.gold), problem_type=kind
        )
        scores = classify.score(
            logits,
            self.gold,
            problem_type=kind,
            labels=self.manifest.labels,
            temperature=self.manifest.temperature,
            thresholds=self.manifest.thresholds,
        )
        plain = {
            name: value
            for name, value in scores.items()
            if name != "rows" and (value is None or isinstance(value, int | float))
        }
        return {"loss": float(losses.mean()), **plain}


def prune(options: PruneOptions, *, quiet: bool = False) -> Pruned:
    """Prune a bundle as `options` say and write the smaller one to `options.out`.

    Layers and words are those of any bundle with one encoder, heads those of classifiers. With
    `options.data` scores before and after are told, of other tasks than classification those of
    `filbert evaluate`. Raises `UsageError` for a request that cannot be met, `FilbertError` for
    rows that do not fit.
    """
    began = time.monotonic()
    _check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    bundle = open_bundle(options.bundle)
    model, tokenizer, manifest = (
        bundle.model,
        bundle.tokenizer,
        bundle.manifest.model_copy(update={"int8": None}),
    )
    if isinstance(model, BertForSeq2SeqLM):
        raise UsageError(
            f"{options.bundle} holds a {type(model).__name__}; models with one encoder are pruned"
        )
    record: dict[str, Any] = {"from": str(options.bundle)}
    size = _parameters(model)
    rows = told = None
    of_task = options.data is not None and not isinstance(model, classify.Classifier)
    if of_task:
        for name in ("heads", "limit"):
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name}: {options.bundle} holds a {type(model).__name__}; heads are "
                    "measured of classifiers, and of other models all rows of --data are scored"
                )
        record["before"], record["scored_on"] = evaluated(options, options.bundle, manifest)
    elif options.data is not None:
        assert isinstance(model, classify.Classifier)
        rows = _read(options.data, options, bundle, limit=options.limit)
        told = rows if options.test is None else _read(options.test, options, bundle, limit=None)
        model.to(device)
        record["before"] = told.scores(model)

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    if options.layers is not None:
        score: Callable[[], Scores]
        if rows is not None:
            assert manifest.problem_type is not None and isinstance(model, classify.Classifier)
            metric = options.metric or metrics.main_metric(manifest.problem_type)
            score = partial(rows.scores, model)
        else:
            metric = options.metric or MAIN[manifest.task]
            score = scorer(options, model)
        kept = choose_layers(model, score, options.layers, metric=metric, say=say)
        keep_layers(model, kept)
        record["layers"] = kept
    if options.heads is not None:
        assert rows is not None and isinstance(model, classify.Classifier)
        importance = head_importance(model, rows)
        silent = choose_heads(importance, options.heads)
        silence_heads(model, silent)
        record["silenced_heads"] = {str(layer): heads for layer, heads in silent.items()}
        record["head_importance"] = np.round(importance, 4).tolist()
    if rows is not None and (options.layers is not None or options.heads is not None):
        assert told is not None
        calibrate(manifest, model, rows)
        told = replace(told, manifest=manifest)
    if options.vocab:
        model.cpu()
        before = model.config.vocab_size
        tokenizer = trim_vocabulary(bundle, options, say=say)
        record["vocabulary"] = [before, model.config.vocab_size]
        if told is not None:
            told = _read(options.test or str(options.data), options, bundle, tokenizer=tokenizer,
                         limit=options.limit if options.test is None else None)  # fmt: skip
            told = replace(told, manifest=manifest)
    record["parameters"] = [size, _parameters(model)]
    if told is not None:
        assert isinstance(model, classify.Classifier)
        record["after"] = told.scores(model.to(device))
        record["scored_on"] = told.name
        manifest.scores = dict(record["after"])
    manifest.provenance = {**manifest.provenance, "pruned": record}
    if told is not None:
        manifest.provenance["scored_on"] = told.name
    elif not of_task:  # what stands there was measured before
        manifest.scores = {}
        manifest.provenance.pop("scored_on", None)
    called = Path(options.out).name
    with beside(Path(options.out)) as temp:
        save_bundle(temp, model=model.cpu(), tokenizer=tokenizer, manifest=manifest, name=called)
        if manifest.task == "embed":
            embed.write_settings(temp, model, bundle.tokenizer, manifest, of=bundle.folder)
        if of_task:
            record["after"], _ = evaluated(options, temp, manifest)
            manifest.scores = dict(record["after"])
            manifest.provenance["scored_on"] = record["scored_on"]
            write_manifest(temp, model, manifest, name=called)
        replace_folder(temp, Path(options.out))
    return Pruned(Path(options.out), record, time.monotonic() - began)


def evaluated(options: PruneOptions, bundle: str | Path, manifest: Manifest) -> tuple[Scores, str]:
    """The scores that `filbert evaluate` gives a bundle, in float32, and what they are of.

    Raises `UsageError` for a column option that its task does not have."""
    data = options.test or str(options.data)
    result = evaluate(
        bundle, data, device=options.device, precision="float32",
        batch_tokens=options.batch_tokens, **_reading(options, manifest),
    )  # fmt: skip
    rows = f", {result['rows']:,} rows" if "rows" in result else ""
    return _measures(result["scores"]), f"{Path(data).name}{rows}"


def scorer(options: PruneOptions, model: PretrainedModel) -> Callable[[], Scores]:
    """What scores this model, as it is at the time, on the rows of `--data`; for all tasks."""
    bundle = replace(open_bundle(options.bundle), model=model)
    device = choose_device(options.device)
    pooler = getattr(model, "pooler", None)  # predictors of vectors leave it out
    predictor = predictor_of(
        bundle, device, torch.float32, "pruning", batch_tokens=options.batch_tokens
    )
    if pooler is not None:
        model.pooler = pooler
    reading = _reading(options, bundle.manifest)
    return lambda: _measures(predictor.evaluate(str(options.data), **reading)["scores"])


def _reading(options: PruneOptions, manifest: Manifest) -> dict[str, Any]:
    """The options of reading that were given, by the names that `filbert evaluate` has for them:
    `--label-column` is a tagger's column of tags."""
    names = ("text_column", "pair_column", "label_column", "label_separator", "format", "header")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if manifest.task == "tag" and "label_column" in given:
        given["tag_column"] = given.pop("label_column")
    if options.encoding != "utf-8":
        given["encoding"] = options.encoding
    return given


def _measures(scores: dict[str, Any]) -> Scores:
    """Of the scores of a task those that measure; counts of rows and the like are left out."""
    return {k: value for k, value in scores.items() if value is None or isinstance(value, float)}


def calibrate(manifest: Manifest, model: PretrainedModel, rows: Rows) -> None:
    """Fit the temperature and, for several labels, the thresholds of the changed model anew, on the
    rows that its parts were chosen on. Changes the manifest."""
    assert isinstance(model, classify.Classifier) and manifest.problem_type is not None
    logits = classify.predict_logits(model, rows.encoded, batch_tokens=rows.batch_tokens)
    manifest.temperature = fit_temperature(logits, rows.gold, manifest.problem_type)
    if manifest.problem_type == "multi_label_classification":
        manifest.thresholds = fit_thresholds(logits / manifest.temperature, rows.gold)


def choose_layers(
    model: PretrainedModel,
    score: Callable[[], Scores],
    count: int,
    *,
    metric: str,
    say: Callable[[str], None] = lambda text: None,
) -> list[int]:
    """The `count` layers to keep, numbers from 0: the least needed one is dropped again and again.

    `score` is called once for each layer that could go next, while the model is without it. Raises
    `UsageError` for a count that the model does not have, or a metric that `score` does not give.
    """
    kept = list(range(len(layers_of(model))))
    if count >= len(kept):
        raise UsageError(f"--layers {count}: the model has {len(kept)} layers; name fewer")
    first = 1 if isinstance(model.config, ModernBertConfig) else 0  # see keep_layers
    less = metrics.lower_is_better(metric)
    while len(kept) > count:
        found = []
        for layer in kept[first:]:
            rest = [other for other in kept if other != layer]
            with only_layers(model, rest):
                scores = score()
            if metric not in scores:
                raise UsageError(
                    f"--metric {metric!r}: the rows of --data give {', '.join(scores)}. Name one"
                )
            value, loss = scores[metric], scores.get("loss")
            worth = -np.inf if value is None else -value if less else value
            found.append((worth, 0.0 if loss is None else -loss, layer))
        gain, _, layer = max(found)
        kept.remove(layer)
        say(f"without layer {layer}: {metric} {abs(gain):.4f}, {len(kept)} layers left")
    return kept


def head_importance(model: classify.Classifier, rows: Rows) -> NDArray[np.float64]:
    """(layers, heads): of each head the mean size of the loss's gradient at a gate on it, over the
    rows; then each layer's numbers over their norm (Michel et al. 2019, section 4.1)."""
    kind = rows.manifest.problem_type
    assert kind is not None
    config, device = model.config, model.device
    total = torch.zeros(config.num_hidden_layers, config.num_attention_heads, dtype=torch.float64)
    model.eval()
    gold = torch.from_numpy(rows.gold)
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in wanted:
        weight.requires_grad_(False)  # the gates' gradients are all that is needed
    try:
        with head_gates(model) as gates:
            for examples in plan_once(rows.encoded.tokens, batch_tokens=rows.batch_tokens):
                gates.clear()
                batch = rows.encoded.gather(examples)
                losses = classify.loss(
                    classify.logits_of(model, batch),
                    gold[torch.from_numpy(examples)].to(device),
                    problem_type=kind,
                )
                owners = torch.from_numpy(batch.owners)
                of_tokens = torch.repeat_interleave(owners, torch.from_numpy(batch.lengths))
                for layer, slope in enumerate(torch.autograd.grad(losses.sum(), gates)):
                    owner = owners if len(slope) == len(owners) else of_tokens
                    each = torch.zeros(len(examples), slope.shape[1], dtype=torch.float64)
                    total[layer] += each.index_add(0, owner, slope.double().cpu()).abs().sum(0)
    finally:
        for weight in wanted:
            weight.requires_grad_(True)
    importance: NDArray[np.float64] = (total / len(rows.encoded)).numpy()
    norms = np.linalg.norm(importance, axis=1, keepdims=True)
    return importance / np.where(norms > 0, norms, 1)


def choose_heads(importance: NDArray[np.float64], count: int) -> dict[int, list[int]]:
    """Layer -> the heads to silence, so that the `count` most important of all are left."""
    layers, heads = importance.shape
    if count >= importance.size:
        raise UsageError(f"--heads {count}: the model has {layers} x {heads} heads; name fewer")
    silent: dict[int, list[int]] = {}
    for place in np.argsort(importance.ravel(), kind="stable")[: importance.size - count]:
        silent.setdefault(int(place) // heads, []).append(int(place) % heads)
    return {layer: sorted(silent[layer]) for layer in sorted(silent)}


def trim_vocabulary(
    bundle: Bundle, options: PruneOptions, *, say: Callable[[str], None] = lambda text: None
) -> BertTokenizer:
    """Cut the model's embedding to the tokens of the corpus and return its new tokenizer.

    The corpus is read twice: the second time both tokenizers read it and have to agree.
    """
    files = corpus_files(options.vocab)

    def texts() -> Iterator[list[str]]:
        block: list[str] = []
        for path in files:
            plain = kind_of(path) == "text"  # without columns
            column = None if plain else options.corpus_column
            for document in read_documents(path, text_column=column, encoding=options.encoding):
                block.append(document.text)
                if len(block) == BLOCK:
                    yield block
                    block = []
        if block:
            yield block

    used = UsedTokens(bundle.tokenizer)
    for block in texts():
        used.add(block)
    if not used.tokens:
        raise FilbertError(f"{', '.join(options.vocab)}: no text in it, so no token would be left")
    kept = used.kept()
    tokenizer = trim_tokenizer(bundle.tokenizer, kept)
    count = check_same(bundle.tokenizer, tokenizer, kept, texts())
    keep_words(bundle.model, kept)
    say(f"{count:,} documents, {used.tokens:,} tokens: {len(kept):,} tokens of the vocabulary kept")
    return tokenizer


def _check(options: PruneOptions) -> None:
    if options.layers is None and options.heads is None and not options.vocab:
        raise UsageError("nothing to prune: give --layers N, --heads N or --vocab TEXTS")
    measured = options.layers is not None or options.heads is not None
    if measured and options.data is None:
        raise UsageError(
            "--layers and --heads are chosen by what they do for the answers; give labelled rows "
            "with --data FILE"
        )
    if options.test is not None and options.data is None:
        raise UsageError("--test goes with --data FILE")
    read = [path for path in (options.bundle, options.data, options.test) if path is not None]
    check_out(Path(options.out), "bundle", is_bundle, overwrite=options.overwrite, reads=read)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)  # before the long part


def _read(
    path: str,
    options: PruneOptions,
    bundle: Bundle,
    *,
    limit: int | None,
    tokenizer: BertTokenizer | None = None,
) -> Rows:
    manifest = bundle.manifest
    assert manifest.problem_type is not None
    columns = ("text_column", "pair_column", "label_column", "label_separator")
    reading = {name: getattr(options, name) for name in (*columns, "format", "encoding", "header")}
    examples = read_examples(path, **reading, problem_type=manifest.problem_type)
    if (examples.pairs is None) == manifest.pair:
        raise FilbertError(
            f"{examples.source}: the model reads {'pairs of texts' if manifest.pair else 'texts'}, "
            f"the rows hold {'pairs' if examples.pairs is not None else 'single texts'}"
        )
    if limit is not None:
        examples = examples.select(range(min(limit, len(examples))))
    encoded = classify.encode(
        tokenizer or bundle.tokenizer,
        examples.texts,
        examples.pairs,
        max_length=manifest.max_length,
        windows=manifest.windows,
        stride=manifest.stride,
    )
    if manifest.problem_type != REGRESSION:
        check_known_labels(examples, manifest.labels)
    gold = classify.targets(examples.labels or [], manifest.labels, manifest.problem_type)
    name = f"{Path(path).name}, {len(examples):,} rows"
    return Rows(name, encoded, gold, manifest, options.batch_tokens)


def _parameters(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
