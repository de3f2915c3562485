"""Ask a folder of documents: find passages by their words, read them, give the best answers.

    filbert ask docs/ "How long is the guarantee?" --bundle runs/qa
    filbert ask docs/ "退货需要几天？" --bundle runs/qa-zh --embed runs/vectors --index kept/

    asker = Asker(load("runs/qa"), read_documents("docs/"))
    asker("How long is the guarantee?")    # [{"answer", "file", "start", "end", "score"}, ...]

A word search (BM25) chooses passages; with a model of sentence vectors those of more passages are
put in the order of their likeness to the question; the answering model reads the first ones, and
the spans of all of them compete. Of a model that may stay silent each span is measured against
"no answer" in its own passage, and passages that do not answer give nothing.

With `--index` the word index, and the vectors that were needed, are kept in a folder; they belong
to the content of the documents and of the model, and are made anew where either has changed. Where
they cannot be written a line says so, after or before the answers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filbert.bundle import what_fits
from filbert.data.documents import Documents, keep_or_tell, kept_or_told, read_documents
from filbert.errors import FilbertError, UsageError
from filbert.infer.answer import Answerer, as_questions
from filbert.infer.ask_options import AskOptions
from filbert.infer.embed import Embedder
from filbert.infer.predict import as_json_text, check_count, load
from filbert.infer.search import model_digest
from filbert.tasks.answer import N_BEST, cut_out

Answer = dict[str, Any]
VECTORS = "vectors.safetensors"  # what those of passages are called in the folder of --index
IN_VECTORS = {"rows": 1, "vectors": 2}  # its arrays and their dimensions


class Asker:
    """Documents with the models that read them, for many questions.

    `passages`: how many are read for each question; with an `embedder`, which orders them, that
    many out of `candidates`.
    """

    def __init__(
        self,
        answerer: Answerer,
        documents: Documents,
        *,
        embedder: Embedder | None = None,
        passages: int = 20,
        candidates: int = 100,
    ) -> None:
        check_count("passages", passages)
        check_count("candidates", candidates)
        self.answerer, self.documents, self.embedder = answerer, documents, embedder
        self.passages, self.candidates = passages, candidates
        self.vectors: dict[int, NDArray[np.float32]] = {}  # of passages that were asked for

    def __call__(self, question: str, *, top_k: int = 3) -> list[Answer]:
        """The best answers, at most `top_k`, the likeliest first; none where nothing is found.

        Each holds `answer`, `file`, `start`, `end` (characters of the file's text, so that
        text[start:end] == answer), `score` (its share among all spans that compete) and `passage`,
        the text around it. Raises `FilbertError` for a question that cannot be read.
        """
        check_count("top_k", top_k)
        problem = self.answerer.problem((question, "text"))
        if problem:
            raise FilbertError(f"question {question!r:.60}: {problem}")
        found = self.find(question)
        if not found:
            return []
        return self.read(question, found)[:top_k]

    def find(self, question: str) -> list[int]:
        """The numbers of the passages to read, the best first."""
        if self.embedder is None:
            return self.documents.search(question, count=self.passages)
        found = self.documents.search(question, count=max(self.candidates, self.passages))
        if not found:
            return []
        fresh = [number for number in found if number not in self.vectors]
        if fresh:
            self.vectors.update(zip(fresh, self.vectors_of(fresh), strict=True))
        asked = np.asarray(self.embedder(question))
        table = np.stack([self.vectors[number] for number in found])
        likeness = table @ asked / np.maximum(np.linalg.norm(table, axis=1), 1e-12)
        order = np.argsort(-likeness, kind="stable")[: self.passages]
        return [found[place] for place in order]

    def vectors_of(self, numbers: list[int]) -> NDArray[np.float32]:
        """(passages, d) the vectors of these passages."""
        assert self.embedder is not None
        return self.embedder([self.documents.text(number) for number in numbers])

    def read(self, question: str, numbers: list[int]) -> list[Answer]:
        """The answers that these passages give, the likeliest first."""
        texts = [self.documents.text(number) for number in numbers]
        contexts = as_questions([(question, text) for text in texts])
        spans = self.answerer.spans(contexts)
        settings = self.answerer.settings
        score = spans.score
        if settings.no_answer:
            score = score - (spans.null - settings.threshold)[:, None]
        usable = spans.begin >= 0
        if settings.no_answer:
            usable &= ~spans.silent(settings)[:, None]
        rows, columns = np.nonzero(usable)
        if not len(rows):
            return []
        values = score[rows, columns]
        order = np.argsort(-values, kind="stable")[:N_BEST]
        rivals = values[order]
        if settings.no_answer:  # "no answer" has 0 in this measure
            rivals = np.append(rivals, 0.0)
        powers = np.exp((rivals - rivals.max()) / self.answerer.manifest.temperature)
        shares = powers / powers.sum()
        answers = []
        for share, place in zip(shares, order, strict=False):
            row, column = int(rows[place]), int(columns[place])
            number = numbers[row]
            shift = int(self.documents.begin[number])
            begin, end = cut_out(texts[row], spans.begin[row, column], spans.end[row, column])
            answers.append(
                {
                    "answer": texts[row][begin:end], "file": self.documents.file(number),
                    "start": begin + shift, "end": end + shift, "score": float(share),
                    "passage": texts[row].strip(),
                }
            )  # fmt: skip
        return answers


def ask(options: AskOptions, as_json: bool) -> None:
    """What `filbert ask` does: prints the answers to each question."""
    settings: dict[str, Any] = {
        "device": options.device, "precision": options.precision,
        "batch_tokens": options.batch_tokens, "threads": options.threads,
    }  # fmt: skip
    answerer = load(options.bundle, **settings)
    if not isinstance(answerer, Answerer):
        raise UsageError(
            f"--bundle {options.bundle} is a model of the task {answerer.manifest.task}; filbert "
            "ask needs one that filbert train answer made. "
            f"{what_fits(options.bundle, answerer.manifest)}"
        )
    embedder = None
    if options.embed is not None:
        embedder = load(options.embed, **settings)
        if not isinstance(embedder, Embedder):
            raise UsageError(
                f"--embed {options.embed} is a model of the task {embedder.manifest.task}; a model "
                "of sentence vectors was expected (filbert train embed). "
                f"{what_fits(options.embed, embedder.manifest)}"
            )
    kept_in = None if options.index is None else Path(options.index)
    documents = read_documents(options.documents, encoding=options.encoding, index=kept_in)
    asker = Asker(
        answerer, documents, embedder=embedder, passages=options.passages,
        candidates=options.candidates,
    )  # fmt: skip
    path = stamp = None
    if kept_in is not None and embedder is not None:
        path, stamp = kept_in / VECTORS, stamp_of(documents, embedder)
        if arrays := kept_or_told(path, stamp, IN_VECTORS, documents.notes):
            rows, vectors = arrays["rows"], arrays["vectors"]
            if vectors.shape == (len(rows), embedder.model.config.hidden_size):
                asker.vectors.update(zip(rows.tolist(), vectors, strict=True))
            else:
                documents.notes.append(
                    f"{path} is damaged and is made anew ({len(rows)} passages, vectors of shape "
                    f"{vectors.shape})"
                )
    for note in documents.notes:
        print(note, file=sys.stderr)
    before = len(asker.vectors)
    found = {question: asker(question, top_k=options.top_k) for question in options.question}
    for question, answers in found.items():
        if as_json:
            print(as_json_text({"question": question, "answers": answers}))
            continue
        if len(found) > 1:
            print(question)
        for answer in answers:
            print(line(answer))
        if not answers:
            print("(no answer in these documents)")
    if path is not None and stamp is not None and len(asker.vectors) > before:
        rows = np.fromiter(asker.vectors, np.int64, len(asker.vectors))
        arrays = {"rows": rows, "vectors": np.stack(list(asker.vectors.values()))}
        unkept = keep_or_tell(path, arrays, stamp)
        if unkept and not documents.unkept:  # the cause is told once
            print(unkept, file=sys.stderr)


def stamp_of(documents: Documents, embedder: Embedder) -> str:
    """What kept vectors of passages belong to: the texts, the model, and how it is read."""
    return f"{documents.digest()} {model_digest(embedder)} {embedder.settings} {embedder.dtype}"


def line(answer: Answer) -> str:
    """An answer as one line for people: text, file and characters, score."""
    text = " ".join(answer["answer"].split())
    return f"{text}\t{answer['file']}:{answer['start']}-{answer['end']}\t{answer['score']:.4f}"
