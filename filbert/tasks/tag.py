"""Tagging: a label for each word, as entities (persons, places) or one by one (parts of speech).

The six functions of a task, used alike in training, evaluation, prediction and serving: `read`,
`encode`, `head`, `loss`, `decode`, `score`. Which tokens carry labels, and how texts longer than
the model are read, is in `filbert/data/tag_layout.py`. Entities are decoded to the best sequence
that BIO allows (`filbert/model/crf.py`), with or without learned transitions.

    filbert train tag --data train.conll --dev dev.conll --base MODEL --out runs/ner

Devlin et al. 2019, section 5.3 (token-level tasks).
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from filbert.data.packing import Batch, Ids, plan_once
from filbert.data.tag_layout import Laid, lay_out, tags_of_spans
from filbert.data.tag_schemes import OUTSIDE, Span, spans_of, split_tag, to_bio
from filbert.data.tagged import Tagged, read_tagged
from filbert.errors import FilbertError, did_you_mean
from filbert.model.bert import BertForTokenClassification
from filbert.model.crf import (
    BertCrfForTokenClassification,
    all_marginals,
    allowed_moves,
    best_paths,
    grids,
)
from filbert.model.inputs import as_grid
from filbert.model.modern_config import ModernBertConfig, read_any_config
from filbert.sources import resolve
from filbert.tasks.calibrate import probabilities
from filbert.tasks.tag_scores import believed, entity_scores, label_scores
from filbert.text.parts import is_han, parts_of_texts, parts_of_words

if TYPE_CHECKING:
    from filbert.bundle import Manifest
    from filbert.text import BertTokenizer

Floats = NDArray[np.float32]
SINGLE = "single_label_classification"


class TagSettings(BaseModel):
    """What a bundle's `settings` hold for this task. scheme: `bio` (entities, trained here),
    `plain` (labels of words), `any` (a model from elsewhere: entities as its labels spell them)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    scheme: Literal["bio", "plain", "any"] = "bio"
    slots: Literal["parts", "first", "all"] = "parts"
    confidence: tuple[float, float] = Field(default=(1.0, 0.0))


def settings_of(manifest: Manifest) -> TagSettings:
    """The bundle's settings; for a model from elsewhere, what its labels say.

    Raises `FilbertError` for settings that are not of this task.
    """
    if not manifest.settings:
        letters = [split_tag(label)[0] for label in manifest.labels]
        entities = any(letter not in ("", OUTSIDE) for letter in letters)
        return TagSettings(scheme="any" if entities else "plain")
    try:
        return TagSettings.model_validate(manifest.settings)
    except ValueError as error:
        raise FilbertError(f"the bundle's settings are not those of a tagger: {error}") from None


def read(path: str, options: Any) -> Tagged:
    """Tagged sentences of a file; `options` carries the format, column and encoding fields."""
    return read_tagged(
        path,
        format=options.format,
        word_column=options.word_column,
        tag_column=options.tag_column,
        encoding=options.encoding,
    )


def encode(
    tokenizer: BertTokenizer, *, texts: Sequence[str] | None = None,
    words: Sequence[Sequence[str]] | None = None, max_length: int, stride: int, slots: str,
) -> Laid:  # fmt: skip
    """Windows and slots of raw texts, or of sentences whose words are given."""
    if words is not None:
        pieces = parts_of_words(tokenizer, words)
    else:
        pieces = parts_of_texts(tokenizer, list(texts or ()))
    return lay_out(pieces, tokenizer, max_length=max_length, stride=stride, slots=slots)


def encode_part(tokenizer: BertTokenizer, part: Tagged, **reading: Any) -> Laid:
    """`encode` for the examples of a file."""
    given = {"words": part.words} if part.split else {"texts": part.texts}
    return encode(tokenizer, **given, **reading)


def gold_tags(part: Tagged, laid: Laid) -> tuple[list[list[str]], list[str]]:
    """The tags of each example's items, and what had to be done for that, in words."""
    if part.split:
        return part.tags, []
    tags, widened, lost = tags_of_spans(laid, part.spans)
    notes = []
    if widened:
        notes.append(
            f"{part.source}: {widened:,} span(s) begin or end inside a word and are learned and "
            "scored as the whole word"
        )
    if lost:
        notes.append(f"{part.source}: {lost:,} span(s) hold no word of their own and are left out")
    return tags, notes


def check_labels(part: Tagged, names: Sequence[str], *, plain: bool) -> None:
    """Raise `FilbertError` for labels of `part` that the model does not have, naming an example,
    and for entity tags where it has plain labels, or the other way round."""
    if part.plain != plain and part.labels():
        kinds = ("parts of entities (B-, I-)", "labels of words")
        raise FilbertError(
            f"{part.source} holds {kinds[part.plain]}, but the model learns {kinds[plain]}; "
            "choose the other column with --tag-column, or the file that belongs to it"
        )
    unknown = sorted(part.labels() - set(names))
    if not unknown:
        return
    first = unknown[0]
    where = next(part.id(i) for i in range(len(part)) if first in part.select([i]).labels())
    raise FilbertError(
        f"{where}: {'the label' if plain else 'the type'} {first!r} is unknown to the model "
        f"({len(unknown)} such), which has: {', '.join(sorted(names)[:20])}."
        f"{did_you_mean(first, names)} Rename it, or leave these sentences out"
    )


def head(
    base: str, *, labels: Sequence[str], crf: bool = False, revision: str | None = None,
    **changes: Any,
) -> BertForTokenClassification:  # fmt: skip
    """The pre-trained encoder of `base` with a new head for these labels, from torch's seed."""
    folder = resolve(base, revision=revision)
    if isinstance(read_any_config(folder), ModernBertConfig):
        raise FilbertError(f"{base} is a ModernBERT; tagging needs a BERT as its base")
    kind = BertCrfForTokenClassification if crf else BertForTokenClassification
    return kind.from_pretrained(
        folder, new_head=True, id2label=dict(enumerate(labels)), problem_type=None, **changes
    )


def logits_of(model: BertForTokenClassification, batch: Batch, at: Ids) -> Tensor:
    """(slots, labels) float32 at the places `at` of the packed batch."""
    device = model.device
    ids, types, places = (
        torch.from_numpy(np.ascontiguousarray(x)).to(device)
        for x in (batch.input_ids, batch.token_type_ids, at)
    )
    lengths = torch.from_numpy(batch.lengths)  # read by Python, so a GPU would be waited for
    if model.base_model.attention_path == "packed":
        packed = model(input_ids=ids, token_type_ids=types, lengths=lengths, predict_at=places)
        logits: Tensor = packed.logits.float()
        return logits
    grid = as_grid(ids, types, lengths)
    logits = model(**grid).logits[grid["attention_mask"].bool()][places].float()
    return logits


def loss(
    model: BertForTokenClassification, logits: Tensor, gold: Tensor, counts: Tensor,
    *, label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """The losses of a batch, to be added up: the cross-entropy of each slot, (slots,), or with a
    CRF that of each sequence, (sequences,). gold: (slots,); counts: (examples,) slots of each."""
    if not isinstance(model, BertCrfForTokenClassification):
        return F.cross_entropy(logits, gold, label_smoothing=label_smoothing, reduction="none")
    losses = [
        model.head.loss(logits[rows], gold[rows], counts[chosen])
        for chosen, rows, _ in grids(counts)
    ]
    return torch.cat([logits.new_zeros(0), *losses])


@torch.no_grad()
def predict_logits(
    model: BertForTokenClassification, laid: Laid, *, batch_tokens: int = 4096
) -> Floats:
    """(slots, labels) float32 in input order, whatever the order of computation."""
    model.eval()
    laid = laid.by_window()
    out = np.empty((len(laid.slot_tokens), model.config.num_labels), dtype=np.float32)
    for windows in plan_once(laid.encoded.tokens, batch_tokens=batch_tokens):
        rows = laid.rows(windows)
        if len(rows):
            batch, at = laid.gather(windows)
            out[rows] = logits_of(model, batch, at).cpu().numpy()
    return out


@dataclass(frozen=True)
class Decoded:
    """tags: a tag for each item of each example. chances: (items, labels) float64. raw: the same
    before the temperature, as log-probabilities or logits, from which it is fitted."""

    tags: list[list[str]]
    chances: NDArray[np.float64]
    raw: Floats


def decode(
    model: BertForTokenClassification, logits: Floats, laid: Laid, *, labels: Sequence[str],
    scheme: str, temperature: float = 1.0,
) -> Decoded:  # fmt: skip
    """The tags of all items, chosen together where BIO or a CRF binds them, and their chances."""
    counts = torch.from_numpy(np.diff(laid.example_items))
    moves = allowed_moves(labels) if scheme == "bio" else None
    if isinstance(model, BertCrfForTokenClassification):
        learned = {name: value.detach().cpu() for name, value in model.head.moves().items()}
        if moves is not None:
            learned = {name: value + moves[name] for name, value in learned.items()}
        slots = torch.from_numpy(np.diff(laid.example_slots))
        scores = torch.from_numpy(logits)
        chosen = best_paths(scores, slots, **learned).numpy()[laid.first]
        likely = all_marginals(scores, slots, **learned).numpy()[laid.first]
        raw = np.log(np.maximum(likely, 1e-30)).astype(np.float32)
    else:
        raw = logits[laid.first]
        if moves is not None and len(raw):
            chosen = best_paths(torch.from_numpy(raw), counts, **moves).numpy()
        else:
            chosen = raw.argmax(axis=1)
    flat = [labels[number] for number in chosen.tolist()]
    bounds = laid.example_items.tolist()
    tags = [flat[begin:end] for begin, end in itertools.pairwise(bounds)]
    if scheme == "bio" and isinstance(model, BertCrfForTokenClassification):
        tags, _ = to_bio(tags, "bio")  # between words, of which only the first slots were taken
    return Decoded(tags, probabilities(raw, SINGLE, temperature), raw)


def score(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, plain: bool,
    strict: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The field's measures; see `filbert.tasks.tag_scores`."""
    return label_scores(gold, predicted) if plain else entity_scores(gold, predicted, strict=strict)


# --- answers -------------------------------------------------------------------------------------


def found_spans(
    decoded: Decoded, labels: Sequence[str]
) -> tuple[list[list[Span]], NDArray[np.float64]]:
    """The entities of each example, in items of that example, and the model's own chance of each:
    that all its words have their tags and the next word does not go on with it."""
    number = {label: place for place, label in enumerate(labels)}
    spans, chances, start = [], [], 0
    for tags in decoded.tags:
        found = spans_of(tags) if any(tag != OUTSIDE for tag in tags) else []
        for first, end, name in found:
            rows = np.arange(start + first, start + end)
            own = [number.get(tag, number.get(f"I-{name}", 0)) for tag in tags[first:end]]
            chance = float(np.prod(decoded.chances[rows, own]))
            after = number.get(f"I-{name}")
            if end < len(tags) and after is not None:
                chance *= 1 - float(decoded.chances[start + end, after])
            chances.append(chance)
        spans.append(found)
        start += len(tags)
    return spans, np.asarray(chances, dtype=np.float64)


def answers(
    decoded: Decoded, laid: Laid, texts: Sequence[str], chars: Ids, *, labels: Sequence[str],
    settings: TagSettings, given: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """What people get of each text: `{"spans": [{"start", "end", "text", "label", "score"}]}`, or
    of plain labels `{"words": [...]}` of such. chars: (items, 2) places in the texts. given: the
    words were given, so each span also tells which they are, `words` [first, end)."""
    bounds = laid.example_items.tolist()
    out: list[dict[str, Any]] = []
    if settings.scheme == "plain":
        best = decoded.chances.max(axis=1) if len(decoded.chances) else np.zeros(0)
        for number, tags in enumerate(decoded.tags):
            out.append({"words": [
                _piece(texts[number], chars[row, 0], chars[row, 1], tag, best[row])
                for row, tag in enumerate(tags, bounds[number])
            ]})  # fmt: skip
        return out
    spans, chances = found_spans(decoded, labels)
    scores = iter(believed(chances, settings.confidence))
    for number, found in enumerate(spans):
        text, start = texts[number], bounds[number]
        pieces = []
        for first, end, name in found:
            stop = _with_marks(text, int(chars[start + end - 1, 1]))
            piece = _piece(text, chars[start + first, 0], stop, name, next(scores))
            pieces.append({**piece, "words": [first, end]} if given else piece)
        out.append({"spans": pieces})
    return out


def _piece(text: str, start: Any, end: Any, label: str, score: Any) -> dict[str, Any]:
    start, end = int(start), int(end)
    return {
        "start": start, "end": end, "text": text[start:end], "label": label, "score": float(score)
    }  # fmt: skip


def _with_marks(text: str, end: int) -> int:
    """`end`, moved over accents and joiners that belong to the character before it, and that the
    tokenizer drops."""
    while end < len(text) and unicodedata.category(text[end]) in ("Mn", "Mc", "Me", "Cf"):
        end += 1
    return end


def join_words(words: Sequence[str]) -> tuple[str, Ids]:
    """Given words as a text, and the place of each in it, (words, 2): a blank between words, but
    none beside a Chinese character."""
    parts: list[str] = []
    places = np.zeros((len(words), 2), dtype=np.int64)
    end = 0
    for number, word in enumerate(words):
        if parts and word and parts[-1] and not (_is_wide(parts[-1][-1]) or _is_wide(word[0])):
            parts.append(" ")
            end += 1
        places[number] = end, end + len(word)
        parts.append(word)
        end += len(word)
    return "".join(parts), places


def _is_wide(character: str) -> bool:
    """A Chinese character, or a mark of Chinese text."""
    return (
        is_han(character) or "\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uffef"
    )
