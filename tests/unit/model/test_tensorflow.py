"""The reader of TensorFlow checkpoints against damaged and hostile files, and its checksum."""

from __future__ import annotations

import random
import re
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from filbert.errors import FilbertError
from filbert.model.crc32c import crc32c, masked
from filbert.model.tensorflow import find_checkpoint, list_tensors, read_tensorflow_checkpoint

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "tf"
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")


# --- an index written by hand, so that every field of it can lie ------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def header(shards: int = 1, endianness: int = 0, consumer: int = 0) -> bytes:
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1) + field(2, consumer))


def entry(
    shape: tuple[int, ...] = (4,), offset: int = 0, size: int = 16, dtype: int = 1, shard: int = 0
) -> bytes:
    dims = b"".join(field(2, field(1, n)) for n in shape)
    checksum = varint(6 << 3 | 5) + b"\0\0\0\0"
    return (
        field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset) + field(5, size)
    ) + checksum


def sealed(content: bytes, kind: int = 0) -> bytes:
    data = content + bytes([kind])
    return data + masked(crc32c(data)).to_bytes(4, "little")


def rows_block(rows: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in rows)
    return body + bytes(4) + (1).to_bytes(4, "little")


def table(*blocks: bytes, kind: int = 0, handles: list[tuple[int, int]] | None = None) -> bytes:
    data, places = b"", []
    for block in blocks:
        places.append((len(data), len(block)))
        data += sealed(block, kind)
    rows = [(b"%04d" % n, varint(a) + varint(b)) for n, (a, b) in enumerate(handles or places)]
    index = rows_block(rows)
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index))
    return data + sealed(index) + footer.ljust(40, b"\0") + MAGIC


def bundle(folder: Path, index: bytes, data: bytes = bytes(64)) -> Path:
    (folder / "model.ckpt.index").write_bytes(index)
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(data)
    return folder / "model.ckpt"


def with_entries(*rows: tuple[bytes, bytes]) -> bytes:
    return table(rows_block([(b"", header()), *rows]))


def test_the_hand_written_index_is_read(tmp_path: Path) -> None:
    data = np.arange(16, dtype="<f4").tobytes()
    good = entry((2, 2), 16).replace(
        b"\x35\0\0\0\0", b"\x35" + masked(crc32c(data[16:32])).to_bytes(4, "little")
    )
    prefix = bundle(tmp_path, with_entries((b"a", good)), data)
    values = read_tensorflow_checkpoint(prefix)["a"]
    assert values.tolist() == [[4.0, 5.0], [6.0, 7.0]]


HUGE = 2**62
LIES: dict[str, tuple[bytes, str]] = {
    "outside": (with_entries((b"a", entry(offset=56))), "ends at byte 72"),
    "far outside": (with_entries((b"a", entry(offset=2**63 - 1))), "cut short"),
    "overlap": (with_entries((b"a", entry()), (b"b", entry(offset=8))), "overlaps"),
    "negative size": (with_entries((b"a", entry(size=2**64 - 16))), "cannot have"),
    "negative dimension": (with_entries((b"a", entry((2**64 - 1,)))), "absurd shape"),
    "absurd shape": (with_entries((b"a", entry((HUGE, HUGE)))), "absurd shape"),
    "product wraps to 16": (with_entries((b"a", entry((2**32, 2**32 + 1)))), "absurd shape"),
    "absurd and empty": (with_entries((b"a", entry((0, HUGE), size=0))), "absurd shape"),
    "many dimensions": (with_entries((b"a", entry((1,) * 300))), "over 8 dimensions"),
    "wrong size": (with_entries((b"a", entry((5,)))), r"\(5,\) cannot have 16 bytes"),
    "unknown dtype": (
        with_entries((b"weight", entry(dtype=99))),
        "'weight' has the dtype number 99",
    ),
    "no dtype": (with_entries((b"a", b"")), "dtype"),
    "shard out of range": (with_entries((b"a", entry(shard=1))), "data file 1 of 1"),
    "slices": (with_entries((b"w", entry() + field(7, b""))), "'w' is partitioned"),
    "not utf-8": (with_entries((b"\xff\xfe", entry())), "not UTF-8"),
    "long name": (with_entries((b"n" * 2000, entry())), "longer than any real one"),
    "long row": (with_entries((b"n", bytes(70_000))), "longer than any real one"),
    "out of order": (with_entries((b"b", entry()), (b"a", entry())), "not in order"),
    "twice": (with_entries((b"a", entry()), (b"a", entry())), "not in order"),
    "number as text": (with_entries((b"a", field(1, b"1"))), "stored as text"),
    "message as number": (with_entries((b"a", field(1, 1) + field(2, 3))), "stored as a number"),
    "group": (with_entries((b"a", varint(1 << 3 | 3))), "unknown kind"),
    "long field": (
        with_entries((b"a", varint(2 << 3 | 2) + varint(99))),
        "longer than its message",
    ),
    "long number": (with_entries((b"a", b"\x08" + b"\xff" * 11)), "more than 64 bits"),
    "no header": (table(rows_block([(b"a", entry())])), "no header"),
    "no blocks": (table(), "no header"),
    "no shards": (table(rows_block([(b"", header(0))])), "speaks of 0 data files"),
    "shards": (table(rows_block([(b"", header(2**31))])), "data files"),
    "big endian": (table(rows_block([(b"", header(endianness=1))])), "big-endian"),
    "later format": (table(rows_block([(b"", header(consumer=2))])), "later format"),
    "compressed": (table(rows_block([(b"", header())]), kind=1), "compressed"),
    "block outside": (table(b"", handles=[(0, 10**9)]), "outside the file"),
    "block far outside": (table(b"", handles=[(2**64 - 1, 2**64 - 1)]), "outside the file"),
    "small block": (table(b"\0"), "outside the file"),
    "restarts": (table(b"\xff" * 8), "more restart points than bytes"),
    "broken row": (table(b"\x80" * 5 + bytes(4)), "breaks off"),
    "shared without a key": (table(b"\x05\x01\x00a" + bytes(4)), "longer than its block"),
    "empty": (b"", "does not end as a table"),
    "another file": (bytes(100), "does not end as a table"),
    "footer of a bad index": (b"\xff" * 40 + MAGIC, "more than 64 bits"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    index, message = LIES[lie]
    prefix = bundle(tmp_path, index)
    with pytest.raises(FilbertError, match=message) as error:
        list_tensors(prefix)
    assert "model.ckpt" in str(error.value)
    assert len(str(error.value)) < 2000


def test_a_block_is_used_once(tmp_path: Path) -> None:
    block = rows_block([(b"", header()), (b"a", entry())])
    prefix = bundle(tmp_path, table(block, handles=[(0, len(block))] * 1000))
    with pytest.raises(FilbertError, match="blocks overlap"):
        list_tensors(prefix)


def test_a_large_index_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    # Growing names: a few bytes a row in the file, a kilobyte a row in memory if nothing stops it.
    body = b"\0\0" + varint(len(header())) + header()
    value = field(1, 7)  # a string: skipped, but counted
    for length in range(1000):
        body += varint(length) + b"\x01" + varint(len(value)) + b"a" + value
    body += b"".join(
        varint(1000) + b"\x06" + varint(len(value)) + b"b%05d" % number + value
        for number in range(99_999)
    )
    prefix = bundle(tmp_path, table(body + bytes(4) + (1).to_bytes(4, "little")))
    started = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(FilbertError, match="more than 65536 tensors"):
        list_tensors(prefix)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6
    assert time.perf_counter() - started < 60

    with (tmp_path / "model.ckpt.index").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(FilbertError, match="larger than 4 MB"):
        list_tensors(prefix)


def reseal(data: bytes) -> bytes:
    """`data` with the checksums of its blocks made right again, where they can still be found."""
    source = FIXTURES / "classifier" / "model.ckpt-100.index"
    size = source.stat().st_size
    if len(data) != size:
        return data
    out = bytearray(data)
    for start, end in BLOCKS:
        out[end + 1 : end + 5] = masked(crc32c(bytes(out[start : end + 1]))).to_bytes(4, "little")
    return bytes(out)


def blocks_of(path: Path) -> list[tuple[int, int]]:
    """(start, end) of the blocks of a table that TensorFlow wrote, found by their checksums."""
    data = path.read_bytes()
    found, start = [], 0
    for end in range(8, len(data) - 48):
        checksum = int.from_bytes(data[end + 1 : end + 5], "little")
        if data[end] == 0 and masked(crc32c(data[start : end + 1])) == checksum:
            found.append((start, end))
            start = end + 5
    return found


BLOCKS = blocks_of(FIXTURES / "classifier" / "model.ckpt-100.index")


@pytest.mark.parametrize("mend", [bytes, reseal], ids=["as it is", "checksums mended"])
def test_random_damage_gives_a_clear_error_or_the_tensors(
    mend: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    shutil.copytree(FIXTURES / "classifier", tmp_path / "ckpt")
    index = tmp_path / "ckpt" / "model.ckpt-100.index"
    good = index.read_bytes()
    assert len(BLOCKS) == 3  # data, metaindex, index
    assert reseal(good) == good
    rng = random.Random(20181011)
    refused: dict[str, int] = {}
    tracemalloc.start()
    for trial in range(400):
        damaged = bytearray(good)
        if trial % 4 == 3 and mend is bytes:
            damaged = damaged[: rng.randrange(len(good))]
        else:
            for _ in range(rng.choice([1, 1, 2, 8])):
                damaged[rng.randrange(len(good))] = rng.choice(
                    [0, 0x7F, 0x80, 0xFF, rng.randrange(256)]
                )
        index.write_bytes(mend(bytes(damaged)))
        try:
            tensors = read_tensorflow_checkpoint(index)
            assert sum(array.nbytes for array in tensors.values()) <= 20_000
        except FilbertError as error:
            assert "model.ckpt-100" in str(error)
            reason = re.sub(r"[0-9]+|'.*?'", "", str(error).rpartition("ckpt-100")[2])[:60]
            refused[reason] = refused.get(reason, 0) + 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6
    assert sum(refused.values()) > 200
    if mend is reseal:  # the checks behind the checksum were reached, many different ones
        assert len(refused) > 12


def test_damaged_data_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "pretraining", tmp_path / "ckpt")
    path = tmp_path / "ckpt" / "bert_model.ckpt-20.data-00000-of-00001"
    good = path.read_bytes()
    place = list_tensors(tmp_path / "ckpt")["bert/pooler/dense/kernel"].offset
    path.write_bytes(good[: place + 9] + bytes([good[place + 9] ^ 1]) + good[place + 10 :])
    with pytest.raises(
        FilbertError, match=r"data-00000-of-00001.*'bert/pooler/dense/kernel'.*checksum"
    ):
        read_tensorflow_checkpoint(tmp_path / "ckpt")
    assert read_tensorflow_checkpoint(tmp_path / "ckpt", names=["global_step"])["global_step"] == 20
    path.write_bytes(good[:-1])
    with pytest.raises(FilbertError, match=r"has 268063 bytes.*cut short"):
        read_tensorflow_checkpoint(tmp_path / "ckpt")
    path.unlink()
    with pytest.raises(FilbertError, match="is missing: a checkpoint needs all its data files"):
        list_tensors(tmp_path / "ckpt")


# --- finding the checkpoint -------------------------------------------------------------------


def test_finding_a_checkpoint(tmp_path: Path) -> None:
    for name in ("model.ckpt-5", "model.ckpt-10"):
        (tmp_path / f"{name}.index").touch()
        (tmp_path / f"{name}.data-00000-of-00001").touch()
    assert find_checkpoint(tmp_path / "model.ckpt-5") == tmp_path / "model.ckpt-5"
    assert find_checkpoint(tmp_path / "model.ckpt-5.index") == tmp_path / "model.ckpt-5"
    data = tmp_path / "model.ckpt-10.data-00000-of-00001"
    assert find_checkpoint(str(data)) == tmp_path / "model.ckpt-10"
    with pytest.raises(
        FilbertError, match=r"2 TensorFlow checkpoints \(model.ckpt-10, model.ckpt-5\).*give"
    ):
        find_checkpoint(tmp_path)
    for folder in ("", "/somewhere/else/", "../../", "C:\\models\\"):
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{folder}model.ckpt-10"\n')
        assert find_checkpoint(tmp_path) == tmp_path / "model.ckpt-10"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "gone"\n')
    with pytest.raises(FilbertError, match="2 TensorFlow checkpoints"):
        find_checkpoint(tmp_path)
    with pytest.raises(FilbertError, match=r"does not exist.*Did you mean 'model.ckpt-10'"):
        find_checkpoint(tmp_path / "model.ckpt-100")
    (tmp_path / "old.ckpt").touch()
    with pytest.raises(FilbertError, match="old format V1"):
        find_checkpoint(tmp_path / "old.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FilbertError, match=r"holds no TensorFlow checkpoint: expected a file NAME.index"
    ):
        find_checkpoint(tmp_path / "empty")
    with pytest.raises(FilbertError, match="no variable 'bert/pooler'"):
        read_tensorflow_checkpoint(FIXTURES / "pretraining", names=["bert/pooler"])


# --- the checksum -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, appendix B.4
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_checksum_vectors(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert crc32c(np.frombuffer(data, np.uint8)) == expected


def test_checksum_of_any_length() -> None:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)

    def by_bytes(data: bytes) -> int:
        state = 0xFFFFFFFF
        for byte in data:
            state = table[(state ^ byte) & 0xFF] ^ state >> 8
        return state ^ 0xFFFFFFFF

    rng = np.random.default_rng(0)
    for length in (*range(1, 70), 1000, 4095, 4096, 4097, 2**20 - 1, 2**20, 2**20 + 1, 2**20 + 77):
        data = rng.bytes(length)
        assert crc32c(data) == by_bytes(data), length
