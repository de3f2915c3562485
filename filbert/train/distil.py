"""A teacher's part in training: its answers, made once, its hidden states and attention maps.

What the losses are stands in `filbert/tasks/distil.py`; where `--teacher` is given,
`filbert/train/classify.py` asks a `Lesson` for them, and `filbert/train/tag.py` `word_answers`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from filbert.bundle import Bundle, open_bundle
from filbert.data.examples import Examples
from filbert.data.packing import Batch, Ids
from filbert.data.tables import kind_of
from filbert.data.tag_layout import Laid
from filbert.data.tagged import Tagged
from filbert.errors import FilbertError, UsageError
from filbert.model.bert import BertForTokenClassification
from filbert.model.crf import BertCrfForTokenClassification
from filbert.model.device import for_inference
from filbert.tasks import classify, distil, tag
from filbert.text import BertTokenizer
from filbert.train.options import ClassifyOptions, TaughtOptions

if TYPE_CHECKING:
    from filbert.train.classify_data import Data
    from filbert.train.tune import Machine

TEACH_TOKENS = 4096  # of a batch that the teacher answers before training


def check_named(options: TaughtOptions) -> None:
    """Raise `UsageError` for options of distillation without a teacher."""
    fields = type(options).model_fields
    for name in fields if options.teacher is None else []:
        about = name == "unlabelled" or name.startswith("distil_")
        if about and getattr(options, name) != fields[name].default:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: a teacher has to be named, with --teacher BUNDLE")


def check(options: ClassifyOptions) -> None:
    """Raise `UsageError` for options of distillation that do not go together."""
    check_named(options)
    if options.distil_hidden and not options.distil_attention and options.attention != "packed":
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
        tokenizer: BertTokenizer,
        reading: dict[str, Any],
        *,
        scale: tuple[float, float],
    ) -> None:
        """Open the teacher and let it answer, once for all seeds; give the student the projection
        of hidden states, where it learns those. reading: how the student reads texts, as a
        manifest has it. scale: mean and spread of a regression."""
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
        if options.distil_attention:
            own = (tokenizer, reading)
            theirs = bundle.tokenizer, {name: getattr(bundle.manifest, name) for name in reading}
            _check_equal_tokens(own, theirs, options.teacher)
        if options.distil_hidden or options.distil_attention:
            depths = student.config.num_hidden_layers, bundle.model.config.num_hidden_layers
            self.layers = distil.layer_map(*depths)
        if options.distil_hidden:
            widths = student.config.hidden_size, bundle.model.config.hidden_size
            student.add_module("distil", distil.HiddenMatch(*widths))
        self.model = for_inference(bundle.model, machine.device, machine.dtype, head="classifier")
        self.lines = []
        if data.taught is None or self.layers:
            encoded = distil.encode(bundle.tokenizer, bundle.manifest, *data.training_texts)
            self.encoded = encoded if self.layers else None
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
        if not self.layers:
            del self.model  # it has said what it had to say

    def losses(self, student: Any, batch: Batch, hard: Callable[[Tensor, Ids], Tensor]) -> Tensor:
        """(examples,) loss of each. hard: the loss against the labels, from logits and examples."""
        options = self.options
        numbers = torch.from_numpy(batch.examples)
        own, theirs = [s for s, _ in self.layers], [t for _, t in self.layers]
        if options.distil_attention:
            logits, states, maps = distil.states_and_maps(student, batch, own)
        elif self.layers:
            logits, states = distil.logits_and_states(student, batch, own)
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
        if not self.layers:
            return losses
        assert self.encoded is not None
        told = self.encoded.gather(batch.examples)
        with torch.no_grad():
            if options.distil_attention:
                _, taught, wanted = distil.states_and_maps(self.model, told, theirs)
            else:
                _, taught = distil.logits_and_states(self.model, told, theirs)
        if options.distil_hidden:
            losses = losses + options.distil_hidden * student.distil(states, taught)
        if options.distil_attention:
            apart = distil.map_distance(maps, wanted, batch)
            losses = losses + options.distil_attention * apart
        return losses

    def provenance(self, data: Data) -> dict[str, Any]:
        """For the manifest: who taught, and how."""
        return {
            "teacher": self.options.teacher,
            "teacher_sha256": data.teacher,
            "distil_weight": self.options.distil_weight,
            "distil_temperature": self.options.distil_temperature,
            "distil_hidden": self.options.distil_hidden,
            "distil_attention": self.options.distil_attention,
            "unlabelled_rows": 0 if data.unlabelled is None else len(data.unlabelled),
        }


def _check_equal_tokens(
    own: tuple[BertTokenizer, dict[str, Any]], theirs: tuple[BertTokenizer, dict[str, Any]],
    teacher: str,
) -> None:  # fmt: skip
    """Raise `UsageError` unless student and teacher read a text as the same tokens."""
    (mine, my_reading), (other, its_reading) = own, theirs
    if mine.get_vocab() != other.get_vocab() or mine.do_lower_case != other.do_lower_case:
        raise UsageError(
            f"--distil-attention: {teacher} has another vocabulary than --base, so its attention "
            "maps are of other tokens; leave the option out, or take a student of the same family"
        )
    if my_reading != its_reading:
        raise UsageError(
            f"--distil-attention: {teacher} reads texts with {its_reading}, the student with "
            f"{my_reading}; give --max-length and --stride as the teacher has them"
        )


def word_answers(
    options: TaughtOptions, part: Tagged, laid: Laid, labels: list[str], machine: Machine
) -> NDArray[np.float32]:
    """(items, labels) what a teacher of tags says of each word, in the order of `labels`.

    Raises `UsageError` for a teacher of another task, with other labels, with a CRF, or one that
    finds other words in a text.
    """
    assert options.teacher is not None
    bundle = open_bundle(options.teacher)
    manifest = bundle.manifest
    if manifest.task != "tag":
        raise UsageError(
            f"--teacher {options.teacher}: a bundle of the task {manifest.task}; a tagger learns "
            "from a tagger (filbert train tag)"
        )
    if isinstance(bundle.model, BertCrfForTokenClassification):
        raise UsageError(
            f"--teacher {options.teacher}: it has a CRF, whose answers are of whole sentences; a "
            "student learns word by word, from a teacher without one"
        )
    assert isinstance(bundle.model, BertForTokenClassification)
    columns = distil.columns_of(manifest.labels, labels, options.teacher)
    theirs = tag.encode_part(
        bundle.tokenizer, part, max_length=manifest.max_length, stride=manifest.stride,
        slots=tag.settings_of(manifest).slots,
    )  # fmt: skip
    if not np.array_equal(theirs.example_items, laid.example_items):
        counts = np.diff(theirs.example_items) != np.diff(laid.example_items)
        raise UsageError(
            f"--teacher {options.teacher}: it finds other words than --base in "
            f"{part.id(int(np.argmax(counts)))}; give the words split, or a teacher whose "
            "tokenizer cuts as the student's does"
        )
    model = for_inference(bundle.model, machine.device, machine.dtype, head="classifier")
    logits = tag.predict_logits(model, theirs, batch_tokens=TEACH_TOKENS)
    found: NDArray[np.float32] = logits[theirs.first][:, columns]
    if not np.isfinite(found).all():
        raise FilbertError("the teacher answers with NaN or infinity: its weights are damaged")
    return found


def forget(student: Any) -> None:
    """Take the projection, which only training needs, out of the student."""
    if "distil" in student._modules:
        del student.distil
