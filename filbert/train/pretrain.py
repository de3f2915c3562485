"""A pre-training run: from shards to a bundle, through the task and the loop.

    filbert pretrain recipes/bert-mini.toml --data shards/ --out runs/mini
    torchrun --nproc-per-node 8 -m filbert pretrain recipes/bert-base.toml ...

runs/mini/   the finished bundle: a BERT with its word (and pair) predictions, which fine-tuning
             takes as `--base runs/mini`; beside it recipe.toml, environment.json, metrics.jsonl,
             tensorboard/, evaluation.json, report.html, and checkpoints/ while training lasts
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import filbert
from filbert.atomic import locked, write_file
from filbert.bundle import MANIFEST, Manifest, read_manifest, save_bundle
from filbert.data.shards import Shards
from filbert.errors import UsageError
from filbert.model.device import choose_device, choose_precision
from filbert.model.pretrained import PretrainedModel
from filbert.tasks import pretrain as task
from filbert.text import BertTokenizer
from filbert.train import folder, loop, sharded, state
from filbert.train.ceiling import AGAIN, START, Ceiling
from filbert.train.optim import make_optimizer
from filbert.train.parallel import World, joined, local_device
from filbert.train.pretrain_base import build_model
from filbert.train.pretrain_options import PretrainOptions, seconds_of
from filbert.train.pretrain_plan import PretrainPlan, evaluation_batches, open_phases
from filbert.train.report import REPORT_FILE, write_report
from filbert.train.track import Tracker

EVALUATIONS = 20  # in a run, unless --eval-every says otherwise
# Options that may differ as well when a run goes on: the shards' checksum decides, not their path,
# and which samples a step has does not depend on how they are computed.
FREE = frozenset({"data"})
ROUNDING = frozenset({"batch_tokens", "gradient_checkpointing", "device"})


@dataclass
class PretrainResult:
    """What a run gave: scores on the held-out documents."""

    out: Path
    scores: dict[str, Any]
    best_step: int
    steps: int
    seconds: float
    notes: list[str]
    speaks: bool = True  # whether this process is the one that shows the result


def pretrain(options: PretrainOptions, *, quiet: bool = False) -> PretrainResult:
    """Pre-train as `options` say and write the bundle to `options.out`.

    Under torchrun every process calls this. Raises `FilbertError` with what to mend;
    `loop.Interrupted` after a signal, with a checkpoint saved.
    """
    started = time.monotonic()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if not options.out:
        raise UsageError("--out is empty; give a folder")
    out = Path(options.out)
    device = choose_device(local_device(options.device))
    with joined(device) as world:
        told: list[str] = []
        if world.first:
            told = folder.check_folder(out, options, free=FREE, rounding=ROUNDING)
        world.wait()
        if options.resume and (out / MANIFEST).is_file():
            return finished(out, world)
        ready = prepare(options, device, world)
        ready.notes += told
        with locked(out, doing="trains in") if world.first else nullcontext():
            if world.first:
                folder.claim_folder(out, options)
            world.wait()
            return run(options, ready, out, world, quiet=quiet or not world.first, started=started)


@dataclass
class Ready:
    """A model and its data, made from the options; nothing is written yet."""

    device: torch.device
    dtype: torch.dtype
    reason: str  # for this precision, in words
    shards: Shards
    tokenizer: BertTokenizer
    model: PretrainedModel
    plan: PretrainPlan
    held_out: list[task.Batch]
    notes: list[str]
    ceiling: Ceiling


def prepare(options: PretrainOptions, device: torch.device, world: World) -> Ready:
    """Choose the machine, open the shards, make the model. Raises before anything is written."""
    dtype, reason = choose_precision(options.precision, device)
    ceiling = Ceiling(dtype, device, world.size)
    smallest = min(options.batch_size, options.batch_start or options.batch_size,
                   options.last_batch_size or options.batch_size)  # fmt: skip
    if smallest < world.size:
        raise UsageError(
            f"a step of {smallest} samples cannot be shared by {world.size} processes; raise "
            "--batch-size (or --batch-start) or start fewer"
        )
    shards = task.read(options.data)
    # of the processes that torchrun started on a machine the first one's look is enough
    unread = task.verify(shards) if os.environ.get("LOCAL_RANK", "0") == "0" else []
    ceiling.look(after=START)
    tokenizer = BertTokenizer.from_pretrained(shards.vocab)
    torch.manual_seed(options.seed)  # decides the new weights
    model, notes = build_model(options, tokenizer)
    longest = max(options.max_length, options.last_length or 0)
    if longest > model.config.max_position_embeddings:
        raise UsageError(
            f"samples of {longest} tokens, but {options.base} reads at most "
            f"{model.config.max_position_embeddings}; give a smaller --max-length"
        )
    plan = PretrainPlan(*open_phases(options, shards, tokenizer), options, world=world)
    held_out, told = evaluation_batches(options, shards, tokenizer, world)
    ceiling.look(after=START)
    return Ready(
        device, dtype, reason, shards, tokenizer, model, plan, held_out, unread + notes + told,
        ceiling,
    )  # fmt: skip


def run(
    options: PretrainOptions, ready: Ready, out: Path, world: World, *, quiet: bool, started: float
) -> PretrainResult:
    """Train, evaluate, write the bundle."""

    def warn(text: str) -> None:
        if world.first:
            print(text, file=sys.stderr)

    device, dtype, model, plan = ready.device, ready.dtype, ready.model, ready.plan
    if world.first:
        folder.record_environment(
            out, device=device, dtype=dtype, reason=ready.reason, resume=options.resume, warn=warn,
            data=state.digest(ready.shards.folder / "manifest.json"), processes=world.size,
        )  # fmt: skip
    in_parts = options.parallel == "fsdp"
    model.to(device=device, dtype=torch.float32 if in_parts else dtype)
    model.gradient_checkpointing_enable(options.gradient_checkpointing)
    if options.compile:
        model.compile_parts()

    def batch_loss(trained: nn.Module, batch: task.Batch) -> tuple[Tensor, Tensor]:
        assert isinstance(trained, PretrainedModel)
        return task.loss(trained, batch, masks_a_sample=batch.masks_a_sample)

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        assert isinstance(trained, PretrainedModel)
        batches, own = ready.held_out, len(ready.held_out)
        if in_parts:
            batches, own = sharded.padded(batches, world)
        sums = torch.from_numpy(task.evaluate(trained, batches, count=own)).to(device)
        if in_parts:
            sharded.let_go(trained)
        tracker.ceiling = ready.ceiling.look(after=AGAIN)
        return task.score(world.sum(sums).cpu().numpy())

    if in_parts:
        sharded.shard(model, world=world, dtype=dtype)

    optimizer = make_optimizer(
        model, name=options.optimizer, weight_decay=options.weight_decay,
        layer_decay=options.layer_decay, betas=(0.9, options.beta2), eps=options.eps,
        shards=world if in_parts else None,
    )  # fmt: skip
    budget = None
    if options.budget is not None:
        budget = loop.Budget(seconds_of(options.budget) - (time.monotonic() - started))
    resumed = state.newest(out, warn=warn) if options.resume else None
    if world.size > 1:
        world.agree("the shards", state.digest(ready.shards.folder / "manifest.json"))
        world.agree("the options", folder.recipe_text(options))
        world.agree(
            "the checkpoint to go on from (--out must be one folder for all of them)",
            "none" if resumed is None else json.dumps(resumed.record),
        )
    share = max(1.0, round(options.max_length * options.mask_rate)) / options.max_length
    flops = task.flops_per_token(model, length=options.max_length, masked=share)
    ceiling = ready.ceiling.look(after=START)
    with Tracker(
        out, total_steps=options.steps, tensorboard=options.tensorboard, quiet=quiet,
        silent=not world.first, flops_per_token=flops, ceiling=ceiling,
        resume_step=0 if resumed is None else resumed.record["progress"]["step"],
    ) as tracker:  # fmt: skip
        for note in ready.notes:
            tracker.message(note)
        counts = ready.shards.manifest.counts
        parameters = sum(weight.numel() for weight in model.parameters())
        tracker.message(
            f"{counts.documents:,} documents, {counts.tokens:,} tokens, "
            f"{plan.phases[0].sampler.size:,} samples a pass; {parameters:,} parameters"
        )
        tracker.message(
            f"{str(dtype).removeprefix('torch.')} on {device} ({ready.reason}), {world.size} "
            f"process{'es' if world.size > 1 else ''}, {torch.get_num_threads()} threads, "
            f"matrix products {ceiling / 1e9:,.0f} GFLOP/s, {flops / 1e6:,.1f} MFLOP a token"
        )
        try:
            progress = loop.fit(
                model, optimizer=optimizer, plan=plan, batch_loss=batch_loss, summary=task.score,
                names=lambda batch: [f"sample {number}" for number in batch.numbers],
                evaluate=evaluate, metric="loss", options=options, run=out, tracker=tracker,
                resumed=resumed, world=world, budget=budget, split=plan.split,
                limits=loop.Limits(options.spike, options.max_skipped), evaluations=EVALUATIONS,
            )  # fmt: skip
        finally:
            plan.close()
    if options.budget is not None and progress.step <= 1:
        idle = "" if options.warmup == 0 else ", at a learning rate of 0: nothing was learned"
        warn(f"--budget {options.budget} was enough for {progress.step} step{idle}; give more time")
    scores = progress.best_scores
    if world.first:
        if in_parts:
            ready.model = sharded.whole_model(model)
            loop.take_best(ready.model, out, progress)
        write_bundle(options, ready, out, progress)
    world.wait()
    return PretrainResult(
        out, scores, progress.best_step, progress.step, time.monotonic() - started, ready.notes,
        world.first,
    )  # fmt: skip


def write_bundle(
    options: PretrainOptions, ready: Ready, out: Path, progress: loop.Progress
) -> None:
    """The finished folder: weights, tokenizer, manifest, evaluation, report."""
    counts = ready.shards.manifest.counts
    scores = progress.best_scores
    manifest = Manifest(
        task="fill" if options.objective == "none" else "pretrain",
        max_length=ready.model.config.max_position_embeddings,
        scores=scores,
        provenance={
            "filbert": filbert.__version__,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"base": options.base} if options.base else {}),
            "data": Path(options.data).name,
            "rows": counts.documents,
            "corpus_tokens": counts.tokens,
            "shards_sha256": state.digest(ready.shards.folder / "manifest.json"),
            "scored_on": f"held-out documents, {options.eval_samples:,} samples at most",
            "seed": options.seed,
            "steps": progress.step, "best_step": progress.best_step,
            "samples": progress.samples,
            "seconds": round(progress.seconds, 1),
            "step_seconds": round(progress.step_seconds, 1),
            "skipped_steps": progress.skipped,
        },
    )  # fmt: skip
    record = {"task": "pretrain", "scores": scores}
    write_file(out / "evaluation.json", json.dumps(record, ensure_ascii=False) + "\n")
    save_bundle(out, model=ready.model.cpu(), tokenizer=ready.tokenizer, manifest=manifest)
    if not options.keep_checkpoints:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    write_report(out)


def finished(out: Path, world: World) -> PretrainResult:
    """The result of a run whose bundle is there already."""
    manifest = read_manifest(out)
    if world.first and not (out / REPORT_FILE).is_file():  # killed just before its end
        write_report(out)
    origin = manifest.provenance
    note = f"{out} is finished already; nothing was left to do"
    return PretrainResult(
        out, dict(manifest.scores), origin.get("best_step", 0), origin.get("steps", 0), 0.0, [note],
        world.first,
    )  # fmt: skip
