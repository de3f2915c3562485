"""The native library and the process that it is in: how that ends, and its limits."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from filbert.model.native_library import library

needs_native = pytest.mark.skipif(
    isinstance(library(), str), reason=f"no native encoder here: {library()}"
)
ALONE = """
import threading, torch
from filbert.model.bert import BertConfig, BertModel
from filbert.model.native import NativeEncoder
torch.manual_seed(0)
config = BertConfig(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                    intermediate_size=128, max_position_embeddings=512)
bert = BertModel(config, add_pooling_layer=False).eval()
native = NativeEncoder(bert)
def batch(texts):
    ids = torch.arange(512 * texts) % 99
    return {"input_ids": ids, "lengths": torch.tensor([512] * texts)}
"""
ENDS = """
given, began = batch(64), threading.Event()
def work():
    while True:
        began.set()
        native(**given, threads=2)
threading.Thread(target=work, daemon=True).start()
began.wait()
threading.Event().wait(0.2)
"""


def alone(code: str, *, stack: int | None = None) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own; stack: KiB that each of its threads asks for."""
    words = [sys.executable, "-c", ALONE + code]
    if stack is not None:
        words = ["sh", "-c", f'ulimit -s {stack} && exec "$0" "$@"', *words]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=120, check=False)


@needs_native
def test_a_process_ends_while_a_thread_computes() -> None:
    for _ in range(3):
        done = alone(ENDS)
        assert done.returncode == 0, (done.returncode, done.stderr)


LIMITED = """
import resource
from filbert.errors import FilbertError
from filbert.model.native_train import NativeStack, weights_of
from filbert.model.native_words import words_forward

few, many = batch(8), batch(400)
wanted = native(**few, threads=1)
hidden = torch.randn(64, 64).bfloat16()
labels, bias = torch.zeros(64, dtype=torch.int64), torch.zeros(64).bfloat16()
layers = bert.encoder.bfloat16()
stack = NativeStack(layers)
lengths = torch.tensor([64], dtype=torch.int32)

def train(threads):
    return stack.forward(hidden, weights_of(layers), lengths, None, 0, threads=threads)[0]

def words(threads):
    return words_forward(hidden, hidden, bias, labels, 0.0, threads=threads)[0]

def told(work):
    try:
        work()
        print("done")
    except FilbertError as error:
        print(error)

def room(size):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    most = resource.RLIM_INFINITY if size is None else used + size
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

states, loss = train(1), words(1)
room(11 << 28)  # two stacks of a GiB and some more
told(lambda: native(**few, threads=8, chunk=64))
print(torch.equal(native(**few, threads=3), wanted))
room(1 << 29)
told(lambda: train(8))
told(lambda: words(8))
print(torch.equal(train(1), states), torch.equal(words(1), loss))
room(100 << 20)
told(lambda: native(**many, threads=1, chunk=10**6))
room(None)
told(lambda: native(**many, threads=1, chunk=10**6))
print(torch.equal(native(**few, threads=1), wanted))
"""


@needs_native
def test_too_many_threads_and_too_little_memory_are_told() -> None:
    hard = [resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_AS, resource.RLIMIT_STACK)]
    if any(limit != resource.RLIM_INFINITY for limit in hard):
        pytest.skip("this process is limited already")
    done = alone(LIMITED, stack=1 << 20)
    assert done.returncode == 0, (done.returncode, done.stderr)
    lines = done.stdout.splitlines()
    threads = "the system gave no more threads: 8 were asked for"
    assert [line.split(".")[0].split(";")[0] for line in lines] == [
        threads, "True", threads, threads, "True True",
        "the native encoder ran out of memory", "done", "True",
    ]  # fmt: skip
