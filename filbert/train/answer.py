"""Fine-tuning for questions over texts: what `tune` needs of it.

    filbert train answer --data train-v1.1.json --dev dev-v1.1.json --base MODEL --out runs/qa

Reads the files, opens the base, lays the windows out; the meaning of it all is in
`filbert/tasks/answer.py`. Questions without an answer in the training file make a model that may
say so; the threshold for that, and the temperature of the scores, are fitted on the dev set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filbert.bundle import Manifest
from filbert.data.packing import Ids
from filbert.data.questions import Questions, split_by_context
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.model.device import for_inference
from filbert.model.span_head import BertForQuestionAnswering
from filbert.tasks import answer
from filbert.tasks.answer_scores import Rule, rule_for
from filbert.tasks.answer_spans import AnswerSettings, Spans
from filbert.train import loop
from filbert.train.answer_options import AnswerOptions
from filbert.train.trim import TrimmedEmbedding
from filbert.train.tune import Job, Machine, TrainResult, numbers, open_base, tune


@dataclass
class Data:
    """The questions of a run."""

    train: Questions
    dev: Questions
    test: Questions | None
    rule: Rule

    @property
    def parts(self) -> list[Questions]:
        """Training, dev and, if there are some, test questions."""
        return [self.train, self.dev, *([self.test] if self.test is not None else [])]

    @property
    def notes(self) -> list[str]:
        """What reading the files gave to say, each remark once."""
        return list(dict.fromkeys(note for part in self.parts for note in part.notes))

    def digest(self) -> str:
        """A sha256 of all questions, in order."""
        return hashlib.sha256("".join(part.digest() for part in self.parts).encode()).hexdigest()


def train_answer(options: AnswerOptions, *, quiet: bool = False) -> TrainResult:
    """Train as `options` say and write the bundle to `options.out`; see `tune`."""
    return tune(options, read=read_data, build=build, quiet=quiet)


def read_data(options: AnswerOptions) -> Data:
    """Read the files; without a dev file, hold out texts with their questions."""
    if options.metric is not None and options.metric not in answer.METRICS:
        raise UsageError(
            f"--metric {options.metric!r}: for answer there are {', '.join(answer.METRICS)}."
            f"{did_you_mean(options.metric, answer.METRICS)}"
        )
    train = answer.read(options.data, options)
    if options.limit is not None:
        train = train.select(range(min(options.limit, len(train))))
    test = None if options.test is None else answer.read(options.test, options)
    if options.dev is not None:
        dev = answer.read(options.dev, options)
    else:
        train, dev = split_by_context(train, fraction=options.holdout)
    rule = rule_for(dev.contexts) if options.scoring == "auto" else options.scoring
    return Data(train, dev, test, rule)


def build(options: AnswerOptions, data: Data, machine: Machine) -> Job:
    """The model with a new head, the windows, and what the loop asks of them."""
    device = machine.device
    base = open_base(options)
    model = answer.head(str(base.folder), **base.changes)
    reading: dict[str, Any] = {"max_length": base.max_length, "stride": base.stride}
    passages = [answer.encode(base.tokenizer, part, **reading) for part in data.parts]
    encoded = [answer.windows_of(part) for part in passages]
    gold, usable = answer.targets(passages[0], data.train)
    rows = np.flatnonzero(usable)  # the windows that are examples
    if not len(rows):
        raise FilbertError(f"{data.train.source}: no answer stands where its offset says")
    dev_gold, dev_usable = answer.targets(passages[1], data.dev)
    asked = passages[0].asked
    trimmed = TrimmedEmbedding(model.base_model, *encoded)
    encoded = [trimmed.encode(part) for part in encoded]
    no_answer = data.train.some_unanswerable

    def batch_loss(trained: nn.Module, examples: Ids) -> tuple[Tensor, Tensor]:
        assert isinstance(trained, BertForQuestionAnswering)
        windows = rows[examples]
        batch = encoded[0].gather(windows)
        losses = answer.loss(
            *answer.logits_of(trained, batch),
            torch.from_numpy(batch.lengths).to(device),
            torch.from_numpy(gold[windows]).to(device),
            label_smoothing=options.label_smoothing,
        )
        return losses.sum(), loop.counted(losses, len(examples))

    def predict(trained: BertForQuestionAnswering, place: int) -> tuple[Any, Spans]:
        logits = answer.predict_logits(trained, encoded[place], batch_tokens=options.batch_tokens)
        limit = options.max_answer_tokens
        return logits, answer.find(passages[place], logits, max_answer_tokens=limit)

    def fitted(spans: Spans) -> tuple[AnswerSettings, float]:
        return answer.fit(
            spans, data.dev, rule=data.rule, no_answer=no_answer,
            max_answer_tokens=options.max_answer_tokens,
        )  # fmt: skip

    def scored(
        spans: Spans, part: Questions, settings: AnswerSettings, temperature: float
    ) -> tuple[list[answer.Answer], dict[str, Any]]:
        contexts = [part.contexts[number] for number in part.owner]
        answers = answer.decode(spans, contexts, settings, temperature=temperature)
        return answers, answer.score(answers, part, rule=data.rule)

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        assert isinstance(trained, BertForQuestionAnswering)
        logits, spans = predict(trained, 1)
        losses = answer.loss(
            torch.from_numpy(logits[0]),
            torch.from_numpy(logits[1]),
            torch.from_numpy(np.diff(passages[1].window_starts)),
            torch.from_numpy(dev_gold),
        )
        mean = float(losses[torch.from_numpy(dev_usable)].mean()) if dev_usable.any() else None
        _, scores = scored(spans, data.dev, *fitted(spans))
        return {"loss": mean, **numbers(scores)}

    def finish(best: BertForQuestionAnswering) -> tuple[Manifest, dict[str, Any]]:
        computing = for_inference(best, device, machine.dtype, head="qa_outputs")
        _, spans = predict(computing, 1)
        settings, temperature = fitted(spans)
        if data.test is not None:
            _, spans = predict(computing, 2)
        part = data.parts[-1]
        answers, scores = scored(spans, part, settings, temperature)
        wrong = answer.mistakes(answers, part, rule=data.rule)
        manifest = Manifest(
            task="answer", pair=True, **reading, temperature=temperature,
            settings=settings.model_dump(),
            provenance={
                "rows": len(data.train),
                "scored_on": f"{'test' if data.test else 'dev'} set, {len(part):,} questions",
                "scoring": data.rule,
            },
        )  # fmt: skip
        told = answer.calibration(spans, part, settings, rule=data.rule, temperature=temperature)
        return manifest, {"scores": scores, "calibration": told, "worst": wrong}

    lines = [f"{len(data.train):,} training questions, {len(data.dev):,} dev questions"]
    cut = sum(int((part.cut > 0).sum()) for part in passages)
    if cut:
        lines.append(f"{cut:,} questions are longer than half a window; their ends are cut off")
    return Job(
        model=model, tokenizer=base.tokenizer, base=base.folder, tokens=encoded[0].tokens[rows],
        batch_loss=batch_loss, evaluate=evaluate, metric="f1",
        names=lambda examples: [data.train.name(int(i)) for i in asked[rows[examples]]],
        finish=finish, trimmed=trimmed, lines=lines,
    )  # fmt: skip
