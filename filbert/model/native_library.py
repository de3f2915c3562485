"""The compiled C++ library of `filbert/native`, opened through ctypes.

`native.py` answers with it, `native_train.py` and `native_words.py` train with it.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

LIBRARY = Path(__file__).parent.parent / "native" / "libencoder.so"
ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 2}
Pointer = ctypes.c_void_p


@functools.cache
def library() -> ctypes.CDLL | str:
    """The compiled library, ready to call; or why there is none, in words."""
    if not LIBRARY.is_file():
        return "filbert was installed without its native encoder (no C++ compiler at that time)"
    try:
        lib = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return f"the native encoder does not load: {error}"
    number, real = ctypes.c_int, ctypes.c_float
    for name, result, arguments in (
        ("filbert_native_level", number, []),
        ("filbert_encoder_new", Pointer, [Pointer, real]),
        ("filbert_encoder_free", None, [Pointer]),
        ("filbert_encoder_forked", None, [Pointer]),
        ("filbert_encoder_embeddings", number, [Pointer] * 6),
        ("filbert_encoder_layer", number, [Pointer, number, Pointer, number]),
        (
            "filbert_encoder_run",
            number,
            [Pointer] * 5 + [number, Pointer, number, number, number],
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
        ("filbert_train_mask", None, [ctypes.c_uint64] + [number] * 6 + [Pointer]),
    ):
        function = getattr(lib, name, None)
        if function is None:
            return f"the native encoder is of another version (no {name}); install filbert again"
        function.restype, function.argtypes = result, arguments
    if not lib.filbert_native_level():
        return "this processor or kernel has no AMX"
    return lib
