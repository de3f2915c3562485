"""What a GPU computes otherwise: one call of attention for all lengths, graphs for small batches.

Without a GPU the kernel is written out here and a graph is a plain call, so that all around them is
held to the slow twin; the shapes and types that the kernel is handed are checked by PyTorch's own
description of it. The last tests want a GPU.
"""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from filbert.errors import UsageError
from filbert.infer.engine import Engine
from filbert.infer.predict import load
from filbert.infer.warm_up import warm_up
from filbert.model import attention as attention_module
from filbert.model import graphs as graphs_module
from filbert.model import inputs as inputs_module
from filbert.model import window as window_module
from filbert.model.attention import PackedLayout, pack_layout, why_no_varlen
from filbert.model.bert import BertConfig, BertEncoder, BertForSequenceClassification, BertModel
from filbert.model.device import choose_precision
from filbert.model.graphs import TEXTS, TOKENS, Graphs
from filbert.model.modern import ModernBertConfig, ModernBertModel
from tests.tiny_tasks import task_bundle

LENGTHS = [5, 1, 17, 17, 2, 40, 9]
HERE = torch.device("cuda", 0)
NO_GPU = "no CUDA GPU here" if not torch.cuda.is_available() else None
NO_GPU = NO_GPU or why_no_varlen(HERE, torch.bfloat16, 16)
GPU = pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))
calls: list[tuple[int, int]] = []


def by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    asking: Tensor,
    bounds: Tensor,
    most: int,
    longest: int,
    *,
    window_size: tuple[int, int],
) -> Tensor:
    """What `varlen_attn` promises: sequence i has the rows from bounds[i] to bounds[i + 1]."""
    calls.append((most, longest))
    out = torch.empty_like(query)
    for i in range(len(bounds) - 1):
        mine = slice(int(asking[i]), int(asking[i + 1]))
        seen = slice(int(bounds[i]), int(bounds[i + 1]))
        q, k, v = query[mine].double(), key[seen].double(), value[seen].double()
        assert len(q) <= most and len(k) <= longest
        if not len(q):
            continue
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        if window_size != (-1, -1):
            far = torch.arange(len(k)) - torch.arange(len(q))[:, None]
            scores[:, (far < -window_size[0]) | (far > window_size[1])] = -torch.inf
        out[mine] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(out.dtype)
    return out


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this processor had the kernel."""

    def laid_out(lengths: Tensor, counts: list[int] | None = None) -> PackedLayout:
        bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        return replace(pack_layout(lengths, counts), bounds=bounds, longest=int(lengths.max()))

    calls.clear()
    monkeypatch.setattr(inputs_module, "pack_layout", laid_out)
    monkeypatch.setattr(attention_module, "why_no_varlen", lambda *_: None)
    monkeypatch.setattr(graphs_module, "why_no_varlen", lambda *_: None)
    monkeypatch.setattr(attention_module, "varlen_kernel", lambda: by_hand)


def small_bert(**changes: Any) -> BertModel:
    torch.manual_seed(1)
    given = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 600,
    }  # fmt: skip
    return BertModel(BertConfig(**{**given, **changes})).eval()


def small_modern() -> ModernBertModel:
    torch.manual_seed(1)
    config = ModernBertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, local_attention=8,
        pad_token_id=0,
    )  # fmt: skip
    return ModernBertModel(config).eval()


def batch(lengths: list[int] = LENGTHS, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "input_ids": torch.randint(5, 60, (sum(lengths),)),
        "lengths": torch.tensor(lengths),
    }


@pytest.mark.parametrize("make", [small_bert, small_modern])
@pytest.mark.parametrize("first_only", [False, True])
def test_one_call_equals_runs(
    make: Callable[[], Any], first_only: bool, request: pytest.FixtureRequest
) -> None:
    model = make()
    with torch.no_grad():
        slow = model(**batch(), first_only=first_only).last_hidden_state
        request.getfixturevalue("kernel")
        fast = model(**batch(), first_only=first_only).last_hidden_state
    assert (fast - slow).abs().max().item() < 2e-6
    assert len(calls) == model.config.num_hidden_layers  # a call a layer, windows included
    bert = isinstance(model, BertModel)
    assert calls[-1] == ((1, 40) if bert and first_only else (40, 40))
    assert calls[0] == (40, 40)


@pytest.mark.usefixtures("kernel")
def test_training_goes_through_the_call_without_dropout_alone() -> None:
    model = small_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5).train()
    model(**batch())
    assert not calls  # the kernel knows no dropout
    layout = inputs_module.pack_layout(batch()["lengths"])
    query, key, value = (torch.randn(sum(LENGTHS), 4, 8, requires_grad=True) for _ in range(3))
    context, _ = attention_module.attention(query, key, value, layout)
    gradients = torch.autograd.grad(context.square().sum(), (query, key, value))
    assert calls and all(gradient.abs().sum().item() > 0 for gradient in gradients)


def plain_call(run: graphs_module.Run, device: torch.device) -> graphs_module.Recorded:
    """A recording whose replay computes the same again, into the same memory."""
    out = run().clone()
    return lambda: out.copy_(run()), out  # type: ignore[return-value]


def with_graphs(model: BertModel, record: Any = plain_call) -> Graphs:
    model.encoder.graphs = Graphs(8, record)
    return model.encoder.graphs


@pytest.mark.usefixtures("kernel")
def test_graphs_equal_the_plain_encoder() -> None:
    model = small_bert()
    others = [[3], [32], [1, 31], LENGTHS, [1] * 9, [500, 12], [3], [200, 200, 200, 200, 100]]
    options: list[dict[str, Any]] = [{}, {"first_only": True}, {"predict_at": torch.tensor([0, 2])}]
    for option in options:
        for lengths in others:
            given = batch(lengths, seed=len(lengths))
            model.encoder.graphs = None
            with torch.inference_mode():
                slow = model(**given, **option).last_hidden_state
                graphs = with_graphs(model)
                for _ in range(2):
                    fast = model(**given, **option).last_hidden_state
                    assert (fast - slow).abs().max().item() < 2e-6, (lengths, option)
            assert len(graphs._graphs) == 1
    # many sizes one after the other, in the same graphs, whose filling is left from the last batch
    graphs = with_graphs(model)
    kept = []
    with torch.inference_mode():
        for round_ in range(3):
            for lengths in others:
                given = batch(lengths, seed=round_)
                fast = model(**given).last_hidden_state
                model.encoder.graphs, before = None, model.encoder.graphs
                kept.append((fast, model(**given).last_hidden_state))
                model.encoder.graphs = before
    assert all((fast - slow).abs().max().item() < 2e-6 for fast, slow in kept)
    sizes = {(t, n) for t, n in graphs._graphs}
    assert sizes == {(32, 8), (128, 8), (32, 64), (512, 8), (1024, 8)}


@pytest.mark.usefixtures("kernel")
def test_no_graph_where_there_is_none_for_it(caplog: pytest.LogCaptureFixture) -> None:
    model, given = small_bert(), batch()
    graphs = with_graphs(model)
    model(**given)  # gradients are wanted
    with torch.no_grad():
        model(**batch([520, 520]))  # more tokens than the largest
        model(**batch([1] * (TEXTS[-1] + 1)))  # more texts
        model(**given, output_hidden_states=True)
        hook = model.encoder.layer[1].register_forward_hook(lambda *_: None)
        model(**given)
        hook.remove()
        assert not graphs._graphs
        first = model(**given).last_hidden_state
        assert len(graphs._graphs) == 1
        assert copy.deepcopy(model).encoder.graphs is None
        assert pickle.loads(pickle.dumps(model.encoder)).graphs is None  # noqa: S301
        old = graphs._graphs[128, 8]
        for weight in model.encoder.parameters():  # new memory
            weight.data = weight.data * 0.5
        other = model(**given).last_hidden_state
        assert graphs._graphs[128, 8] is not old
        model.encoder.graphs = None
        assert (other - model(**given).last_hidden_state).abs().max().item() < 2e-6
        assert (other - first).abs().max().item() > 1e-3

    def fails(run: graphs_module.Run, device: torch.device) -> graphs_module.Recorded:
        raise RuntimeError("operation not permitted when stream is capturing")

    with torch.no_grad(), caplog.at_level(logging.WARNING, "filbert"):
        slow = model(**given).last_hidden_state
        with_graphs(model, fails)
        for _ in range(2):
            assert torch.equal(model(**given).last_hidden_state, slow)
    assert [r.getMessage() for r in caplog.records] == [
        "no CUDA graph, small batches are slower: operation not permitted when stream is capturing"
    ]


@pytest.mark.usefixtures("kernel")
def test_graphs_from_sixteen_threads() -> None:
    model = small_bert()
    given = [batch([3 + n % 5] * (1 + n % 4), seed=n) for n in range(16)]
    with torch.inference_mode():
        right = [model(**one).last_hidden_state for one in given]
    with_graphs(model)
    wrong: list[int] = []

    def ask(number: int) -> None:
        with torch.inference_mode():
            for _ in range(20):
                out = model(**given[number]).last_hidden_state
                if (out - right[number]).abs().max().item() > 2e-6:
                    wrong.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("make", [small_bert, small_modern])
def test_pytorch_takes_the_call(make: Callable[[], Any], first_only: bool) -> None:
    """Shapes, types and devices alone: a GPU's tensors without numbers."""
    if isinstance(attention_module.varlen_kernel(), str):
        pytest.skip(attention_module.varlen_kernel())
    given, model = batch(), make()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = model.to(dtype=torch.bfloat16)
        for module in model.modules():
            for name, weight in list(module._parameters.items()):
                if weight is not None:
                    there = torch.empty(weight.shape, dtype=weight.dtype, device="cuda:0")
                    module._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
        out = model(
            torch.zeros(sum(LENGTHS), dtype=torch.int64, device="cuda:0"),
            lengths=given["lengths"], first_only=first_only,
        ).last_hidden_state  # fmt: skip
    assert out.device.type == "cuda" and out.dtype == torch.bfloat16
    assert out.shape == (len(LENGTHS) if first_only else sum(LENGTHS), 32)


def test_why_not_in_words() -> None:
    gpu = torch.device("cuda:0")
    assert why_no_varlen(gpu, torch.bfloat16, 64) is None or "PyTorch" in str(
        why_no_varlen(gpu, torch.bfloat16, 64)
    )
    assert why_no_varlen(torch.device("cpu"), torch.bfloat16, 64) == (
        "cpu has no flash attention of variable length"
    )
    assert "half precision" in str(why_no_varlen(gpu, torch.float32, 64))
    assert "not 26" in str(why_no_varlen(gpu, torch.float16, 26))
    assert "not 264" in str(why_no_varlen(gpu, torch.float16, 264))
    assert graphs_module.attach(small_bert()) == "cpu has no flash attention of variable length"
    assert graphs_module.attach(torch.nn.Linear(2, 2)) == "there is no BERT encoder in this model"
    with pytest.raises(UsageError, match="fp16 is for GPUs, and the device is cpu"):
        choose_precision("fp16", torch.device("cpu"))
    assert choose_precision("fp16", gpu) == (torch.float16, "asked for")


def test_windows_are_cut_only_where_they_are_needed(kernel: None) -> None:
    """The blocks of the slow twin cost masks on the device: not made beside a kernel."""
    model = small_modern()
    with torch.no_grad():
        model(**batch())
    layout = window_module.local_layout(
        inputs_module.pack_layout(batch()["lengths"]), reach=4, shape=torch.Size([91]),
        device=torch.device("cpu"),
    )  # fmt: skip
    assert isinstance(layout, window_module.LocalLayout) and "runs" not in vars(layout)
    assert len(layout.runs) == 6 and "runs" in vars(layout)


@GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    """The kernel and real graphs beside float32 without either."""
    model = small_bert(hidden_size=64, num_attention_heads=4)
    exact = copy.deepcopy(model).cuda()
    fast = model.cuda().to(dtype)
    assert graphs_module.attach(fast) is None
    for lengths in ([3], LENGTHS, [500, 12], [400] * 4, [7] * 70):
        given = {name: value.cuda() for name, value in batch(lengths).items()}
        with torch.inference_mode():
            right = exact(**given).last_hidden_state
            for _ in range(3):
                apart = fast(**given).last_hidden_state.float() - right
                assert apart.abs().max().item() < 0.1 and apart.square().mean().sqrt() < 0.02
    graphs = fast.encoder.graphs
    assert isinstance(graphs, Graphs) and set(graphs._graphs) == {(32, 8), (128, 8), (512, 8)}
    assert set(TOKENS) >= {32, 128, 512}


@GPU
def test_gradients_on_a_gpu() -> None:
    torch.manual_seed(0)
    layout = pack_layout(torch.tensor(LENGTHS).cuda())
    inputs = [torch.randn(sum(LENGTHS), 4, 16, device="cuda") for _ in range(3)]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        context, _ = attention_module.attention(*leaves, layout)
        found.append(torch.autograd.grad(context.float().square().sum(), leaves))
    for exact, half in zip(*found, strict=True):
        assert (half.float() - exact).norm() < 0.03 * exact.norm()


def test_a_classifier_with_graphs(kernel: None) -> None:
    """The whole model, heads included."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    assert isinstance(model.bert.encoder, BertEncoder)
    with torch.inference_mode():
        slow = model(**batch()).logits
        model.bert.encoder.graphs = Graphs(8, plain_call)
        fast = model(**batch()).logits
    assert (fast - slow).abs().max().item() < 2e-6


def test_every_size_is_recorded_at_warm_up_and_freed_at_the_end(
    kernel: None, tmp_path: Path
) -> None:
    assert graphs_module.sizes(small_bert(), 512) == []
    predictor = load(task_bundle(tmp_path / "model", "embed"), device="cpu", core="torch")
    graphs = predictor.model.encoder.graphs = Graphs(4, plain_call)
    every = set(itertools.product(TOKENS, TEXTS))
    assert len(graphs_module.sizes(predictor.model, 512)) == len(every)
    warm_up(predictor)  # eight texts of the 40 tokens that this model reads are fewer than 512
    assert set(graphs._graphs) == every - {(1024, 8)}
    with Engine(predictor) as engine:
        assert len(engine("a")["vector"]) == 16
    assert not graphs._graphs
    with Engine(predictor) as engine:
        engine.warm_up()
        assert set(graphs._graphs) == every - {(1024, 8)}


@GPU
def test_recording_on_a_gpu_leaves_nothing_behind() -> None:
    """Recorded under inference_mode and under no_grad; one that fails; two encoders at once."""
    given = {name: value.cuda() for name, value in batch([3]).items()}
    models = [small_bert(hidden_size=64).cuda().bfloat16() for _ in range(2)]
    assert [graphs_module.attach(model) for model in models] == [None, None]
    with torch.inference_mode():
        models[0](**given)
    with torch.no_grad():
        models[0](**{name: value.cuda() for name, value in batch([40]).items()})
    assert len(models[0].encoder.graphs._graphs) == 2  # type: ignore[union-attr]

    def syncs(run: graphs_module.Run, device: torch.device) -> graphs_module.Recorded:
        return graphs_module.record(lambda: run() * float(run().sum()), device)

    before = torch.cuda.current_stream()
    models[1].encoder.graphs = Graphs(16, syncs)
    with torch.no_grad():
        models[1](**given)
    assert models[1].encoder.graphs._failed and torch.cuda.current_stream() == before
    assert torch.nn.functional.dropout(torch.ones(64, device="cuda")).isfinite().all()

    for model in models:
        graphs_module.attach(model)
    answers: list[Tensor] = []

    def ask(model: BertModel) -> None:
        with torch.inference_mode():
            answers.append(model(**given).last_hidden_state)

    threads = [threading.Thread(target=ask, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2 and torch.equal(*answers)  # equal weights
    assert not any(model.encoder.graphs._failed for model in models)  # type: ignore[union-attr]
