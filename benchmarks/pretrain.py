"""Pre-train the same architecture on the same text with filbert and with transformers' Trainer.

Why: a claim of speed is worth something only beside a peer, on the same machine, in the same run.
Each arm runs in a fresh process; the order of the arms rotates from turn to turn; ratios are taken
within a turn and the median of them is stated.

Run (needs `pip install 'filbert[pretrain,bench]'` and shards made by `filbert prepare`):

    python benchmarks/pretrain.py --shards shards/                       # mini (4/256), length 128
    python benchmarks/pretrain.py --shards shards/ --size base --turns 1

The arms:

    trainer         the Trainer's defaults (float32) with DataCollatorForLanguageModeling
    trainer-bf16    the same with `bf16=True`
    filbert         `filbert pretrain`'s own loop, precision chosen by itself, masked words alone
    filbert-nsp     the same with next-sentence pairs, as in the paper

All arms: full-length samples of the same shards, the same number of samples a step, AdamW, 15 % of
the tokens masked afresh, no dropout, the same threads. The Trainer gets its samples as lists of ids
in memory, so reading costs it nothing; filbert draws them from the shards as it always does.

Tokens a second are counted over steps after a warm-up of a few, batches made and weights updated,
evaluation and checkpoints left out. `ceiling` is the share of the best rate of bfloat16 (for the
float32 arm: float32) matrix products seen on this machine in the same process, by the count of
`filbert.tasks.pretrain.flops_per_token` for filbert's arms, and by the same count with all words
predicted for the Trainer's, which computes them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ARMS = ("trainer", "trainer-bf16", "filbert", "filbert-nsp")
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "base": (12, 768)}
GOALS = {
    "mini": {"trainer": 15.0, "trainer-bf16": 8.0},
    "base": {"trainer": 8.0, "trainer-bf16": 5.0},
}
WARM_UP = 3  # steps that are not counted


def options_of(job: dict[str, Any], *, objective: str) -> Any:
    """filbert's options for a job."""
    from filbert.train.pretrain_options import PretrainOptions

    layers, width = SIZES[job["size"]]
    return PretrainOptions(
        data=job["shards"], out=job["out"], num_hidden_layers=layers, hidden_size=width,
        num_attention_heads=max(1, width // 64), max_position_embeddings=512, dropout=0.0,
        objective=objective, masking="token", short_prob=0.0, steps=job["steps"] + WARM_UP,
        max_length=job["length"], batch_size=job["batch"], batch_tokens=8192, lr=1e-4,
        threads=job["threads"], eval_samples=8, tensorboard=False,
    )  # fmt: skip


def with_filbert(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second of filbert's loop."""
    import torch

    from filbert.model.device import matmul_rate
    from filbert.tasks import pretrain as task
    from filbert.train import pretrain as layer
    from filbert.train.loop import Progress
    from filbert.train.optim import make_optimizer
    from filbert.train.parallel import World

    torch.set_num_threads(job["threads"])
    options = options_of(job, objective="none" if job["arm"] == "filbert" else "next_sentence")
    ready = layer.prepare(options, torch.device("cpu"), World())
    model = ready.model.to(ready.dtype).train()
    optimizer = make_optimizer(model, weight_decay=0.01)
    masks = max(1.0, round(job["length"] * options.mask_rate))
    progress, tokens, started = Progress(), 0, 0.0
    for step in range(options.steps or 0):
        if step == WARM_UP:
            tokens, started = 0, time.perf_counter()
        work = ready.plan.work(progress)
        for part, batch in enumerate(work.batches):
            loss, _ = task.loss(model, batch, masks_a_sample=masks)
            (loss * work.weight).backward()
            if len(work.batches) > 1:
                optimizer.gather(last=part + 1 == len(work.batches))
        optimizer.step(1e-4, clip=1.0, norm=optimizer.gradient_norm())
        progress.samples += work.samples
        progress.step += 1
        tokens += work.tokens
    rate = tokens / (time.perf_counter() - started)
    ready.plan.close()
    flops = task.flops_per_token(model, length=job["length"], masked=masks / job["length"])
    ceiling = 1e9 * matmul_rate(ready.dtype, torch.device("cpu"))
    return {"tokens_per_second": rate, "ceiling": rate * flops / ceiling, "loss": loss.item()}


def with_trainer(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second of transformers' Trainer on the same samples."""
    import torch
    import transformers

    from filbert.model.device import matmul_rate
    from filbert.tasks import pretrain as task
    from filbert.text import BertTokenizer
    from filbert.train.pretrain_base import new_config
    from filbert.train.pretrain_plan import open_phases

    torch.set_num_threads(job["threads"])
    transformers.logging.set_verbosity_error()
    options = options_of(job, objective="none")
    shards = task.read(job["shards"])
    ours = BertTokenizer.from_pretrained(shards.vocab)
    (phase, *_), _ = open_phases(options, shards, ours)
    count = job["batch"] * (job["steps"] + WARM_UP)
    import numpy as np

    # samples cut short at the end of a document are left out: padding would flatter nobody
    rows, first = [], 0
    while len(rows) < count:
        samples = phase.sampler.samples(np.arange(first, first + 4096))
        full = [sample for sample in samples if sample.tokens == job["length"]]
        packed = phase.sampler.pack(full)
        rows += packed.input_ids.reshape(len(full), job["length"]).tolist()
        first += 4096
    tokenizer = transformers.BertTokenizerFast.from_pretrained(shards.vocab)
    config = new_config(options, len(ours.get_vocab()), ours)
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**{
        name: getattr(config, name)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                     "intermediate_size", "max_position_embeddings", "hidden_dropout_prob",
                     "attention_probs_dropout_prob", "pad_token_id")
    }))  # fmt: skip

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Notes when the warm-up was over and when the last step was."""

        started = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                self.started = time.perf_counter()
            self.ended = time.perf_counter()

    clock = Clock()
    arguments = transformers.TrainingArguments(
        output_dir=job["out"], max_steps=job["steps"] + WARM_UP,
        per_device_train_batch_size=job["batch"], learning_rate=1e-4, weight_decay=0.01,
        bf16=job["arm"] == "trainer-bf16", use_cpu=True, save_strategy="no", report_to=[],
        logging_strategy="no", disable_tqdm=True, dataloader_num_workers=0,
    )  # fmt: skip
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=[{"input_ids": row} for row in rows[:count]],
        data_collator=collator, callbacks=[clock],
    )  # fmt: skip
    result = trainer.train()
    rate = job["steps"] * job["batch"] * job["length"] / (clock.ended - clock.started)
    mine = task.head(config, objective="none")(config)
    dtype = torch.bfloat16 if job["arm"] == "trainer-bf16" else torch.float32
    flops = task.flops_per_token(mine, length=job["length"], masked=1.0)
    ceiling = 1e9 * matmul_rate(dtype, torch.device("cpu"))
    return {"tokens_per_second": rate, "ceiling": rate * flops / ceiling,
            "loss": result.training_loss}  # fmt: skip


def work(job: dict[str, Any]) -> None:
    """One arm in this process; its figures as JSON on the last line."""
    import resource

    found = (with_trainer if job["arm"].startswith("trainer") else with_filbert)(job)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\n" + json.dumps({**found, "arm": job["arm"], "turn": job["turn"]}))


def summarise(runs: list[dict[str, Any]], size: str) -> str:
    """The tables: rates with every value, and ratios taken within a turn."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    by = {
        arm: sorted((r for r in runs if r["arm"] == arm), key=lambda r: r["turn"]) for arm in arms
    }
    lines = ["| arm | tokens/s (each turn) | share of the ceiling | peak MB |", "|---|---|---|---|"]
    for arm in arms:
        rates = [run["tokens_per_second"] for run in by[arm]]
        shown = ", ".join(f"{rate:,.0f}" for rate in rates)
        share = statistics.median(run["ceiling"] for run in by[arm])
        peak = max(run["peak_mb"] for run in by[arm])
        lines.append(
            f"| {arm} | **{statistics.median(rates):,.0f}** ({shown}) | {share:.0%} | {peak:,.0f} |"
        )
    lines += ["", "| filbert is faster than | ratio (each turn) | goal |", "|---|---|---|"]
    for arm in arms:
        if not arm.startswith("trainer") or "filbert" not in by:
            continue
        pairs = zip(by["filbert"], by[arm], strict=True)
        ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        goal = GOALS.get(size, {}).get(arm)
        lines.append(f"| {arm} | **{statistics.median(ratios):.2f}x** ({shown}) | "
                     f"{f'{goal:g}x' if goal else '-'} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True, help="folder that filbert prepare wrote")
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="counted steps of an arm")
    parser.add_argument("--batch", type=int, default=64, help="samples a step")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", help="write every figure there")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        work(json.loads(given.job))
        return
    runs = []
    print(f"{date.today()}, {platform.processor() or platform.machine()}, {given.threads} threads, "
          f"{given.size}, {given.batch} samples of {given.length} tokens a step")  # fmt: skip
    for turn in range(given.turns):
        shift = turn % len(given.arms)
        for arm in [*given.arms[shift:], *given.arms[:shift]]:
            with tempfile.TemporaryDirectory() as out:
                job = {**vars(given), "arm": arm, "turn": turn, "out": out}
                load = os.getloadavg()[0]
                done = subprocess.run(
                    [sys.executable, __file__, "--shards", given.shards, "--job", json.dumps(job)],
                    stdout=subprocess.PIPE, text=True, check=True,
                    env={**os.environ, "OMP_NUM_THREADS": str(given.threads),
                         "TOKENIZERS_PARALLELISM": "false"},
                )  # fmt: skip
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"turn {turn} {arm}: {runs[-1]['tokens_per_second']:,.0f} tokens/s "
                  f"(load before: {load:.1f})", flush=True)  # fmt: skip
    print("\n" + summarise(runs, given.size))
    if given.json:
        Path(given.json).write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
