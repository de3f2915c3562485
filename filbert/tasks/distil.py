"""Distillation: a small classifier learns from a larger one's answers beside the labels.

    filbert train classify --data train.csv --base filbert-mini-en --teacher runs/large --out runs/s

The loss of a labelled example is

    (1 - weight) * loss(label)  +  weight * T^2 * KL(teacher || student, both logits over T)

(Hinton et al. 2015, arXiv 1503.02531, section 2; T^2 keeps the gradient's size whatever T is), of
an example without a label the second part alone. For several labels the divergence is that of each
label's yes and no, in the mean; a regression learns the teacher's value by squared error.

`hidden` adds the distance of hidden states: of each text the first token's, layer by layer, as unit
vectors (Sun et al. 2019, arXiv 1908.09355, equation 7), the student's through a learned projection
where the widths differ (Jiao et al. 2020, arXiv 1909.10351, equation 8). First tokens can be
compared whatever the two vocabularies are; other tokens could not.

`attention` adds the divergence of attention maps, layer by layer, each the mean over its heads
(Jiao et al. 2020, equation 7, compares heads one by one, which asks for equally many; Wang et al.
2020, arXiv 2002.10957, takes the divergence). It needs equal tokens, so a teacher with the
student's vocabulary and windows, and maps that are written out, the slowest attention path.

A tagger learns from a tagger in the same way, word by word, whatever the two vocabularies are.

Teacher and student answer the same question: the same kind of label and the same labels, in any
order. Each reads a text with its own tokenizer, in windows of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filbert.data.packing import Batch
from filbert.errors import FilbertError, UsageError
from filbert.model.inputs import as_grid
from filbert.tasks import classify

if TYPE_CHECKING:
    from filbert.bundle import Manifest
    from filbert.data.packing import Encoded
    from filbert.text import BertTokenizer


def label_columns(
    teacher: Manifest, *, labels: list[str], problem_type: str, pair: bool, source: str
) -> list[int]:
    """For each of `labels` its column in the teacher's logits; [0] for a regression.

    Raises `UsageError` where the teacher answers another question: another task or kind of label,
    other labels, one text instead of a pair.
    """
    if teacher.task not in ("classify", "rank"):
        raise UsageError(
            f"--teacher {source}: a bundle of the task {teacher.task}; a classifier learns from a "
            "classifier (filbert train classify)"
        )
    if teacher.problem_type != problem_type:
        raise UsageError(
            f"--teacher {source}: it answers with {teacher.problem_type}, but the training file "
            f"holds {problem_type}; give a teacher of the same kind, or --problem-type"
        )
    if teacher.pair != pair:
        raise UsageError(
            f"--teacher {source}: it reads {'pairs of texts' if teacher.pair else 'single texts'}, "
            f"but the training file holds {'pairs' if pair else 'single texts'}"
        )
    if problem_type == "regression":
        return [0]
    return columns_of(teacher.labels, labels, source)


def columns_of(theirs: list[str], labels: list[str], source: str) -> list[int]:
    """For each of `labels` its place among the teacher's; `UsageError` where they differ."""
    missing = [label for label in labels if label not in theirs]
    unasked = [label for label in theirs if label not in labels]
    if missing or unasked:
        raise UsageError(
            f"--teacher {source}: its labels are {_listed(theirs)}, those of the training "
            f"file {_listed(labels)}. Both must have the same: "
            + "; ".join(
                [
                    *([f"the teacher lacks {_listed(missing)}"] if missing else []),
                    *([f"the training file lacks {_listed(unasked)}"] if unasked else []),
                ]
            )
        )
    return [theirs.index(label) for label in labels]


def encode(
    tokenizer: BertTokenizer, manifest: Manifest, texts: list[str], pairs: list[str] | None
) -> Encoded:
    """The texts as the teacher reads them."""
    return classify.encode(
        tokenizer, texts, pairs,
        max_length=manifest.max_length, windows=manifest.windows, stride=manifest.stride,
    )  # fmt: skip


def teacher_logits(
    model: classify.Classifier, encoded: Encoded, columns: list[int], *, batch_tokens: int = 4096
) -> classify.Floats:
    """(examples, labels) float32: what the teacher answers, in the student's order of labels.

    Raises `FilbertError` where that is no number.
    """
    logits = classify.predict_logits(model, encoded, batch_tokens=batch_tokens)[:, columns]
    if not torch.from_numpy(logits).isfinite().all():
        raise FilbertError("the teacher answers with NaN or infinity: its weights are damaged")
    return logits


def loss(logits: Tensor, taught: Tensor, *, problem_type: str, temperature: float) -> Tensor:
    """(examples,) distance of the student's answers from the teacher's, 0 where they are equal.

    logits, taught: (examples, labels) float32.
    """
    if problem_type == "regression":
        return ((logits - taught) ** 2).squeeze(-1)
    student, teacher = logits / temperature, taught / temperature
    if problem_type == "multi_label_classification":
        yes = torch.sigmoid(teacher)
        apart = yes * (F.logsigmoid(teacher) - F.logsigmoid(student))
        apart = apart + (1 - yes) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
        return apart.mean(-1) * temperature**2
    wanted = torch.log_softmax(teacher, -1)
    apart = wanted.exp() * (wanted - torch.log_softmax(student, -1))
    return apart.sum(-1) * temperature**2


def mix(hard: Tensor, soft: Tensor, labelled: Tensor, *, weight: float) -> Tensor:
    """(examples,) the loss of each: of both kinds where there is a label, else what the teacher
    says alone. labelled: (examples,) bool."""
    return torch.where(labelled, (1 - weight) * hard + weight * soft, soft)


def layer_map(student: int, teacher: int) -> list[tuple[int, int]]:
    """Which of the teacher's layers each of the student's learns from, both counted from 1: evenly
    spread, the last from the last (TinyBERT's uniform strategy).

    Raises `UsageError` for a student with more layers than its teacher.
    """
    if student > teacher:
        raise UsageError(
            f"--distil-hidden, --distil-attention: the student has {student} layers and the "
            f"teacher {teacher}; layers are taught to a student with as many or fewer"
        )
    return [(layer, round(layer * teacher / student)) for layer in range(1, student + 1)]


class HiddenMatch(nn.Module):
    """The distance of hidden states, with the student's projection to the teacher's width."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        same = student_width == teacher_width
        self.projection = None if same else nn.Linear(student_width, teacher_width, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(examples, layers, width) of each -> (examples,), the mean over layers of the squared
        distance of the two unit vectors, from 0 to 4."""
        if self.projection is not None:
            student = self.projection(student)
        a, b = F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1)
        return ((a - b) ** 2).sum(-1).mean(-1)


def logits_and_states(
    model: classify.Classifier, batch: Batch, layers: list[int]
) -> tuple[Tensor, Tensor]:
    """(examples, labels) float32 logits, and (examples, layers, hidden) states of first tokens
    after these layers, counted from 1; of a text in several windows the mean of each.

    Runs on packed batches.
    """
    device = model.device
    ids, types, lengths = (
        torch.from_numpy(x).to(device)
        for x in (batch.input_ids, batch.token_type_ids, batch.lengths)
    )
    output = model(input_ids=ids, token_type_ids=types, lengths=lengths, output_hidden_states=True)
    first = torch.cumsum(lengths, 0) - lengths
    states = torch.stack([output.hidden_states[layer][first] for layer in layers], 1)
    # (windows, layers, hidden)
    owners = torch.from_numpy(batch.owners).to(device)
    return (
        _mean_of_windows(output.logits.float(), owners, len(batch.examples)),
        _mean_of_windows(states, owners, len(batch.examples)),
    )


def states_and_maps(
    model: classify.Classifier, batch: Batch, layers: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `logits_and_states` gives, and the attention maps of these layers, float32 (windows,
    layers, longest, longest), each the mean over its heads.

    Runs on a padded grid, where the maps are written out.
    """
    ids, types, lengths = (
        torch.from_numpy(x).to(model.device)
        for x in (batch.input_ids, batch.token_type_ids, batch.lengths)
    )
    output = model(
        **as_grid(ids, types, lengths), output_hidden_states=True, output_attentions=True
    )
    states = torch.stack([output.hidden_states[layer][:, 0] for layer in layers], 1)
    maps = torch.stack([output.attentions[layer - 1].float().mean(1) for layer in layers], 1)
    owners = torch.from_numpy(batch.owners).to(model.device)
    return (
        _mean_of_windows(output.logits.float(), owners, len(batch.examples)),
        _mean_of_windows(states, owners, len(batch.examples)),
        maps,
    )


def map_distance(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """(examples,) divergence of attention maps (windows, layers, longest, longest) from the
    teacher's: the mean over layers, over the tokens that look, and over an example's windows."""
    lengths = torch.from_numpy(batch.lengths).to(student.device)
    apart = torch.xlogy(teacher, teacher) - teacher * student.clamp(min=1e-9).log()
    real = torch.arange(student.shape[-1], device=student.device) < lengths[:, None]
    each = (apart.sum(-1).mean(1) * real).sum(-1) / lengths  # (windows,)
    owners = torch.from_numpy(batch.owners).to(student.device)
    return _mean_of_windows(each, owners, len(batch.examples))


def _mean_of_windows(values: Tensor, owners: Tensor, examples: int) -> Tensor:
    """(windows, ...) -> (examples, ...)"""
    if len(owners) == examples:
        return values
    counts = torch.bincount(owners, minlength=examples).view(-1, *[1] * (values.dim() - 1))
    total = torch.zeros(examples, *values.shape[1:], dtype=values.dtype, device=values.device)
    return total.index_add(0, owners, values) / counts.to(values.dtype)


def _listed(names: list[Any]) -> str:
    return ", ".join(map(str, names[:10])) + (" ..." if len(names) > 10 else "")
