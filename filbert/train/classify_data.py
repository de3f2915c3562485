"""The examples of a run that fine-tunes a classifier, what they are about, what a teacher says."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from filbert.data.examples import Examples
from filbert.train import folder


@dataclass
class Data:
    """The examples of a run and what they are about."""

    train: Examples
    dev: Examples
    test: Examples | None
    problem_type: str
    labels: list[str]
    unlabelled: Examples | None = None  # with a teacher: behind the training examples
    teacher: str | None = None  # sha256 of its weights
    taught: NDArray[np.float32] | None = None  # (training texts, labels), once it has answered

    @property
    def training_texts(self) -> tuple[list[str], list[str] | None]:
        """Texts, and second texts, that are learned from: labelled ones, then the others."""
        if self.unlabelled is None:
            return self.train.texts, self.train.pairs
        pairs = None
        if self.train.pairs is not None:
            pairs = self.train.pairs + (self.unlabelled.pairs or [])
        return self.train.texts + self.unlabelled.texts, pairs

    @property
    def parts(self) -> list[Examples]:
        """Training, dev and, if there is one, test examples."""
        return [self.train, self.dev, *([self.test] if self.test is not None else [])]

    @property
    def notes(self) -> list[str]:
        """What reading the files gave to say, each remark once."""
        parts = [*self.parts, *([self.unlabelled] if self.unlabelled is not None else [])]
        return list(dict.fromkeys(note for part in parts for note in part.notes))

    def digest(self) -> str:
        """A sha256 of all texts and labels, in order, and of the teacher."""
        digest = folder.digest_of_examples(*self.parts)
        if self.teacher is None:
            return digest
        more = "" if self.unlabelled is None else folder.digest_of_examples(self.unlabelled)
        return sha256(f"{digest} {self.teacher} {more}".encode()).hexdigest()

    def name(self, example: int) -> str:
        """File and row of a training example."""
        if self.unlabelled is None or example < len(self.train):
            return self.train.id(example)
        return self.unlabelled.id(example - len(self.train))
