"""Which samples each step of pre-training takes, in batches that are prepared ahead.

Samples are numbered through the whole run; a step takes the next `batch_size` numbers, whatever the
number of processes: process r of n has those whose number leaves r when divided by n. The next
step's batches are made by a thread, or by worker processes, while this one computes.
"""

from __future__ import annotations

import signal
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from filbert.data.follow import follow_parent
from filbert.data.masking import MaskRule
from filbert.data.packing import cut
from filbert.data.samples import Sampler
from filbert.data.shards import Shards, Split, open_shards
from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.tasks import pretrain
from filbert.tasks.pretrain import Batch
from filbert.text import BertTokenizer
from filbert.train.loop import Progress, Work
from filbert.train.parallel import World
from filbert.train.pretrain_options import PretrainOptions
from filbert.train.schedule import batch_size_at

AHEAD = 2  # steps that a worker process prepares ahead


@dataclass
class Phase:
    """A stretch of the run with samples of one length."""

    begin: float  # share of the run at which it begins
    sampler: Sampler
    batch_size: int


def open_phases(
    options: PretrainOptions, shards: Shards, tokenizer: BertTokenizer
) -> tuple[list[Phase], MaskRule]:
    """The phases of a run and the rule of its masks."""
    phases = [Phase(0.0, sampler_of(options, shards, tokenizer, "train", 0), options.batch_size)]
    if options.last_length is not None:
        last = sampler_of(options, shards, tokenizer, "train", 1)
        size = options.last_batch_size or options.batch_size
        phases.append(Phase(1.0 - options.last_share, last, size))
    rule = pretrain.mask_rule(tokenizer, rate=options.mask_rate, masking=options.masking)
    return phases, rule


def sampler_of(
    options: PretrainOptions, shards: Shards, tokenizer: BertTokenizer, split: Split, phase: int
) -> Sampler:
    """The sampler of a split for a phase of the run; held-out samples do not depend on the seed."""
    names = shards.manifest.sources
    unknown = [name for name in options.mix if name not in names]
    if unknown:
        named = [name for name in names if name]
        there = f"there are {', '.join(map(repr, named))}" if named else "their corpus named none"
        raise UsageError(
            f"--mix: the shards have no source {unknown[0]!r}; {there}."
            f"{did_you_mean(unknown[0], named)}"
        )
    weights = np.array([options.mix.get(name, 1.0) for name in names])
    parts = shards.split(split)
    length = options.max_length if phase == 0 else options.last_length
    assert length is not None
    assert tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
    return Sampler(
        parts, cls_id=tokenizer.cls_token_id, sep_id=tokenizer.sep_token_id,
        max_length=length, objective=options.objective, short_prob=options.short_prob,
        seed=options.seed + phase if split == "train" else 0,
        weights=weights if options.mix and split == "train" else None,
        vocab_size=max(tokenizer.get_vocab().values()) + 1, origin=str(shards.folder),
    )  # fmt: skip


def evaluation_batches(
    options: PretrainOptions, shards: Shards, tokenizer: BertTokenizer, world: World
) -> tuple[list[Batch], list[str]]:
    """This process's share of the held-out samples, masked once and for all, and what is to be
    told about them. Samples of the last phase's length if there is one."""
    there = sum(len(part.documents) - 1 for part in shards.split("dev"))
    if there < (2 if options.objective == "next_sentence" else 1):
        found = "no documents for evaluation"
        if there:
            found = "1 document for evaluation, and next_sentence takes wrong pairs from a second"
        raise UsageError(
            f"the shards in {shards.folder} hold {found}. Prepare the corpus again with "
            "--overwrite and a larger --holdout, such as 0.05 (a few documents want more)"
        )
    phase = 0 if options.last_length is None else 1
    sampler = sampler_of(options, shards, tokenizer, "dev", phase)
    rule = pretrain.mask_rule(
        tokenizer, rate=options.eval_mask_rate, masking=options.eval_masking or options.masking
    )
    count = min(options.eval_samples, sampler.size)
    notes = []
    if count < min(100, options.eval_samples):
        notes.append(f"only {count} held-out samples: the evaluation will be rough")
    if count < world.size:
        raise UsageError(f"{count} held-out samples for {world.size} processes; start fewer")
    return make(sampler, rule, 0, count, options.batch_tokens, world), notes


class PretrainPlan:
    """The steps of a pre-training run; see the module."""

    def __init__(
        self,
        phases: list[Phase],
        rule: MaskRule,
        options: PretrainOptions,
        *,
        world: World | None = None,
    ) -> None:
        self.phases, self.rule, self.options = phases, rule, options
        self.world = world or World()
        self.seed, self.total_steps = options.seed, options.steps
        self.budget_tokens = options.batch_tokens  # of one batch; halved when memory runs out
        self._ahead: dict[tuple[int, int, int], Future[list[Batch]]] = {}
        self._pool: Executor | None = None
        self._workers_go: Connection | None = None  # when this end of a pipe is closed

    def phase(self, done: float) -> int:
        """The number of the phase at this share of the run."""
        return max(i for i, phase in enumerate(self.phases) if done >= phase.begin - 1e-12)

    def count(self, done: float) -> int:
        """Samples of a step at this share of the run: grows linearly over `batch_warmup`."""
        full = self.phases[self.phase(done)].batch_size
        start, over = self.options.batch_start, self.options.batch_warmup
        if start is None:
            return full
        return min(full, batch_size_at(done, full=full, start=start, warmup=over))

    def work(self, progress: Progress) -> Work:
        """The batches of the next step, of this process, and the next ones begun. Raises
        `FilbertError` where a worker died."""
        if progress.halved[:1] == [self.options.batch_tokens]:
            self.budget_tokens = progress.halved[1]
        phase, count = self.phase(progress.done), self.count(progress.done)
        try:
            batches = self._take((phase, progress.samples, count))
        except BrokenProcessPool:
            raise FilbertError(
                f"a process that prepares samples (--workers {self.options.workers}) ended by "
                "itself, killed for memory perhaps; go on with --resume, with fewer --workers if "
                "need be"
            ) from None
        tokens = sum(len(batch.input_ids) for batch in batches)
        return Work(batches, weight=1 / count, samples=count, tokens=tokens)

    def epoch(self, progress: Progress) -> float:
        """Passes over the data so far; a sample of the last phase counts as one of its own."""
        return progress.samples / self.phases[self.phase(progress.done)].sampler.size

    def _take(self, key: tuple[int, int, int]) -> list[Batch]:
        if self._pool is None:
            self._pool = self._start()
        future = self._ahead.pop(key, None) or self._begin(key)
        self._ahead = {k: f for k, f in self._ahead.items() if k[1] > key[1]}
        phase, first, count = key
        for turn in range(1, 1 + max(1, AHEAD * self.options.workers)):
            coming = (phase, first + turn * count, count)
            if coming not in self._ahead:
                self._ahead[coming] = self._begin(coming)
        return future.result()

    def _start(self) -> Executor:
        if not self.options.workers:
            return ThreadPoolExecutor(1)
        context = get_context("spawn")
        over, self._workers_go = context.Pipe(duplex=False)
        return ProcessPoolExecutor(
            self.options.workers, mp_context=context, initializer=_become_worker,
            initargs=(self.options, self.world, over),
        )  # fmt: skip

    def _begin(self, key: tuple[int, int, int]) -> Future[list[Batch]]:
        assert self._pool is not None
        phase, first, count = key
        if self.options.workers:
            return self._pool.submit(_work, phase, first, count, self.budget_tokens)
        at = self.phases[phase]
        return self._pool.submit(
            make, at.sampler, self.rule, first, count, self.budget_tokens, self.world
        )

    def split(self, batch: Batch, progress: Progress) -> list[Batch]:
        """A batch in two; later steps are cut smaller from the start, until another
        `batch_tokens` is given."""
        self.budget_tokens = max(1, len(batch.input_ids) // 2)
        progress.halved = [self.options.batch_tokens, self.budget_tokens]
        self._ahead.clear()
        return halves(batch)

    def close(self) -> None:
        """End the workers."""
        if self._workers_go is not None:
            self._workers_go.close()
            self._workers_go = None
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def make(
    sampler: Sampler, rule: MaskRule, first: int, count: int, tokens: int, world: World
) -> list[Batch]:
    """The batches of one process for the `count` samples from number `first` on, longest samples
    first, each batch of at most `tokens` tokens (a longer sample goes alone)."""
    numbers = np.arange(first, first + count)
    samples = sampler.samples(numbers[numbers % world.size == world.rank])
    samples.sort(key=lambda sample: -sample.tokens)
    lengths = np.array([sample.tokens for sample in samples], dtype=np.int64)
    parts = cut(np.arange(len(samples)), lengths, batch_tokens=tokens, batch_size=None)
    return [pretrain.encode(sampler, [samples[i] for i in part], rule) for part in parts]


def halves(batch: Batch) -> list[Batch]:
    """A batch in two of nearly as many samples each; one sample cannot be cut."""
    count = len(batch.lengths)
    if count < 2:
        return [batch]
    middle = count // 2
    token = int(batch.lengths[:middle].sum())
    place = int(np.searchsorted(batch.positions, token))

    def part(samples: slice, tokens: slice, masked: slice, shift: int) -> Batch:
        return Batch(
            batch.input_ids[tokens], batch.token_type_ids[tokens], batch.lengths[samples],
            batch.positions[masked] - shift, batch.labels[masked], batch.pair_labels[samples],
            batch.numbers[samples], batch.joins[tokens], batch.masks_a_sample,
        )  # fmt: skip

    return [
        part(slice(None, middle), slice(None, token), slice(None, place), 0),
        part(slice(middle, None), slice(token, None), slice(place, None), token),
    ]


# what a worker process makes batches of: opened by itself, since a shard is a mapped file
_worker: tuple[list[Phase], MaskRule, World] | None = None


def _become_worker(options: PretrainOptions, world: World, over: Connection) -> None:
    """Open what batches are made of. A shell, torchrun or Slurm signals every process of a run, but
    the one that trains still needs batches then: a worker ends with it, or by `over`."""
    global _worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    follow_parent(over)
    shards = open_shards(Path(options.data))
    _worker = (*open_phases(options, shards, BertTokenizer.from_pretrained(shards.vocab)), world)


def _work(phase: int, first: int, count: int, tokens: int) -> list[Batch]:
    assert _worker is not None
    phases, rule, world = _worker
    return make(phases[phase].sampler, rule, first, count, tokens, world)
