"""Translation: a text in another language, by an encoder that reads and a decoder that writes.

The six functions of a task: `read`, `encode`, `head`, `loss`, `decode`, `score`. Abstractive
summaries are the same with one vocabulary and ROUGE for a score (`task="summarize"`).

    filbert train translate --data train.en --target-data train.de --base MODEL --out runs/en-de

Rothe et al. 2020 (arXiv 1907.12461). BLEU and chrF are sacreBLEU's (Post 2018), on text as people
write it, each with its signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from filbert.data.packing import Encoded, Ids, cut
from filbert.data.pairs import Pairs, read_pairs
from filbert.errors import FilbertError, UsageError, missing_extra
from filbert.model.config import BertConfig
from filbert.model.generate import MOST_BEAMS, Search, Written, generate
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.model.seq2seq_config import Seq2SeqConfig
from filbert.tasks import rouge
from filbert.text import BertTokenizer
from filbert.text.spacing import join
from filbert.text.words import HAN

TARGET_TOKENIZER = "decoder_tokenizer"  # folder in a bundle whose two sides have two vocabularies
METRICS = {"translate": ("bleu", "chrf"), "summarize": ("rouge1", "rouge2", "rougeL", "rougeLsum")}
MAIN = {"translate": "bleu", "summarize": "rougeL"}
CHINESE = 0.3  # share of Chinese characters from which on references are taken for Chinese


class WritingSettings(BaseModel):
    """What `filbert.json` keeps for this task: how texts are written. A closed schema."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    spacing: dict[str, bool] = {}
    language: str | None = None
    max_tokens: int = Field(default=128, gt=0)
    min_tokens: int = Field(default=0, ge=0)
    beams: int = Field(default=4, gt=0, le=MOST_BEAMS)
    length_penalty: float = Field(default=1.0, ge=-10, le=10)
    no_repeat_ngram: int = Field(default=0, ge=0, le=100)
    stem: bool = False  # of ROUGE, for summaries


@dataclass(frozen=True)
class Sides:
    """The encoded sources and targets of the same examples."""

    source: Encoded
    target: Encoded

    @property
    def tokens(self) -> Ids:
        """(examples,) tokens of both sides, as the model computes them."""
        return self.source.tokens + self.target.tokens - 1

    @property
    def words(self) -> Ids:
        """(examples,) words to predict, the end token among them."""
        return self.target.tokens - 1


def settings_of(values: dict[str, Any], *, source: str) -> WritingSettings:
    """Check the settings of a manifest. Raises `FilbertError` naming the wrong one."""
    try:
        return WritingSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FilbertError(f"{source}: settings, '{where}': {first['msg']}") from None


def read(path: str, target_path: str | None, options: Any) -> Pairs:
    """The pairs of a file, or of two that run side by side; `options` has the fields of the
    recipe."""
    return read_pairs(
        path,
        target_path,
        source_column=options.source_column if target_path is None else None,
        target_column=options.target_column if target_path is None else None,
        format=options.format,
        encoding=options.encoding,
        header=options.header,
        empty=options.empty,
        task=options.task,
    )


def encode(tokenizer: BertTokenizer, texts: Sequence[str], *, max_length: int) -> Encoded:
    """[CLS] text [SEP] of each, cut off at `max_length` tokens."""
    return Encoded(
        *tokenizer.encode_flat(list(texts), max_length=max_length, windows=False, stride=0)
    )


def cut_off(tokenizer: BertTokenizer, texts: Sequence[str], encoded: Encoded, limit: int) -> Ids:
    """The numbers of the texts that were longer than `limit` tokens."""
    full = np.flatnonzero(encoded.tokens == limit)
    if not len(full):
        return full
    again = tokenizer.encode_flat([texts[int(i)] for i in full], max_length=2**20, windows=False,
                                  stride=0)  # fmt: skip
    return full[np.diff(again.window_starts) > limit]


def head(
    base: str,
    *,
    decoder: str | BertConfig,
    tokenizer: BertTokenizer,
    random_encoder: bool = False,
    **changes: Any,
) -> BertForSeq2SeqLM:
    """The encoder of `base` with a decoder: `share`, a configuration to draw, or a BERT's name.

    tokenizer: of the targets. Where a BERT's name comes with another vocabulary, its layers are
    kept and its word rows follow their words; words that it lacks are drawn.
    """
    ends: dict[str, Any] = {
        "decoder_start_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    model = BertForSeq2SeqLM.build(
        base, decoder=None if decoder == "share" else decoder, **ends, **changes
    )
    if random_encoder:
        model.encoder.initialise()
    if isinstance(decoder, str) and decoder != "share":
        move_words(model, BertTokenizer.from_pretrained(decoder), tokenizer)
    return model


@torch.no_grad()
def move_words(model: BertForSeq2SeqLM, before: BertTokenizer, after: BertTokenizer) -> None:
    """Give the decoder the vocabulary of `after`: rows of words that `before` has move along."""
    old, new = before.get_vocab(), after.get_vocab()
    if old == new:
        return
    size = max(new.values()) + 1
    known = [(new[word], old[word]) for word in new if word in old]
    here, there = (torch.tensor([pair[side] for pair in known]) for side in (0, 1))
    matrix, words = model.decoder.get_input_embeddings(), model.decoder.cls.predictions
    rows = torch.nn.Embedding(size, matrix.embedding_dim, padding_idx=after.pad_token_id)
    rows.weight.normal_(std=model.config.decoder.initializer_range)
    rows.weight[here] = matrix.weight[there]
    bias = torch.zeros(size)
    bias[here] = words.bias[there]
    model.decoder.set_input_embeddings(rows)
    words.decoder = torch.nn.Linear(matrix.embedding_dim, size, bias=False)
    words.bias = torch.nn.Parameter(bias)
    shape = model.config.decoder.replace(vocab_size=size, pad_token_id=after.pad_token_id)
    model.config = model.config.replace(decoder=shape)
    model.decoder.config = shape
    model.decoder.tie_weights()


def loss(
    model: BertForSeq2SeqLM, sides: Sides, examples: Ids, *, label_smoothing: float = 0.0
) -> tuple[Tensor, int, Tensor]:
    """The summed loss of the words of these examples, how many words, how many come out first.

    The batch is packed on both sides; with an attention path other than `packed` a padded grid.
    """
    order = examples[np.argsort(-sides.source.tokens[examples], kind="stable")]
    source, target = sides.source.gather(order), sides.target.gather(order)
    ends = np.cumsum(target.lengths) - 1
    starts = np.concatenate([[0], ends[:-1] + 1])
    # the decoder reads all tokens but a text's last and predicts all but its first
    before, after = np.delete(target.input_ids, ends), np.delete(target.input_ids, starts)
    device = model.device
    ids, lengths, read_ids, words, counts = (
        torch.from_numpy(x).to(device)
        for x in (source.input_ids, source.lengths, before, after, target.lengths - 1)
    )
    if model.base_model.attention_path == "packed":
        out = model(
            input_ids=ids, lengths=lengths, decoder_input_ids=read_ids, decoder_lengths=counts,
            labels=words, label_smoothing=label_smoothing,
        )  # fmt: skip
        return out.word_loss, len(words), out.words_right
    grid, mask = _grid(ids, lengths), _grid(torch.ones_like(ids), lengths)
    labels = _grid(words, counts, fill=-100)
    out = model(
        input_ids=grid, attention_mask=mask, decoder_input_ids=_grid(read_ids, counts),
        labels=labels, label_smoothing=label_smoothing,
    )  # fmt: skip
    right = (out.logits.argmax(-1) == labels).sum()
    return out.loss * len(words), len(words), right


def _grid(tokens: Tensor, lengths: Tensor, fill: int = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        list(tokens.split(lengths.tolist())), batch_first=True, padding_value=fill
    )


def write(
    model: BertForSeq2SeqLM,
    encoded: Encoded,
    *,
    search: Search,
    batch_tokens: int = 4096,
    most_rows: int | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[Written]]:
    """What the model writes for each source, in input order; batches hold `batch_tokens` source
    tokens over the beams, and sources of like length. numbers: what the draws of sampling depend
    on beside the seed, of each source; see `draw_number`."""
    model.eval()
    order = np.argsort(-encoded.tokens, kind="stable")
    out: list[list[Written]] = [[] for _ in range(len(encoded))]
    budget = max(1, batch_tokens * 4 // (search.beams + 3))
    for examples in cut(order, encoded.tokens, batch_tokens=budget, batch_size=most_rows):
        batch = encoded.gather(examples)
        ids, lengths = (
            torch.from_numpy(x).to(model.device) for x in (batch.input_ids, batch.lengths)
        )
        drawn = examples.tolist() if numbers is None else [numbers[i] for i in examples.tolist()]
        for example, texts in zip(
            examples, generate(model, ids, lengths, search=search, numbers=drawn), strict=True
        ):
            out[example] = texts
    return out


def draw_number(text: str) -> int:
    """A number of a source that depends on its text alone, so that what is drawn for it is the same
    in whatever block, file or run it comes."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1  # it fits into an int64


def decode(written: Written, tokenizer: BertTokenizer, spacing: dict[str, bool]) -> str:
    """The text of ids as people write it: pieces joined, blanks where the language has them."""
    words: list[str] = []
    special = set(tokenizer.all_special_ids)
    ids = [number for number in written.tokens if number not in special]
    for piece in tokenizer.convert_ids_to_tokens(ids):
        if piece.startswith("##") and words and len(piece) > 2:
            words[-1] += piece[2:]
        else:
            words.append(piece)
    return join(words, spacing)


def default_search(settings: WritingSettings, config: Seq2SeqConfig, **changes: Any) -> Search:
    """How a bundle writes unless it is told otherwise."""
    values: dict[str, Any] = {
        "beams": settings.beams, "max_tokens": settings.max_tokens,
        "min_tokens": settings.min_tokens, "length_penalty": settings.length_penalty,
        "no_repeat_ngram": settings.no_repeat_ngram,
    }  # fmt: skip
    if changes.get("sample"):
        values["beams"] = 1
    for name in ("temperature", "top_k", "top_p", "seed"):
        if changes.get(name) is not None and not changes.get("sample"):
            flag = name.replace("_", "-")
            raise UsageError(
                f"{flag} is for drawing words at random; say --sample (sample=True) too, or leave "
                f"--{flag} out"
            )
    values |= {name: value for name, value in changes.items() if value is not None}
    if changes.get("max_tokens") is None:
        values["max_tokens"] = min(values["max_tokens"], config.decoder.max_position_embeddings)
    if changes.get("min_tokens") is None:
        most = Search(**{**values, "min_tokens": 0}).max_tokens  # a number, or `UsageError`
        values["min_tokens"] = min(values["min_tokens"], most)
    return Search(**values)


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether a good share of the letters of these texts are Chinese characters."""
    text = "".join(texts[:1000])
    letters = [letter for letter in text if letter.isalpha()]
    low, high = HAN[0], "\u9fff"
    chinese = sum(low <= letter <= high for letter in letters)
    return bool(letters) and chinese >= CHINESE * len(letters)


def score(
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    task: Literal["translate", "summarize"] = "translate",
    language: str | None = None,
    stem: bool = False,
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores of the texts, and the signature of each measure.

    BLEU (0 to 100) cuts Chinese into characters and other languages by the rules of mteval-v13a;
    chrF (0 to 100) counts characters. Summaries have ROUGE (0 to 1), with `stem` on stems of
    English words; see `filbert.tasks.rouge`.
    """
    if task == "summarize":
        return rouge.rouge_scores(texts, references, stem=stem), {}
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise missing_extra("sacrebleu", "tasks") from None
    firsts = [row[0] for row in references]
    cuts = language.split("-")[0].lower() if language else "zh" if is_chinese(firsts) else ""
    most = max(len(row) for row in references)
    columns: list[Any] = [
        [row[i] if i < len(row) else None for row in references] for i in range(most)
    ]
    scores, signatures = {}, {}
    for name, metric in (
        ("bleu", BLEU(tokenize="zh" if cuts == "zh" else "13a")),
        ("chrf", CHRF()),
    ):
        scores[name] = float(metric.corpus_score(list(texts), columns).score)
        signatures[name] = str(metric.get_signature())
    return scores, signatures


def check_stem(stem: bool, task: str) -> None:
    """`UsageError` for stems where there is no ROUGE to count them."""
    if stem and task != "summarize":
        raise UsageError(f"--stem: ROUGE scores summaries; {task} has {', '.join(METRICS[task])}")


def check_metric(metric: str | None, task: str) -> None:
    """`UsageError` for a score that this task does not have."""
    names = ("loss", *METRICS[task])
    if metric is not None and metric not in names:
        raise UsageError(f"--metric {metric!r}: for {task} there are {', '.join(names)}")
