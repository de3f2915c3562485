"""Export: a bundle for other programs, compared with its source before it is called done.

    filbert export runs/reviews --format onnx --out reviews-onnx
    filbert export runs/reviews --format openvino --out reviews-openvino
    filbert export runs/reviews --format torch --aot --out reviews-pt2
    filbert export runs/reviews --format tensorflow --out reviews-tf
    filbert predict reviews-onnx "Great film." --core onnxruntime

What comes out has the layout that Optimum and plain ONNX Runtime know: the model's file beside
config.json and the tokenizer. It is opened again in its own runtime, and real texts go through it
and through the source (`filbert/infer/export_compare.py`); where the two differ by more than the
tolerance nothing is left behind. `export.json` holds what was measured.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from filbert import __version__
from filbert.atomic import beside, check_out, replace_folder, write_file
from filbert.bundle import MANIFEST, Bundle, is_bundle, model_card, open_bundle, what_fits
from filbert.errors import FilbertError
from filbert.infer.export_compare import TOLERANCE, Compared, compare, comparison_batches
from filbert.infer.export_formats import AOT, FORMATS, OPSET, check_compiler
from filbert.infer.export_options import ExportOptions
from filbert.model.bert import BertForPreTraining
from filbert.model.plain import PlainModel
from filbert.tasks import embed

REPORT = "export.json"
TASKS = ("classify", "rank", "tag", "answer", "embed", "encode", "fill", "pretrain")


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it lies from its source."""

    out: Path
    record: dict[str, Any]  # the content of export.json
    compared: dict[str, Compared]  # by runtime
    seconds: float

    def __str__(self) -> str:
        """The differences by runtime and output, for people."""
        lines = []
        for runtime, found in self.compared.items():
            lines += [
                f"{runtime}, {name}: largest difference {one.largest:.1e} (numbers of size "
                f"{one.rms:.2g}), relative {one.relative:.1e}"
                for name, one in found.outputs.items()
            ]
            lines.append(f"on {found.texts} texts of 1 to {found.longest} tokens ({found.source})")
        return "\n".join([*lines, f"{self.out}: {self.record['file']}, {self.seconds:.0f} s"])


def export(options: ExportOptions) -> Exported:
    """Write `options.bundle` as `options.format` into `options.out`.

    Raises `UsageError` for an output folder that is in use, `FilbertError` for a package that is
    not installed, a task or a model that is not exported, and a result that differs from its source
    by more than the tolerance; `out` is then as it was.
    """
    began = time.monotonic()
    out = Path(options.out)
    reads = [options.bundle] if options.data is None else [options.bundle, options.data]
    check_out(out, "bundle", is_bundle, overwrite=options.overwrite, reads=reads)
    format = FORMATS[options.format]
    format.check()
    check_compiler(options.aot)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    bundle = open_bundle(options.bundle)
    if bundle.manifest.task not in TASKS:
        raise FilbertError(
            f"{options.bundle}: a model of the task {bundle.manifest.task} is not exported; "
            f"those of {', '.join(TASKS)} are. {what_fits(options.bundle, bundle.manifest)}"
        )
    graph = PlainModel(bundle.model)
    batches, source = comparison_batches(bundle, options)
    with beside(out) as temp:
        format.write(graph, temp, options.opset or OPSET, options.aot)
        compared = {
            runtime.name: compare(bundle.model, runtime, batches, source=source)
            for runtime in format.open(temp, graph, options.threads)
        }
        for name, found in compared.items():
            _check_difference(name, found)
        record = _record(options, bundle, graph, compared)
        _write_the_rest(temp, out.name, options, bundle, record)
        replace_folder(temp, out)
    return Exported(out, record, compared, time.monotonic() - began)


def _check_difference(runtime: str, found: Compared) -> None:
    if found.difference <= TOLERANCE:  # False of a NaN, too
        return
    worst = ", ".join(f"{name} {one.difference:.2e}" for name, one in found.outputs.items())
    raise FilbertError(
        f"{runtime} answers otherwise than the source: {worst}, where {TOLERANCE:.0e} is allowed. "
        "Nothing was written. Another version of the packages may help (pip install -c "
        "constraints.txt); please report it with the model"
    )


def _record(
    options: ExportOptions, bundle: Bundle, graph: PlainModel, compared: dict[str, Compared]
) -> dict[str, Any]:
    format = FORMATS[options.format]
    return {
        "filbert": __version__,
        "format": options.format,
        "file": format.file,
        **({"opset": options.opset or OPSET} if options.format == "onnx" else {}),
        **({"aot": AOT} if options.aot else {}),
        "from": Path(options.bundle).name,
        "task": bundle.manifest.task,
        "model": type(bundle.model).__name__,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "versions": format.versions(),
        "compared": {name: found.record() for name, found in compared.items()},
    }


def _write_the_rest(
    folder: Path, name: str, options: ExportOptions, bundle: Bundle, record: dict[str, Any]
) -> None:
    """Configuration, tokenizer, how sentences become vectors, model card, record and manifest."""
    model, manifest = bundle.model, bundle.manifest
    kind = type(model).__name__
    if isinstance(model, BertForPreTraining):  # the graph holds its word head alone
        kind, manifest = "BertForMaskedLM", manifest.model_copy(update={"task": "fill"})
    replace(model.config, architectures=[kind]).save_pretrained(folder)
    bundle.tokenizer.save_pretrained(folder)
    if manifest.task == "embed":
        embed.write_settings(folder, model, bundle.tokenizer, manifest, of=bundle.folder)
    described, _, _ = model_card(name, model, manifest).partition("```python")
    write_file(folder / "README.md", described + HOW_TO_OPEN[options.format].format(name=name))
    write_file(folder / REPORT, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    short = {"format": record["format"], "from": record["from"]}
    manifest = manifest.model_copy(
        update={"provenance": {**manifest.provenance, "exported": short}, "int8": None}
    )
    text = json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False)
    write_file(folder / MANIFEST, text + "\n")


HOW_TO_OPEN = {
    "onnx": """```python
import onnxruntime
session = onnxruntime.InferenceSession("{name}/model.onnx")

from filbert import load
model = load("{name}", core="onnxruntime")
```
""",
    "openvino": """```python
import openvino
model = openvino.Core().compile_model("{name}/openvino_model.xml", "CPU")

from filbert import load
model = load("{name}", core="openvino")
```
""",
    "torch": """```python
import torch
model = torch.export.load("{name}/model.pt2").module()
```
""",
    "tensorflow": """```python
import tensorflow as tf
model = tf.saved_model.load("{name}/saved_model/1").signatures["serving_default"]
```
""",
}
