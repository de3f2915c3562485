"""Pruning a bundle: what is chosen, what is told, and what is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert import load
from filbert.bundle import Manifest, open_bundle, read_manifest, save_bundle
from filbert.errors import FilbertError, UsageError
from filbert.infer.evaluate import evaluate
from filbert.infer.prune import _read, choose_heads, choose_layers, head_importance, prune
from filbert.infer.prune_options import PruneOptions
from filbert.model import sentence_folder
from filbert.model.bert import BertForMaskedLM
from filbert.model.prune import keep_layers, layers_of, only_layers
from filbert.model.sentence_folder import SentenceSettings
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.tasks import classify
from tests.tiny_bundle import VOCABULARY, tiny_bundle, tiny_encoder
from tests.tiny_tasks import task_bundle

TEXTS = [
    "free prize call now", "lunch at home", "the river bank", "call home now !", "i need it",
    "你好 世界", "free free free lunch by the bank of the river & it is a prize " * 3, "prize",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of four layers, and rows labelled as it answers, with one mistake."""
    folder = tmp_path_factory.mktemp("prune")
    tiny_bundle(folder / "whole", num_hidden_layers=4)
    answers = load(folder / "whole", precision="float32")(TEXTS)
    labels = [answer["label"] for answer in answers]
    labels[0] = "spam" if labels[0] == "ham" else "ham"
    rows = "".join(f"{t}\t{label}\n" for t, label in zip(TEXTS, labels, strict=True))
    (folder / "rows.tsv").write_text("text\tlabel\n" + rows, "utf-8")
    (folder / "corpus.txt").write_text("\n".join(TEXTS) + "\n", "utf-8")
    return folder


def asked(place: Path, out: str = "out", **changes: Any) -> PruneOptions:
    values = {"bundle": str(place / "whole"), "out": str(place / out), "device": "cpu"}
    return PruneOptions.model_validate({**values, **changes})


def test_layers_go_one_by_one_the_least_needed_first(place: Path) -> None:
    data = str(place / "rows.tsv")
    result = prune(asked(place, "two", layers=2, data=data), quiet=True)
    bundle = open_bundle(place / "whole")
    rows = _read(data, asked(place), bundle, limit=None)
    left = [0, 1, 2, 3]
    for _ in range(2):  # every choice, by hand
        scores = {}
        for rest in itertools.combinations(left, len(left) - 1):
            with only_layers(bundle.model, rest):
                found = rows.scores(bundle.model)  # type: ignore[arg-type]
            scores[rest] = (found["accuracy"], -(found["loss"] or 0))
        left = list(max(scores, key=lambda rest: scores[rest]))
    assert result.record["layers"] == left
    manifest = read_manifest(place / "two")
    with only_layers(bundle.model, left):
        scored = replace(rows, manifest=manifest).scores(bundle.model)  # type: ignore[arg-type]
    assert result.record["after"] == scored
    assert manifest.provenance["pruned"] == result.record
    assert manifest.provenance["pruned"]["before"]["accuracy"] == 7 / 8
    assert manifest.scores == result.record["after"]
    assert len(layers_of(open_bundle(place / "two").model)) == 2
    assert "accuracy: 0.8750 before" in str(result) and "8 rows" in str(result)
    assert result.record["parameters"][1] < result.record["parameters"][0]


def test_a_changed_model_is_calibrated_anew(place: Path) -> None:
    """On 40 rows with mistakes, as training would on its dev set; words alone change nothing."""
    from filbert.tasks.calibrate import fit_temperature

    lines = (place / "rows.tsv").read_text("utf-8").splitlines()
    (place / "forty.tsv").write_text("\n".join([lines[0], *lines[1:] * 5]) + "\n", "utf-8")
    data = str(place / "forty.tsv")
    prune(asked(place, "warm", layers=3, data=data), quiet=True)
    bundle = open_bundle(place / "warm")
    rows = _read(data, asked(place), bundle, limit=None)
    logits = classify.predict_logits(bundle.model, rows.encoded)  # type: ignore[arg-type]
    expected = fit_temperature(logits, rows.gold, "single_label_classification")
    assert bundle.manifest.temperature == pytest.approx(expected) and expected != 1.5
    prune(asked(place, "cool", vocab=[str(place / "corpus.txt")], data=data), quiet=True)
    assert read_manifest(place / "cool").temperature == 1.5


def test_importance_is_the_mean_size_of_each_rows_gradient(place: Path) -> None:
    """Michel et al. 2019, equation 2, one row at a time; a text in two windows is one row."""
    bundle = open_bundle(place / "whole")
    model: Any = bundle.model
    rows = _read(str(place / "rows.tsv"), asked(place), bundle, limit=None)
    found = head_importance(model, rows)
    total = np.zeros((4, 4))
    for row in range(len(TEXTS)):
        for layer, head in itertools.product(range(4), range(4)):
            output = layers_of(model)[layer].attention.output.dense  # type: ignore[union-attr]
            old, losses = output.weight.detach().clone(), []
            for sign in (1, -1):
                with torch.no_grad():
                    output.weight[:, head * 4 : head * 4 + 4] *= 1 + sign * 1e-2
                    logits = classify.logits_of(model, rows.encoded.gather(np.array([row])))
                    gold = torch.from_numpy(rows.gold[[row]])
                    losses.append(torch.nn.functional.cross_entropy(logits, gold).item())
                    output.weight.copy_(old)
            total[layer, head] += abs(losses[0] - losses[1]) / 2e-2
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    assert found == pytest.approx(expected, abs=0.01)
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_least_important_heads_go() -> None:
    importance = np.array([[0.5, 0.1, 0.9], [0.2, 0.3, 0.05]])
    assert choose_heads(importance, 3) == {0: [1], 1: [0, 2]}
    assert choose_heads(importance, 5) == {1: [2]}
    with pytest.raises(UsageError, match="2 x 3 heads"):
        choose_heads(importance, 6)


def test_heads_are_silenced_and_said_to_be(place: Path) -> None:
    options = asked(place, "heads", heads=10, data=str(place / "rows.tsv"))
    result = prune(options, quiet=True)
    silent = result.record["silenced_heads"]
    assert sum(map(len, silent.values())) == 6
    assert result.record["parameters"][0] == result.record["parameters"][1]
    assert "size and speed stay" in str(result)
    model: Any = open_bundle(place / "heads").model
    for layer, heads in silent.items():
        weight = model.bert.encoder.layer[int(layer)].attention.output.dense.weight
        assert not weight.unflatten(1, (4, 4))[:, heads].any()


def test_a_trimmed_vocabulary_gives_the_same_answers(place: Path) -> None:
    corpus, data = str(place / "corpus.txt"), str(place / "rows.tsv")
    result = prune(asked(place, "words", vocab=[corpus], data=data), quiet=True)
    before, after = result.record["vocabulary"]
    assert after < before
    assert result.record["before"] == result.record["after"]
    whole, small = (load(place / name, precision="float32") for name in ("whole", "words"))
    assert np.array_equal(whole.logits(TEXTS), small.logits(TEXTS))
    assert len(small.tokenizer) == after == small.model.config.vocab_size


def test_a_trimmed_model_of_words_fills_blanks_as_before(tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "whole", BertForMaskedLM)
    (tmp_path / "corpus.jsonl").write_text('{"body": "the river bank"}\n{"body": "it"}\n', "utf-8")
    options = PruneOptions(
        bundle=str(tmp_path / "whole"), out=str(tmp_path / "small"), corpus_column="body",
        vocab=[str(tmp_path / "corpus.jsonl")],
    )  # fmt: skip
    record = prune(options, quiet=True).record
    assert "before" not in record and record["vocabulary"][1] < record["vocabulary"][0]
    targets = ["bank", "it"]
    words = [
        load(tmp_path / name, precision="float32")("the river [MASK]", targets=targets)
        for name in ("whole", "small")
    ]
    whole, small = (found["blanks"][0]["words"] for found in words)
    ratios = [a["score"] / b["score"] for a, b in zip(whole, small, strict=True)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-4) and ratios[0] < 1  # fewer words share


@pytest.mark.parametrize("own", [True, False])
def test_a_trimmed_model_of_sentence_vectors_makes_them_as_before(
    tmp_path: Path, own: bool
) -> None:
    """A bundle of ours says how in filbert.json too; a folder from elsewhere in its files alone."""
    settings = SentenceSettings("cls", False, 12)
    whole, small = tiny_encoder(tmp_path / "whole"), tmp_path / "small"
    if own:
        bundle = open_bundle(whole)
        manifest = Manifest(
            task="embed", max_length=12, settings={"pooling": "cls", "normalize": False}
        )
        save_bundle(whole, model=bundle.model, tokenizer=bundle.tokenizer, manifest=manifest)
    sentence_folder.write(whole, settings, hidden_size=16)
    (tmp_path / "words.txt").write_text(" ".join(VOCABULARY[5:]) + "\n", "utf-8")
    options = PruneOptions(
        bundle=str(whole), out=str(small), vocab=[str(tmp_path / "words.txt")]
    )  # fmt: skip
    before, after = prune(options, quiet=True).record["vocabulary"]
    assert before == after
    assert sentence_folder.read(small) == settings
    assert "# small\n" in (small / "README.md").read_text("utf-8")
    texts = ["call now", "the river bank like it", "a b c d e f g h i j k l m n o p " * 3]
    vectors = load(whole, device="cpu", precision="float32")(texts)
    assert np.array_equal(load(small, device="cpu", precision="float32")(texts), vectors)
    if find_spec("sentence_transformers") is not None:
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(small), device="cpu", local_files_only=True)
        assert np.abs(theirs.encode(texts) - vectors).max() < 1e-5


def test_a_trimmed_summarizer_picks_as_before(tmp_path: Path) -> None:
    whole, small = task_bundle(tmp_path / "whole", "summarize"), tmp_path / "small"
    text = "the river bank. call now! i like it. free prize."
    (tmp_path / "corpus.txt").write_text(text + "\n", "utf-8")
    options = PruneOptions(
        bundle=str(whole), out=str(small), vocab=[str(tmp_path / "corpus.txt")]
    )  # fmt: skip
    before, after = prune(options, quiet=True).record["vocabulary"]
    assert after < before
    answers = [
        load(folder, device="cpu", precision="float32")(text, sentences=3)
        for folder in (whole, small)
    ]
    assert answers[0] == answers[1]


def test_what_writes_has_two_vocabularies_and_is_refused(tmp_path: Path) -> None:
    writer = task_bundle(tmp_path / "writer", "summarize", kind=BertForSeq2SeqLM, settings={})
    options = PruneOptions(bundle=str(writer), out=str(tmp_path / "out"), vocab=[str(writer)])
    with pytest.raises(UsageError, match="holds a BertForSeq2SeqLM; models with one encoder are"):
        prune(options, quiet=True)


def test_everything_at_once(place: Path) -> None:
    result = prune(
        asked(
            place, "all", layers=3, heads=9, vocab=[str(place / "corpus.txt")],
            data=str(place / "rows.tsv"), test=str(place / "rows.tsv"), limit=4,
        ),
        quiet=True,
    )  # fmt: skip
    assert result.record["scored_on"] == "rows.tsv, 8 rows"
    assert load(place / "all", precision="float32")("free prize")["label"] in ("ham", "spam")
    scores = result.record["after"]
    rows = open_bundle(place / "all")
    again = _read(str(place / "rows.tsv"), asked(place), rows, limit=None)
    assert again.scores(rows.model)["accuracy"] == scores["accuracy"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "nothing to prune"),
        ({"layers": 2}, "labelled rows with --data"),
        ({"layers": 4, "data": "rows"}, "has 4 layers; name fewer"),
        (
            {"layers": 2, "data": "rows", "metric": "mse"},
            "--metric 'mse': the rows of --data give loss",
        ),
        ({"heads": 16, "data": "rows"}, "4 x 4 heads"),
        ({"vocab": ["corpus"], "test": "rows"}, "--test goes with"),
        ({"vocab": ["corpus"], "out": "whole"}, "whole, which is read"),
        ({"vocab": ["corpus"], "out": "full"}, r"not of a bundle \(letter.txt"),
        ({"vocab": ["corpus"], "out": "full", "overwrite": True}, "not of a bundle"),
        ({"vocab": ["empty.txt"]}, "no text in it"),
    ],
)
def test_what_cannot_be_done_is_told(place: Path, changes: dict[str, Any], words: str) -> None:
    (place / "full").mkdir(exist_ok=True)
    (place / "full" / "letter.txt").write_text("mine")
    (place / "empty.txt").write_text("\n\n")
    files = {"rows": "rows.tsv", "corpus": "corpus.txt", "empty.txt": "empty.txt"}
    changes = dict(changes)
    for name in ("data", "test"):
        if name in changes:
            changes[name] = str(place / files[changes[name]])
    if "vocab" in changes:
        changes["vocab"] = [str(place / files[name]) for name in changes["vocab"]]
    options = asked(place, changes.pop("out", "refused"), **changes)
    with pytest.raises(FilbertError, match=words):
        prune(options, quiet=True)
    assert not (place / "refused").exists()


def test_heads_of_other_tasks_are_measured_by_nobody_here(tmp_path: Path, place: Path) -> None:
    folder = tiny_encoder(tmp_path / "fill", BertForMaskedLM)
    data = str(place / "rows.tsv")
    for changes in ({"heads": 1}, {"vocab": [data], "limit": 3}):
        options = asked(place, bundle=str(folder), data=data, **changes)
        with pytest.raises(UsageError, match=r"--(heads|limit): .* holds a BertForMaskedLM"):
            prune(options, quiet=True)


ROWS = {  # task -> (name, rows that filbert evaluate scores)
    "tag": ("dev.conll", "call\tO\nthe\tO\nbank\tB-PER\n\nriver\tO\nhome\tB-PER\n"),
    "answer": ("dev.json", json.dumps({"data": [{"paragraphs": [{
        "context": "lunch at the river bank now", "qas": [
            {"id": "a", "question": "call home ?",
             "answers": [{"text": "river bank", "answer_start": 13}]}]}]}]})),
    "embed": ("dev.tsv", "text\tother\tscore\nfree prize\tfree call\t5\ncall home\tlunch\t1\n"
                         "the river\tthe bank\t3\n"),
    "fill": ("dev.txt", "free prize call now\nthe river bank\n"),
    "summarize": ("dev.jsonl", json.dumps({
        "text": "free prize call now. lunch at home. the river bank.", "summary": "call home"})),
}  # fmt: skip


@pytest.mark.parametrize("task", sorted(ROWS.keys() - {"summarize"}))
def test_scores_before_and_after_of_every_task(tmp_path: Path, place: Path, task: str) -> None:
    if task == "tag":
        pytest.importorskip("seqeval")
    name, rows = ROWS[task]
    data = tmp_path / name
    data.write_text(rows, "utf-8")
    folder = task_bundle(tmp_path / "whole", task)
    corpus = tmp_path / "corpus.txt"  # without some words of the data: scores may change
    corpus.write_text("call the bank\nfree river\nit\n", "utf-8")
    options = asked(place, bundle=str(folder), vocab=[str(corpus)], data=str(data))
    options = options.model_copy(update={"out": str(tmp_path / "small")})
    result = prune(options, quiet=True)
    for side, bundle in (("before", folder), ("after", tmp_path / "small")):
        scored = evaluate(bundle, data, device="cpu", precision="float32")["scores"]
        wanted = {k: v for k, v in scored.items() if v is None or isinstance(v, float)}  # no counts
        assert result.record[side] == wanted and wanted
    assert result.record["before"] != result.record["after"]
    manifest = read_manifest(tmp_path / "small")
    assert manifest.provenance["pruned"] == result.record
    assert manifest.scores == result.record["after"]
    assert manifest.provenance["scored_on"].startswith(name)
    unmeasured = options.model_copy(
        update={"bundle": options.out, "data": None, "out": str(tmp_path / "smaller")}
    )
    prune(unmeasured, quiet=True)
    left = read_manifest(tmp_path / "smaller")  # what its parent scored is not its own
    assert not left.scores and "scored_on" not in left.provenance
    first = next(iter(result.record["before"]))
    assert f"{first}: " in str(result) and f"scores of {name}" in str(result)
    with pytest.raises(UsageError, match="has no such option"):
        prune(options.model_copy(update={"label_separator": ",", "overwrite": True}), quiet=True)


@pytest.mark.parametrize("task", sorted(ROWS))
def test_layers_of_every_task_go_by_its_score(tmp_path: Path, place: Path, task: str) -> None:
    for package in {"tag": ["seqeval"], "summarize": ["rouge_score"]}.get(task, []):
        pytest.importorskip(package)
    name, rows = ROWS[task]
    data = tmp_path / name
    data.write_text(rows, "utf-8")
    folder = task_bundle(tmp_path / "whole", task)
    metric = {"fill": "perplexity", "summarize": "rouge1", "embed": "pearson"}.get(task, "ece")
    less = metric in ("perplexity", "ece")
    scores = []
    for layer in (0, 1):  # of the model's two, the one that stays: by hand
        bundle = open_bundle(folder)
        keep_layers(bundle.model, [layer])
        left = tmp_path / f"only-{layer}"
        save_bundle(
            left, model=bundle.model, tokenizer=bundle.tokenizer, manifest=bundle.manifest,
            name="only",
        )  # fmt: skip
        scores.append(evaluate(left, data, device="cpu", precision="float32")["scores"][metric])
    options = asked(place, bundle=str(folder), data=str(data), layers=1, metric=metric)
    result = prune(options.model_copy(update={"out": str(tmp_path / "small")}), quiet=True)
    (kept,) = result.record["layers"]
    assert scores[kept] == (min if less else max)(scores)
    assert result.record["after"][metric] == scores[kept]
    again = evaluate(tmp_path / "small", data, device="cpu", precision="float32")["scores"]
    assert again[metric] == scores[kept]
    if task not in ("summarize",):  # whose scores may be equal: two sentences are the same to it
        assert scores[0] != scores[1]
    left, right = open_bundle(folder).model, open_bundle(tmp_path / "small").model
    whole = {name for name, _ in left.named_parameters() if ".layer." not in name}
    assert whole == {name for name, _ in right.named_parameters() if ".layer." not in name}
    by_default = options.model_copy(update={"metric": None, "out": str(tmp_path / "other")})
    assert len(prune(by_default, quiet=True).record["layers"]) == 1
    with pytest.raises(UsageError, match=r"--metric 'charm': the rows of --data give .*" + metric):
        prune(by_default.model_copy(update={"metric": "charm", "overwrite": True}), quiet=True)


def test_layers_by_a_score_where_less_is_better(place: Path) -> None:
    bundle = open_bundle(place / "whole")
    model: Any = bundle.model
    rows = _read(str(place / "rows.tsv"), asked(place), bundle, limit=None)
    score = partial(rows.scores, model)
    (dropped,) = {0, 1, 2, 3} - set(choose_layers(model, score, 3, metric="loss"))
    losses = {}
    for layer in range(4):
        with only_layers(model, [other for other in range(4) if other != layer]):
            losses[layer] = rows.scores(model)["loss"]
    assert dropped == min(losses, key=lambda layer: losses[layer] or 0.0)


def test_an_unknown_label_is_told_with_file_and_row(place: Path) -> None:
    lines = (place / "rows.tsv").read_text("utf-8").splitlines()
    cells = lines[2].split("\t")
    path = place / "unknown.tsv"
    label = lines[0].split("\t").index("label")
    cells[label] = "zork"
    path.write_text("\n".join([lines[0], lines[1], "\t".join(cells)]) + "\n", "utf-8")
    wanted = r"unknown\.tsv: 1 label.*'zork' in row 2"
    with pytest.raises(FilbertError, match=wanted):
        prune(asked(place, "never", layers=3, data=str(path)), quiet=True)
    with pytest.raises(FilbertError, match=wanted):
        load(place / "whole", device="cpu", precision="float32").evaluate(path)
