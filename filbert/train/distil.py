"""A teacher's part in a classifier's training: its answers, made once, and its hidden states.

What the losses are stands in `filbert/tasks/distil.py`; `filbert/train/classify.py` asks a `Lesson`
for them where `--teacher` is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from filbert.bundle import Bundle, open_bundle
from filbert.data.examples import Examples
from filbert.data.packing import Batch, Ids
from filbert.data.tables import kind_of
from filbert.errors import UsageError
from filbert.model.device import for_inference
from filbert.tasks import classify, distil
from filbert.train.options import ClassifyOptions

if TYPE_CHECKING:
    from filbert.train.classify_data import Data
    from filbert.train.tune import Machine

TEACH_TOKENS = 4096  # of a batch that the teacher answers before training


def check(options: ClassifyOptions) -> None:
    """Raise `UsageError` for options of distillation that do not go together."""
    if options.teacher is None:
        for name in ("unlabelled", "distil_weight", "distil_temperature", "distil_hidden"):
            if getattr(options, name) != ClassifyOptions.model_fields[name].default:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag}: a teacher has to be named, with --teacher BUNDLE")
    elif options.distil_hidden and options.attention != "packed":
        raise UsageError(
            f"--distil-hidden is computed on packed batches; leave --attention {options.attention} "
            "out"
        )


def read_unlabelled(options: ClassifyOptions, train: Examples) -> Examples | None:
    """The texts of `--unlabelled`, one or two of a row as the training file has them."""
    path = options.unlabelled
    if path is None:
        return None
    if kind_of(path) == "text":  # plain lines have no columns to name
        options = options.model_copy(update={"text_column": None, "pair_column": None})
    found = classify.read(
        path,
        options.model_copy(update={"format": None, "label_column": None, "header": None}),
        need_labels=False,
    )
    if (found.pairs is None) != (train.pairs is None):
        raise UsageError(
            f"--unlabelled {path} and {options.data} differ: one holds pairs of "
            "texts, the other single texts; name the columns with --text-column and --pair-column"
        )
    return found


class Lesson:
    """What the teacher says of each training example, and the loss that the student gets for it."""

    def __init__(
        self,
        options: ClassifyOptions,
        data: Data,
        machine: Machine,
        student: classify.Classifier,
        *,
        scale: tuple[float, float],
    ) -> None:
        """Open the teacher and let it answer, once for all seeds; give the student the projection
        of hidden states, where it learns those. scale: mean and spread of a regression."""
        assert options.teacher is not None
        self.options, self.device = options, machine.device
        self.kind, self.labelled = data.problem_type, len(data.train)
        bundle: Bundle = open_bundle(options.teacher)
        columns = distil.label_columns(
            bundle.manifest,
            labels=data.labels,
            problem_type=data.problem_type,
            pair=data.train.pairs is not None,
            source=options.teacher,
        )
        assert isinstance(bundle.model, classify.Classifier)
        self.layers: list[tuple[int, int]] = []
        if options.distil_hidden:
            depths = student.config.num_hidden_layers, bundle.model.config.num_hidden_layers
            self.layers = distil.layer_map(*depths)
            widths = student.config.hidden_size, bundle.model.config.hidden_size
            student.add_module("distil", distil.HiddenMatch(*widths))
        self.model = for_inference(bundle.model, machine.device, machine.dtype, head="classifier")
        self.lines = []
        if data.taught is None or options.distil_hidden:
            encoded = distil.encode(bundle.tokenizer, bundle.manifest, *data.training_texts)
            self.encoded = encoded if options.distil_hidden else None
        if data.taught is None:
            began = time.monotonic()
            data.taught = distil.teacher_logits(
                self.model, encoded, columns, batch_tokens=TEACH_TOKENS
            )
            self.lines = [
                f"{options.teacher} answered {len(data.taught):,} examples in "
                f"{time.monotonic() - began:.0f} s"
            ]
        mean, spread = scale
        self.taught = torch.from_numpy((data.taught - mean) / spread).float()
        if not options.distil_hidden:
            del self.model  # it has said what it had to say

    def losses(self, student: Any, batch: Batch, hard: Callable[[Tensor, Ids], Tensor]) -> Tensor:
        """(examples,) loss of each. hard: the loss against the labels, from logits and examples."""
        options = self.options
        numbers = torch.from_numpy(batch.examples)
        if self.layers:
            logits, states = distil.logits_and_states(student, batch, [s for s, _ in self.layers])
        else:
            logits = classify.logits_of(student, batch)
        soft = distil.loss(
            logits, self.taught[numbers].to(self.device),
            problem_type=self.kind, temperature=options.distil_temperature,
        )  # fmt: skip
        labelled = (numbers < self.labelled).to(self.device)
        losses = distil.mix(
            hard(logits, batch.examples), soft, labelled, weight=options.distil_weight
        )
        if self.layers:
            assert self.encoded is not None
            with torch.no_grad():
                _, theirs = distil.logits_and_states(
                    self.model, self.encoded.gather(batch.examples), [t for _, t in self.layers]
                )
            losses = losses + options.distil_hidden * student.distil(states, theirs)
        return losses

    def provenance(self, data: Data) -> dict[str, Any]:
        """For the manifest: who taught, and how."""
        return {
            "teacher": self.options.teacher,
            "teacher_sha256": data.teacher,
            "distil_weight": self.options.distil_weight,
            "distil_temperature": self.options.distil_temperature,
            "distil_hidden": self.options.distil_hidden,
            "unlabelled_rows": 0 if data.unlabelled is None else len(data.unlabelled),
        }


def forget(student: Any) -> None:
    """Take the projection, which only training needs, out of the student."""
    if "distil" in student._modules:
        del student.distil
