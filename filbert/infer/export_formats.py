"""The formats of `filbert export`: how each is written, and opened again in its own runtime.

    FORMATS["onnx"].write(graph, folder, settings)      # files beside config.json and tokenizer
    FORMATS["onnx"].open(folder, threads)               # a Runtime, to compare with

ONNX comes from PyTorch's exporter by way of torch.export, OpenVINO from that ONNX graph, TensorFlow
from the weights (`filbert/infer/export_tensorflow.py`).
"""

from __future__ import annotations

import importlib.util
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from filbert.errors import FilbertError, UsageError, missing_extra
from filbert.infer import export_tensorflow
from filbert.model.plain import PlainModel
from filbert.model.runtime import ONNX, OPENVINO, TENSORFLOW, TORCH, Arrays, Runtime, open_runtime

OPSET = 18  # the lowest that PyTorch's exporter writes
AOT = "model_aot.pt2"
MOST_BYTES = 2_000_000_000  # of a graph with its weights in one ONNX file (protobuf ends at 2 GiB)


@dataclass(frozen=True)
class Format:
    """needs: packages and the extra that brings them. write: (graph, folder, opset, aot) leaves the
    files. open: one runtime for each file that can be run, opened from the folder."""

    needs: tuple[str, ...]
    extra: str
    file: str
    write: Callable[[PlainModel, Path, int, bool], None]
    open: Callable[[Path, PlainModel, int | None], list[Runtime]]

    def check(self) -> None:
        """Raise `FilbertError` for a package that is not installed, with the line to type."""
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                raise missing_extra(package, self.extra)

    def versions(self) -> dict[str, str]:
        """The versions of what wrote the files."""
        return {package: version(package) for package in ("torch", *self.needs)}


def check_compiler(aot: bool) -> None:
    """Raise `UsageError` where ahead-of-time compilation lacks a C++ compiler."""
    if aot and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        raise UsageError(
            "--aot compiles C++ and finds no compiler; install one (Debian, Ubuntu: apt install "
            "g++), or leave --aot out"
        )


@contextmanager
def silenced() -> Iterator[None]:
    """Keep back what PyTorch's exporters say about their own insides; errors come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def example(graph: PlainModel) -> dict[str, Any]:
    """What a tracer is handed: inputs, and which axes may have any size. The inputs are tensors of
    their own: of one tensor given twice the tracer would make one input."""
    batch = torch.export.Dim("batch", min=1)
    length = torch.export.Dim("length", min=1, max=graph.longest)
    size = (2, min(8, graph.longest))
    return {
        "args": tuple(torch.ones(size, dtype=torch.int64) for _ in graph.inputs),
        "dynamic_shapes": tuple({0: batch, 1: length} for _ in graph.inputs),
    }


def write_onnx(graph: PlainModel, folder: Path, opset: int, aot: bool) -> None:
    """`model.onnx`, weights inside, axes named batch and length."""
    size = 4 * sum(weight.numel() for weight in graph.parameters())
    if size > MOST_BYTES:
        raise FilbertError(
            f"the model has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB. Export it "
            "with --format torch"
        )
    with silenced(), torch.no_grad():
        torch.onnx.export(
            graph, f=str(folder / ONNX), dynamo=True, **example(graph),
            input_names=list(graph.inputs), output_names=list(graph.outputs),
            opset_version=opset, external_data=False, verbose=False,
        )  # fmt: skip
    import onnx

    written = {entry.domain: entry.version for entry in onnx.load(folder / ONNX).opset_import}
    if written.get("") != opset:
        raise FilbertError(
            f"PyTorch {torch.__version__} wrote opset {written.get('')} where {opset} was asked "
            f"for; take --opset {OPSET}"
        )


def open_onnx(folder: Path, graph: PlainModel, threads: int | None) -> list[Runtime]:
    """`model.onnx` in ONNX Runtime."""
    return [open_runtime("onnxruntime", folder, threads=threads)]


def write_openvino(graph: PlainModel, folder: Path, opset: int, aot: bool) -> None:
    """`openvino_model.xml` and `openvino_model.bin`, float32."""
    import openvino

    write_onnx(graph, folder, opset, aot)
    converted = openvino.Core().read_model(str(folder / ONNX))
    openvino.save_model(converted, str(folder / OPENVINO), compress_to_fp16=False)
    (folder / ONNX).unlink()


def open_openvino(folder: Path, graph: PlainModel, threads: int | None) -> list[Runtime]:
    """`openvino_model.xml` in OpenVINO."""
    return [open_runtime("openvino", folder, threads=threads)]


def write_torch(graph: PlainModel, folder: Path, opset: int, aot: bool) -> None:
    """`model.pt2`, and with `aot` also `model_aot.pt2`, machine code for this processor."""
    with silenced(), torch.no_grad():
        program = torch.export.export(graph, **example(graph))
        whole = io.BytesIO()  # PyTorch's own writer ends the process where a disk is full
        torch.export.save(program, whole)
        (folder / TORCH).write_bytes(whole.getbuffer())
        if aot:
            from torch import _inductor

            _inductor.aoti_compile_and_package(program, package_path=str(folder / AOT))


def open_torch(folder: Path, graph: PlainModel, threads: int | None) -> list[Runtime]:
    """The files that were just written: such a file is code, and no foreign one is ever opened."""
    with silenced():
        programs: list[tuple[str, Any]] = [
            ("torch.export", torch.export.load(str(folder / TORCH)).module())
        ]
        if (folder / AOT).is_file():
            from torch import _inductor

            programs.append(("AOTInductor", _inductor.aoti_load_package(str(folder / AOT))))

    def runner(program: Any) -> Callable[[Arrays], Arrays]:
        @torch.no_grad()
        def run(arrays: Arrays) -> Arrays:
            found = program(*(torch.from_numpy(arrays[name]) for name in graph.inputs))
            return {name: value.numpy() for name, value in zip(graph.outputs, found, strict=True)}

        return run

    return [Runtime(name, graph.inputs, runner(program)) for name, program in programs]


def write_tensorflow(graph: PlainModel, folder: Path, opset: int, aot: bool) -> None:
    """`saved_model/1/`, the layout that TensorFlow Serving watches."""
    export_tensorflow.write(graph, folder / TENSORFLOW / "1")


def open_tensorflow(folder: Path, graph: PlainModel, threads: int | None) -> list[Runtime]:
    """The SavedModel in TensorFlow."""
    return [export_tensorflow.open_again(folder / TENSORFLOW / "1", graph)]


FORMATS = {
    "onnx": Format(("onnx", "onnxscript", "onnxruntime"), "export", ONNX, write_onnx, open_onnx),
    "openvino": Format(
        ("onnx", "onnxscript", "openvino"), "export", OPENVINO, write_openvino, open_openvino
    ),
    "torch": Format((), "export", TORCH, write_torch, open_torch),
    "tensorflow": Format(
        ("tensorflow",), "tensorflow", TENSORFLOW, write_tensorflow, open_tensorflow
    ),
}
