"""Which device and which precision to compute in, and why.

bf16 is chosen only where the processor multiplies it natively and faster than float32 (a GPU, AMX,
or AVX-512-BF16 of another maker than Intel); elsewhere it is emulated and many times slower.
"""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from filbert.errors import UsageError

logger = logging.getLogger("filbert")
Model = TypeVar("Model", bound=nn.Module)


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises `UsageError` for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UsageError(
                f"device {name!r} asked for, but PyTorch sees {count} CUDA devices here"
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("device 'mps' asked for, but PyTorch sees no Apple GPU here")
    elif device.type != "cpu":
        raise UsageError(f"device {name!r} is not supported; expected auto, cpu, cuda or mps")
    return device


def native_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether `device` multiplies bfloat16 in hardware, and by what."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False)), "the GPU"
    if device.type == "cpu":
        for check, feature in (
            ("_is_amx_tile_supported", "AMX"),
            ("_is_avx512_bf16_supported", "AVX-512-BF16"),
        ):
            supported = getattr(torch.cpu, check, None)
            if supported is not None and supported():
                return True, feature
    return False, "no bfloat16 units"


def vendor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Who made the processor, as the kernel says it; nothing where it does not."""
    try:
        found = re.search(r"^vendor_id\s*:\s*(\S+)", cpuinfo.read_text("utf-8"), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def choose_precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The compute type for `auto`, `float32`, `bf16`, `fp16` or `int8`, and the reason in words.

    int8 is for answers alone and computed by the native encoder, the rest of the model in bfloat16.
    fp16 is for answers alone and for GPUs. Raises `UsageError` where bf16 is asked of a processor
    that would only emulate it, fp16 away from a GPU, or int8 where there is no native encoder.
    """
    native, feature = native_bf16(device)
    if name == "float32":
        return torch.float32, "asked for"
    if name == "bf16":
        if not native:
            raise UsageError(
                f"precision bf16: this {device.type} has {feature} and would emulate it, slower "
                "than float32; use --precision float32 or auto"
            )
        return torch.bfloat16, f"asked for; {feature}"
    if name == "fp16":
        if device.type != "cuda":
            raise UsageError(
                f"precision fp16 is for GPUs, and the device is {device.type}; use --precision auto"
            )
        return torch.float16, "asked for"
    if name == "int8":
        from filbert.model.native_library import library, units

        lib = f"the device is {device.type}" if device.type != "cpu" else library()
        if isinstance(lib, str):
            raise UsageError(
                f"precision int8 needs the native encoder: {lib}; use --precision auto or float32"
            )
        return torch.int8, f"asked for; {units()}"
    if name != "auto":
        raise UsageError(f"unknown precision {name!r}; expected auto, float32, bf16, fp16 or int8")
    if native and feature == "AVX-512-BF16" and vendor() == "GenuineIntel":
        # 71 against 130 GFLOP/s in PyTorch, 83 for the bare instruction: docs/decisions.md, 70
        return torch.float32, "without AMX, Intel multiplies float32 faster than bfloat16"
    if native:
        return torch.bfloat16, f"computed natively by {feature}"
    return torch.float32, f"{device.type} has {feature}"


PROBE_SIZE = 2048  # rows and columns of the matrices that are multiplied
PROBE_SECONDS = 0.3


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second (GFLOP/s) of square matrix products, the best seen."""
    left, right = (torch.randn(PROBE_SIZE, PROBE_SIZE, device=device).to(dtype) for _ in "lr")
    torch.mm(left, right)  # the first one picks and prepares the kernel
    best = float("inf")
    end = time.perf_counter() + PROBE_SECONDS
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right).sum().item()  # item() waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * PROBE_SIZE**3 / best / 1e9


def go_native(model: nn.Module, dtype: torch.dtype) -> None:
    """Set the type that `model` computes in, with the native encoder where it serves (bfloat16 and
    int8 on a processor with AMX or AVX-512-BF16, float32 on one with AVX-512); one line of the log
    says which path was taken, a warning where the processor could and the model cannot. Raises
    `UsageError` for int8 where it does not serve."""
    from filbert.model.native import attach
    from filbert.model.native_library import library, library_float32, units

    if any(weight.device.type == "cuda" for weight in model.parameters()):
        go_cuda(model, dtype)
        return
    allowed = getattr(model, "may_go_native", True)
    reason = attach(model, dtype) if allowed else "another core was asked for"
    if reason is not None:
        if dtype == torch.int8:
            raise UsageError(
                f"precision int8: {type(model).__name__} cannot be computed by the native encoder: "
                f"{reason}; use --precision auto or float32"
            )
        model.to(dtype=dtype)
    path, level = f"no native encoder: {reason}", logging.INFO
    if reason is None:
        path = f"native encoder ({'AVX-512' if dtype == torch.float32 else units()})"
    elif allowed and not isinstance(
        library_float32() if dtype == torch.float32 else library(), str
    ):
        path, level = f"{path}. PyTorch computes instead, more slowly", logging.WARNING
    logger.log(level, "%s: %s", type(model).__name__, path)


def go_cuda(model: nn.Module, dtype: torch.dtype) -> None:
    """Set the type that `model` computes in on a GPU; one line of the log says which path."""
    model.to(dtype=dtype)
    logger.info("%s: %s", type(model).__name__, path_on_gpu(model))


def path_on_gpu(model: nn.Module) -> str:
    """What computes the attention of `model`, which is on a GPU, in words."""
    from filbert.model.attention import why_no_varlen

    weight, config = next(model.parameters()), getattr(model, "config", None)
    encoder = getattr(config, "encoder", config)  # of a model that writes
    reason = why_no_varlen(weight.device, weight.dtype, getattr(encoder, "head_size", 0))
    if reason is None:
        return "flash attention, one call for texts of any lengths"
    return f"attention with a call for each length: {reason}"


def training_path(model: nn.Module) -> str | None:
    """One line on what computes the layers of `model` in training, and why; None away from the
    CPU, where there is no choice."""
    from filbert.model.bert import BertEncoder
    from filbert.model.native_library import units
    from filbert.model.native_train import SWITCH, why_not

    if any(weight.device.type != "cpu" for weight in model.parameters()):
        return None
    encoders = [module for module in model.modules() if isinstance(module, BertEncoder)]
    reason = why_not(encoders[0]) if encoders else "there is no BERT encoder in this model"
    if reason is None:
        return f"layers: native forward and backward ({units()}); {SWITCH}=0 leaves them to PyTorch"
    return f"layers: PyTorch, no native training: {reason}"


def for_inference(
    model: Model, device: torch.device, dtype: torch.dtype, *, head: str | None = None
) -> Model:
    """Move `model` to where and how it computes answers. The module named `head` stays float32, and
    a pooler between it and the encoder: half-precision logits would tie the scores of like answers,
    and these products are (sequences, hidden) alone."""
    from filbert.model.native import keep_float32

    model.to(device=device).eval()
    exact: list[tuple[nn.Module, list[torch.Tensor]]] = []
    if head is not None and dtype != torch.float32:
        parts = [model.get_submodule(head), getattr(model.base_model, "pooler", None)]
        for part in (part for part in parts if isinstance(part, nn.Module)):
            exact.append((part, [weight.detach().float().clone() for weight in part.parameters()]))
    go_native(model, dtype)
    for part, weights in exact:
        for weight, value in zip(part.parameters(), weights, strict=True):
            weight.data = value
        part.register_forward_pre_hook(_in_float32)
    if exact or getattr(model, "base_model", None) is model:
        keep_float32(model)
    return model


def _in_float32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(),)
