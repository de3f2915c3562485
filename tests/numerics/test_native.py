"""The native encoder against its slow twin, `BertModel.forward` in float32.

The tolerance is that of bfloat16 (docs/architecture.md): 2e-2 relative norm. Random weights are
scaled up so that softmax and activations leave their flat parts; those of queries and keys more,
since an even attention would hide which value belongs to which key.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
from typing import Any

import pytest
import torch

from filbert.bundle import open_bundle
from filbert.errors import FilbertError
from filbert.model.bert import BertForMaskedLM, BertForSequenceClassification, BertModel
from filbert.model.config import BertConfig
from filbert.model.device import for_inference
from filbert.model.native import NativeEncoder, attach, library, why_not

needs_native = pytest.mark.skipif(
    isinstance(library(), str), reason=f"no native encoder here: {library()}"
)
TOLERANCE = 2e-2
INT8_TOLERANCE = 3e-2
SHARP = 6 * 64  # by the hidden size; a wrong order of values then moves states by 0.27
CPU = torch.device("cpu")

PLAIN = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 128, "max_position_embeddings": 512}  # fmt: skip
ODD = {**PLAIN, "vocab_size": 7, "hidden_size": 60, "num_attention_heads": 3,
       "intermediate_size": 100}  # fmt: skip
SHAPES = {
    "plain": PLAIN,
    "odd sizes": ODD,
    "tanh gelu": {**ODD, "hidden_act": "gelu_new"},
    "relu": {**PLAIN, "hidden_act": "relu"},
    "heads of 16": {**PLAIN, "num_attention_heads": 4},
    "heads of 80": {**PLAIN, "hidden_size": 160},
    "factorised": {**PLAIN, "embedding_size": 24},
}
BATCHES = [
    [1], [2], [15], [16], [17], [31], [32], [33], [5, 1, 33, 64, 7, 16, 31, 32], [300, 3, 3],
    [512], [1] * 40, [511, 1, 257],
]  # fmt: skip


def encoder(**values: Any) -> BertModel:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**values), add_pooling_layer=False).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3) if weight.dim() > 1 else weight.add_(0.1 * torch.randn_like(weight))
        for layer in model.encoder.layer:
            for part in (layer.attention.self.query, layer.attention.self.key):
                part.weight.mul_(SHARP / model.config.hidden_size)
    return model


def batch(lengths: list[int], vocab_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    return {
        "input_ids": torch.randint(0, vocab_size, (tokens,), generator=draw),
        "token_type_ids": torch.randint(0, 2, (tokens,), generator=draw),
        "lengths": torch.tensor(lengths),
    }


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_it_equals_its_slow_twin(shape: str, threads: int) -> None:
    model = encoder(**SHAPES[shape])
    native = NativeEncoder(model)
    for lengths in BATCHES:
        given = batch(lengths, model.config.vocab_size)
        with torch.no_grad():
            wanted = model(**given).last_hidden_state
        first = torch.cumsum(given["lengths"], 0) - given["lengths"]
        for chunk in (32, 256):
            options = {"threads": threads, "chunk": chunk}
            assert distance(native(**given, **options), wanted) < TOLERANCE, (lengths, chunk)
            found = native(**given, first_only=True, **options)
            assert distance(found, wanted[first]) < TOLERANCE, (lengths, chunk)


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("int8", [1, 2, 4, 8, 15])
def test_int8_is_near_its_slow_twin(shape: str, int8: int) -> None:
    model = encoder(**SHAPES[shape])
    native = NativeEncoder(model, int8)
    for lengths in BATCHES:
        given = batch(lengths, model.config.vocab_size)
        with torch.no_grad():
            wanted = model(**given).last_hidden_state
        first = torch.cumsum(given["lengths"], 0) - given["lengths"]
        for threads in (1, 2):
            assert distance(native(**given, threads=threads), wanted) < INT8_TOLERANCE, lengths
            found = native(**given, first_only=True, threads=threads)
            assert distance(found, wanted[first]) < INT8_TOLERANCE, lengths
            found = native(**given, mean=True, threads=threads)
            means = torch.segment_reduce(wanted, "mean", lengths=given["lengths"], axis=0)
            assert distance(found, means) < INT8_TOLERANCE, lengths


@needs_native
def test_int8_does_not_depend_on_threads() -> None:
    model = encoder(**PLAIN)
    values = NativeEncoder(model, 15)(**batch([9], 99))
    again = NativeEncoder(model, 15)(**batch([9], 99), threads=2)
    assert torch.equal(values, again)  # whole numbers add up in any order


@needs_native
def test_a_text_is_the_same_alone_and_in_a_batch() -> None:
    # up to rounding: an odd number of rows at the end takes sums in another order
    model = encoder(**PLAIN)
    native = NativeEncoder(model)
    lengths = [17, 5, 64, 1, 33]
    given = batch(lengths, 99)
    together = native(**given, threads=2, chunk=64)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = native(given["input_ids"][part], torch.tensor([length]),
                       given["token_type_ids"][part], threads=1)  # fmt: skip
        assert distance(alone, together[part]) < 1e-3
        start += length


@needs_native
@pytest.mark.parametrize("shift", [-1000.0, -130.0, -60.0, 0.0, 60.0, 88.0, 130.0, 1000.0])
def test_scores_far_from_zero(shift: float) -> None:
    # the same number added to all scores of a query changes no attention, however large it is: the
    # first dimension of each head gives it, a query's 1 times a key's `shift`
    model = encoder(**PLAIN)
    with torch.no_grad():
        for layer in model.encoder.layer:
            for part, value in (
                (layer.attention.self.query, 1.0),
                (layer.attention.self.key, shift * 32**0.5),
            ):
                part.weight[::32] = 0
                part.bias[::32] = value
    given = batch([5, 1, 33, 64, 70, 32, 3], 99)
    with torch.no_grad():
        wanted = model(**given).last_hidden_state
    assert wanted.isfinite().all()
    for int8 in (0, 15):
        for threads in (1, 2):
            found = NativeEncoder(model, int8)(**given, threads=threads, chunk=128)
            assert distance(found, wanted) < TOLERANCE


@needs_native
def test_real_weights_keep_their_meaning() -> None:
    model = open_bundle("all-MiniLM-L6-v2").model
    bert = next(module for module in model.modules() if isinstance(module, BertModel))
    given = batch([12, 128, 3, 40, 256], 20_000, seed=3)
    given["token_type_ids"].zero_()
    with torch.no_grad():
        wanted = bert(**given).last_hidden_state
    assert distance(NativeEncoder(bert)(**given), wanted) < TOLERANCE


@needs_native
def test_attached_to_a_model_it_serves_its_heads() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(**PLAIN, id2label={0: "a", 1: "b", 2: "c"})
    ).eval()
    given = batch([5, 9, 33], 99)
    with torch.no_grad():
        wanted = model(**given).logits
    model = for_inference(model, CPU, torch.bfloat16, head="classifier")
    with torch.no_grad():
        found = model(**given).logits
        assert type(model.bert.forward).__name__ == "_Forward"
    assert distance(found, wanted) < TOLERANCE
    words = BertForMaskedLM(BertConfig(**PLAIN)).eval()
    places = torch.tensor([2, 30, 44])
    with torch.no_grad():
        wanted = words(**given, predict_at=places).logits
    assert attach(words, torch.bfloat16) is None
    with torch.no_grad():
        assert distance(words(**given, predict_at=places).logits.float(), wanted) < TOLERANCE


@needs_native
def test_what_it_cannot_do_its_slow_twin_does() -> None:
    model = encoder(**PLAIN)
    assert attach(model, torch.bfloat16) is None
    given = batch([5, 9], 99)
    with torch.no_grad():
        states = model(**given, output_hidden_states=True).hidden_states
        padded = model(input_ids=given["input_ids"][:5][None], output_attentions=True)
    assert len(states) == 3 and padded.attentions[0].shape == (1, 2, 5, 5)
    model(**given).last_hidden_state.sum().backward()  # with a gradient
    assert model.embeddings.word_embeddings.weight.grad is not None
    with torch.no_grad():
        with pytest.raises(FilbertError, match="outside the model's vocabulary"):
            model(input_ids=torch.tensor([1, 99]), lengths=torch.tensor([2]))
        with pytest.raises(FilbertError, match="packed batch"):
            model(input_ids=torch.tensor([1, 2]), lengths=torch.tensor([3]))
        with pytest.raises(FilbertError, match="a text of 600 tokens"):
            model(**batch([600], 99))


@needs_native
def test_changed_weights_are_taken_over() -> None:
    model = encoder(**PLAIN)
    assert attach(model, torch.bfloat16) is None
    given = batch([5, 9], 99)
    with torch.no_grad():
        before = model(**given).last_hidden_state
        model.encoder.layer[0].intermediate.dense.weight.mul_(2)
        after = model(**given).last_hidden_state
        slow = BertModel.forward(model, **given).last_hidden_state
    assert distance(after.float(), before.float()) > 0.05
    assert distance(after.float(), slow.float()) < TOLERANCE


@needs_native
def test_sixteen_threads_get_the_same_answers() -> None:
    native = NativeEncoder(encoder(**PLAIN))
    batches = [batch([n + 1, 40 - n], 99, seed=n) for n in range(16)]
    wanted = [native(**given, threads=2) for given in batches]
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(20):
            if not torch.equal(native(**batches[number], threads=2), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_native
def test_a_fork_while_another_thread_computes() -> None:
    native = NativeEncoder(encoder(**PLAIN))
    given = batch([512] * 8, 99)
    wanted = native(**given, threads=2)
    ending = threading.Event()

    def work() -> None:
        while not ending.is_set():
            native(**given, threads=2)

    thread = threading.Thread(target=work)
    thread.start()
    context = multiprocessing.get_context("fork")

    def child(out: Any) -> None:
        out.send(float(native(**given, threads=2).sum()))

    try:
        for _ in range(10):
            ours, theirs = context.Pipe()
            process = context.Process(target=child, args=(theirs,))
            process.start()
            answered = ours.poll(60)
            if not answered:
                process.kill()
            assert answered, "the child hangs"
            assert ours.recv() == pytest.approx(float(wanted.sum()))
            process.join()
    finally:
        ending.set()
        thread.join()


@needs_native
def test_a_forked_child_computes_too() -> None:
    native = NativeEncoder(encoder(**PLAIN))
    given = batch([100, 100, 100], 99)
    wanted = native(**given, threads=2, chunk=64)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        theirs.send(torch.equal(native(**given, threads=2, chunk=64), wanted))

    process = context.Process(target=child)
    process.start()
    assert ours.poll(60), "the child hangs"
    assert ours.recv()
    process.join()


@needs_native
@pytest.mark.parametrize("int8", [0, 15])
def test_one_thread_has_the_bits_of_several(int8: int) -> None:
    """A text is computed by the threads that are awake, one at least."""
    sizes = {**PLAIN, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
    native = NativeEncoder(encoder(**sizes), int8)
    for tokens in (5, 16, 31, 64, 65, 70, 80, 97, 100, 130):
        given = batch([tokens], 99)
        alone = native(**given, threads=1)
        for threads in (2, 3, 4):
            assert torch.equal(native(**given, threads=threads), alone), (tokens, threads)


@needs_native
def test_closed_it_says_so() -> None:
    native = NativeEncoder(encoder(**PLAIN))
    native.close()
    native.close()
    with pytest.raises(FilbertError, match="closed"):
        native(**batch([3], 99))


@needs_native
def test_closing_waits_for_who_computes() -> None:
    native = NativeEncoder(encoder(**PLAIN))
    given, told = batch([512] * 8, 99), list[str]()

    def ask() -> None:
        try:
            while True:
                native(**given, threads=2)
        except FilbertError as error:
            told.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    native.close()
    for thread in threads:
        thread.join()
    assert told == ["this native encoder is closed"] * 4


def test_it_tells_why_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder(**PLAIN)
    assert "bfloat16, int8 or float32, not float16" in (attach(model, torch.float16) or "")
    monkeypatch.setattr("filbert.model.native.library", lambda: "no AMX here")
    assert why_not(model) == "no AMX here"
    with pytest.raises(FilbertError, match="no AMX here"):
        NativeEncoder(model)
    assert for_inference(model, CPU, torch.bfloat16).dtype == torch.bfloat16


@needs_native
def test_an_activation_that_it_lacks_is_named() -> None:
    assert "silu" in (why_not(encoder(**PLAIN, hidden_act="silu")) or "")


@needs_native
def test_a_model_that_it_cannot_compute_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "filbert"):
        for_inference(encoder(**PLAIN), CPU, torch.bfloat16)
        for_inference(encoder(**PLAIN, hidden_act="silu"), CPU, torch.bfloat16)
        asked = encoder(**PLAIN)
        asked.may_go_native = False
        for_inference(asked, CPU, torch.bfloat16)
    levels = [(record.levelname, "silu" in record.getMessage()) for record in caplog.records]
    assert levels == [("INFO", False), ("WARNING", True), ("INFO", False)]
