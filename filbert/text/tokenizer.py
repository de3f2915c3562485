"""`BertTokenizer`: text to the ids of a BERT and back, on the tokenizers library (Rust).

    tokenizer = BertTokenizer.from_pretrained("MODEL")       # a folder, an installed or a hub name
    tokenizer("Great film.")                                 # lists
    tokenizer(["a", "b c"], padding=True, return_tensors="pt")
    tokenizer("question", "context", truncation="only_second", max_length=384, stride=128,
              return_overflowing_tokens=True, return_offsets_mapping=True)
    tokenizer.encode_flat(texts, max_length=512, windows=True, stride=64)     # training data, fast

It is called as in `transformers` and gives the same ids, offsets and masks, but pads only when
asked, whatever `tokenizer.json` says, and a call never changes the tokenizer, so threads may share
one. Batches are spread over the processor's cores (TOKENIZERS_PARALLELISM=false turns that off).

WordPiece: Wu et al. 2016, section 4.1; BERT's use of it: Devlin et al. 2019, section 3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, overload

import tokenizers
from tokenizers import AddedToken, Tokenizer

from filbert.text.batch import read_batch
from filbert.text.decode import as_ids, decode
from filbert.text.encoding import Encoding, as_tensors
from filbert.text.known_words import KnownWords
from filbert.text.lengths import encode_batch, pad, plan_lengths, segments
from filbert.text.pretrained import SPECIAL, Settings, build, read_folder, write_folder
from filbert.text.windows import Flat, encode_flat

logger = logging.getLogger(__name__)


class BertTokenizer:
    """WordPiece tokenizer of BERT: cased, uncased or Chinese.

    `vocab`: the path of a vocab.txt, tokens in id order, or a mapping token -> id. `do_lower_case`
    lower-cases text and strips accents; `tokenize_chinese_chars` makes each Chinese character a
    word; `strip_accents` None follows `do_lower_case`. `mask_token` may be None. Special tokens
    have attributes `unk_token`, `unk_token_id` and so on.

    Raises `FilbertError` for a vocabulary without the special tokens.
    """

    def __init__(
        self,
        vocab: str | PathLike[str] | Sequence[str] | Mapping[str, int],
        *,
        do_lower_case: bool = True,
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        unk_token: str = "[UNK]",
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
        cls_token: str = "[CLS]",
        mask_token: str | None = "[MASK]",
        extra_special_tokens: Sequence[str] = (),
        model_max_length: int = 512,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        settings = Settings(
            do_lower_case=do_lower_case,
            tokenize_chinese_chars=tokenize_chinese_chars,
            strip_accents=strip_accents,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            extra_special_tokens=tuple(extra_special_tokens),
            model_max_length=model_max_length,
            padding_side=padding_side,
            truncation_side=truncation_side,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )
        self._adopt(build(vocab, settings), settings)

    @classmethod
    def from_pretrained(
        cls, name: str | PathLike[str], *, revision: str | None = None, **overrides: Any
    ) -> BertTokenizer:
        """Open the tokenizer of a folder, of an installed model's name or of a hub name.

        The folder has a tokenizer.json or a bare vocab.txt (Google's releases). Where no file says
        whether text is lower-cased, the vocabulary decides: one with capitals is cased. `overrides`
        are arguments of the constructor, such as `do_lower_case=False`. Raises `FilbertError`.
        """
        from filbert.sources import resolve  # a vocabulary list needs no hub

        self = cls.__new__(cls)
        self._adopt(*read_folder(resolve(name, revision=revision, weights=False), overrides))
        return self

    def save_pretrained(self, folder: str | PathLike[str]) -> list[Path]:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt.

        The folder is made if needed; each file is replaced in one step; returns their paths.
        """
        settings = replace(
            self.settings,
            model_max_length=self.model_max_length,
            padding_side=self.padding_side,
            truncation_side=self.truncation_side,
        )
        return write_folder(self._full, settings, Path(folder))

    def _adopt(self, full: Tokenizer, settings: Settings) -> None:
        self.settings = settings
        # Both share one vocabulary. `_full` puts special tokens around texts; `_bare` does not, so
        # that texts can be truncated before. Their state never changes between calls.
        self._full = full
        self._bare = Tokenizer(full.model)
        self._bare.normalizer = full.normalizer
        self._bare.pre_tokenizer = full.pre_tokenizer
        for token in full.get_added_tokens_decoder().values():
            _add(self._bare, [token], special=token.special)
        self._known = KnownWords()
        self._told_too_long = False
        self.do_lower_case = settings.do_lower_case
        self.model_max_length = settings.model_max_length
        self.padding_side = settings.padding_side
        self.truncation_side = settings.truncation_side
        self.unk_token, self.sep_token = settings.unk_token, settings.sep_token
        self.pad_token, self.cls_token = settings.pad_token, settings.cls_token
        self.mask_token = settings.mask_token
        self.unk_token_id, self.sep_token_id = self._id(self.unk_token), self._id(self.sep_token)
        self.pad_token_id, self.cls_token_id = self._id(self.pad_token), self._id(self.cls_token)
        self.mask_token_id = None if self.mask_token is None else self._id(self.mask_token)
        self.pad_token_type_id = 0

    def _id(self, token: str) -> int:
        index = self._full.token_to_id(token)
        assert index is not None, f"build() and read_folder() hold that {token} is there"
        return index

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool = True,
        return_attention_mask: bool = True,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> Encoding:
        """Encode a text, a pair, or a batch of either; arguments and keys as in transformers.

        `text`: a string, a list of strings, a list of pairs; with `is_split_into_words` lists of
        words in place of strings. `text_pair`: the second text or texts. `padding`: False, True or
        "longest", "max_length". `truncation`: False, True or "longest_first", "only_first",
        "only_second"; `max_length` alone means "longest_first". With `return_overflowing_tokens`
        what is cut off comes as more sequences, each repeating `stride` tokens of the one before,
        and `overflow_to_sample_mapping` names the text of each. `return_tensors`: None (lists; one
        text gives flat lists), "np" or "pt" ((sequences, tokens) int64).

        Unlike transformers, an empty `text_pair` of a single text is a pair, as it is in a batch,
        and a `max_length` without room for the special tokens is refused, not ignored.

        Raises `FilbertError` for input that is no text, naming its position, and for requests that
        cannot be met.
        """
        batch = read_batch(text, text_pair, split=is_split_into_words)
        plan = plan_lengths(
            padding, truncation, max_length, pad_to_multiple_of, limit=self.model_max_length
        )
        sequences = encode_batch(
            self._full,
            self._bare,
            batch,
            plan,
            stride=stride,
            side=self.truncation_side,
            add_special_tokens=add_special_tokens,
            split=is_split_into_words,
            overflow=return_overflowing_tokens,
        )
        samples = list(range(len(sequences)))
        if return_overflowing_tokens:
            groups = [[sequence, *sequence.overflowing] for sequence in sequences]
            samples = [index for index, group in enumerate(groups) for _ in group]
            sequences = [sequence for group in groups for sequence in group]
        pad(
            sequences,
            plan,
            side=padding_side or self.padding_side,
            pad_id=self.pad_token_id,
            pad_token=self.pad_token,
        )
        if verbose and max_length is None:
            self._tell_too_long(sequences)

        data: dict[str, list[Any]] = {"input_ids": [sequence.ids for sequence in sequences]}
        if return_token_type_ids:
            data["token_type_ids"] = [
                sequence.type_ids
                if batch.second is None
                else segments(sequence, add_special_tokens=add_special_tokens)
                for sequence in sequences
            ]
        if return_attention_mask:
            data["attention_mask"] = [sequence.attention_mask for sequence in sequences]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [sequence.special_tokens_mask for sequence in sequences]
        if return_offsets_mapping:
            data["offset_mapping"] = [sequence.offsets for sequence in sequences]
        if return_length:
            data["length"] = [len(sequence) for sequence in sequences]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = samples
        if return_tensors is not None:
            return Encoding(as_tensors(data, return_tensors), encodings=sequences)
        if batch.batched or return_overflowing_tokens:
            return Encoding(data, encodings=sequences)
        flat = {name: value if name == "length" else value[0] for name, value in data.items()}
        return Encoding(flat, encodings=sequences)

    def _tell_too_long(self, sequences: list[tokenizers.Encoding]) -> None:
        longest = max(map(len, sequences), default=0)
        if longest > self.model_max_length and not self._told_too_long:
            self._told_too_long = True
            logger.warning(
                "a text has %d tokens but the model takes %d; pass truncation=True or read it in "
                "windows (told once)",
                longest,
                self.model_max_length,
            )

    def encode_flat(
        self,
        texts: list[str],
        pairs: list[str] | None = None,
        *,
        max_length: int,
        windows: bool,
        stride: int,
    ) -> Flat:
        """Encode many texts or pairs as bare arrays, fast, without padding: training data.

        Texts longer than `max_length` (special tokens included) are cut off on the truncation side,
        as `truncation="longest_first"` does, or with `windows` read in windows that share `stride`
        tokens. Of a pair the longer text moves through the windows (the second, if equal); the
        other one is repeated in each, cut off where it has more than half of the room.

        Returns `ids` (tokens,) int32 of all windows end to end, `token_type_ids` (tokens,) int8,
        `window_starts` (windows + 1,) int64, and `example_windows` (examples + 1,) int64: example e
        has the windows example_windows[e] to example_windows[e + 1]. Memory beyond the result is
        that of one chunk of texts. Raises `FilbertError`.
        """
        return encode_flat(
            self._bare,
            texts,
            pairs,
            cls_id=self.cls_token_id,
            sep_id=self.sep_token_id,
            max_length=max_length,
            windows=windows,
            stride=stride,
            side=self.truncation_side,
            known=self._known,
        )

    def forget_words(self) -> None:
        """Empty the memory of `encode_flat`, by which words that it has met are quicker."""
        self._known = KnownWords()

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> Encoding:
        """The same as a call; what older programs name it."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Any, **options: Any) -> Encoding:
        """The same as a call with a list; what older programs name it."""
        return self(batch_text_or_text_pairs, **options)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The `input_ids` of a call with the same arguments."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(
        self, text: str, pair: str | None = None, *, add_special_tokens: bool = False
    ) -> list[str]:
        """The tokens of a text as strings; unknown words as `unk_token`."""
        return self(text, pair, add_special_tokens=add_special_tokens, verbose=False).tokens()

    def decode(
        self,
        token_ids: Any,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Text of ids (an int, a list, an array or a tensor); of a batch of ids, a list of texts.

        Ids beyond the vocabulary have no text. Raises `FilbertError` for negative ids, such as the
        -100 of ignored labels.
        """
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.settings.clean_up_tokenization_spaces
        return decode(
            self._full,
            token_ids,
            skip_special_tokens=skip_special_tokens,
            clean_up=clean_up_tokenization_spaces,
        )

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """The text of each of several sequences of ids; options as for `decode`."""
        texts = self.decode(sequences, **options)
        return [texts] if isinstance(texts, str) else texts

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text: `["un", "##known"]` is `"unknown"`."""
        decoder = self._full.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """The id of a token or of each of several; `unk_token_id` for what is no token."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._full.token_to_id(tokens)
        return self.unk_token_id if index is None else index

    @overload
    def convert_ids_to_tokens(self, ids: int, *, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(
        self, ids: Sequence[int], *, skip_special_tokens: bool = False
    ) -> list[str]: ...
    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], *, skip_special_tokens: bool = False
    ) -> str | list[str]:
        """The token of an id or of each of several; `unk_token` for ids beyond the vocabulary.

        Raises `FilbertError` for negative ids.
        """
        if isinstance(ids, int):
            return self._full.id_to_token(as_ids([ids])[0]) or self.unk_token
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [
            self._full.id_to_token(index) or self.unk_token
            for index in as_ids(ids)
            if index not in skipped
        ]

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary, without added ones (`len()` counts them too)."""
        return self._full.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._full.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """token -> id, added tokens included."""
        return self._full.get_vocab(with_added_tokens=True)

    def get_added_vocab(self) -> dict[str, int]:
        """token -> id of what is found before words are split, special tokens included."""
        added = sorted(self._full.get_added_tokens_decoder().items())
        return {token.content: index for index, token in added}

    def add_tokens(
        self, tokens: str | AddedToken | Sequence[str | AddedToken], *, special_tokens: bool = False
    ) -> int:
        """Add words that the vocabulary lacks, with the next free ids; returns how many are new.

        The model's embedding must then grow to `len(tokenizer)`. Not while other threads encode.
        """
        before = len(self)
        many = [tokens] if isinstance(tokens, str | AddedToken) else list(tokens)
        many = [token for token in many if str(token) not in self.all_special_tokens]
        _add(self._bare, many, special=special_tokens)
        _add(self._full, many, special=special_tokens)
        self._known = KnownWords()
        return len(self) - before

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """name -> token of the special tokens that have a name, such as "cls_token"."""
        return {name: getattr(self, name) for name in SPECIAL if getattr(self, name) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens without repeats."""
        return self.settings.special_tokens

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text (2) or a pair of texts (3) gets."""
        return self._full.num_special_tokens_to_add(pair)

    def __repr__(self) -> str:
        case = "uncased" if self.do_lower_case else "cased"
        return f"BertTokenizer({len(self)} tokens, {case}, up to {self.model_max_length} at once)"


# The name that transformers had for its Rust tokenizer; here there is no other.
BertTokenizerFast = BertTokenizer


def _add(tokenizer: Tokenizer, tokens: list[str | AddedToken], *, special: bool) -> None:
    add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
    add(tokens)
