"""Sentence vectors: a text becomes a row of numbers whose cosine with another tells their likeness.

The functions of a task, used alike in training, evaluation, prediction and search: `read`,
`encode`, `head`, `loss` (in `vector_losses.py`), `decode`, `score`. A text longer than the model
reads is cut off, as in sentence-transformers, whose vectors these equal.

    filbert train embed --data pairs.tsv --loss pairs --base MODEL --out runs/vectors

Reimers and Gurevych 2019 (arXiv 1908.10084).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from filbert.data.packing import Batch, Encoded, Ids, plan_once
from filbert.data.sentence_pairs import Sentences, read_sentences
from filbert.errors import FilbertError, UsageError
from filbert.model import sentence_folder
from filbert.model.bert import BertModel
from filbert.model.inputs import as_grid
from filbert.model.modern import ModernBertModel
from filbert.model.modern_config import ModernBertConfig, read_any_config
from filbert.model.native import serves
from filbert.model.pretrained import PretrainedModel
from filbert.model.sentence_folder import POOLINGS, SentenceSettings
from filbert.sources import resolve
from filbert.tasks.metrics import regression_scores
from filbert.tasks.retrieval import retrieval_scores

if TYPE_CHECKING:
    from filbert.bundle import Manifest
    from filbert.text import BertTokenizer

Floats = NDArray[np.float32]
Encoder = BertModel | ModernBertModel

SCORED_METRIC, RETRIEVAL_METRIC = "spearman", "ndcg@10"  # which pick the best checkpoint


def read(path: str, options: Any, *, kind: str | None) -> Sentences:
    """Rows of a file; `options` carries the column, format and encoding fields of the recipe."""
    return read_sentences(
        path,
        kind=kind,
        text_column=options.text_column,
        pair_column=options.pair_column,
        negative_column=options.negative_column,
        score_column=options.score_column,
        format=options.format,
        encoding=options.encoding,
        header=options.header,
    )


def encode(tokenizer: BertTokenizer, texts: list[str], *, max_length: int) -> Encoded:
    """Token ids of each text, cut off after `max_length` tokens (specials included)."""
    return Encoded(
        *tokenizer.encode_flat(texts, None, max_length=max_length, windows=False, stride=0)
    )


def head(base: str, *, revision: str | None = None, **changes: Any) -> Encoder:
    """The pre-trained encoder of `base`. There is no head: the vectors are its pooled states."""
    folder = resolve(base, revision=revision)
    modern = isinstance(read_any_config(folder), ModernBertConfig)
    kind = ModernBertModel if modern else BertModel
    return kind.from_pretrained(folder, new_head=True, **changes)


def settings_of(
    folder: Path, *, limit: int, tokenizer: BertTokenizer, manifest: Manifest | None = None
) -> SentenceSettings:
    """How the model in `folder` makes vectors: as its manifest says, else its
    sentence-transformers files, else the mean of all tokens, normalised.

    `limit`: the most tokens that the encoder takes. Raises `FilbertError` for what is not known.
    """
    if manifest is not None and manifest.settings:
        known = {"pooling", "normalize", "dimensions"}
        values = manifest.settings
        if not {"pooling", "normalize"} <= set(values) <= known or (
            values["pooling"] not in POOLINGS or not isinstance(values["normalize"], bool)
        ):
            raise FilbertError(
                f"{folder}: settings {values} in filbert.json; expected pooling (one of "
                f"{', '.join(POOLINGS)}) and normalize (true or false)"
            )
        return SentenceSettings(
            values["pooling"],  # type: ignore[arg-type]
            values["normalize"],
            min(manifest.max_length, limit),
        )
    found = sentence_folder.read(folder) or SentenceSettings()
    own = tokenizer.model_max_length if found.max_length is None else found.max_length
    return SentenceSettings(found.pooling, found.normalize, min(own, limit))


def write_settings(
    folder: Path, model: PretrainedModel, tokenizer: BertTokenizer, manifest: Manifest, *, of: Path
) -> None:
    """Write the sentence-transformers files into `folder`, beside what became of the model in the
    folder `of`, so that its vectors are made as before."""
    config = model.config
    settings = settings_of(
        of, limit=config.max_position_embeddings, tokenizer=tokenizer, manifest=manifest
    )
    sentence_folder.write(folder, settings, hidden_size=config.hidden_size)


def states_of(model: Encoder, batch: Batch, *, first_only: bool = False) -> tuple[Tensor, Tensor]:
    """The last states of a batch, packed (tokens, hidden) or, of first tokens alone, (texts,
    hidden), and the (texts,) lengths; through a padded grid if the attention path is another."""
    device = model.device
    ids, types, lengths = (
        torch.from_numpy(x).to(device)
        for x in (batch.input_ids, batch.token_type_ids, batch.lengths)
    )
    if model.attention_path == "packed":
        output = model(input_ids=ids, token_type_ids=types, lengths=lengths, first_only=first_only)
        return output.last_hidden_state, lengths
    grid = as_grid(ids, types, lengths)
    states = model(**grid).last_hidden_state  # (texts, longest, hidden)
    return states[:, 0] if first_only else states[grid["attention_mask"].bool()], lengths


def pool(states: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """(texts, hidden) float32: the mean, the maximum or the first of each text's tokens.

    states (tokens, hidden), all texts end to end; lengths (texts,) int64. Special tokens count, as
    in sentence-transformers.
    """
    if pooling == "cls":
        return states.index_select(0, torch.cumsum(lengths, 0) - lengths).float()
    return torch.segment_reduce(states.float(), pooling, lengths=lengths, axis=0, unsafe=True)


def vectors_of(model: Encoder, encoded: Encoded, texts: Ids, pooling: str) -> Tensor:
    """(n, hidden) float32, not normalised: the vectors of these `texts` (n,) of `encoded`.

    They are computed in one packed batch, sorted by length, so that attention has few runs.
    """
    order = np.argsort(encoded.tokens[texts], kind="stable") if len(texts) > 1 else np.arange(1)
    batch = encoded.gather(texts[order])
    if pooling == "mean" and serves(model) and not torch.is_grad_enabled():
        ids, types, lengths = (
            torch.from_numpy(x) for x in (batch.input_ids, batch.token_type_ids, batch.lengths)
        )
        means = model(input_ids=ids, token_type_ids=types, lengths=lengths, mean=True)
        return _back(means.last_hidden_state, order)
    states, lengths = states_of(model, batch, first_only=pooling == "cls")
    pooled = states.float() if pooling == "cls" else pool(states, lengths, pooling)
    return _back(pooled, order)


def _back(rows: Tensor, order: Ids) -> Tensor:
    """Rows that were computed in this order, in the order before."""
    if len(order) == 1:
        return rows
    return rows.index_select(0, torch.from_numpy(np.argsort(order)).to(rows.device))


@torch.no_grad()
def predict_vectors(
    model: Encoder,
    encoded: Encoded,
    settings: SentenceSettings,
    *,
    dimensions: int | None = None,
    batch_tokens: int = 4096,
) -> Floats:
    """(texts, dimensions) float32, in input order, whatever the order of computation.

    Normalised if `settings` say so. `dimensions` keeps the first ones alone (Matryoshka); they are
    normalised after that.
    """
    model.eval()
    width = dimensions or model.config.hidden_size
    out = np.empty((len(encoded), width), dtype=np.float32)
    for texts in plan_once(encoded.tokens, batch_tokens=batch_tokens):
        vectors = vectors_of(model, encoded, texts, settings.pooling).cpu().numpy()[:, :width]
        out[texts] = normalized(vectors) if settings.normalize else vectors
    return out


def check_dimensions(dimensions: Sequence[int], *, hidden_size: int) -> None:
    """Raise `UsageError` for a number of dimensions that the vectors do not have."""
    for count in dimensions:
        if type(count) is not int or not 1 <= count <= hidden_size:
            raise UsageError(
                f"dimensions {count!r}: the vectors of this model have {hidden_size}; expected a "
                f"whole number from 1 to {hidden_size}"
            )


def decode(vectors: Floats) -> list[dict[str, Any]]:
    """Answers as plain data: `{"vector": [...]}`."""
    return [{"vector": row} for row in vectors.tolist()]


def normalized(vectors: Floats) -> Floats:
    """The rows at length 1; a row of zeros stays one."""
    with np.errstate(invalid="ignore", over="ignore"):  # whoever asks for vectors tells of those
        length: Floats = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
        return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)


def score(vectors: Floats, data: Sentences) -> dict[str, Any]:
    """The field's measures of the vectors of `data.texts` (texts, d).

    Pairs with scores: `pearson` and `spearman` of the cosines. Pairs without: `recall@1` ...
    `ndcg@10` of finding the second text of a row among all second texts (see
    `filbert.tasks.retrieval`); the rows of one first text are its answers together.
    """
    rows = normalized(vectors)
    if data.scores is not None:
        cosines = (rows[data.members[:, 0]] * rows[data.members[:, 1]]).sum(1)
        measured = regression_scores(cosines, data.scores)
        return {name: measured[name] for name in ("pearson", "spearman", "rows")}
    corpus = np.unique(data.members[:, 1:])  # hard negatives are there to be found as well
    asked, place = np.unique(data.members[:, 0], return_inverse=True)
    relevant: list[list[int]] = [[] for _ in asked]
    answers = np.searchsorted(corpus, data.members[:, 1])
    for query, answer in zip(place.tolist(), answers.tolist(), strict=True):
        if answer not in relevant[query]:
            relevant[query].append(answer)
    return retrieval_scores(rows[asked], rows[corpus], relevant)
