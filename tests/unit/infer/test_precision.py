"""Precisions by name: what evaluate tells of their cost, and where there is none of a kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from filbert.errors import UsageError
from filbert.infer.evaluate import changes, evaluate
from filbert.infer.predict import load
from filbert.model import device
from filbert.model.device import choose_precision
from filbert.model.native import library

PAIRS = "sentence1\tsentence2\tscore\n" + "\n".join(
    f"{a}\t{b}\t{n % 5}" for n, (a, b) in enumerate(
        [("good film", "fine film"), ("bad book", "good book"), ("dull hotel", "slow hotel"),
         ("nice", "poor"), ("fine drama", "bad film"), ("weak book", "weak film")]
    )
)  # fmt: skip


def test_the_change_is_of_numbers_that_both_have() -> None:
    assert changes({"f1": 0.75, "rows": 3, "note": "x"}, {"f1": 0.5, "note": "y", "em": 1.0}) == {
        "f1": 0.25
    }


@pytest.mark.skipif(isinstance(library(), str), reason=f"no native encoder here: {library()}")
def test_evaluate_holds_int8_to_float32(tmp_path: Path) -> None:
    base, data = "all-MiniLM-L6-v2", tmp_path / "pairs.tsv"
    data.write_text(PAIRS + "\n", encoding="utf-8")
    record = evaluate(base, data, precision="int8")
    exact = evaluate(base, data, precision="float32")
    assert "against_float32" not in exact
    against = record["against_float32"]
    assert against["scores"] == exact["scores"]
    assert against["change"]
    for name, change in against["change"].items():
        assert change == pytest.approx(record["scores"][name] - exact["scores"][name])
    vectors = {p: load(base, precision=p)(["good film", "dull"]) for p in ("int8", "float32")}
    assert abs(vectors["int8"] - vectors["float32"]).max() < 0.05
    assert load(base, precision="int8").dtype == torch.int8


@pytest.mark.parametrize(
    ("feature", "maker", "chosen"),
    [
        ("AMX", "GenuineIntel", torch.bfloat16),
        ("AVX-512-BF16", "AuthenticAMD", torch.bfloat16),
        ("AVX-512-BF16", "", torch.bfloat16),
        ("AVX-512-BF16", "GenuineIntel", torch.float32),
    ],
)
def test_bf16_is_chosen_where_it_pays(
    feature: str, maker: str, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "native_bf16", lambda _: (True, feature))
    monkeypatch.setattr(device, "vendor", lambda: maker)
    assert choose_precision("auto", cpu)[0] == chosen
    assert choose_precision("bf16", cpu)[0] == torch.bfloat16  # whoever asks for it has it


def test_the_maker_is_what_the_kernel_says(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n", "utf-8")
    assert device.vendor(told) == "AuthenticAMD"
    told.write_text("Processor: ARMv8\n", "utf-8")
    assert device.vendor(told) == device.vendor(tmp_path / "none") == ""


def test_int8_without_the_native_encoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filbert.model.native_library.library", lambda: "this processor has no AMX")
    with pytest.raises(UsageError, match="int8 needs the native encoder: this processor has no"):
        choose_precision("int8", torch.device("cpu"))
    with pytest.raises(UsageError, match="expected auto, float32, bf16, fp16 or int8"):
        choose_precision("int4", torch.device("cpu"))
