"""Classification: a label, several labels or a number for a text or a pair of texts.

The six functions of a task, used alike in training, evaluation, prediction and serving:
`read`, `encode`, `head`, `loss`, `decode`, `score`. A text over the model's length is read in
windows that overlap by `stride` tokens, and the logits of its windows are averaged.

    filbert train classify --data reviews.csv --base MODEL --out runs/reviews

Devlin et al. 2019, section 4.1 (sequence-level tasks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from filbert.data.examples import Examples, read_examples
from filbert.data.packing import Batch, Encoded, plan_once
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.model.bert import BertForSequenceClassification
from filbert.model.inputs import as_grid
from filbert.model.modern import ModernBertForSequenceClassification
from filbert.model.modern_config import ModernBertConfig, read_any_config
from filbert.sources import resolve
from filbert.tasks.calibrate import probabilities
from filbert.tasks.metrics import classification_scores, multilabel_scores, regression_scores

if TYPE_CHECKING:
    from filbert.bundle import Manifest
    from filbert.text import BertTokenizer

Floats = NDArray[np.float32]
Classifier = BertForSequenceClassification | ModernBertForSequenceClassification


def read(path: str, options: Any, *, need_labels: bool = True) -> Examples:
    """Rows of a file; `options` carries the column, format and encoding fields of the recipe."""
    return read_examples(
        path,
        text_column=options.text_column,
        pair_column=options.pair_column,
        label_column=options.label_column,
        format=options.format,
        encoding=options.encoding,
        header=options.header,
        need_labels=need_labels,
        problem_type=options.problem_type,
        label_separator=options.label_separator,
    )


def encode(
    tokenizer: BertTokenizer,
    texts: list[str],
    pairs: list[str] | None,
    *,
    max_length: int,
    windows: bool,
    stride: int,
) -> Encoded:
    """Token ids of each text, in windows of at most `max_length` tokens (specials included)."""
    return Encoded(
        *tokenizer.encode_flat(texts, pairs, max_length=max_length, windows=windows, stride=stride)
    )


def head(
    base: str, *, labels: list[str], problem_type: str, revision: str | None = None, **changes: Any
) -> Classifier:
    """The pre-trained encoder of `base` with a new classification head, drawn from torch's seed."""
    names = labels if labels else ["score"]
    folder = resolve(base, revision=revision)
    modern = isinstance(read_any_config(folder), ModernBertConfig)
    kind = ModernBertForSequenceClassification if modern else BertForSequenceClassification
    return kind.from_pretrained(
        folder,
        new_head=True,
        problem_type=problem_type,
        id2label=dict(enumerate(names)),
        **changes,
    )


def targets(labels: list[Any], names: list[str], problem_type: str) -> Floats | NDArray[np.int64]:
    """Gold labels as numbers: (n,) int64, (n, labels) float32 0/1, or (n,) float32."""
    if problem_type == "regression":
        return np.asarray(labels, dtype=np.float32)
    number = {name: index for index, name in enumerate(names)}
    try:
        if problem_type == "single_label_classification":
            return np.asarray([number[str(label)] for label in labels], dtype=np.int64)
        gold = np.zeros((len(labels), len(names)), dtype=np.float32)
        for row, several in enumerate(labels):
            gold[row, [number[str(label)] for label in several]] = 1.0
        return gold
    except KeyError as error:
        raise FilbertError(
            f"label {error.args[0]!r} is unknown to the model, which has: {', '.join(names[:20])}"
            f"{' ...' if len(names) > 20 else ''}.{did_you_mean(str(error.args[0]), names)}"
        ) from None


def class_weights(
    choice: str, gold: NDArray[Any], names: list[str], problem_type: str
) -> Tensor | None:
    """(labels,) weights for the loss: None, `balanced` (n / (classes * count), as scikit-learn), or
    given as `spam=5,ham=1`. For several labels they weigh the positive side (negatives / positives
    if balanced)."""
    if choice == "none":
        return None
    if problem_type == "regression":
        raise UsageError("class_weights has no meaning for regression; leave it at 'none'")
    if choice == "balanced":
        if gold.ndim == 2:
            positive = np.maximum(gold.sum(0), 1.0)
            return torch.tensor((len(gold) - positive) / positive, dtype=torch.float32).clamp_min(
                1e-3
            )
        counts = np.bincount(gold, minlength=len(names))
        return torch.tensor(len(gold) / (len(names) * np.maximum(counts, 1)), dtype=torch.float32)
    weights = torch.ones(len(names))
    for part in choice.split(","):
        name, equals, value = part.rpartition("=")
        name = name.strip()
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not equals or not 1e-6 <= number <= 1e6:
            raise UsageError(
                f"class_weights {part!r}: expected none, balanced, or label=weight,label=weight "
                "with weights from 1e-6 to 1e6"
            )
        if name not in names:
            raise UsageError(
                f"class_weights: no label {name!r}; there are {', '.join(names)}."
                f"{did_you_mean(name, names)}"
            )
        weights[names.index(name)] = number
    return weights


def logits_of(model: Classifier, batch: Batch) -> Tensor:
    """(examples, labels) float32: the mean over each example's windows.

    The batch is computed packed, or as a padded grid if the model's attention path is another.
    """
    device = model.device
    ids, types = (torch.from_numpy(x).to(device) for x in (batch.input_ids, batch.token_type_ids))
    lengths = torch.from_numpy(batch.lengths)  # read by Python, so a GPU would be waited for
    if model.base_model.attention_path == "packed":
        output = model(input_ids=ids, token_type_ids=types, lengths=lengths)
    else:
        output = model(**as_grid(ids, types, lengths))
    logits: Tensor = output.logits.float()  # (windows, labels)
    if len(batch.owners) == len(batch.examples):
        return logits
    owners = torch.from_numpy(batch.owners).to(device)
    windows = torch.bincount(owners, minlength=len(batch.examples))[:, None]
    total = torch.zeros(len(batch.examples), logits.shape[1], device=device)
    return total.index_add(0, owners, logits) / windows  # (windows, labels) -> (examples, labels)


def loss(
    logits: Tensor,
    gold: Tensor,
    *,
    problem_type: str,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(examples,) loss of each: cross-entropy, mean binary cross-entropy, or squared error."""
    if problem_type == "regression":
        return (logits.squeeze(-1) - gold) ** 2
    if problem_type == "multi_label_classification":
        smooth = gold * (1 - label_smoothing) + label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=weights, reduction="none"
        )
        return losses.mean(-1)
    return F.cross_entropy(
        logits, gold, weight=weights, label_smoothing=label_smoothing, reduction="none"
    )


@torch.no_grad()
def predict_logits(model: Classifier, encoded: Encoded, *, batch_tokens: int = 4096) -> Floats:
    """(examples, labels) float32, in input order, whatever the order of computation: the mean over
    each example's windows, of which `batch_tokens` are computed at once."""
    model.eval()
    windows = encoded.by_window()
    out = np.empty((len(windows), model.config.num_labels), dtype=np.float32)
    for chosen in plan_once(windows.tokens, batch_tokens=batch_tokens):
        out[chosen] = logits_of(model, windows.gather(chosen)).cpu().numpy()
    if windows is encoded:
        return out
    sums: Any = np.add.reduceat(out, encoded.example_windows[:-1], axis=0)
    means: Floats = sums / np.diff(encoded.example_windows)[:, None].astype(np.float32)
    return means


def decode(logits: Floats, manifest: Manifest, *, all_scores: bool = False) -> list[dict[str, Any]]:
    """Answers for people: `{"label", "score"}`; `{"labels", "scores"}` for several labels;
    `{"score"}` for regression. Scores are calibrated probabilities."""
    assert manifest.problem_type is not None
    if manifest.problem_type == "regression":
        return [{"score": float(value)} for value in logits[:, 0]]
    chances = probabilities(logits, manifest.problem_type, manifest.temperature)
    names = manifest.labels
    if manifest.problem_type == "multi_label_classification":
        limits = np.asarray(manifest.thresholds or [0.5] * len(names))
        return [
            {
                "labels": [names[i] for i in np.flatnonzero(row >= limits)],
                "scores": {name: float(p) for name, p in zip(names, row, strict=True)},
            }
            for row in chances
        ]
    best = chances.argmax(1)
    tops = chances[np.arange(len(chances)), best].tolist()
    answers: list[dict[str, Any]] = [
        {"label": names[label], "score": top}
        for label, top in zip(best.tolist(), tops, strict=True)
    ]
    if all_scores:
        for answer, row in zip(answers, chances.tolist(), strict=True):
            answer["scores"] = dict(zip(names, row, strict=True))
    return answers


def score(
    logits: Floats,
    gold: NDArray[Any],
    *,
    problem_type: str,
    labels: list[str],
    temperature: float = 1.0,
    thresholds: list[float] | None = None,
) -> dict[str, Any]:
    """The field's measures for this kind of label; see `filbert.tasks.metrics`."""
    if problem_type == "regression":
        return regression_scores(logits[:, 0], gold)
    if problem_type == "multi_label_classification":
        return multilabel_scores(
            logits / temperature, gold, labels=labels, thresholds=thresholds or [0.5] * len(labels)
        )
    return classification_scores(logits / temperature, gold, labels=labels)
