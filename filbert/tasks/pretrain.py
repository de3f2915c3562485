"""Pre-training: masked words and, by choice, a sentence objective, learned from prepared text.

The six functions of a task: `read` opens shards, `encode` draws and masks a packed batch, `head`
makes the model, `loss` compares its predictions with what was hidden, `decode` shows a sample as a
reader sees it, `score` turns sums into measures.

    filbert pretrain recipes/bert-mini.toml

Devlin et al. 2019, section 3.1. The word predictions are computed at the masked places alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from filbert.data.masking import MaskRule, mask
from filbert.data.samples import NO_LABEL, Sample, Sampler
from filbert.data.shards import Shards, check_files, open_shards
from filbert.errors import FilbertError, UsageError
from filbert.model.bert import BertForMaskedLM, BertForPreTraining
from filbert.model.config import EncoderConfig
from filbert.model.modern import ModernBertForMaskedLM
from filbert.model.modern_config import GLOBAL, ModernBertConfig
from filbert.model.pretrained import PretrainedModel
from filbert.text import BertTokenizer

Ids = NDArray[np.int64]

# what `loss` counts, in this order
TALLIES = ("word_loss", "words", "words_right", "pair_loss", "pairs", "pairs_right")
VERIFIED = 2_000_000_000  # bytes of shards that are read at the start of a run: some 4 s


@dataclass(frozen=True)
class Batch:
    """A packed batch of masked samples. input_ids, token_type_ids: (tokens,); lengths: (samples,);
    positions, labels: (masked,) where words are to be predicted, and which; pair_labels:
    (samples,) 0 or 1, -100 without one; numbers: (samples,) of the run. All int64.
    masks_a_sample: how many masks a sample of full length has, for `loss`."""

    input_ids: Ids
    token_type_ids: Ids
    lengths: Ids
    positions: Ids
    labels: Ids
    pair_labels: Ids
    numbers: Ids
    joins: NDArray[np.bool_]
    masks_a_sample: float = 1.0


def read(folder: str | Path) -> Shards:
    """Open the shards that `filbert prepare` wrote, after a look at their sizes."""
    return open_shards(Path(folder))


def verify(shards: Shards) -> list[str]:
    """Read every file of shards of up to `VERIFIED` bytes against its checksum: what a flipped bit
    makes of a token is trained on silently. Raises `FilbertError` naming a damaged file; returns
    what is to be told where there is more."""
    if shards.size <= VERIFIED:
        check_files(shards.folder, shards.manifest.shards)
        return []
    return [
        f"the shards have {shards.size / 1e9:,.1f} GB: their sizes were checked, their checksums "
        f"not; filbert prepare --verify {shards.folder} reads them"
    ]


def mask_rule(tokenizer: BertTokenizer, *, rate: float, masking: Any) -> MaskRule:
    """The rule for this vocabulary: special and [unusedN] tokens never stand in for a word."""
    words = tokenizer.get_vocab()
    mask_id = tokenizer.mask_token_id
    if mask_id is None:
        raise FilbertError("this vocabulary has no [MASK]; pre-training needs one")
    special = set(tokenizer.all_special_ids)
    ordinary = [
        number for word, number in words.items()
        if number not in special and not (word.startswith("[unused") and word.endswith("]"))
    ]  # fmt: skip
    return MaskRule(mask_id, np.array(sorted(ordinary)), rate=rate, masking=masking)


def encode(sampler: Sampler, samples: list[Sample], rule: MaskRule) -> Batch:
    """Read the tokens of samples, longest first, and mask them."""
    samples = sorted(samples, key=lambda sample: -sample.tokens)
    packed = sampler.pack(samples)
    masked = mask(
        packed.input_ids, packed.joins, packed.pieces, packed.owners, packed.keys, rule=rule
    )
    return Batch(
        masked.input_ids, packed.token_type_ids, packed.lengths, masked.positions, masked.labels,
        packed.labels, np.array([sample.number for sample in samples]), packed.joins,
        max(1.0, round(sampler.max_length * rule.rate)),
    )  # fmt: skip


def head(config: EncoderConfig, *, objective: str) -> type[PretrainedModel]:
    """The class of model to pre-train: with a head for pairs if the objective compares two
    segments. Raises `UsageError` for a ModernBERT with such an objective."""
    if isinstance(config, ModernBertConfig):
        if objective != "none":
            raise UsageError(
                f"objective {objective}: a ModernBERT has no token types to tell two segments "
                "apart and no pair head; use --objective none, or --architecture bert"
            )
        return ModernBertForMaskedLM
    return BertForMaskedLM if objective == "none" else BertForPreTraining


def loss(model: PretrainedModel, batch: Batch, *, masks_a_sample: float) -> tuple[Tensor, Tensor]:
    """The loss to differentiate and what is to be logged, (6,) float64 as in `TALLIES`.

    The first is the sum of all word losses over `masks_a_sample`, a constant, plus the sum of the
    pair losses: an expected loss times the number of samples. With a constant every masked word
    weighs the same wherever it fell, and processes need not agree on a count.
    """
    device = model.device
    ids, types, places, labels, pairs = (
        torch.from_numpy(x).to(device)
        for x in (
            batch.input_ids, batch.token_type_ids, batch.positions, batch.labels, batch.pair_labels
        )
    )  # fmt: skip
    lengths = torch.from_numpy(batch.lengths)  # read by Python, so a GPU would be waited for
    output = model(
        input_ids=ids, token_type_ids=types, lengths=lengths, predict_at=places, labels_at=labels
    )
    total = output["word_loss"] / masks_a_sample
    tallies = [
        output["word_loss"].detach(), labels.new_tensor(len(labels)), output["words_right"]
    ]  # fmt: skip
    follows = output.get("seq_relationship_logits")
    if follows is None:
        tallies += [labels.new_zeros(())] * 3
    else:
        follows = follows.float()
        pair_loss = F.cross_entropy(follows, pairs, ignore_index=NO_LABEL, reduction="sum")
        total = total + pair_loss
        told = pairs != NO_LABEL
        tallies += [pair_loss.detach(), told.sum(), (follows.detach().argmax(-1) == pairs).sum()]
    return total, torch.stack([value.double() for value in tallies])


def score(tallies: NDArray[np.float64]) -> dict[str, float]:
    """Means of what `loss` counted: `loss` is the sum of `mlm_loss` (nats a masked word) and, where
    there are pairs, `pair_loss`; `mlm_accuracy` and `pair_accuracy` are shares."""
    word_loss, words, words_right, pair_loss, pairs, pairs_right = tallies
    scores = {
        "mlm_loss": word_loss / max(words, 1.0),
        "mlm_accuracy": words_right / max(words, 1.0),
    }
    if pairs:
        scores |= {"pair_loss": pair_loss / pairs, "pair_accuracy": pairs_right / pairs}
    total = scores["mlm_loss"] + scores.get("pair_loss", 0.0)
    return {"loss": float(total), **{name: float(value) for name, value in scores.items()}}


@torch.no_grad()
def evaluate(model: PretrainedModel, batches: list[Batch], *, count: int) -> NDArray[np.float64]:
    """(6,) sums over the first `count` of these batches, as in `TALLIES`; the others are computed
    for the sake of processes that wait for it."""
    model.eval()
    total = np.zeros(len(TALLIES))
    for number, batch in enumerate(batches):
        tallies = loss(model, batch, masks_a_sample=1.0)[1]
        if number < count:
            total += tallies.cpu().numpy()
    return total


def flops_per_token(model: PretrainedModel, *, length: int, masked: float) -> float:
    """Floating-point operations of a training step for each token: 2 for each weight that it meets
    in a matrix product and 4 * hidden for each token that it looks at in each layer, three times
    over for forward and backward (Kaplan et al. 2020, section 2.1). `length`: tokens of a sample;
    `masked`: the share of them whose words are predicted. Embedding look-ups, norms, activations
    and what is computed once a sample are left out."""
    config = model.config
    seen: float = config.num_hidden_layers * length
    if isinstance(config, ModernBertConfig):
        seen = sum(length if kind == GLOBAL else _in_window(config, length)
                   for kind in config.kinds)  # fmt: skip
    layers = words = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "pooler" not in name:
            of_a_layer = ".layer" in name or "embeddings." in name  # not of the word head
            layers += module.weight.numel() * of_a_layer
            words += module.weight.numel() * (not of_a_layer and "relationship" not in name)
    return float(3 * (2 * layers + 4 * config.hidden_size * seen + 2 * masked * words))


def _in_window(config: ModernBertConfig, length: int) -> float:
    """How many tokens a token of a local layer looks at, on average over a text."""
    reach = min(config.local_attention // 2, length - 1)
    return 2 * reach + 1 - reach * (reach + 1) / length  # the ends of a text have fewer


def decode(batch: Batch, tokenizer: BertTokenizer) -> list[dict[str, Any]]:
    """Each sample of a batch for people: its pieces with masks in place, what was hidden, the
    segments, and the label of its pair."""
    shown = []
    ends = np.cumsum(batch.lengths)
    for row, end in enumerate(ends):
        start = end - batch.lengths[row]
        here = (batch.positions >= start) & (batch.positions < end)
        hidden = dict(zip((batch.positions[here] - start).tolist(),
                          batch.labels[here].tolist(), strict=True))  # fmt: skip
        ids = batch.input_ids[start:end].tolist()
        pieces = tokenizer.convert_ids_to_tokens(ids)
        answers = tokenizer.convert_ids_to_tokens(list(hidden.values()))
        label = int(batch.pair_labels[row])
        shown.append(
            {
                "number": int(batch.numbers[row]),
                "tokens": pieces,
                "joins": batch.joins[start:end].tolist(),
                "segments": batch.token_type_ids[start:end].tolist(),
                "hidden": dict(zip(hidden, answers, strict=True)),
                "pair_label": None if label == NO_LABEL else label,
            }
        )
    return shown
