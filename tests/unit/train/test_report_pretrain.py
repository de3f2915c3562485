"""The report page of a pre-training run."""

from __future__ import annotations

import json
from pathlib import Path

from filbert.train.report import write_report

RECIPE = (
    "num_hidden_layers = 4\nhidden_size = 256\nnum_attention_heads = 4\n"
    'objective = "next_sentence"\n'
    'masking = "whole_word"\nmask_rate = 0.15\nmax_length = 128\ndata = "shards"\n'
)


def test_it_shows_losses_of_words_and_pairs(tmp_path: Path) -> None:
    rows = []
    for step in range(1, 41):
        part = {"mlm_loss": 8 - step / 10, "mlm_accuracy": step / 100, "pair_loss": 0.6,
                "pair_accuracy": 0.7}  # fmt: skip
        rows.append({"kind": "train", "step": step, **part, "loss": 1.0, "lr": 1e-3, "mfu": 0.5,
                     "grad_norm": 1.0, "tokens_per_second": 9000.0, "tokens": 3000,
                     "seconds": step / 4})  # fmt: skip
        if step % 10 == 0:
            rows.append({"kind": "eval", "step": step, **part, "loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    scores = {"loss": 3.0, "mlm_loss": 2.0, "mlm_accuracy": 0.55, "pair_accuracy": 0.9}
    (tmp_path / "evaluation.json").write_text(json.dumps({"task": "pretrain", "scores": scores}))
    page = write_report(tmp_path).read_text("utf-8")
    assert "Pre-training" in page
    assert "4 layers, width 256, 4 heads" in page
    assert "whole_word, 15% of the tokens" in page
    assert "<b>7.3891</b>" in page  # e to the 2.0: the perplexity
    for title in ("Masked words, loss", "Pairs, accuracy", "Learning rate",
                  "Share of the matrix-product rate in use"):  # fmt: skip
        assert title in page
    assert "held-out documents" in page
    assert "<dt>Average speed</dt><dd>12,000 tokens a second</dd>" in page  # 40 * 3000 / 10 s
    assert "Samples read" not in page  # the manifest counts them, and there is none yet
    assert "Confusion" not in page
    assert "Calibration" not in page


def test_samples_of_two_lengths(tmp_path: Path) -> None:
    manifest = {"provenance": {"samples": 1234567}}
    (tmp_path / "filbert.json").write_text(json.dumps(manifest))
    for more, told in (
        ("", "1,234,567 of at most 128 tokens<"),
        ("last_length = 512\nlast_share = 0.25\n",
         "1,234,567 of at most 128 tokens, 512 in the last 25% of the run<"),
    ):  # fmt: skip
        (tmp_path / "recipe.toml").write_text(RECIPE + more)
        assert told in write_report(tmp_path).read_text("utf-8")


def test_a_run_that_was_stopped_has_a_page_as_well(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    page = write_report(tmp_path).read_text("utf-8")
    assert "No <code>metrics.jsonl</code>" in page
