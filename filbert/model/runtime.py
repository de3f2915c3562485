"""An exported model in another runtime: arrays in, arrays out. ONNX Runtime and OpenVINO.

    runtime = open_runtime("onnxruntime", folder)       # folder/model.onnx
    runtime.run({"input_ids": ids, "attention_mask": mask, "token_type_ids": types})["logits"]

Both compute in float32 on the CPU, so that their answers can be held against PyTorch's. Neither
runs code that a file brings along: no library of custom operations is ever registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from filbert.errors import FilbertError, UsageError, missing_extra, short_of_memory
from filbert.model.plain import INPUTS

Core = Literal["auto", "torch", "onnxruntime", "openvino"]
IN_PYTORCH = ("auto", "torch")  # the latter without the native encoder
CORES: tuple[str, ...] = get_args(Core)
ONNX, OPENVINO, TORCH, TENSORFLOW = (
    "model.onnx", "openvino_model.xml", "model.pt2", "saved_model",
)  # fmt: skip
# what a core opens, and the format of `filbert export` that makes it
FILES = {"onnxruntime": (ONNX, "onnx"), "openvino": (OPENVINO, "openvino")}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Runtime:
    """A model in a runtime. `run` takes arrays (batch, length) int64 by the names `inputs`, and
    gives float32 arrays by their names. Calls from several threads are safe."""

    name: str
    inputs: tuple[str, ...]
    run: Callable[[Arrays], Arrays]


def check_core(core: str) -> None:
    """Raise `UsageError` for a core that there is not."""
    if core not in CORES:
        raise UsageError(f"unknown core {core!r}; expected {', '.join(CORES)}")


def machine_of(core: str, device: str, precision: str) -> tuple[torch.device, torch.dtype, str]:
    """Device, precision and why, of a core beside PyTorch: float32 on the CPU. Raises `UsageError`
    for another one."""
    for option, value, known in (
        ("device", device, ("auto", "cpu")),
        ("precision", precision, ("auto", "float32")),
    ):
        if value not in known:
            raise UsageError(
                f"{option} {value}: the core {core} computes in float32 on the CPU; leave "
                f"--{option} out, or take --core auto"
            )
    return torch.device("cpu"), torch.float32, f"that of the core {core}"


def open_runtime(core: str, folder: Path, *, threads: int | None = None) -> Runtime:
    """The exported model in `folder`, opened by `core`. `threads`: of the CPU, else its own choice.

    Raises `FilbertError` for a package that is not installed, and for a folder without the file
    that this core opens, or with a damaged or foreign one.
    """
    file, format = FILES[core]
    path = folder / file
    if not path.is_file():
        raise FilbertError(
            f"{folder} has no {file}, which the core {core} opens. Make such a folder with: "
            f"filbert export {folder} --format {format} --out FOLDER"
        )
    runtime = (_onnxruntime if core == "onnxruntime" else _openvino)(path, threads)
    unknown = [name for name in runtime.inputs if name not in INPUTS]
    if unknown or "input_ids" not in runtime.inputs:
        raise FilbertError(
            f"{path} asks for {', '.join(runtime.inputs)}; a text encoder asks for "
            f"{', '.join(INPUTS)}, or some of them"
        )
    return runtime


def refuse_without_weights(folder: Path) -> None:
    """Raise `FilbertError` for an exported folder that holds no weights for PyTorch, saying how it
    is opened."""
    if any(folder.glob("model*.safetensors*")):
        return
    for core, (file, _) in FILES.items():
        if (folder / file).is_file():
            raise FilbertError(
                f"{folder} is an export: its model is in {file}, which PyTorch does not read. "
                f'Give --core {core}, or core="{core}" in Python'
            )
    for name, opener in ((TORCH, "torch.export.load"), (TENSORFLOW, "tf.saved_model.load")):
        if (folder / name).exists():
            raise FilbertError(
                f"{folder} is an export for other programs ({opener} opens {name}); give filbert "
                "the folder that it was made from"
            )


def _onnxruntime(path: Path, threads: int | None) -> Runtime:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ModuleNotFoundError:
        raise missing_extra("onnxruntime", "export") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; a warning of its own optimizer helps nobody
    if threads is not None:
        options.intra_op_num_threads = threads
    kinds = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    refusals = tuple(getattr(state, kind) for kind in kinds)
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except refusals as error:
        raise _unreadable(path, "ONNX Runtime", error) from None
    outputs = [port.name for port in session.get_outputs()]

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, arrays), strict=True))

    return Runtime("onnxruntime", tuple(port.name for port in session.get_inputs()), run)


def _openvino(path: Path, threads: int | None) -> Runtime:
    try:
        import openvino
    except ModuleNotFoundError:
        raise missing_extra("openvino", "export") from None
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 where it is fast
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise _unreadable(path, "OpenVINO", error) from None
    inputs = tuple(_named(port.names) for port in compiled.inputs)
    outputs = [_named(port.names) for port in compiled.outputs]

    def run(arrays: Arrays) -> Arrays:
        found = compiled.create_infer_request().infer(arrays)
        return {name: np.array(found[name]) for name in outputs}  # copies: its memory is reused

    return Runtime("openvino", inputs, run)


def _named(names: Iterable[str]) -> str:
    """The name of a port that has several: one that is ours, else the first."""
    given = sorted(names)
    return next((name for name in given if name in INPUTS), given[0] if given else "(no name)")


def _unreadable(path: Path, reader: str, error: Exception) -> FilbertError:
    words = " ".join(str(error).split())[:300]
    if short_of_memory(error):
        return FilbertError(f"{reader} had not enough memory to open {path}: {words}")
    return FilbertError(
        f"{reader} cannot open {path}: {words}. Copy the folder again, or export it anew"
    )
