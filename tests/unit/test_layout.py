"""Files from strangers: each trick of a hostile safetensors header or index is told by its name."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from filbert.errors import FilbertError
from filbert.layout import (
    INDEX,
    ITEM_SIZES,
    SINGLE,
    check_safetensors,
    plain,
    read_index,
    refuse_other_weights,
    strict_json,
)


def _file(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def _entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = _entry("F32", [2], 0, 8)
HOSTILE: dict[str, tuple[Any, bytes, str]] = {
    "overlap": ({"a": ONE, "b": _entry("F32", [2], 4, 12)}, b"0" * 12, "'b' overlaps"),
    "same place": ({"a": ONE, "b": ONE}, b"0" * 8, "'b' overlaps"),
    "hole": ({"a": ONE, "b": _entry("F32", [1], 12, 16)}, b"0" * 16, "8 to 12 before tensor 'b'"),
    "hole first": ({"a": _entry("F32", [1], 4, 8)}, b"0" * 8, "bytes 0 to 4"),
    "rest": ({"a": ONE}, b"0" * 9, "1 bytes at its end"),
    "truncated": ({"a": ONE}, b"0" * 7, "need 8 bytes of data, the file has 7: it is truncated"),
    "wrong size": ({"a": _entry("F32", [3], 0, 8)}, b"0" * 8, "needs 12 bytes, its data_offsets"),
    "wraps at 64 bits": ({"a": _entry("F32", [2**62, 4], 0, 0)}, b"", "absurd shape"),
    "wraps with a zero": ({"a": _entry("F32", [0, 2**40, 2**40], 0, 0)}, b"", "absurd shape"),
    "dimensions": ({"a": _entry("F32", [1] * 65, 0, 4)}, b"0" * 4, "absurd shape"),
    "terabytes": ({"a": _entry("F32", [2**38], 0, 2**40)}, b"0" * 8, "truncated"),
    "negative shape": ({"a": _entry("F32", [-2], 0, 8)}, b"0" * 8, "whole numbers from 0"),
    "two negatives": ({"a": _entry("F32", [-1, -2], 0, 8)}, b"0" * 8, "whole numbers from 0"),
    "float shape": ({"a": _entry("F32", [2.0], 0, 8)}, b"0" * 8, "whole numbers from 0"),
    "true shape": ({"a": _entry("U8", [True], 0, 1)}, b"0", "whole numbers from 0"),
    "text shape": ({"a": _entry("F32", "2", 0, 8)}, b"0" * 8, "whole numbers from 0"),
    "negative offset": ({"a": _entry("F32", [2], -8, 0)}, b"", "data_offsets"),
    "backwards": ({"a": _entry("F32", [2], 8, 0)}, b"0" * 8, "data_offsets"),
    "largest offset": ({"a": _entry("U8", [8], 2**64 - 8, 2**64)}, b"0", "belong to"),
    "one offset": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, b"0" * 8, "[begin"),
    "dtype": ({"a": _entry("F33", [2], 0, 8)}, b"0" * 8, "unknown dtype 'F33'"),
    "dtype of no kind": ({"a": _entry([1], [2], 0, 8)}, b"0" * 8, "unknown dtype"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"0" * 8, "must have exactly"),
    "more": ({"a": {**ONE, "code": "x"}}, b"0" * 8, "must have exactly"),
    "no entry": ({"a": 3}, b"", "must have exactly"),
    "metadata": ({"__metadata__": {"a": 1}, "b": ONE}, b"0" * 8, "text to text"),
    "list": (b"[1]", b"", "no JSON object"),
    "no JSON": (b"{x}", b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "NaN": (b'{"a": NaN}', b"", "NaN is not JSON"),
    "two keys": (
        b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2), b"0" * 8, "key 'a' is given twice",
    ),
    "two keys inside": (
        b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', b"0" * 8,
        "'dtype' is given twice",
    ),
    "endless nesting": (b'{"a":' + b"[" * 200_000, b"", "nested without end"),
    "endless number": (b'{"a":' + b"9" * 100_000 + b"}", b"", "not valid JSON"),
    "lone surrogate": (b'{"\\ud800":1}', b"", "must have exactly"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    header, data, reason = HOSTILE[case]
    path = _file(tmp_path / SINGLE, header, data)
    start = time.perf_counter()
    with pytest.raises(FilbertError) as caught:
        check_safetensors(tmp_path / SINGLE)
    assert reason in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    str(caught.value).encode("utf-8")  # fit to be printed
    assert time.perf_counter() - start < 5


def test_sizes_that_the_file_cannot_have(tmp_path: Path) -> None:
    path = tmp_path / SINGLE
    for length, reason in (
        (10**7, "claims 10000000 bytes, the file has 2 after"),
        (10**7 + 1, "at most 10000000 are read"),
        (10**8, "its header claims 100000000 bytes; at most"),
        (2**64 - 1, "at most"),
        (0, "no JSON object"),
    ):
        _file(path, b"{}", length=length)
        with pytest.raises(FilbertError, match=reason):
            check_safetensors(tmp_path / SINGLE)
    for content in (b"", b"1234567"):
        path.write_bytes(content)
        with pytest.raises(FilbertError, match=f"it has {len(content)} bytes, too few"):
            check_safetensors(tmp_path / SINGLE)


def test_no_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(FilbertError, match="must be a file, but is a folder"):
        check_safetensors(tmp_path / SINGLE)
    (tmp_path / SINGLE).rmdir()
    if not hasattr(os, "mkfifo"):
        return
    os.mkfifo(tmp_path / SINGLE)  # opening it would wait for ever
    with pytest.raises(FilbertError, match="no ordinary file"):
        check_safetensors(tmp_path / SINGLE)


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    _file(tmp_path / SINGLE, {"\x1b[2J\nroot#" + "x" * 500: _entry("F99", [1], 0, 4)}, b"0" * 4)
    with pytest.raises(FilbertError) as caught:
        check_safetensors(tmp_path / SINGLE)
    message = str(caught.value)
    assert "\x1b" not in message and "\n" not in message and r"\x1b[2J\nroot#xxx" in message


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", "", ".safetensors",
     "model.bin", "C:x.safetensors", "x\n.safetensors", "x" * 300 + ".safetensors", 3, None],
)  # fmt: skip
def test_an_index_names_files_beside_it_only(tmp_path: Path, shard: Any) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "flag": shard}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(FilbertError, match=r"puts tensor 'flag' into .*beside the index"):
        read_index(tmp_path / INDEX)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "no 'weight_map'"),
        ('{"weight_map": {}}', "no 'weight_map'"),
        ('{"weight_map": ["x.safetensors"]}', "no 'weight_map'"),
        ("[]", "no 'weight_map'"),
        ("", "not valid JSON"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' is given twice"),
    ],
)
def test_a_damaged_index_is_told(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(FilbertError, match=reason):
        read_index(tmp_path / INDEX)


def test_a_good_index_is_read(tmp_path: Path) -> None:
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "other name.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert read_index(tmp_path / INDEX) == weight_map


def test_a_good_header_is_read(tmp_path: Path) -> None:
    entries = {
        "b": _entry("BF16", [3, 2], 8, 20),
        "a": _entry("F32", [2], 0, 8),
        "scalar": _entry("F64", [], 20, 28),
        "none": _entry("I64", [0, 7], 28, 28),
    }
    path = _file(tmp_path / SINGLE, {"__metadata__": {"format": "pt"}, **entries}, b"0" * 28)
    assert check_safetensors(path) == {
        "b": ("BF16", (3, 2)),
        "a": ("F32", (2,)),
        "scalar": ("F64", ()),
        "none": ("I64", (0, 7)),
    }
    padded = json.dumps({"a": ONE}).encode() + b"   "
    assert check_safetensors(_file(path, padded, b"0" * 8)) == {"a": ("F32", (2,))}


def test_real_headers_are_accepted(minilm: Path) -> None:
    header = check_safetensors(minilm / SINGLE)
    assert len(header) == 104 and header["pooler.dense.bias"] == ("F32", (384,))
    assert {dtype for dtype, _ in header.values()} == {"F32", "I64"} <= ITEM_SIZES.keys()


def test_strict_json_takes_what_json_is() -> None:
    assert strict_json(b'{"a": [1, 2.5, null, {"a": "\xe5\xad\x97"}]}', what="x") == {
        "a": [1, 2.5, None, {"a": "字"}]
    }


def test_plain_text_is_printable_and_short() -> None:
    assert plain("bert.encoder 字é") == "bert.encoder 字é"
    assert plain("a\x1b[0m\r\n\u202e") == r"a\x1b[0m\r\n\u202e"
    assert len(plain("x" * 10_000)) == 120


def test_other_weights_are_refused_each_with_its_way_out() -> None:
    def told(*files: str) -> str:
        return str(refuse_other_weights("some/model", files))

    for file in ("pytorch_model.bin", "model.pt", "tf_model.h5", "flax_model.msgpack"):
        assert f"only as {file}. Such a file can run any code" in told("config.json", file)
        assert "name = 'some/model'" in told(file) and "save_pretrained('converted')" in told(file)
    assert "filbert convert" in told("bert_model.ckpt.index", "vocab.txt")
    assert "holds no weights" in told("config.json") and "It has: config.json." in told(
        "config.json"
    )
