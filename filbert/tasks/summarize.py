"""Extractive summarisation: the sentences of a document that make up its summary.

The six functions of a task, used alike in training, evaluation and prediction: `read`, `encode`,
`head`, `loss`, `decode`, `score`. A document over the model's length is read in windows of whole
sentences that overlap, and the scores of a sentence are averaged over its windows.

    filbert train summarize --data train.jsonl --base MODEL --out runs/sum

BertSumExt of Liu and Lapata 2019 (arXiv 1908.08345, section 3); trigram blocking is that of Paulus
et al. 2018. Two losses: `loss` asks of each sentence whether a greedy oracle takes it, as in the
paper; `listwise_loss` asks which sentence of its document is nearest to the summary (ListNet of Cao
et al. 2007, on ROUGE). Both learn from `filbert/tasks/oracle.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from filbert.data.packing import Batch, Encoded, Ids, plan_once
from filbert.data.summaries import Documents, read_documents
from filbert.errors import FilbertError
from filbert.model.modern_config import ModernBertConfig, read_any_config
from filbert.model.sentence_head import BertForExtractiveSummary
from filbert.sources import resolve
from filbert.tasks.oracle import greedy_oracle, sentence_values
from filbert.tasks.rouge import RougeTokenizer, rouge_scores
from filbert.tasks.select_sentences import Limits, select
from filbert.text.sentences import split_sentences

if TYPE_CHECKING:
    from filbert.text import BertTokenizer

Floats = NDArray[np.float32]
TEMPERATURE = 0.1  # of the listwise aims: a sentence better by so much ROUGE weighs e times more


@dataclass(frozen=True)
class EncodedDocuments:
    """Token ids of many documents, in windows of whole sentences; an example of `encoded` is a
    window, so that no document is too long for a batch.

    A sentence that stands in two windows has two places. sentence_at: (places,) where its [CLS]
    stands in `encoded.input_ids`; numbers: (places,) which sentence it is, counted over all
    documents; window_places: (windows + 1,), window w has the places window_places[w] ...
    window_places[w + 1] - 1; document_sentences: (documents + 1,) likewise of sentences; owners:
    (windows,) the document of each window. All int64.
    """

    encoded: Encoded
    sentence_at: Ids
    numbers: Ids
    window_places: Ids
    document_sentences: Ids
    owners: Ids

    def gather(self, windows: Ids) -> SentenceBatch:
        """The packed batch of these windows, in this order."""
        batch = self.encoded.gather(windows)
        begins = np.cumsum(batch.lengths) - batch.lengths  # in the batch
        places, numbers, counts = [], [], []
        for window, begin in zip(windows, begins, strict=True):
            run = slice(self.window_places[window], self.window_places[window + 1])
            places.append(self.sentence_at[run] - self.encoded.window_starts[window] + begin)
            numbers.append(self.numbers[run])
            counts.append(run.stop - run.start)
        return SentenceBatch(
            batch, np.concatenate(places), np.concatenate(numbers), np.asarray(counts)
        )


@dataclass(frozen=True)
class SentenceBatch:
    """A packed batch of windows. places: (sentences,) of the [CLS] tokens in its row of tokens;
    numbers: (sentences,) as in `EncodedDocuments`; counts: (windows,) sentences of each. int64."""

    batch: Batch
    places: Ids
    numbers: Ids
    counts: Ids


def read(path: str, options: Any) -> Documents:
    """Documents of a file; `options` carries the column, format and encoding fields."""
    return read_documents(
        path,
        text_column=options.text_column,
        summary_column=options.summary_column,
        format=options.format,
        encoding=options.encoding,
        header=options.header,
    )


def encode(
    tokenizer: BertTokenizer,
    documents: list[list[str]],
    *,
    max_length: int,
    stride: int,
    segments: bool = True,
) -> EncodedDocuments:
    """[CLS] sentence [SEP] for each sentence, as many in a window of `max_length` tokens as fit.

    Neighbouring windows of a document share whole sentences of at most `stride` tokens. A sentence
    over `max_length` is cut off. segments: alternate the token types of sentences; without (models
    that have one type) all are 0. A document without sentences has no window.
    """
    flat = tokenizer.encode_flat(
        [sentence for document in documents for sentence in document],
        max_length=max_length, windows=False, stride=0,
    )  # fmt: skip
    starts = flat.window_starts  # a sentence each
    ends = _starts(np.asarray([len(document) for document in documents], np.int64))
    spans, owners = [], []
    for owner in range(len(documents)):
        for span in _cut(starts, int(ends[owner]), int(ends[owner + 1]), max_length, stride):
            spans.append(span)
            owners.append(owner)
    runs = [(int(starts[first]), int(starts[last])) for first, last in spans]
    window_starts = _starts(np.asarray([stop - start for start, stop in runs], np.int64))
    ids = [flat.ids[start:stop] for start, stop in runs]
    numbers = [np.arange(first, last) for first, last in spans]
    places = [
        starts[first:last] - starts[first] + begin
        for (first, last), begin in zip(spans, window_starts, strict=False)
    ]
    sizes = np.diff(starts)
    types = [
        np.repeat((np.arange(last - first) % 2).astype(np.int8) * segments, sizes[first:last])
        for first, last in spans
    ]
    return EncodedDocuments(
        Encoded(
            np.concatenate([np.empty(0, np.int32), *ids]),
            np.concatenate([np.empty(0, np.int8), *types]),
            window_starts,
            np.arange(len(spans) + 1),
        ),
        np.concatenate([np.empty(0, np.int64), *places]),
        np.concatenate([np.empty(0, np.int64), *numbers]),
        _starts(np.asarray([last - first for first, last in spans], np.int64)),
        ends,
        np.asarray(owners, np.int64),
    )


def cut_off(
    tokenizer: BertTokenizer, documents: list[list[str]], encoded: EncodedDocuments, *, limit: int
) -> int:
    """How many sentences have more than `limit` tokens, those of a window, and lost their ends."""
    alone = np.diff(encoded.window_places) == 1
    full = np.flatnonzero(alone & (encoded.encoded.tokens == limit))
    if not len(full):
        return 0
    sentences = [sentence for document in documents for sentence in document]
    numbers = np.unique(encoded.numbers[encoded.window_places[full]]).tolist()
    again = tokenizer.encode_flat(
        [sentences[number] for number in numbers], max_length=2**20, windows=False, stride=0
    )
    return int((np.diff(again.window_starts) > limit).sum())


def _cut(starts: Ids, first: int, end: int, max_length: int, stride: int) -> list[tuple[int, int]]:
    """(first, last + 1) sentences of each window of a document."""
    spans = []
    while first < end:
        # the last sentence that still fits; one at least does, as none is over max_length
        last = int(np.searchsorted(starts, starts[first] + max_length, "right")) - 1
        last = min(max(last, first + 1), end)
        spans.append((first, last))
        if last == end:
            break
        shared = int(np.searchsorted(starts, starts[last] - stride, "left"))
        first = max(min(shared, last), first + 1)
    return spans


def head(base: str, *, revision: str | None = None, **changes: Any) -> BertForExtractiveSummary:
    """The pre-trained encoder of `base` with a new head, drawn from torch's seed.

    Raises `FilbertError` for a ModernBERT, which has no such head here.
    """
    folder = resolve(base, revision=revision)
    if isinstance(read_any_config(folder), ModernBertConfig):
        raise FilbertError(
            f"{base} is a ModernBERT; summaries are read with a BERT (or RoBERTa, ELECTRA, "
            "DistilBERT): give another --base"
        )
    return BertForExtractiveSummary.from_pretrained(folder, new_head=True, **changes)


def targets(documents: Documents, *, most: int, stem: bool) -> tuple[Floats, list[list[int]]]:
    """(sentences,) float32, 1 for those of the oracle, over all documents; and their numbers
    within each document, at most `most` of them."""
    assert documents.references is not None
    tokenizer = RougeTokenizer(stem=stem)
    marks: list[float] = []
    chosen = []
    for sentences, references in zip(documents.sentences, documents.references, strict=True):
        words = [tokenizer.tokenize(sentence) for sentence in sentences]
        best = greedy_oracle(words, map(tokenizer.tokenize, references), most=most)
        chosen.append(best)
        marks += [float(place in best) for place in range(len(sentences))]
    return np.asarray(marks, np.float32), chosen


def values(documents: Documents, *, stem: bool) -> Floats:
    """(sentences,) float32, 0 to 1: how good each sentence alone would be as the summary, over all
    documents; see `filbert.tasks.oracle.sentence_values`."""
    assert documents.references is not None
    tokenizer = RougeTokenizer(stem=stem)
    found = [
        sentence_values(
            [tokenizer.tokenize(sentence) for sentence in sentences],
            map(tokenizer.tokenize, references),
        )
        for sentences, references in zip(documents.sentences, documents.references, strict=True)
    ]
    return np.concatenate([np.empty(0), *found]).astype(np.float32)


def logits_of(model: BertForExtractiveSummary, batch: SentenceBatch) -> Tensor:
    """(sentences,) float32 logits of a packed batch."""
    device = model.device
    packed = batch.batch
    ids, types, lengths, places = (
        torch.from_numpy(value).to(device)
        for value in (packed.input_ids, packed.token_type_ids, packed.lengths, batch.places)
    )
    logits: Tensor = model(
        input_ids=ids, token_type_ids=types, lengths=lengths, sentence_at=places
    ).logits
    return logits.float()


def loss(logits: Tensor, marks: Tensor, counts: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """(windows,) the mean binary cross-entropy over the sentences of each window.

    logits, marks: (sentences,) of all windows, marks 1 for a sentence of the oracle;
    counts: (windows,) int64 sentences of each.
    """
    aims = marks * (1 - label_smoothing) + label_smoothing / 2
    each = F.binary_cross_entropy_with_logits(logits, aims, reduction="none")
    owners = torch.repeat_interleave(counts)  # (sentences,)
    return each.new_zeros(len(counts)).index_add(0, owners, each) / counts


def listwise_loss(
    logits: Tensor, values: Tensor, counts: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """(windows,) the cross-entropy between what the model and what ROUGE would choose of a window:
    the softmax of the logits against that of the values over `TEMPERATURE`.

    logits, values: (sentences,) of all windows, values 0 to 1; counts: (windows,) int64, sentences
    of each. label_smoothing: this share of each aim is spread evenly over its window.
    """
    owners = torch.repeat_interleave(counts)  # (sentences,)
    aims = _log_softmax(values / TEMPERATURE, owners, len(counts)).exp()
    aims = aims * (1 - label_smoothing) + label_smoothing / counts[owners]
    each = -aims * _log_softmax(logits, owners, len(counts))
    return each.new_zeros(len(counts)).index_add(0, owners, each)


def _log_softmax(scores: Tensor, owners: Tensor, count: int) -> Tensor:
    """(sentences,) the logarithm of the softmax over the sentences of each of `count` windows."""
    highest = scores.new_zeros(count).scatter_reduce(
        0, owners, scores.detach(), "amax", include_self=False
    )
    moved = scores - highest[owners]
    return moved - moved.new_zeros(count).index_add(0, owners, moved.exp()).log()[owners]


@torch.no_grad()
def predict_logits(
    model: BertForExtractiveSummary, encoded: EncodedDocuments, *, batch_tokens: int = 4096
) -> Floats:
    """(sentences,) float32 over all documents in input order; a sentence in two windows has the
    mean of both. Raises `FilbertError` where they are no finite numbers."""
    model.eval()
    count = int(encoded.document_sentences[-1])
    total, seen = np.zeros(count), np.zeros(count)
    for windows in plan_once(encoded.encoded.tokens, batch_tokens=batch_tokens):
        batch = encoded.gather(windows)
        np.add.at(total, batch.numbers, logits_of(model, batch).cpu().numpy())
        np.add.at(seen, batch.numbers, 1)
    if not np.isfinite(total).all():
        raise FilbertError(
            "the model answers with NaN or infinity, so its weights are damaged. Fetch or copy the "
            "model again, or train it anew"
        )
    return (total / np.maximum(seen, 1)).astype(np.float32)


def decode(
    logits: Floats, documents: list[list[str]], encoded: EncodedDocuments, *, limits: Limits
) -> list[list[int]]:
    """The numbers of the chosen sentences of each document, in its order."""
    ends = encoded.document_sentences
    return [
        select(logits[ends[place] : ends[place + 1]], sentences, limits=limits)
        for place, sentences in enumerate(documents)
    ]


def score(documents: Documents, chosen: list[list[int]], *, stem: bool) -> dict[str, float]:
    """Mean ROUGE F-measures, 0 to 1, of the chosen sentences against the references."""
    assert documents.references is not None
    summaries = [
        [sentences[place] for place in places]
        for sentences, places in zip(documents.sentences, chosen, strict=True)
    ]
    references = [[split_sentences(text) for text in texts] for texts in documents.references]
    return rouge_scores(summaries, references, stem=stem)


def baselines(
    documents: Documents, oracle: list[list[int]], *, sentences: int, stem: bool
) -> dict[str, float]:
    """What the first `sentences` of each document score (lead), and the oracle: between the two,
    or below the first, lies a model."""
    lead = [list(range(min(sentences, len(document)))) for document in documents.sentences]
    found = {"lead": score(documents, lead, stem=stem)}
    found["oracle"] = score(documents, oracle, stem=stem)
    return {f"{who}_{kind}": value for who, of in found.items() for kind, value in of.items()}


def trim(encoded: EncodedDocuments, texts: Encoded) -> EncodedDocuments:
    """The same documents with other ids for their tokens; see `filbert.train.trim`."""
    return replace(encoded, encoded=texts)


def _starts(lengths: Ids) -> Ids:
    """(n + 1,) where each of n runs begins, and the end of the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
