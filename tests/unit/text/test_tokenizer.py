"""The tokenizer alone: ids by hand, files good and bad, wrong input, windows, time and memory."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from filbert.errors import FilbertError
from filbert.text import BertTokenizer, BertTokenizerFast, Encoding
from filbert.text import windows as flat_windows
from filbert.text.lengths import longest_first
from filbert.text.pretrained import looks_cased, read_vocabulary

ROOT = Path(__file__).resolve().parents[3]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# ids:                5      6         7     8     9      10   11   12   13   14   15   16   17
WORDS = ["hello", "world", "##ly", "un", "##do", "!", "中", "文", "a", "b", "c", "d", "e"]
PAD, UNK, CLS, SEP, MASK = range(5)
LETTERS = "a b c d e"  # 13 14 15 16 17


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return BertTokenizer([*SPECIAL, *WORDS])


def write_vocab(folder: Path, tokens: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    return folder


# Ids by hand


def test_one_text(tokenizer: BertTokenizer) -> None:
    encoding = tokenizer("Hello undoly 中文!", return_offsets_mapping=True)
    assert encoding.input_ids == [CLS, 5, 8, 9, 7, 11, 12, 10, SEP]
    assert encoding["token_type_ids"] == [0] * 9
    assert encoding.attention_mask == [1] * 9
    assert encoding.offset_mapping == [
        *[(0, 0), (0, 5), (6, 8), (8, 10), (10, 12), (13, 14), (14, 15), (15, 16), (0, 0)]
    ]
    assert encoding.tokens()[1:4] == ["hello", "un", "##do"]
    assert encoding.word_ids() == [None, 0, 1, 1, 1, 2, 3, 4, None]
    assert encoding.char_to_token(9) == 3
    assert encoding.token_to_chars(3) == (8, 10)
    assert encoding.token_to_chars(3).start == 8
    assert encoding.word_to_tokens(1) == (2, 5)
    assert encoding.word_to_chars(1) == (6, 12)
    assert encoding.char_to_word(13) == 2
    assert encoding.token_to_word(4) == 1
    assert encoding.token_to_sequence(1) == 0
    assert encoding.n_sequences == 1


def test_pairs_and_batches(tokenizer: BertTokenizer) -> None:
    pair = tokenizer("hello", "world !", return_special_tokens_mask=True)
    assert pair.input_ids == [CLS, 5, SEP, 6, 10, SEP]
    assert pair.token_type_ids == [0, 0, 0, 1, 1, 1]
    assert pair.special_tokens_mask == [1, 0, 1, 0, 0, 1]
    assert pair.sequence_ids() == [None, 0, None, 1, 1, None]
    for batch in (tokenizer(["hello"], ["world !"]), tokenizer([("hello", "world !")])):
        assert batch.input_ids == [pair.input_ids]
        assert batch.token_type_ids == [pair.token_type_ids]
    assert tokenizer([]).input_ids == []
    assert tokenizer([], return_tensors="np").input_ids.shape == (0, 0)
    assert tokenizer("").input_ids == [CLS, SEP]
    assert tokenizer("\x00").input_ids == [CLS, SEP]
    assert tokenizer("hel\x00lo").input_ids == [CLS, 5, SEP]
    assert tokenizer("z" * 101).input_ids == [CLS, UNK, SEP]


def test_an_empty_pair_is_a_pair_alone_and_in_a_batch(tokenizer: BertTokenizer) -> None:
    assert tokenizer("a", "").input_ids == [CLS, 13, SEP, SEP]
    assert tokenizer(["a"], [""]).input_ids == [[CLS, 13, SEP, SEP]]
    assert tokenizer("a", None).input_ids == [CLS, 13, SEP]


def test_padding_only_when_asked(tokenizer: BertTokenizer) -> None:
    assert tokenizer(["a", LETTERS]).input_ids == [[CLS, 13, SEP], [CLS, 13, 14, 15, 16, 17, SEP]]
    padded = tokenizer(["a", "b c"], padding=True)
    assert padded.input_ids == [[CLS, 13, SEP, PAD], [CLS, 14, 15, SEP]]
    assert padded.attention_mask == [[1, 1, 1, 0], [1, 1, 1, 1]]
    left = tokenizer(["a", "b c"], padding=True, padding_side="left", return_tensors="np")
    assert left.input_ids.tolist() == [[PAD, CLS, 13, SEP], [CLS, 14, 15, SEP]]
    assert left.input_ids.dtype == np.int64
    assert tokenizer("a", padding="max_length", max_length=6).input_ids == [CLS, 13, SEP, 0, 0, 0]
    assert len(tokenizer("a", padding=True, pad_to_multiple_of=8).input_ids) == 8


def test_truncation_and_windows(tokenizer: BertTokenizer) -> None:
    assert tokenizer(LETTERS, max_length=4).input_ids == [CLS, 13, 14, SEP]
    tokenizer.truncation_side = "left"
    assert tokenizer(LETTERS, truncation=True, max_length=4).input_ids == [CLS, 16, 17, SEP]
    tokenizer.truncation_side = "right"
    encoding = tokenizer(
        ["a", LETTERS], truncation=True, max_length=5, stride=1, return_overflowing_tokens=True
    )
    assert encoding.input_ids == [[CLS, 13, SEP], [CLS, 13, 14, 15, SEP], [CLS, 15, 16, 17, SEP]]
    assert encoding.overflow_to_sample_mapping == [0, 1, 1]


def test_words_given(tokenizer: BertTokenizer) -> None:
    encoding = tokenizer(["undoly", "a b"], is_split_into_words=True)
    assert encoding.input_ids == [CLS, 8, 9, 7, 13, 14, SEP]
    assert encoding.word_ids() == [None, 0, 0, 0, 1, 1, None]
    batch = tokenizer([["a"], ["b", "c"]], is_split_into_words=True)
    assert batch.input_ids == [[CLS, 13, SEP], [CLS, 14, 15, SEP]]


def test_ids_to_text(tokenizer: BertTokenizer) -> None:
    ids = tokenizer("Undoly hello !").input_ids
    assert tokenizer.decode(ids) == "[CLS] undoly hello! [SEP]"
    assert tokenizer.decode(np.array(ids), skip_special_tokens=True) == "undoly hello!"
    assert tokenizer.batch_decode([ids, ids[:2]], skip_special_tokens=True) == [
        "undoly hello!",
        "un",
    ]
    assert tokenizer.decode(5) == "hello"
    assert tokenizer.decode([]) == ""
    assert tokenizer.convert_tokens_to_string(["un", "##do"]) == "undo"
    assert tokenizer.tokenize("undo zzz") == ["un", "##do", "[UNK]"]
    assert tokenizer.convert_tokens_to_ids(["un", "zzz"]) == [8, UNK]
    assert tokenizer.convert_ids_to_tokens([8, 9]) == ["un", "##do"]
    # an embedding may have more rows than there are tokens
    assert tokenizer.convert_ids_to_tokens(400) == "[UNK]"
    assert tokenizer.decode([5, 400]) == "hello"
    with pytest.raises(FilbertError, match=r"id -100 \(position 1\).*ignore"):
        tokenizer.decode([5, -100])


def test_names(tokenizer: BertTokenizer) -> None:
    assert BertTokenizerFast is BertTokenizer
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("[MASK]", MASK)
    assert tokenizer.all_special_ids == [UNK, SEP, PAD, CLS, MASK]
    assert tokenizer.vocab_size == len(tokenizer) == len(SPECIAL) + len(WORDS)
    assert tokenizer.num_special_tokens_to_add() == 2
    assert tokenizer.num_special_tokens_to_add(pair=True) == 3
    assert "18 tokens, uncased" in repr(tokenizer)


def test_added_tokens(tokenizer: BertTokenizer) -> None:
    assert tokenizer.add_tokens(["filbert", "two words"]) == 2
    assert tokenizer.add_tokens("filbert") == 0
    assert tokenizer.add_tokens("[MASK]") == 0
    assert (len(tokenizer), tokenizer.vocab_size) == (20, 18)
    assert tokenizer("a filbert two words").input_ids == [CLS, 13, 18, 19, SEP]
    assert tokenizer("a filbert b", max_length=4).input_ids == [CLS, 13, 18, SEP]
    flat = tokenizer.encode_flat(["a filbert"], max_length=8, windows=False, stride=0)
    assert flat.ids.tolist() == [CLS, 13, 18, SEP]
    assert "[MASK]" in tokenizer.all_special_tokens


def test_encoding_is_a_dictionary_with_attributes(tokenizer: BertTokenizer) -> None:
    encoding = tokenizer("hello")
    assert isinstance(encoding, dict) and isinstance(encoding, Encoding)
    assert {**encoding} == dict(encoding.items())
    with pytest.raises(AttributeError, match="Did you mean 'input_ids'"):
        _ = encoding.input_id
    with pytest.raises(FilbertError, match="no sequence 1; this encoding has 1"):
        encoding.tokens(1)
    again = copy.deepcopy(encoding)  # as pickling between processes does
    assert again == encoding and again.tokens() == encoding.tokens()
    with pytest.raises(FilbertError, match="return_tensors='pt'"):
        encoding.to("cpu")


def test_torch_tensors(tokenizer: BertTokenizer) -> None:
    torch = pytest.importorskip("torch")
    encoding = tokenizer(["a", "b c"], padding=True, return_tensors="pt", return_length=True)
    assert encoding.input_ids.dtype == torch.int64
    assert encoding.input_ids.tolist() == [[CLS, 13, SEP, PAD], [CLS, 14, 15, SEP]]
    assert encoding.length.tolist() == [4, 4]
    assert encoding.to("cpu") is encoding
    assert encoding.to("meta").input_ids.device.type == "meta"


def test_text_needs_no_torch() -> None:
    code = "import sys, filbert.text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_copy_is_the_same(tokenizer: BertTokenizer) -> None:
    tokenizer.add_tokens("filbert")
    other = copy.deepcopy(tokenizer)  # as pickling between processes does
    assert (
        other("undo filbert").input_ids
        == tokenizer("undo filbert").input_ids
        == [CLS, 8, 9, 18, SEP]
    )


def test_threads_share_one(tokenizer: BertTokenizer) -> None:
    wanted = {n: tokenizer(LETTERS, truncation=True, max_length=n).input_ids for n in range(3, 8)}
    failures: list[Any] = []

    def work() -> None:
        for _ in range(100):
            for length, ids in wanted.items():
                got = tokenizer(LETTERS, truncation=True, max_length=length, padding="max_length")
                if got.input_ids != ids:
                    failures.append((length, got.input_ids))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Wrong input


@pytest.mark.parametrize(
    ("text", "pair", "told"),
    [
        (None, None, "text: expected a string, not None"),
        (7, None, r"text: expected a string, not a int \('7'\)"),
        (["a", None], None, r"text\[1\]: expected a string, not None"),
        (["a", 3.5], None, r"text\[1\]: expected a string, not a float"),
        (["a", ["b"]], None, r"text\[1\].*pass is_split_into_words=True"),
        (["a", "b"], ["c", None], r"text_pair\[1\]: expected a string, not None"),
        (["a", "b"], ["c"], "text has 2 texts and text_pair 1"),
        (["a", "b"], "c", "text_pair must be a list of as many, not a str"),
        ("a", ["b"], "text_pair: expected a string, not a list"),
        ([("a", "b"), "c"], None, r"text\[1\] is no pair of texts"),
        ("ab\ud800c", None, r"text\[0\], character 2: a lone surrogate \(U\+D800\)"),
        (["a", "b", "\udfff"], None, r"text\[2\], character 0.*U\+DFFF"),
        (["a", "b"], ["c", "d\udc80"], r"text_pair\[1\], character 1"),
    ],
)
def test_input_that_is_no_text(tokenizer: BertTokenizer, text: Any, pair: Any, told: str) -> None:
    for options in ({}, {"truncation": True, "max_length": 8}):
        with pytest.raises(FilbertError, match=told):
            tokenizer(text, pair, **options)


def test_words_that_are_none(tokenizer: BertTokenizer) -> None:
    with pytest.raises(FilbertError, match=r"a list of words, not a str"):
        tokenizer("a b", is_split_into_words=True)
    with pytest.raises(FilbertError, match=r"text\[1\], word 2: expected a string, not None"):
        tokenizer([["a"], ["b", "c", None]], is_split_into_words=True)
    with pytest.raises(FilbertError, match=r"text\[1\], character 0: a lone surrogate"):
        tokenizer([["a"], ["b", "\ud83d"]], is_split_into_words=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"return_tensors": "np"}, r"sequences of 3 to 7 tokens.*padding=True"),
        ({"return_tensors": "tf"}, "expected None, 'np' or 'pt', not 'tf'"),
        ({"padding": "longst"}, "Did you mean 'longest'"),
        ({"truncation": "only_frist"}, "Did you mean 'only_first'"),
        ({"max_length": 0}, "max_length: expected a positive int, not 0"),
        ({"max_length": "8"}, "max_length: expected a positive int, not '8'"),
        ({"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of: expected a positive int"),
        ({"padding": True, "padding_side": "top"}, "padding_side: expected 'left' or 'right'"),
        ({"truncation": True, "max_length": 1}, "no room for the 2 special tokens; use at least 3"),
        ({"truncation": True, "max_length": 5, "stride": 3}, "stride=3 must be from 0 to 2"),
        ({"truncation": True, "max_length": 5, "stride": -1}, "stride=-1 must be from 0 to 2"),
        (
            {"truncation": True, "padding": True, "max_length": 12, "pad_to_multiple_of": 8},
            "max_length=12 cannot be padded to a multiple of 8; use max_length=8",
        ),
    ],
)
def test_requests_that_cannot_be_met(
    tokenizer: BertTokenizer, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(FilbertError, match=told):
        tokenizer(["a", LETTERS], **options)


def test_truncation_of_the_wrong_text(tokenizer: BertTokenizer) -> None:
    with pytest.raises(
        FilbertError, match=r"text\[1\]: truncation='only_first' cannot make 1 \+ 5"
    ):
        tokenizer(["a", "a"], ["b", LETTERS], truncation="only_first", max_length=7)
    with pytest.raises(FilbertError, match="use truncation='longest_first'"):
        tokenizer(LETTERS, truncation="only_second", max_length=4)
    with pytest.raises(FilbertError, match="stride=2 leaves no progress in pieces of 2 tokens"):
        tokenizer(
            LETTERS,
            LETTERS,
            truncation=True,
            max_length=7,
            stride=2,
            return_overflowing_tokens=True,
        )
    long = "a b c d e " * 200
    with pytest.raises(FilbertError, match="use truncation='only_first' or 'only_second'"):
        tokenizer(long, long, truncation=True, max_length=9, return_overflowing_tokens=True)
    assert len(tokenizer(long, long, truncation=True, max_length=9).input_ids) == 9


def test_too_long_is_told_once(tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer.model_max_length = 6
    tokenizer(LETTERS, verbose=False)
    tokenizer(LETTERS, truncation=True)
    assert caplog.messages == []
    for _ in range(2):
        tokenizer(LETTERS)
    assert caplog.messages == [
        "a text has 7 tokens but the model takes 6; pass truncation=True or read it in windows "
        "(told once)"
    ]
    caplog.clear()
    assert len(tokenizer(LETTERS, padding=True, max_length=3).input_ids) == 7
    assert "max_length=3 has no effect" in caplog.text


# Files


def test_baked_in_padding_and_truncation_are_ignored(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    baked = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    baked.enable_padding(length=128)
    baked.enable_truncation(max_length=4)
    baked.save(str(tmp_path / "tokenizer.json"))
    opened = BertTokenizer.from_pretrained(tmp_path)
    assert opened(LETTERS).input_ids == [CLS, 13, 14, 15, 16, 17, SEP]
    opened.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer.json").read_text("utf-8"))
    assert saved["padding"] is None and saved["truncation"] is None


def test_saved_files(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    tokenizer.model_max_length = 128
    paths = tokenizer.save_pretrained(tmp_path / "new" / "folder")
    names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(names)
    assert paths[3].read_text("utf-8").split("\n")[:7] == [*SPECIAL, "hello", "world"]
    config = json.loads(paths[1].read_text("utf-8"))
    assert config["tokenizer_class"] == "BertTokenizer"
    assert config["model_max_length"] == 128
    assert config["do_lower_case"] is True
    opened = BertTokenizer.from_pretrained(paths[0].parent)
    assert opened.model_max_length == 128
    assert opened.get_vocab() == tokenizer.get_vocab()


def test_no_more_tokens_than_the_model_beside_has_places_for(tmp_path: Path) -> None:
    folder = write_vocab(tmp_path / "short", [*SPECIAL, *WORDS])
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert BertTokenizer.from_pretrained(folder).model_max_length == 512
    (folder / "config.json").write_text('{"max_position_embeddings": 6}')
    opened = BertTokenizer.from_pretrained(folder)
    assert opened.model_max_length == 6
    assert len(opened("hello " * 20, truncation=True)["input_ids"]) == 6
    assert BertTokenizer.from_pretrained(folder, model_max_length=9).model_max_length == 9
    (folder / "config.json").write_text('{"max_position_embeddings": 1000}')
    assert BertTokenizer.from_pretrained(folder).model_max_length == 512


def test_names_that_older_tutorials_have(tokenizer: BertTokenizer) -> None:
    options: dict[str, Any] = {"padding": "max_length", "max_length": 8, "truncation": True}
    assert tokenizer.encode_plus("hello", "world", **options) == tokenizer(
        "hello", "world", **options
    )
    many = ["hello", "world hello"]
    assert tokenizer.batch_encode_plus(many, **options) == tokenizer(many, **options)


def test_saving_onto_a_file(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(FilbertError, match="could not write"):
        tokenizer.save_pretrained(tmp_path / "taken")


def test_google_folder_and_the_guess_of_its_case(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    uncased = write_vocab(tmp_path / "uncased", [*SPECIAL, "<S>", *WORDS, "##A"])
    (uncased / "bert_config.json").write_text('{"max_position_embeddings": 64}')
    opened = BertTokenizer.from_pretrained(uncased)
    assert opened.do_lower_case and opened.model_max_length == 64
    assert opened("HELLO").input_ids == [CLS, 6, SEP]
    assert "looks uncased" in caplog.text
    cased = write_vocab(tmp_path / "cased", [*SPECIAL, *WORDS, "Hello"])
    opened = BertTokenizer.from_pretrained(cased)
    assert not opened.do_lower_case and opened.model_max_length == 512
    assert opened("Hello hello").input_ids == [CLS, 18, 5, SEP]
    assert "looks cased" in caplog.text
    assert BertTokenizer.from_pretrained(cased, do_lower_case=True)("Hello").input_ids[1] == 5
    (cased / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert BertTokenizer.from_pretrained(cased)("Hello").input_ids[1] == 5


def test_looks_cased() -> None:
    assert looks_cased(["a", "Hello"])
    assert looks_cased(["I"])
    assert not looks_cased(["a", "[CLS]", "[unused1]", "<S>", "##A", "Ä", "中", "1"])


def test_tokenizer_json_says_cased_where_the_config_is_silent(tmp_path: Path) -> None:
    BertTokenizer([*SPECIAL, "Hello", "hello"], do_lower_case=False).save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    assert BertTokenizer.from_pretrained(tmp_path)("Hello").input_ids == [CLS, 5, SEP]
    config.write_text("{}")
    assert BertTokenizer.from_pretrained(tmp_path)("Hello").input_ids == [CLS, 5, SEP]
    config.write_text('{"do_lower_case": true, "auto_map": {"AutoTokenizer": "evil.Code"}}')
    assert BertTokenizer.from_pretrained(tmp_path)("Hello").input_ids == [CLS, 6, SEP]


def test_lines_of_a_vocabulary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("\ufeff[PAD]\r\na\u2028b\r\n\x85\r\na\r\n".encode())
    assert read_vocabulary(path) == {"[PAD]": 0, "a\u2028b": 1, "\x85": 2, "a": 3}
    path.write_text("a\nb\na\n")
    assert read_vocabulary(path) == {"a": 2, "b": 1}
    assert "repeats 1 tokens" in caplog.text
    path.write_bytes(b"[PAD]\n[UNK]\ncaf\xe9\n")
    with pytest.raises(FilbertError, match=r"vocab.txt, line 3: not UTF-8"):
        read_vocabulary(path)
    with pytest.raises(FilbertError, match="cannot read the vocabulary"):
        BertTokenizer(tmp_path / "missing.txt")


def test_ids_with_gaps_survive_saving(tmp_path: Path) -> None:
    vocab = {token: index for index, token in enumerate(SPECIAL)} | {"hello": 9}
    BertTokenizer(vocab).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert BertTokenizer.from_pretrained(tmp_path)("hello").input_ids == [CLS, 9, SEP]


def test_a_model_that_never_fills_blanks(tmp_path: Path) -> None:
    folder = write_vocab(tmp_path / "model", [*SPECIAL[:4], *WORDS])
    opened = BertTokenizer.from_pretrained(folder)
    assert opened.mask_token is None and opened.mask_token_id is None
    assert opened.all_special_tokens == ["[UNK]", "[SEP]", "[PAD]", "[CLS]"]
    opened.save_pretrained(tmp_path / "saved")
    assert BertTokenizer.from_pretrained(tmp_path / "saved").mask_token is None
    with pytest.raises(
        FilbertError, match=r"no '\[MASK\]' \(mask_token\).*or pass mask_token=None"
    ):
        BertTokenizer([*SPECIAL[:4], *WORDS])


@pytest.mark.parametrize(
    ("vocab", "told"),
    [
        (["hello", "world"], r"no '\[UNK\]' \(unk_token\); is this a BERT vocabulary"),
        ({"a": 0, "b": 0}, "two tokens have the same id"),
        ({"a": -1}, "expected a string and an id, not 'a': -1"),
        ([*SPECIAL, None], "expected a string and an id, not None: 5"),
    ],
)
def test_vocabularies_that_are_none(vocab: Any, told: str) -> None:
    with pytest.raises(FilbertError, match=told):
        BertTokenizer(vocab)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer_config.json", b"{", "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", b"[1]", "expected an object in braces, not list"),
        ("tokenizer_config.json", b"[" * 100_000, "nested without end"),
        ("tokenizer_config.json", b'{"do_lower_case": "yes"}', "do_lower_case: expected true or"),
        ("tokenizer_config.json", b'{"cls_token": 3}', "cls_token: expected a string, not 3"),
        ("tokenizer_config.json", b'{"cls_token": "<s>"}', r"no '<s>' \(cls_token\)"),
        ("tokenizer_config.json", b'{"padding_side": "up"}', "padding_side: expected 'left' or"),
        (
            "tokenizer_config.json",
            b'{"model_max_length": "x"}',
            "model_max_length: expected an int",
        ),
        ("tokenizer_config.json", b'{"model_max_length": -5}', "expected 1 or more, not -5"),
        ("tokenizer_config.json", b'{"extra_special_tokens": 1}', "expected a list, not 1"),
        ("tokenizer_config.json", b'{"extra_special_tokens": [1]}', "a list of strings, not 1"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "added tokens cannot be"),
        ("added_tokens.json", b'{"new": 99}', "'new' should have the id 99 but would get 18"),
        ("special_tokens_map.json", b"\xff", "special_tokens_map.json is damaged"),
        ("tokenizer.json", b"{}", "tokenizer.json is no tokenizer that can be read"),
        ("tokenizer.json", b"\xff", "tokenizer.json is no tokenizer that can be read"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    folder = write_vocab(tmp_path / "model", [*SPECIAL, *WORDS])
    (folder / name).write_bytes(content)
    with pytest.raises(FilbertError, match=told):
        BertTokenizer.from_pretrained(folder)


def test_folders_of_other_tokenizers(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    with pytest.raises(FilbertError, match=r"neither tokenizer.json nor vocab.txt"):
        BertTokenizer.from_pretrained(tmp_path)
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FilbertError, match=r"holds a BPE tokenizer; BERT's is WordPiece"):
        BertTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace('"type_id": 1', '"type_id": 0'), "utf-8")
    with pytest.raises(FilbertError, match="does not put BERT's special tokens around"):
        BertTokenizer.from_pretrained(tmp_path)
    with pytest.raises(
        FilbertError, match=r"no option 'do_lowercase'. Did you mean 'do_lower_case'"
    ):
        BertTokenizer.from_pretrained(tmp_path, do_lowercase=False)


def test_a_normalizer_of_its_own_is_kept(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    tokenizer.save_pretrained(tmp_path)
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    own.normalizer = normalizers.Replace("zebra", "hello")
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own.save(str(tmp_path / "tokenizer.json"))
    opened = BertTokenizer.from_pretrained(tmp_path)
    assert opened("zebra world!").input_ids == [CLS, 5, UNK, SEP]
    with pytest.raises(FilbertError, match="do_lower_case cannot change it"):
        BertTokenizer.from_pretrained(tmp_path, do_lower_case=False)
    config = json.loads(opened.save_pretrained(tmp_path / "again")[1].read_text("utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


# Many texts at once


def slow_windows(
    ids: list[list[int]], room: int, stride: int, second: list[list[int]] | None = None
) -> list[list[list[int]]]:
    """The windows of each example, one token list after the other, as the docstring says."""
    examples = []
    for index, first in enumerate(ids):
        if second is None:
            parts = [first[0:room]]
            while sum(map(len, parts)) - stride * (len(parts) - 1) < len(first):
                start = len(parts) * (room - stride)
                parts.append(first[start : start + room])
            examples.append([[CLS, *part, SEP] for part in parts])
            continue
        other = second[index]
        swap = len(other) >= len(first)
        long, short = (other, first) if swap else (first, other)
        short = short[: room // 2]
        slot = room - len(short)
        windows, start = [], 0
        while True:
            part = long[start : start + slot]
            a, b = (short, part) if swap else (part, short)
            windows.append([CLS, *a, SEP, *b, SEP])
            if start + slot >= len(long):
                break
            start += slot - stride
        examples.append(windows)
    return examples


@pytest.mark.parametrize("chunk", [1000, 3])
@pytest.mark.parametrize("paired", [False, True])
def test_flat_windows(
    tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch, paired: bool, chunk: int
) -> None:
    monkeypatch.setattr(flat_windows, "_CHUNK_TEXTS", chunk)
    chance = np.random.default_rng(0)
    ids = [chance.integers(13, 18, chance.integers(0, 40)).tolist() for _ in range(60)]
    texts = [" ".join(tokenizer.convert_ids_to_tokens(row)) for row in ids]
    others, pairs = (ids[7:] + ids[:7], texts[7:] + texts[:7]) if paired else (None, None)
    for max_length, stride in ((12, 0), (13, 3), (16, 5), (200, 20)):
        flat = tokenizer.encode_flat(
            texts, pairs, max_length=max_length, windows=True, stride=stride
        )
        examples = slow_windows(ids, max_length - (3 if paired else 2), stride, others)
        windows = [window for example in examples for window in example]
        assert flat.ids.tolist() == [token for window in windows for token in window]
        assert np.diff(flat.window_starts).tolist() == [len(window) for window in windows]
        assert np.diff(flat.example_windows).tolist() == [len(example) for example in examples]
        assert np.diff(flat.window_starts).max() <= max_length
        types = [
            int(paired and place > window.index(SEP))
            for window in windows
            for place in range(len(window))
        ]
        assert flat.token_type_ids.tolist() == types
        assert [array.dtype for array in flat] == [np.int32, np.int8, np.int64, np.int64]


def test_flat_of_nothing(tokenizer: BertTokenizer) -> None:
    flat = tokenizer.encode_flat([], max_length=8, windows=True, stride=2)
    assert [array.tolist() for array in flat] == [[], [], [0], [0]]
    flat = tokenizer.encode_flat(["", "a"], ["", ""], max_length=8, windows=True, stride=2)
    assert flat.ids.tolist() == [CLS, SEP, SEP, CLS, 13, SEP, SEP]


def test_a_very_long_text_goes_piece_by_piece(
    tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "hello undoly!\n中文 world\t" * 40 + "x" * 120 + " é a\u0301 \u0301 b" * 10
    tokenizer.add_tokens("filbert")
    options: dict[str, Any] = {"max_length": 16, "windows": True, "stride": 4}
    whole = tokenizer.encode_flat(["a", text, "b"], **options)
    for size in (1, 7, 50):
        monkeypatch.setattr(flat_windows, "_CHUNK_CHARACTERS", size)
        pieces = list(flat_windows._pieces(tokenizer._bare, text))
        assert len(pieces) > 3 and "".join(pieces) == text
        for one, other in zip(
            whole, tokenizer.encode_flat(["a", text, "b"], **options), strict=True
        ):
            assert one.tolist() == other.tolist()
    tokenizer.add_tokens("world hello")  # reaches over a blank, so a text must stay whole
    assert list(flat_windows._pieces(tokenizer._bare, text)) == [text]


@pytest.mark.parametrize(
    ("texts", "pairs", "options", "told"),
    [
        ("a", None, {}, "texts: expected a list of texts, not a str"),
        (["a", None], None, {}, r"texts\[1\]: expected a string, not None"),
        (["a"], [2], {}, r"pairs\[0\]: expected a string, not a int"),
        (["a", "b"], ["c"], {}, "2 texts and 1 pairs"),
        (["a"] * 5 + ["b\ud801"], None, {}, r"texts\[5\], character 1: a lone surrogate"),
        (["a"] * 5, ["b"] * 4 + ["\udc00"], {}, r"pairs\[4\], character 0"),
        (["a"], None, {"max_length": 2}, "max_length=2 leaves no room"),
        (["a"], ["b"], {"max_length": 3}, "max_length=3 leaves no room"),
        (["a"], None, {"stride": 6}, "hold 6 tokens.*from 0 to 5"),
        (["a"], ["b"], {"stride": 3}, "hold 3 tokens.*from 0 to 2"),
        (["a"], None, {"stride": -1}, "from 0 to 5"),
    ],
)
def test_flat_of_wrong_input(
    tokenizer: BertTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    texts: Any,
    pairs: Any,
    options: dict[str, int],
    told: str,
) -> None:
    monkeypatch.setattr(flat_windows, "_CHUNK_TEXTS", 2)
    with pytest.raises(FilbertError, match=told):
        tokenizer.encode_flat(
            texts, pairs, **{"max_length": 8, "windows": True, "stride": 1, **options}
        )


def test_longest_first_gives_one_token_after_the_other() -> None:
    for first in range(12):
        for second in range(12):
            for room in range(14):
                kept = [first, second]
                while sum(kept) > room:
                    # from the longer; of two of one length the first gives, unless it was longer
                    longer = (
                        0 if kept[0] > kept[1] or (kept[0] == kept[1] and first <= second) else 1
                    )
                    kept[longer] -= 1
                assert longest_first(first, second, room) == tuple(kept)


# Time on hostile input


def seconds(call: Callable[[], object]) -> float:
    """Processor time, the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize(
    "unit",
    [
        "hello undoly zebra! ",
        "z",
        "中",
        "!",
        "é",
        "\u0301",
        "a\u0301\u0323",
        "[CLS]",
        "[CL",
        " ",
        "😀",
    ],
)
def test_time_grows_with_the_text(tokenizer: BertTokenizer, unit: str) -> None:
    small, large = unit * (50_000 // len(unit)), unit * (200_000 // len(unit))
    options: dict[str, Any] = {"max_length": 64, "stride": 16}

    def flat(text: str) -> object:
        return tokenizer.encode_flat([text], windows=True, **options)

    def call(text: str) -> object:
        return tokenizer(text, truncation=True, return_overflowing_tokens=True, **options)

    for work in (flat, call):
        assert seconds(lambda: work(large)) < 8 * seconds(lambda: work(small)) + 0.02  # noqa: B023


def test_time_grows_with_a_pair_of_long_texts(tokenizer: BertTokenizer) -> None:
    # The library would combine every piece of one text with every piece of the other.
    def call(count: int) -> object:
        text = "hello undoly! " * count
        return tokenizer(text, text, truncation=True, max_length=64)

    assert seconds(lambda: call(12_000)) < 8 * seconds(lambda: call(3_000)) + 0.02


# Ids that cannot be


@pytest.mark.parametrize("wrong", [None, "ab", b"ab", 1.5, ["ab"], [[5], None], {5: 6}, [5, "x"]])
def test_decode_tells_what_is_no_id(tokenizer: BertTokenizer, wrong: Any) -> None:
    with pytest.raises(FilbertError, match="expected ids"):
        tokenizer.decode(wrong)
    assert tokenizer.decode((5, 6)) == "hello world"


def test_ids_beyond_32_bits_are_told(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["model"]["vocab"]["world"] = 2**31 + 5
    path.write_text(json.dumps(content), "utf-8")
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    bare = Tokenizer.from_file(str(path))
    settings: Any = {"max_length": 8, "windows": False, "stride": 0, "side": "right"}
    with pytest.raises(FilbertError, match="gives the id 2147483653"):
        flat_windows.encode_flat(bare, ["hello world"], None, cls_id=CLS, sep_id=SEP, **settings)
    with pytest.raises(FilbertError, match="gives the id 4294967295"):
        flat_windows.encode_flat(bare, ["hello"], None, cls_id=2**32 - 1, sep_id=SEP, **settings)
