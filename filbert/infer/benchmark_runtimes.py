"""Peers of a benchmark that compute an exported graph, on the CPU: ONNX Runtime, OpenVINO and
CTranslate2. See `filbert/infer/benchmark_peers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from filbert.infer.benchmark_measure import Arm, Call, Floats, Rows
from filbert.infer.benchmark_subject import (
    SIZES,
    Grid,
    Items,
    Subject,
    Unfit,
    batched,
    grid_of,
    in_order,
    on_grids,
    opened,
    restored,
    ways,
)
from filbert.model.config import BertConfig


def onnxruntime_arms(subject: Subject) -> Iterator[Arm]:
    """Two graphs (as exported, and with attention and norms fused), each in float32 and int8."""
    _cpu_only(subject)
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    graphs = {"": subject.scratch / "plain.onnx"}
    model = opened(subject, attn_implementation="eager")  # the pattern that the fusion knows
    names = list(subject.names)
    axes: Any = {name: {0: "batch", 1: "length"} for name in names}
    with torch.no_grad():
        torch.onnx.export(
            model, _example(subject), str(graphs[""]), dynamo=False, input_names=names,
            output_names=["output"], dynamic_axes={**axes, "output": {0: "batch"}},
            opset_version=17,
        )  # fmt: skip
    if isinstance(subject.config, BertConfig):
        graphs["fused graph, "] = subject.scratch / "fused.onnx"
        fused = optimizer.optimize_model(
            str(graphs[""]), model_type="bert", num_heads=subject.config.num_attention_heads,
            hidden_size=subject.config.hidden_size,
        )  # fmt: skip
        fused.save_model_to_file(str(graphs["fused graph, "]))
    for kind in ("float32", "int8"):
        sessions = {}
        for label, path in graphs.items():
            if kind == "int8":
                small = path.with_suffix(".int8.onnx")
                quantize_dynamic(
                    str(path), str(small), weight_type=QuantType.QInt8, per_channel=True,
                    extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
                )  # fmt: skip
                path = small
            sessions[label] = _session(path, subject)
        found = {
            name: call
            for label, run in sessions.items()
            for name, call in ways(subject, run, label).items()
        }
        run = list(sessions.values())[-1]
        yield Arm(f"onnxruntime {kind}", found, batched(subject, run, SIZES[-1]))


def _session(path: Path, subject: Subject) -> Callable[[Items], Floats]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = subject.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = [port.name for port in session.get_inputs()]

    def run(grid: Grid) -> Floats:
        given = dict(zip(subject.names, grid, strict=True))
        found: Floats = session.run(None, {name: given[name] for name in taken})[0]
        return found

    return on_grids(subject, run)


def openvino_arms(subject: Subject) -> Iterator[Arm]:
    """The graph that its converter makes of transformers' model."""
    _cpu_only(subject)
    import openvino

    with torch.no_grad():
        graph = openvino.convert_model(opened(subject), example_input=_example(subject))
    core = openvino.Core()
    kinds = {"float32": "f32", **({"bf16": "bf16"} if subject.bf16 else {})}
    for name, precision in kinds.items():
        found: dict[str, Call] = {}
        runs: dict[str, Callable[[Items], Floats]] = {}
        for hint in ("THROUGHPUT", "LATENCY"):
            compiled = core.compile_model(graph, "CPU", {
                "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": hint,
                "INFERENCE_NUM_THREADS": subject.threads,
            })  # fmt: skip
            request = compiled.create_infer_request()

            def run(grid: Grid, request: Any = request) -> Floats:
                request.infer(list(grid), share_inputs=True)
                return np.array(request.get_output_tensor(0).data)

            runs[hint] = on_grids(subject, run)
            for size in SIZES:
                label = f"{hint.lower()} hint, batches of {size}"
                found[label] = _queued(subject, compiled, size)
        yield Arm(f"openvino {name}", found, batched(subject, runs["LATENCY"], SIZES[-1]))


def _queued(subject: Subject, compiled: Any, size: int) -> Call:
    """All batches through a queue of as many requests as the hint makes."""
    import openvino

    queue = openvino.AsyncInferQueue(compiled)

    def many(rows: Rows) -> Floats:
        items, order = in_order(subject, rows)
        starts = range(0, len(order), size)
        blocks: list[Any] = [None] * len(starts)

        def done(request: Any, place: int) -> None:
            blocks[place] = np.array(request.get_output_tensor(0).data)

        queue.set_callback(done)
        for place, start in enumerate(starts):
            part = [items[i] for i in order[start : start + size]]
            queue.start_async(list(grid_of(subject, part)), place)
        queue.wait_all()
        return restored(blocks, order)

    return many


def ctranslate2_arms(subject: Subject) -> Iterator[Arm]:
    """Its encoder of BERT; pooling, or the classifier's last layer, in numpy as its guide does."""
    _cpu_only(subject)
    if not isinstance(subject.config, BertConfig):
        raise Unfit("it computes BERT and no ModernBERT")
    import ctranslate2

    folder = str(subject.scratch / "ctranslate2")
    ctranslate2.converters.TransformersConverter(str(subject.folder)).convert(folder)
    head = opened(subject).model.classifier if subject.settings is None else None
    for name in ("float32", "int8"):
        if name not in ctranslate2.get_supported_compute_types("cpu"):
            continue
        encoder = ctranslate2.Encoder(
            folder, device="cpu", compute_type=name, inter_threads=1, intra_threads=subject.threads
        )

        def run(items: Items, encoder: Any = encoder) -> Floats:
            types = {"token_type_ids": [item.type_ids for item in items]} if subject.pair else {}
            out = encoder.forward_batch([item.ids for item in items], **types)
            if head is not None:
                pooled = np.array(out.pooler_output)  # (texts, hidden)
                weight, bias = (part.detach().numpy() for part in (head.weight, head.bias))
                found: Floats = pooled @ weight.T + bias
                return found
            return _pooled(np.array(out.last_hidden_state), items, subject)

        yield Arm(f"ctranslate2 {name}", ways(subject, run), batched(subject, run, SIZES[-1]))


def _pooled(states: Floats, items: Items, subject: Subject) -> Floats:
    """Vectors (texts, hidden) of states (texts, longest, hidden)."""
    assert subject.settings is not None
    lengths = np.array([len(item) for item in items])
    mask = (np.arange(states.shape[1]) < lengths[:, None])[..., None]  # (texts, longest, 1)
    if subject.settings.pooling == "cls":
        vectors = states[:, 0]
    elif subject.settings.pooling == "max":
        vectors = np.where(mask, states, -np.inf).max(1)
    else:
        vectors = np.where(mask, states, 0).sum(1) / lengths[:, None].astype(np.float32)
    if subject.settings.normalize:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found: Floats = vectors.astype(np.float32)
    return found


def _example(subject: Subject) -> tuple[Tensor, ...]:
    return tuple(torch.ones(2, 8, dtype=torch.int64) for _ in subject.names)


def _cpu_only(subject: Subject) -> None:
    if subject.device.type != "cpu":
        raise Unfit(f"it is measured on the CPU alone, and this runs on {subject.device}")
