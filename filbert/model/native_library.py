"""The compiled C++ libraries of `filbert/native`, opened through ctypes.

One source is compiled twice: for AMX, and for processors without it that multiply bfloat16 and int8
on AVX-512 vectors. `library` gives the one that serves here: `native.py` answers with it,
`native_train.py` and `native_words.py` train with it, `native_write.py` writes with it.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import struct
import sys
from pathlib import Path

from filbert.errors import FilbertError

logger = logging.getLogger("filbert")
LIBRARY = Path(__file__).parent.parent / "native" / "libencoder.so"  # for AMX; and float32
VECTORS = LIBRARY.with_name("libvectors.so")
NOT_COMPILED = LIBRARY.with_name("not_compiled.txt")  # says why; hatch_build.py leaves it
ABI = 5  # raised with that of encoder.cpp whenever one of the functions below changes
UNSOUND = 4  # of a call that was given a batch that is none
TILES_SWITCH = "FILBERT_NATIVE_TILES"  # 0: the vectors, where there is AMX too
NO_UNITS = "this processor or kernel has neither AMX nor AVX-512 for bfloat16 and int8"
NO_AVX512 = "this processor or kernel has no AVX-512"
ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 2}
Pointer = ctypes.c_void_p


@functools.cache
def library() -> ctypes.CDLL | str:
    """The compiled library for bfloat16 and int8, ready to call; or why it is not, in words."""
    tiles = opened()
    if isinstance(tiles, str):
        return tiles
    if tiles.filbert_native_level() & 1 and os.environ.get(TILES_SWITCH) != "0":
        return tiles
    vectors = opened(VECTORS)
    return vectors if isinstance(vectors, str) or vectors.filbert_native_level() & 1 else NO_UNITS


def units() -> str:
    """What multiplies in `library()`."""
    return "AMX" if library() is opened() else "AVX-512-BF16 and VNNI"


@functools.cache
def library_float32() -> ctypes.CDLL | str:
    """The same for what computes in float32, on AVX-512."""
    lib = opened()
    return lib if isinstance(lib, str) or lib.filbert_native_level() & 2 else NO_AVX512


@functools.cache
def opened(path: Path | None = None) -> ctypes.CDLL | str:
    """The compiled library, whatever of it this processor can compute; or why there is none.
    path: `LIBRARY` unless given."""
    path = path or LIBRARY
    if not path.is_file():
        reason = "no C++ compiler at that time"
        if NOT_COMPILED.is_file():
            reason = NOT_COMPILED.read_text(encoding="utf-8").strip()
        elif path != LIBRARY and LIBRARY.is_file():
            reason = f"{path.name} is missing"
        return f"filbert was installed without its native encoder ({reason})"
    try:
        if (wrong := _cut(path)) is not None:
            return f"the native encoder does not load: {wrong}; install filbert again"
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the native encoder does not load: {error}"
    abi = getattr(lib, "filbert_native_abi", None)
    if abi is None or abi() != ABI:
        was = "older, or another library," if abi is None else f"version {abi()}"
        return (
            f"the compiled native encoder, {path.name}, is {was} where this filbert needs version "
            f"{ABI}; install filbert again, which compiles it"
        )
    number, real = ctypes.c_int, ctypes.c_float
    for name, result, arguments in (
        ("filbert_native_level", number, []),
        ("filbert_encoder_new", Pointer, [Pointer, real, number]),
        ("filbert_encoder_free", None, [Pointer]),
        ("filbert_encoder_rouse", number, [Pointer, number]),
        ("filbert_encoder_forked", None, [Pointer]),
        ("filbert_encoder_embeddings", number, [Pointer] * 6),
        ("filbert_encoder_layer", number, [Pointer, number, Pointer, number]),
        (
            "filbert_encoder_run",
            number,
            [Pointer] * 5 + [number, ctypes.c_int64, Pointer, Pointer] + [number] * 3,
        ),
        ("filbert_tile_rate", ctypes.c_double, [number, number]),
        ("filbert_train_new", Pointer, [Pointer, real]),
        ("filbert_train_free", None, [Pointer]),
        (
            "filbert_train_forward",
            number,
            [Pointer] * 4
            + [number, Pointer, number, ctypes.c_uint64, Pointer, Pointer]
            + [number] * 2,
        ),
        ("filbert_train_backward", number, [Pointer, number] + [Pointer] * 4 + [number] * 2),
        ("filbert_train_release", None, [Pointer, number]),
        ("filbert_words_new", Pointer, []),
        ("filbert_words_forward", number, [Pointer, Pointer, real] + [Pointer] * 7 + [number]),
        (
            "filbert_words_backward",
            number,
            [Pointer, Pointer, real] + [Pointer] * 5 + [real] + [Pointer] * 3 + [number],
        ),
        ("filbert_writer_new", Pointer, [Pointer, real]),
        ("filbert_writer_free", None, [Pointer]),
        ("filbert_writer_layer", number, [Pointer, number, Pointer]),
        ("filbert_writer_words", number, [Pointer, number, Pointer]),
        ("filbert_writer_step", number, [Pointer, Pointer, Pointer, number]),
        ("filbert_writer_attend", number, [Pointer] * 8 + [number]),
        ("filbert_writer_totals", number, [Pointer, Pointer, number, number, Pointer, number]),
        ("filbert_writer_best", number, [Pointer] * 7 + [number]),
        ("filbert_train_mask", None, [ctypes.c_uint64] + [number] * 6 + [Pointer]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def _cut(path: Path) -> str | None:
    """What is wrong with the end of a library, in words: to load one that was cut off would end the
    process. Its table of sections comes last (ELF-64, figure 3: `e_shoff`, `e_shentsize`,
    `e_shnum`)."""
    with open(path, "rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return f"{path.name} is no library for this system"
    (offset,) = struct.unpack_from("<Q", head, 0x28)
    size, count = struct.unpack_from("<HH", head, 0x3A)
    here, whole = path.stat().st_size, offset + size * count
    return f"{path.name} has {here:,} of {whole:,} bytes" if here < whole else None


class Unsound(FilbertError):
    """A packed batch that is none; the slow twin says what is wrong with it."""

    def __init__(self) -> None:
        super().__init__(
            "no packed batch: ids and types of the tables, and positive lengths that sum to the "
            "tokens, were expected"
        )


class Closed(FilbertError):
    """A native encoder whose weights were freed."""


def failure(code: int, *, memory: str, threads: int) -> Exception:
    """What to raise for the `code` of a call that failed, UNSOUND apart. memory: what to say where
    there was not enough of it; threads: how many the call was to take."""
    if code == 1:
        return FilbertError(memory)
    if code == 2:
        return FilbertError(
            f"the system gave no more threads: {threads} were asked for. Ask for fewer (--threads, "
            "torch.set_num_threads), or raise the limit (ulimit -u, or that of the container)"
        )
    return RuntimeError(f"the native library failed with code {code}")


def _after_fork() -> None:
    """In a forked child. The threads of PyTorch (OpenMP's) did not come along, and where the thread
    that forked had used them, the first large product would wait for them for ever."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        logger.warning(
            "process %d was forked from one that had loaded PyTorch, whose threads do not survive "
            "that: it computes with 1 thread. Start processes with spawn to have more",
            os.getpid(),
        )


os.register_at_fork(after_in_child=_after_fork)
