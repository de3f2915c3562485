"""Search: hits, the index and its staleness; ranking a file; vectors as a file. On a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from filbert.bundle import Manifest, open_bundle, save_bundle
from filbert.cli import main
from filbert.errors import FilbertError, UsageError
from filbert.infer.embed import Embedder, npy_header, write_vectors
from filbert.infer.predict import Classifier, load
from filbert.infer.rank import Ranker, rank_file, run_rank
from filbert.infer.rank_options import RankOptions
from filbert.infer.search import best_of, hit_lines, run_search, search
from filbert.infer.search_options import SearchOptions
from tests.tiny_bundle import tiny_bundle, tiny_encoder

TEXTS = ["call now", "the river bank", "", "你好世界", "free prize call now", "lunch at home"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = open_bundle(tiny_encoder(tmp_path_factory.mktemp("tiny") / "base"))
    manifest = Manifest(
        task="embed", max_length=32, settings={"pooling": "mean", "normalize": True}
    )
    return save_bundle(base.folder, model=base.model, tokenizer=base.tokenizer, manifest=manifest)


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return load(folder, device="cpu", precision="float32")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    return path


def test_one_text_a_list_and_short_vectors(embedder: Embedder) -> None:
    one, many = embedder("call now"), embedder(TEXTS)
    assert one.shape == (16,) and many.shape == (6, 16) and many.dtype == np.float32
    np.testing.assert_allclose(one, many[0], atol=1e-6)
    assert embedder([]).shape == (0, 16) and embedder(TEXTS, dimensions=4).shape == (6, 4)
    answer = embedder.answer_rows(["call now"], dimensions=4)[0]
    np.testing.assert_allclose(answer["vector"], embedder("call now", dimensions=4), atol=1e-7)
    assert json.loads(json.dumps(answer)) == answer
    assert embedder.line(answer, "call now").endswith("\tcall now")
    for wrong, told in (([1], "item 0"), (b"x", "bytes"), ([("a", "b")], "pair")):
        with pytest.raises(FilbertError, match=told):
            embedder(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="from 1 to 16"):
        embedder("a", dimensions=17)


def test_the_nearest_row_is_the_text_itself(texts: Path, embedder: Embedder) -> None:
    hits = search(SearchOptions(file=str(texts), query="你好世界", top=3), embedder)
    assert (hits[0].row, hits[0].text) == (4, "你好世界") and hits[0].score > 0.9999
    assert len(hits) == 3 and hits[0].score >= hits[1].score >= hits[2].score
    every = search(SearchOptions(file=str(texts), query="call now", top=50), embedder)
    assert {hit.row for hit in every} == {1, 2, 4, 5, 6}  # the empty row is never found
    vectors = embedder([hit.text for hit in every])
    np.testing.assert_allclose(
        vectors @ embedder("call now"), [hit.score for hit in every], atol=1e-5
    )
    assert hit_lines(every)[0] == f"1\t{every[0].score:.4f}\t1\tcall now"


def test_an_index_is_used_and_a_stale_one_refused(
    texts: Path, embedder: Embedder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "texts.safetensors"
    values: dict[str, Any] = {"file": str(texts), "query": "river", "index": str(index)}
    first = search(SearchOptions(**values), embedder)
    plain = search(SearchOptions(file=str(texts), query="river"), embedder)
    asked: list[int] = []
    original = embedder.vectors
    monkeypatch.setattr(
        embedder, "vectors", lambda t, **o: (asked.append(len(t)), original(t, **o))[1]
    )
    assert search(SearchOptions(**values), embedder) == first == plain and asked == [1]
    with pytest.raises(UsageError, match=r"stale.*dimensions"):
        search(SearchOptions(**values, dimensions=4), embedder)
    texts.write_text(texts.read_text("utf-8") + "more\n", "utf-8")
    with pytest.raises(UsageError, match=r"stale.*file has changed"):
        search(SearchOptions(**values), embedder)
    texts.write_text("\n".join(TEXTS) + "\n", "utf-8")
    config = folder / "config.json"
    before = config.read_text()
    config.write_text(before + "\n")
    with pytest.raises(UsageError, match=r"stale.*another model"):
        search(SearchOptions(**values), embedder)
    config.write_text(before)
    index.write_bytes(index.read_bytes()[:-4])
    with pytest.raises(FilbertError, match=r"texts\.safetensors is damaged.*Remove it"):
        search(SearchOptions(**values), embedder)
    with pytest.raises(UsageError, match="no index"):
        search(SearchOptions(**{**values, "index": str(folder / "model.safetensors")}), embedder)


def test_what_cannot_be_searched(texts: Path, embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="query is empty"):
        search(SearchOptions(file=str(texts), query="  "), embedder)
    with pytest.raises(UsageError, match="standard input"):
        search(SearchOptions(file="-", query="a"), embedder)
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(FilbertError, match="row 2"):
        search(SearchOptions(file=str(rows), query="a"), embedder)


def test_the_verb_prints(
    texts: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = SearchOptions(file=str(texts), query="call now", bundle=str(folder), top=1)
    run_search(options, False)
    assert capsys.readouterr().out == "1\t1.0000\t1\tcall now\n"
    run_search(options, True)
    assert json.loads(capsys.readouterr().out)["hits"][0]["row"] == 1
    wrong = tiny_bundle(tmp_path / "classifier")
    with pytest.raises(UsageError, match="task is classify"):
        run_search(options.model_copy(update={"bundle": str(wrong)}), False)


def test_vectors_as_a_file(texts: Path, embedder: Embedder, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    assert write_vectors(embedder, texts, out) == 6
    found = np.load(out, allow_pickle=False)
    np.testing.assert_allclose(found, embedder(TEXTS), atol=1e-6)
    assert found.dtype == np.float32 and found.shape == (6, 16)
    with pytest.raises(UsageError, match="--overwrite"):
        write_vectors(embedder, texts, out)
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"text": "a"}\n{"text": null}\n')
    with pytest.raises(FilbertError, match="row 2"):
        write_vectors(embedder, rows, out, overwrite=True)
    assert np.load(out).shape == (6, 16)  # the earlier one is whole
    assert len(npy_header(10**12, 10**6)) == 128


def test_ranking_a_file(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "pairs", labels=("no", "yes"), pair=True)
    classifier: Classifier = load(bundle, device="cpu", precision="float32")
    ranker = Ranker(classifier)
    options = RankOptions(bundle=str(bundle), query="call", file=str(texts))
    ranked = rank_file(ranker, options)
    assert {item["row"] for item in ranked} == {1, 2, 4, 5, 6}
    answers = classifier([("call", text) for text in TEXTS], all_scores=True)
    chance = {text: a["scores"]["yes"] for text, a in zip(TEXTS, answers, strict=True)}
    for item in ranked:
        assert item["score"] == pytest.approx(chance[item["text"]], abs=1e-5)
    assert [item["score"] for item in ranked] == sorted((i["score"] for i in ranked), reverse=True)
    best = rank_file(ranker, options.model_copy(update={"top": 2}))
    assert best == ranked[:2]
    again = ranker("call", [text for text in TEXTS if text])
    assert [item["text"] for item in again] == [item["text"] for item in ranked]
    run_rank(options.model_copy(update={"top": 1}), False)
    assert capsys.readouterr().out.count("\n") == 1
    judged = tmp_path / "judged.tsv"
    lines = [f"call\t{text}\t{int(text == ranked[0]['text'])}" for text in TEXTS if text]
    judged.write_text("\n".join(["query\tpassage\tlabel", *lines]) + "\n", "utf-8")
    assert ranker.evaluate(judged)["scores"]["mrr@10"] == 1.0
    run_rank(RankOptions(bundle=str(bundle), data=str(judged)), True)
    assert json.loads(capsys.readouterr().out)["scores"]["ndcg@10"] == 1.0


def test_what_cannot_rank(tmp_path: Path, embedder: Embedder, texts: Path) -> None:
    single = load(tiny_bundle(tmp_path / "single"), device="cpu", precision="float32")
    with pytest.raises(UsageError, match="single texts"):
        Ranker(single)
    with pytest.raises(UsageError, match="task embed"):
        Ranker(embedder)  # type: ignore[arg-type]
    pairs = load(tiny_bundle(tmp_path / "pairs", pair=True), device="cpu", precision="float32")
    with pytest.raises(UsageError, match="say --label"):
        Ranker(pairs)
    with pytest.raises(FilbertError, match="item 1"):
        Ranker(pairs, label="spam")("a", ["b", None])  # type: ignore[list-item]
    for values in ({}, {"query": "a"}, {"data": "x", "query": "a", "file": "b"}):
        with pytest.raises(ValidationError):
            RankOptions(bundle="x", **values)


def test_rank_refuses_what_search_does(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "pairs", labels=("no", "yes"), pair=True)
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n\n")

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main(["rank", *words])
        return int(left.value.code or 0), capsys.readouterr().err

    assert run(str(bundle), " ", "--file", str(texts)) == (
        2, "error: the query is empty; expected a few words or a question\n",
    )  # fmt: skip
    code, told = run(str(bundle), "call", "--file", str(blank))
    assert code == 1 and told == f"error: {blank}: no row has any text\n"
    code, told = run(str(bundle), "call")  # a sentence, not what a library prints
    assert code == 2 and "Value error" not in told and "{" not in told
    assert told.endswith("give a query and --file, or --data to score the model\n")


def test_blocks_give_what_all_rows_at_once_give() -> None:
    """Of equal cosines the earlier row is first, also where they lie in two blocks."""
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[37] = vectors[12] = vectors[3]
    rows = np.arange(1, 51)
    asked = vectors[3:4]
    cosines = (vectors @ asked[0]).tolist()
    wanted = sorted(range(50), key=lambda place: (-cosines[place], place))[:9]
    blocks = [(vectors[start : start + 7], rows[start : start + 7]) for start in range(0, 50, 7)]
    found = best_of(asked, iter(blocks), top=9)
    assert list(found) == [place + 1 for place in wanted] and list(found)[:3] == [4, 13, 38]
    assert best_of(asked, iter([]), top=9) == {}
