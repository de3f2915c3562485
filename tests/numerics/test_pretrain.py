"""Pre-training runs on a small corpus: exact resume, the clock, bad steps, phases, the bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert.bundle import open_bundle
from filbert.errors import FilbertError, UsageError
from filbert.tasks import pretrain as task
from filbert.text import BertTokenizer
from filbert.train import pretrain as layer
from filbert.train import pretrain_plan, state
from filbert.train.classify import train_classify
from filbert.train.loop import Budget, Progress
from filbert.train.options import parse_options
from filbert.train.parallel import World
from filbert.train.pretrain import pretrain
from filbert.train.pretrain_options import PretrainOptions, seconds_of
from tests.tiny import VOCABULARY, reviews, save_base
from tests.tiny_shards import WORDS, tiny_shards

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("pretrain") / "shards")


def options(shards: Path, out: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "data": str(shards), "out": str(out), "steps": 40, "num_hidden_layers": 2,
        "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64,
        "max_length": 32, "batch_size": 8, "batch_tokens": 128, "lr": 1e-3, "threads": 1,
        "precision": "float32", "tensorboard": False, "eval_samples": 20,
    }  # fmt: skip
    values |= changes
    if "budget" in values:
        values.pop("steps")
    return values


def run(shards: Path, out: Path, **changes: Any) -> Any:
    return pretrain(PretrainOptions(**options(shards, out, **changes)), quiet=True)


def rows(out: Path, kind: str) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    timed = {"seconds", "tokens_per_second", "mfu"}
    return [
        {k: v for k, v in line.items() if k not in timed} for line in lines if line["kind"] == kind
    ]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


# --- resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_kills_change_no_bit(shards: Path, tmp_path: Path, optimizer: str) -> None:
    """SIGKILL at random moments, some in the middle of writing a checkpoint; dropout, phases, batch
    warm-up and an average on."""
    changes = {
        "optimizer": optimizer, "save_every": 2, "steps": 60, "ema": 0.9, "last_length": 48,
        "last_share": 0.3, "batch_start": 3, "batch_warmup": 0.4,
    }  # fmt: skip
    run(shards, tmp_path / "unbroken", **changes)
    values = options(shards, tmp_path / "killed", **changes)
    child = Path(__file__).with_name("resume_child.py")
    done = subprocess.run(
        [sys.executable, str(child), json.dumps(values), "6", "3", "pretrain"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["finished"]
    assert told["killed"] >= 3, told
    assert weights(tmp_path / "killed") == weights(tmp_path / "unbroken")
    for kind in ("train", "eval"):
        assert rows(tmp_path / "killed", kind) == rows(tmp_path / "unbroken", kind)


def test_a_signal_saves_within_seconds(shards: Path, tmp_path: Path) -> None:
    values = options(shards, tmp_path / "run", steps=100_000)
    code = (
        "import json, sys; from filbert.train.pretrain import pretrain;"
        "from filbert.train.pretrain_options import PretrainOptions;"
        "pretrain(PretrainOptions(**json.loads(sys.argv[1])), quiet=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(values)], env=ENVIRONMENT, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    metrics, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < end
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        time.sleep(0.02)
    sent = time.monotonic()
    child.send_signal(signal.SIGTERM)
    time.sleep(0.001)
    child.send_signal(signal.SIGTERM)  # as managers do, to the group and to the process
    _, errors = child.communicate(timeout=60)
    assert "SIGTERM" in errors
    assert "saved. Go on with --resume" in errors
    assert time.monotonic() - sent < 10
    found = state.newest(tmp_path / "run", warn=pytest.fail)
    assert found is not None
    assert found.record["progress"]["step"] > 0


def test_a_damaged_checkpoint_is_passed_over(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run(shards, tmp_path / "whole", save_every=5)

    class Stop(Exception):
        pass

    original = state.prune

    def dying(out: Path, *, keep_best: str | None) -> None:
        original(out, keep_best=keep_best)
        if (out / "checkpoints" / "step-000000015").exists():
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(state, "prune", dying)
        run(shards, tmp_path / "broken", save_every=5)
    newest = tmp_path / "broken" / "checkpoints" / "step-000000015" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    run(shards, tmp_path / "broken", save_every=5, resume=True)
    told = capsys.readouterr().err
    assert "step-000000015" in told
    assert "going back to the one before" in told
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_resuming_far_on_replays_nothing(shards: Path, tmp_path: Path) -> None:
    """The batches of step ten million come as fast as those of step 0."""
    plan = plan_of(options(shards, tmp_path / "x", steps=10**8))
    started = time.monotonic()
    work = plan.work(Progress(step=10**7, samples=8 * 10**7, done=0.1))
    assert time.monotonic() - started < 2
    plan.close()
    numbers = np.concatenate([batch.numbers for batch in work.batches])
    assert sorted(numbers) == list(range(8 * 10**7, 8 * 10**7 + 8))


# --- samples and batches --------------------------------------------------------------------------


def plan_of(values: dict[str, Any], world: World | None = None) -> pretrain_plan.PretrainPlan:
    given = PretrainOptions(**values)
    opened = task.read(given.data)
    tokenizer = BertTokenizer.from_pretrained(opened.vocab)
    return pretrain_plan.PretrainPlan(
        *pretrain_plan.open_phases(given, opened, tokenizer), given, world=world
    )


def drawn(plan: pretrain_plan.PretrainPlan, steps: int) -> dict[int, tuple[Any, ...]]:
    """Sample number -> its ids, masks and label, over some steps."""
    found, progress = {}, Progress()
    for _ in range(steps):
        work = plan.work(progress)
        for batch in work.batches:
            assert len(batch.input_ids) <= 128 or len(batch.lengths) == 1
            ends = np.cumsum(batch.lengths)
            for row, end in enumerate(ends):
                start = end - batch.lengths[row]
                here = (batch.positions >= start) & (batch.positions < end)
                found[int(batch.numbers[row])] = (
                    batch.input_ids[start:end].tolist(),
                    (batch.positions[here] - start).tolist(),
                    batch.labels[here].tolist(),
                    int(batch.pair_labels[row]),
                )
        progress.samples += work.samples
        progress.step += 1
        progress.done = progress.step / (plan.total_steps or 1)
    plan.close()
    return found


def test_samples_are_the_same_on_any_number_of_processes_and_workers(
    shards: Path, tmp_path: Path
) -> None:
    values = options(shards, tmp_path / "x")
    alone = drawn(plan_of(values), 6)
    assert sorted(alone) == list(range(48))
    for size in (2, 8):
        together: dict[int, Any] = {}
        for rank in range(size):
            mine = drawn(plan_of(values, World(rank, size)), 6)
            assert all(number % size == rank for number in mine)
            together |= mine
        assert together == alone
    assert drawn(plan_of({**values, "workers": 1}), 6) == alone


def test_phases_and_batch_warmup(shards: Path, tmp_path: Path) -> None:
    plan = plan_of(
        options(
            shards, tmp_path / "x", steps=10, last_length=48, last_share=0.3, last_batch_size=4,
            batch_start=2, batch_warmup=0.5, short_prob=0.0,
        )
    )  # fmt: skip
    progress, sizes, longest = Progress(), [], []
    for step in range(10):
        progress.done = step / 10
        work = plan.work(progress)
        sizes.append(work.samples)
        longest.append(max(int(batch.lengths.max()) for batch in work.batches))
        progress.samples += work.samples
    plan.close()
    # by hand: 2 + (8 - 2) * done / 0.5 until half of the run, then 8, then 4 in the last phase
    assert sizes == [2, 3, 4, 6, 7, 8, 8, 4, 4, 4]
    assert max(longest[:7]) == 32
    assert max(longest[7:]) == 48


def test_halves_are_the_whole(shards: Path, tmp_path: Path) -> None:
    plan = plan_of(options(shards, tmp_path / "x", batch_tokens=100_000))
    (whole,) = plan.work(Progress()).batches
    parts = plan.split(whole, Progress())
    plan.close()
    assert [part.masks_a_sample for part in parts] == [5, 5]  # round(0.15 * 32)
    assert [len(part.lengths) for part in parts] == [4, 4]
    for name in ("input_ids", "token_type_ids", "lengths", "labels", "pair_labels", "numbers"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(joined, getattr(whole, name)), name
    shifted = np.r_[parts[0].positions, parts[1].positions + len(parts[0].input_ids)]
    assert np.array_equal(shifted, whole.positions)


def test_memory_that_runs_out_halves_the_batches(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"dropout": 0.0, "steps": 6, "batch_tokens": 100_000}
    run(shards, tmp_path / "plenty", **changes)
    original = task.loss

    def scarce(model: Any, batch: task.Batch, **rest: Any) -> Any:
        if len(batch.input_ids) > 100 and model.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch, **rest)

    monkeypatch.setattr(task, "loss", scarce)
    run(shards, tmp_path / "scarce", **changes)
    for mine, its in zip(
        rows(tmp_path / "scarce", "train"), rows(tmp_path / "plenty", "train"), strict=True
    ):
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-4)
    monkeypatch.setattr(task, "loss", lambda *_, **__: (_ for _ in ()).throw(
        torch.OutOfMemoryError("CUDA out of memory")))  # fmt: skip
    with pytest.raises(FilbertError, match="does not hold a single sample"):
        run(shards, tmp_path / "none", **changes)


# --- the loss -------------------------------------------------------------------------------------


def test_the_loss_is_that_of_transformers(shards: Path, tmp_path: Path) -> None:
    """Mean word loss and pair loss over a batch, against the reference on a padded grid."""
    import transformers

    given = PretrainOptions(**options(shards, tmp_path / "x", batch_tokens=100_000, dropout=0.0))
    ready = layer.prepare(given, torch.device("cpu"), World())
    (batch,) = ready.plan.work(Progress()).batches
    ready.plan.close()
    ready.model.save_pretrained(tmp_path / "model")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "model").eval()
    count, longest = len(batch.lengths), int(batch.lengths.max())
    ids, types, mask = (torch.zeros(count, longest, dtype=torch.int64) for _ in range(3))
    labels = torch.full((count, longest), -100)
    ends = np.cumsum(batch.lengths)
    by_place = dict(zip(batch.positions.tolist(), batch.labels.tolist(), strict=True))
    for row, end in enumerate(ends):
        size = int(batch.lengths[row])
        start = int(end) - size
        ids[row, :size] = torch.from_numpy(batch.input_ids[start:end])
        types[row, :size] = torch.from_numpy(batch.token_type_ids[start:end])
        mask[row, :size] = 1
        for place in range(start, int(end)):
            labels[row, place - start] = by_place.get(place, -100)
    with torch.no_grad():
        expected = theirs(
            input_ids=ids, token_type_ids=types, attention_mask=mask, labels=labels,
            next_sentence_label=torch.from_numpy(batch.pair_labels),
        ).loss.item()  # fmt: skip
    ready.model.train()
    _, tallies = task.loss(ready.model, batch, masks_a_sample=1.0)
    scores = task.score(tallies.numpy())
    assert scores["loss"] == pytest.approx(expected, abs=1e-5)
    total, _ = task.loss(ready.model, batch, masks_a_sample=5.0)
    word, pair = float(tallies[0]), float(tallies[3])
    assert total.item() == pytest.approx(word / 5 + pair, rel=1e-6)


def test_scores_by_hand() -> None:
    # two words at 1.5 and 2.5 nats, one right; one pair of four, at 0.8 nats in all, three right
    scores = task.score(np.array([4.0, 2, 1, 0.8, 4, 3]))
    assert scores == {
        "loss": 2.2, "mlm_loss": 2.0, "mlm_accuracy": 0.5, "pair_loss": 0.2, "pair_accuracy": 0.75,
    }  # fmt: skip


def test_it_learns_what_is_there(tmp_path: Path) -> None:
    """A word mostly follows its neighbour: far more than one guess in 40 can be right. The bound is
    half of what a first run reached (0.25)."""
    shards = tiny_shards(tmp_path / "shards", documents=300)
    result = run(
        shards, tmp_path / "run", steps=300, lr=1e-2, objective="none", optimizer="muon",
        hidden_size=64, num_attention_heads=4, dropout=0.0, batch_size=32, batch_tokens=2048,
        weight_decay=0.0, eval_samples=60,
    )  # fmt: skip
    assert result.scores["mlm_accuracy"] > 0.125
    first, last = rows(tmp_path / "run", "train")[0], rows(tmp_path / "run", "train")[-1]
    assert last["mlm_loss"] < first["mlm_loss"] - 0.5


# --- bad steps ------------------------------------------------------------------------------------


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: dict[int, float]) -> None:
    """Multiply the loss of some steps, counted by calls."""
    original, calls = task.loss, 0

    def loss(model: Any, batch: task.Batch, **rest: Any) -> Any:
        nonlocal calls
        total, tallies = original(model, batch, **rest)
        if model.training:
            factor = bad.get(calls, 1.0)
            calls += 1
            total, tallies = total * factor, tallies.clone()
            tallies[0] *= factor
        return total, tallies

    monkeypatch.setattr(task, "loss", loss)


def test_bad_steps_are_passed_over_and_told(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    poisoned(monkeypatch, {10: float("nan"), 20: 5.0})
    given = options(shards, tmp_path / "run", batch_tokens=100_000)
    result = pretrain(PretrainOptions(**given))
    told = capsys.readouterr().err
    assert "became nan at step 10: this step is passed over (1 of at most 20)" in told
    assert "the loss jumped from about" in told
    assert "at step 20: this step is passed over (2 of at most 20)" in told
    # step 10 has the samples 80 to 87
    line = next(line for line in told.splitlines() if "nan at step 10:" in line)
    assert all(f"sample {number}" in line for number in range(80, 88))
    assert result.steps == 40
    assert json.loads((tmp_path / "run" / "filbert.json").read_text())["provenance"][
        "skipped_steps"
    ] == 2  # fmt: skip
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path / "run", "train"))


def test_too_many_bad_steps_stop_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, dict.fromkeys(range(12, 40), float("inf")))
    with pytest.raises(FilbertError, match=r"inf at step 15 \(4 steps so far\).*sample 12"):
        run(shards, tmp_path / "run", batch_tokens=100_000, max_skipped=3, save_every=5)
    assert state.newest(tmp_path / "run", warn=pytest.fail) is not None


# --- the clock ------------------------------------------------------------------------------------


def test_a_budget_is_kept(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends on time, at a rate of nearly zero, with its best weights; a wall clock that is
    set back meanwhile changes nothing."""
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    started = time.monotonic()
    result = run(shards, tmp_path / "run", budget="6s", warmup=0.1)
    took = time.monotonic() - started
    assert 4 < took < 13  # the last seconds are for a machine with other work
    assert result.steps > 10
    assert rows(tmp_path / "run", "train")[-1]["lr"] < 3e-4
    assert (tmp_path / "run" / "filbert.json").is_file()


def test_evaluations_leave_a_short_budget_to_training(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty of 0.4 s would take all of 6 s: in a tenth of the time there is room for one or two"""
    assert Budget(60.0).affords(0.0)  # what one takes is not known yet
    assert not Budget(60.0, evaluation=2.0, assessed=10.0).affords(27.9)
    assert Budget(60.0, evaluation=2.0, assessed=10.0).affords(28.0)
    evaluate = task.evaluate

    def slow(*args: Any, **named: Any) -> Any:
        time.sleep(0.4)
        return evaluate(*args, **named)

    monkeypatch.setattr(layer.task, "evaluate", slow)
    run(shards, tmp_path / "run", budget="6s")
    assert 2 <= len(rows(tmp_path / "run", "eval")) <= 3  # the last one is always there


@pytest.mark.parametrize(
    ("text", "seconds"), [("45m", 2700), ("1h30m", 5400), ("90s", 90), ("2H", 7200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "45", "m", "-5m", "1m1h", "0s", "1.5h", "9" * 4000 + "s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        parse_options({"data": "x", "out": "y", "budget": text}, PretrainOptions, source="test")


# --- the bundle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["none", "next_sentence"])
def test_the_bundle_opens_everywhere(shards: Path, tmp_path: Path, objective: str) -> None:
    import transformers

    result = run(shards, tmp_path / "run", objective=objective)
    assert ("pair_loss" in result.scores) == (objective != "none")
    bundle = open_bundle(tmp_path / "run")
    kind = transformers.BertForMaskedLM if objective == "none" else transformers.BertForPreTraining
    theirs = kind.from_pretrained(tmp_path / "run").eval()
    ids = torch.tensor([[2, 7, 8, 4, 10, 3]])
    mine, its = bundle.model(input_ids=ids)[0], theirs(input_ids=ids)[0]
    assert torch.allclose(mine, its, atol=1e-5)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "pre-training" in page.lower() or "Pre-training" in page
    again = run(shards, tmp_path / "run", objective=objective, resume=True)
    assert "finished already" in again.notes[0]


def test_a_modernbert_is_pre_trained_and_opens_everywhere(shards: Path, tmp_path: Path) -> None:
    import transformers

    changes = {
        "architecture": "modernbert", "hidden_size": 32, "num_hidden_layers": 4,
        "max_position_embeddings": 256,
    }  # fmt: skip
    with pytest.raises(UsageError, match="no pair head"):
        run(shards, tmp_path / "pairs", **changes)
    result = run(shards, tmp_path / "run", objective="none", **changes)
    first = rows(tmp_path / "run", "train")[0]["mlm_loss"]
    assert result.scores["mlm_loss"] < first
    bundle = open_bundle(tmp_path / "run")
    theirs = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path / "run").eval()
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert theirs.config.layer_types == kinds
    assert theirs.config.local_attention == 128
    ends = [getattr(theirs.config, f"{name}_token_id") for name in ("cls", "sep", "bos", "eos")]
    assert ends == [2, 3, 2, 3]
    longer = torch.randint(5, 60, (2, 200), generator=torch.Generator().manual_seed(0))
    for ids in (torch.tensor([[2, 7, 8, 4, 10, 3]]), longer):  # within a window, and beyond it
        mine, its = bundle.model(input_ids=ids)[0], theirs(input_ids=ids).logits
        assert torch.allclose(mine, its, atol=1e-5)
    again = run(
        shards, tmp_path / "on", objective="none", base=str(tmp_path / "run"), steps=3, dropout=0.1
    )
    assert again.steps == 3


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_fine_tuning_begins_from_it(shards: Path, tmp_path: Path, architecture: str) -> None:
    from filbert.train.options import ClassifyOptions

    run(shards, tmp_path / "base", steps=5, architecture=architecture, objective="none")
    data = reviews(tmp_path / "train.csv", 40)
    given = ClassifyOptions(
        data=str(data), base=str(tmp_path / "base"), out=str(tmp_path / "run"), epochs=1,
        tensorboard=False, dropout=0.1,
    )  # fmt: skip
    assert train_classify(given, quiet=True).steps > 0


# --- going on from a model ------------------------------------------------------------------------


def test_going_on_with_a_longer_vocabulary(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    words = [*VOCABULARY, "goodfilm", *(f"x{n}" for n in range(60 - len(VOCABULARY) - 1))]
    shards = tiny_shards(tmp_path / "shards", words=words)
    values = options(shards, tmp_path / "run", base=str(base), steps=1, max_length=24, lr=1e-9)
    before = open_bundle(base).model.state_dict()
    pretrain(PretrainOptions(**values), quiet=True)
    after = open_bundle(tmp_path / "run").model.state_dict()
    name = "bert.embeddings.word_embeddings.weight"
    assert after[name].shape == (60, 32)
    count = len(VOCABULARY)
    assert torch.allclose(after[name][:count], before[name], atol=1e-6)
    # "goodfilm" is [UNK] for the old vocabulary ("film" is no piece): drawn afresh, not [UNK]'s row
    assert not torch.allclose(after[name][count], before[name][VOCABULARY.index("[UNK]")])
    assert after["cls.predictions.bias"].shape == (60,)


def test_a_new_word_is_the_mean_of_its_pieces(tmp_path: Path) -> None:
    from filbert.train.pretrain_base import build_model

    base = save_base(tmp_path / "base")
    tokenizer = BertTokenizer([*VOCABULARY, "foods"])
    given = PretrainOptions(
        **options(tmp_path / "s", tmp_path / "o", base=str(base), max_length=24)
    )
    model, told = build_model(given, tokenizer)
    rows = model.bert.embeddings.word_embeddings.weight
    pieces = [VOCABULARY.index("food"), VOCABULARY.index("##s")]
    assert torch.allclose(rows[len(VOCABULARY)], rows[pieces].mean(0))
    assert "1 words were added" in told[0]
    assert model.cls.predictions.decoder.weight is rows


def test_shards_of_another_vocabulary_are_refused(shards: Path, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    with pytest.raises(FilbertError, match="prepared with another vocabulary"):
        run(shards, tmp_path / "run", base=str(base), max_length=24)
    assert not (tmp_path / "run").exists()


# --- bad input ------------------------------------------------------------------------------------


def test_mistakes_are_told_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    for changes, told in (
        ({"data": str(tmp_path / "none")}, "none"),
        ({"mix": {"reviws": 2}}, "no source 'reviws'"),
        ({"batch_size": 1, "batch_start": 1}, None),
        ({"device": "cuda:77"}, "77"),
    ):
        if told is not None:
            with pytest.raises(FilbertError, match=told):
                run(shards, tmp_path / "run", **changes)
            assert not (tmp_path / "run").exists()
    world = World(0, 16)
    with pytest.raises(UsageError, match="cannot be shared by 16 processes"):
        layer.prepare(
            PretrainOptions(**options(shards, tmp_path / "run")), torch.device("cpu"), world
        )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stpes": 5}, "unknown key 'stpes'. Did you mean 'steps'?"),
        ({"budget": "5m", "steps": 5}, "give either steps or budget"),
        ({"max_length": 100}, "max_position_embeddings"),
        ({"hidden_size": 33}, "no multiple of num_attention_heads"),
        ({"mix": "reviews:2"}, "source=passes"),
        ({"mix": {"a": -1}}, "0 to 1000"),
        ({"optimizer": "adam"}, "adamw"),
    ],
)
def test_wrong_options_are_told(
    shards: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    values = {**options(shards, tmp_path / "x"), **changes}
    with pytest.raises(UsageError) as error:
        parse_options(values, PretrainOptions, source="recipe")
    assert told in str(error.value)


def test_a_corpus_without_held_out_documents(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards")
    manifest = json.loads((shards / "manifest.json").read_text())
    dev = manifest["shards"].pop()
    for key in ("documents", "sentences", "tokens"):
        manifest["counts"][key] -= dev[key]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="--holdout"):
        run(shards, tmp_path / "run")


def test_a_corpus_smaller_than_a_batch(tmp_path: Path) -> None:
    """It is read several times over in a step."""
    shards = tiny_shards(tmp_path / "shards", documents=4, dev_documents=2)
    result = run(shards, tmp_path / "run", steps=3, batch_size=300)
    assert result.steps == 3


def test_words_of_the_fixture() -> None:
    assert len(WORDS) == 60
