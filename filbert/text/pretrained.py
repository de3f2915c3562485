"""The tokenizer's files: `vocab.txt`, `tokenizer.json`, `tokenizer_config.json`, read and written.

Every BERT release carries some of these, and the same choice (is the text lower-cased?) may stand
in two of them or in none. The order of belief, strongest first: what the caller passes,
`tokenizer_config.json`, `tokenizer.json`, the vocabulary itself. That `tokenizer.json` may ask for
padding or truncation of every text (sentence-embedding models do) is ignored: here both happen
only when a caller asks. Files are data: no class or code that they name is ever looked up.

The folder that is written opens unchanged in `transformers`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from filbert.atomic import make_folder, write_file
from filbert.errors import FilbertError, did_you_mean
from filbert.layout import plain, strict_json

logger = logging.getLogger(__name__)

SPECIAL = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REQUIRED = ("unk_token", "sep_token", "pad_token", "cls_token")
_NORMALIZER = ("do_lower_case", "tokenize_chinese_chars", "strip_accents")
# Other programs write 10**30 for a limit that they do not know.
_NO_LIMIT = 10**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about a tokenizer that its vocabulary does not say; names as in transformers."""

    do_lower_case: bool = True
    tokenize_chinese_chars: bool = True
    strip_accents: bool | None = None  # None: strip where lower-casing (as the original BERT)
    unk_token: str = "[UNK]"
    sep_token: str = "[SEP]"
    pad_token: str = "[PAD]"
    cls_token: str = "[CLS]"
    mask_token: str | None = "[MASK]"
    extra_special_tokens: tuple[str, ...] = ()
    model_max_length: int = 512
    padding_side: str = "right"
    truncation_side: str = "right"
    clean_up_tokenization_spaces: bool = False

    def __post_init__(self) -> None:
        """Hold each field to its type, whoever gave it; raises `FilbertError`."""
        for name in ("do_lower_case", "tokenize_chinese_chars", "clean_up_tokenization_spaces"):
            _expect(name, getattr(self, name), bool, "true or false")
        _expect("strip_accents", self.strip_accents, (bool, type(None)), "true, false or null")
        for name in _REQUIRED:
            _expect(name, getattr(self, name), str, "a string")
        _expect("mask_token", self.mask_token, (str, type(None)), "a string or null")
        for token in self.extra_special_tokens:
            _expect("extra_special_tokens", token, str, "a list of strings")
        for name in ("padding_side", "truncation_side"):
            if getattr(self, name) not in ("left", "right"):
                raise FilbertError(
                    f"{name}: expected 'left' or 'right', not {getattr(self, name)!r}"
                )
        if isinstance(self.model_max_length, bool) or not isinstance(self.model_max_length, int):
            raise FilbertError(f"model_max_length: expected an int, not {self.model_max_length!r}")
        if self.model_max_length < 1:
            raise FilbertError(f"model_max_length: expected 1 or more, not {self.model_max_length}")

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens without repeats: the named ones, then the extra ones."""
        named = [getattr(self, name) for name in SPECIAL]
        return list(dict.fromkeys([*filter(None, named), *self.extra_special_tokens]))


def build(
    vocab: str | PathLike[str] | Sequence[str] | Mapping[str, int],
    settings: Settings,
    *,
    added: Mapping[int, AddedToken] | None = None,
) -> Tokenizer:
    """A WordPiece tokenizer over `vocab`: a vocab.txt's path, tokens in id order, or token -> id.

    `added`: id -> token of words that were added to the vocabulary afterwards. Raises
    `FilbertError` for a vocabulary that is no vocabulary or lacks a special token.
    """
    if isinstance(vocab, str | PathLike):
        tokens = read_vocabulary(Path(vocab))
    elif isinstance(vocab, Mapping):
        tokens = dict(vocab)
    else:
        tokens = {token: index for index, token in enumerate(vocab)}
    for token, index in tokens.items():
        if not isinstance(token, str) or type(index) is not int or not 0 <= index < 2**31:
            raise FilbertError(f"vocabulary: expected a string and an id, not {token!r}: {index!r}")
    if len(set(tokens.values())) < len(tokens):
        raise FilbertError("vocabulary: two tokens have the same id; each id stands for one token")
    tokenizer = Tokenizer(WordPiece(tokens, unk_token=settings.unk_token))
    tokenizer.normalizer = _normalizer(settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    for index, added_token in sorted((added or {}).items()):
        tokenizer.add_tokens([added_token])
        if tokenizer.token_to_id(added_token.content) != index:
            raise FilbertError(
                f"the added token {added_token.content!r} should have the id {index} but would get "
                f"{tokenizer.token_to_id(added_token.content)}: the vocabulary has another size "
                "than the one it was added to"
            )
    _finish(tokenizer, settings)
    return tokenizer


def read_vocabulary(path: Path) -> dict[str, int]:
    """token -> line number from 0 of a vocab.txt; of a repeated token the last line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FilbertError(f"cannot read the vocabulary {path}: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FilbertError(
            f"{path}, line {line}: not UTF-8; a vocabulary is a UTF-8 text with one token a line"
        ) from None
    # Not str.splitlines(), which would also split at rare characters that may be tokens (U+2028).
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines == [""]:
        raise FilbertError(f"{path} is empty; a vocabulary has one token a line")
    vocab = {token: index for index, token in enumerate(lines)}
    if len(vocab) < len(lines):
        logger.warning("%s repeats %d tokens; the last line counts", path, len(lines) - len(vocab))
    return vocab


def looks_cased(vocab: Iterable[str]) -> bool:
    """Whether a vocabulary is of cased text: some whole word of letters a-z has a capital.

    Special tokens such as `[CLS]` and `<S>` are no words of letters; neither are `##` pieces.
    """
    return any(token.isascii() and token.isalpha() and not token.islower() for token in vocab)


def read_folder(folder: Path, overrides: Mapping[str, Any]) -> tuple[Tokenizer, Settings]:
    """The tokenizer of a model folder: `tokenizer.json`, or else `vocab.txt` with what lies beside.

    `overrides`: fields of `Settings` that the caller decides. Raises `FilbertError`.
    """
    names = [field.name for field in fields(Settings)]
    for name in overrides:
        if name not in names:
            raise FilbertError(
                f"the tokenizer has no option {name!r}.{did_you_mean(name, names)} "
                f"There are: {', '.join(names)}"
            )
    config = _read_json(folder / "tokenizer_config.json")
    # Older releases keep the names of special tokens in a file of their own, which then decides.
    named = (
        {} if "added_tokens_decoder" in config else _read_json(folder / "special_tokens_map.json")
    )
    given = {**_known(folder, {**config, **named}), **overrides}
    if "extra_special_tokens" in given:
        given["extra_special_tokens"] = tuple(given["extra_special_tokens"])
    path = folder / "tokenizer.json"
    if path.is_file():
        return _from_tokenizer_json(path, given, overrides)
    path = folder / "vocab.txt"
    if not path.is_file():
        raise FilbertError(
            f"{folder} has neither tokenizer.json nor vocab.txt, so there is no tokenizer to open; "
            "put the model's vocab.txt there"
        )
    vocab = read_vocabulary(path)
    if "do_lower_case" not in given:
        given["do_lower_case"] = not looks_cased(vocab)
        guess = "uncased, so text is lower-cased" if given["do_lower_case"] else "cased"
        logger.info("%s: no file says so, but the vocabulary looks %s", folder, guess)
    added = _added_tokens(folder, config, special=_special_in(given))
    known = {*vocab, *(token.content for token in added.values())}
    settings = Settings(**_without_missing_mask(given, known, overrides))
    return build(vocab, settings, added=added), settings


def write_folder(tokenizer: Tokenizer, settings: Settings, folder: Path) -> list[Path]:
    """Write the four tokenizer files, each atomically; the folder is made if it is not there.

    Returns the paths. Raises `FilbertError` where the disk does not take them.
    """
    make_folder(folder)
    config: dict[str, Any] = asdict(settings)
    # The older of this list's two names: every release of transformers reads it.
    config["additional_special_tokens"] = list(config.pop("extra_special_tokens"))
    config["tokenizer_class"] = (
        "BertTokenizer" if _is_plain(tokenizer) else "PreTrainedTokenizerFast"
    )
    special = {name: getattr(settings, name) for name in SPECIAL if getattr(settings, name)}
    vocab = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=False).items()}
    # A line's number is its token's id, so an id without a token still takes a line.
    lines = (vocab.get(index, f"[unused_line_{index}]") for index in range(max(vocab) + 1))
    content = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2, ensure_ascii=False) + "\n",
        "vocab.txt": "".join(f"{line}\n" for line in lines),
    }
    for name, text in content.items():
        write_file(folder / name, text)
    return [folder / name for name in content]


def _from_tokenizer_json(
    path: Path, given: dict[str, Any], overrides: Mapping[str, Any]
) -> tuple[Tokenizer, Settings]:
    try:
        tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise FilbertError(f"{path} is no tokenizer that can be read: {plain(error)}") from error
    if not isinstance(tokenizer.model, WordPiece):
        raise FilbertError(
            f"{path} holds a {type(tokenizer.model).__name__} tokenizer; BERT's is WordPiece"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    normalizer = tokenizer.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        given.setdefault("do_lower_case", normalizer.lowercase)
        given.setdefault("tokenize_chinese_chars", normalizer.handle_chinese_chars)
        given.setdefault("strip_accents", normalizer.strip_accents)
    elif fixed := [name for name in overrides if name in _NORMALIZER]:
        raise FilbertError(
            f"{path} prepares text in a way of its own ({type(normalizer).__name__}); "
            f"{', '.join(fixed)} cannot change it. Leave it out."
        )
    given.setdefault("unk_token", tokenizer.model.unk_token)
    settings = Settings(**_without_missing_mask(given, tokenizer.get_vocab(), overrides))
    if isinstance(normalizer, normalizers.BertNormalizer):
        tokenizer.normalizer = _normalizer(settings, clean_text=normalizer.clean_text)
    # What the file puts around texts; compared with BERT's own below.
    theirs = tokenizer.post_processor and _probe(tokenizer)
    _finish(tokenizer, settings)
    if theirs and theirs != _probe(tokenizer):
        raise FilbertError(
            f"{path} does not put BERT's special tokens around a text ([CLS] A [SEP] B [SEP]), so "
            "it belongs to another kind of model"
        )
    return tokenizer, settings


def _finish(tokenizer: Tokenizer, settings: Settings) -> None:
    """Name the special tokens and put them around texts (Devlin et al. 2019, section 3)."""
    for name in SPECIAL:
        token = getattr(settings, name)
        if token is not None and tokenizer.token_to_id(token) is None:
            way_out = " or pass mask_token=None" if name == "mask_token" else ""
            raise FilbertError(
                f"the vocabulary has no {token!r} ({name}); is this a BERT vocabulary? Add it to "
                f"the vocabulary, or tell its other name: {name} in tokenizer_config.json, or "
                f"{name}=... in Python{way_out}."
            )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in settings.special_tokens]
    )
    cls, sep = settings.cls_token, settings.sep_token
    # As pieces, not as one string, so that a token may hold a space or a colon.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
    )


def _normalizer(settings: Settings, *, clean_text: bool = True) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=clean_text,
        handle_chinese_chars=settings.tokenize_chinese_chars,
        strip_accents=settings.strip_accents,
        lowercase=settings.do_lower_case,
    )


def _is_plain(tokenizer: Tokenizer) -> bool:
    """Whether BERT's own recipe with this vocabulary makes the same tokenizer again.

    The class BertTokenizer of transformers takes only the vocabulary from tokenizer.json.
    """
    return (
        isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and tokenizer.normalizer.clean_text
        and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and tokenizer.model.continuing_subword_prefix == "##"
        and tokenizer.model.max_input_chars_per_word == 100
    )


def _probe(tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    single, pair = tokenizer.encode("a"), tokenizer.encode("a", "a")
    return [(single.ids, single.type_ids), (pair.ids, pair.type_ids)]


def _known(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Settings` that a folder's files decide; everything else in them is ignored."""
    names = (*_NORMALIZER, "padding_side", "truncation_side", "clean_up_tokenization_spaces")
    known = {name: config[name] for name in names if name in config}
    known.update({name: _content(config[name]) for name in SPECIAL if name in config})
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(extra, list | dict):
        raise FilbertError(f"{folder}: extra_special_tokens: expected a list, not {plain(extra)}")
    tokens = extra.values() if isinstance(extra, dict) else extra
    known["extra_special_tokens"] = [_content(token) for token in tokens]
    limit = config.get("model_max_length")
    if isinstance(limit, int | float) and limit >= _NO_LIMIT:
        limit = None  # how other programs write that they do not know
    sizes = _read_json(folder / "config.json") or _read_json(folder / "bert_config.json")
    places = sizes.get("max_position_embeddings")
    if limit is None:
        limit = 512 if places is None else places
    if type(limit) is type(places) is int and places > 0:  # no more than the model beside it reads
        limit = min(limit, places)
    known["model_max_length"] = limit
    return known


def _content(token: Any) -> Any:
    """The text of a token that may be written as an object with flags."""
    return token.get("content") if isinstance(token, dict) else token


def _added_tokens(
    folder: Path, config: Mapping[str, Any], *, special: set[str]
) -> dict[int, AddedToken]:
    """id -> token of the words that older releases list beside vocab.txt."""
    listed = config.get("added_tokens_decoder", {})
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        if listed:
            return {
                int(index): AddedToken(
                    token["content"], **{f: token[f] for f in flags if f in token}
                )
                for index, token in listed.items()
            }
        return {
            int(index): AddedToken(token, normalized=token not in special, special=token in special)
            for token, index in _read_json(folder / "added_tokens.json").items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FilbertError(
            f"{folder}: the list of added tokens cannot be read: {error!r}"
        ) from None


def _special_in(given: Mapping[str, Any]) -> set[str]:
    defaults = {name: getattr(Settings, name) for name in SPECIAL}
    named = {**defaults, **{name: given[name] for name in SPECIAL if name in given}}
    return {*named.values(), *given["extra_special_tokens"]}


def _without_missing_mask(
    given: dict[str, Any], vocab: Container[str], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Models that never fill blanks may come without `[MASK]`; then there is no mask token."""
    if "mask_token" not in overrides and given.get("mask_token", "[MASK]") not in vocab:
        return {**given, "mask_token": None}
    return given


def _read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FilbertError(f"cannot read {path}: {error.strerror}") from error
    content = strict_json(data, what=str(path))
    if not isinstance(content, dict):
        raise FilbertError(f"{path}: expected an object in braces, not {type(content).__name__}")
    return content


def _expect(name: str, value: Any, kind: type | tuple[type, ...], words: str) -> None:
    if not isinstance(value, kind):
        raise FilbertError(f"tokenizer option {name}: expected {words}, not {plain(repr(value))}")
