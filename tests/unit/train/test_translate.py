"""Training a translator in seconds, English words to Chinese ones, and the bundle it leaves."""

from __future__ import annotations

import io
import json
import logging
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from filbert.bundle import open_bundle, read_manifest
from filbert.cli_predict import predict
from filbert.errors import FilbertError, UsageError
from filbert.infer.evaluate import evaluate
from filbert.infer.predict import load, stream
from filbert.infer.predict_file import predict_file
from filbert.infer.predict_options import PredictOptions
from filbert.infer.translate import Translator
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.train.folder import check_folder, is_ours
from filbert.train.translate import train_translate
from filbert.train.translate_options import TranslateOptions
from tests.tiny import WORDS, save_base
from tests.tiny_tasks import task_bundle

CHINESE = dict(zip(WORDS, "好大善佳妙坏差丑弱钝影书食店戏", strict=True))


def pairs(path: Path, rows: int, *, seed: int = 0) -> Path:
    """A TSV of English words and, character by character, their Chinese."""
    draw = random.Random(seed)
    lines = ["source\ttarget"]
    for _ in range(rows):
        words = [draw.choice(WORDS) for _ in range(draw.randint(1, 4))]
        lines.append(" ".join(words) + "\t" + "".join(CHINESE[word] for word in words) + "。")
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def options(folder: Path, **changes: object) -> TranslateOptions:
    values: dict[str, object] = {
        "data": str(pairs(folder / "train.tsv", 600)),
        "dev": str(pairs(folder / "dev.tsv", 60, seed=1)),
        "base": str(save_base(folder / "base")),
        "out": str(folder / "out"),
        "decoder_layers": 1,
        "target_vocab_size": 101,
        "max_target": 12,
        "epochs": 40,
        "lr": 3e-3,
        "dropout": 0.0,
        "batch_tokens": 256,
        "eval_rows": 30,
        "device": "cpu",
        "precision": "float32",
        "tensorboard": False,
    }
    return TranslateOptions(**{**values, **changes})  # type: ignore[arg-type]


def test_a_translator_learns_and_its_bundle_writes(tmp_path: Path) -> None:
    given = options(tmp_path, epochs=60, batch_tokens=256, lr=3e-3)
    result = train_translate(given, quiet=True)
    assert result.scores["bleu"] > 80
    out = tmp_path / "out"
    manifest = read_manifest(out)
    assert manifest.task == "translate"
    assert "tok:zh" in manifest.provenance["signatures"]["bleu"]
    assert (out / "decoder_tokenizer" / "vocab.txt").is_file()
    translate = load(out, device="cpu", precision="float32")
    assert isinstance(translate, Translator)
    # trap: one output for every input
    texts = ["good film", "bad book", "dull hotel", "nice"]
    want = ["".join(CHINESE[word] for word in text.split()) + "。" for text in texts]
    answers = translate(texts)
    assert sum(a["text"] == w for a, w in zip(answers, want, strict=True)) >= 3
    assert translate("good film") == answers[0]
    assert [a["text"] for a in stream(translate, iter(texts))] == [a["text"] for a in answers]
    several = translate("good film", beams=4, best=3)
    assert several["text"] == answers[0]["text"] and len(several["others"]) == 2
    assert several["score"] >= several["others"][0]["score"]
    drawn = translate(texts, sample=True, top_k=2, seed=4)
    assert drawn == translate(texts, sample=True, top_k=2, seed=4)
    assert translate("good film", max_tokens=1)["cut_off"]
    shown = translate("good film", alignments=True)["alignment"]
    assert shown["source"] == ["[CLS]", "good", "film", "[SEP]"]
    assert shown["written"][-1] == "[SEP]"
    assert all(sum(row) == pytest.approx(1.0, abs=1e-3) for row in shown["weights"])
    # scores of a file are those of training, which wrote with the same beams
    record = translate.evaluate(tmp_path / "dev.tsv")
    assert record["scores"]["bleu"] == pytest.approx(result.scores["bleu"])
    by_verb = evaluate(out, tmp_path / "dev.tsv", beams=1, device="cpu", precision="float32")
    assert by_verb["scores"] == translate.evaluate(tmp_path / "dev.tsv", beams=1)["scores"]
    with pytest.raises(UsageError, match=r"--beam: .* no such option\. Did you mean 'beams'"):
        evaluate(out, tmp_path / "dev.tsv", beam=1)
    with pytest.raises(FilbertError, match=r"item 1: the text is empty"):
        translate(["good", " "])
    with pytest.raises(UsageError, match="no option 'beam'"):
        translate("good", beam=2)


def test_transformers_opens_the_bundle_and_writes_the_same(tmp_path: Path) -> None:
    given = options(tmp_path, epochs=3)
    train_translate(given, quiet=True)
    # all that a run leaves is its own, and a new one may replace it
    assert [path.name for path in (tmp_path / "out").iterdir() if not is_ours(path.name)] == []
    check_folder(tmp_path / "out", given.model_copy(update={"overwrite": True}))
    out, text = tmp_path / "out", "superb film"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    reader = transformers.AutoTokenizer.from_pretrained(out)
    writer = transformers.AutoTokenizer.from_pretrained(out / "decoder_tokenizer")
    model = transformers.EncoderDecoderModel.from_pretrained(out).eval()
    ids = model.generate(
        **{k: v for k, v in reader(text, return_tensors="pt").items() if k != "token_type_ids"},
        num_beams=1, do_sample=False, max_new_tokens=12,
    )  # fmt: skip
    want = writer.decode(ids[0], skip_special_tokens=True).replace(" ", "")
    translate = load(out, device="cpu", precision="float32")
    assert translate(text, beams=1)["text"] == want


@pytest.mark.parametrize("decoder", ["share", "base", "random"])
def test_decoders_and_summaries(tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"document": f"the {word} {other} was {word}", "summary": f"{word} {other}"}
        for word in WORDS
        for other in WORDS[10:]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    base = str(save_base(tmp_path / "base"))
    chosen = base if decoder == "base" else decoder
    given = options(
        tmp_path, data=str(path), dev=None, task="summarize", decoder=chosen, epochs=1,
        holdout=0.2, base=base, stem=True,
    )  # fmt: skip
    result = train_translate(given, quiet=True)
    assert set(result.scores) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    bundle = open_bundle(tmp_path / "out")
    assert isinstance(bundle.model, BertForSeq2SeqLM)
    assert bundle.model.config.tie_encoder_decoder is (decoder == "share")
    assert bundle.manifest.task == "summarize" and bundle.manifest.settings["stem"] is True
    assert not (tmp_path / "out" / "decoder_tokenizer").exists()  # one vocabulary
    summarize = load(tmp_path / "out", device="cpu", precision="float32")
    assert isinstance(summarize, Translator)
    assert isinstance(summarize("the good film was good")["text"], str)
    assert "rouge1" in summarize.evaluate(path, max_tokens=4)["scores"]


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--target-dev has no --dev beside it"):
        train_translate(options(tmp_path, dev=None, target_dev="x"), quiet=True)
    with pytest.raises(UsageError, match="one file; give --dev alone"):
        train_translate(options(tmp_path, target_dev="x"), quiet=True)
    with pytest.raises(UsageError, match="leave --target-vocab out"):
        train_translate(options(tmp_path, decoder="share", target_vocab="learn"), quiet=True)
    with pytest.raises(UsageError, match="for translate there are"):
        train_translate(options(tmp_path, metric="accuracy"), quiet=True)
    with pytest.raises(UsageError, match="--stem: ROUGE scores summaries"):
        train_translate(options(tmp_path, stem=True), quiet=True)
    with pytest.raises(UsageError, match="--holdout-test"):
        train_translate(options(tmp_path, holdout_test=0.1), quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_transformers_answers_with_its_own_tokenizer(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    transformers.logging.disable_progress_bar()
    model = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(base, base)
    model.save_pretrained(tmp_path / "bert2bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "bert2bert" / name).write_bytes((base / name).read_bytes())
    translate = load(tmp_path / "bert2bert", device="cpu", precision="float32")
    assert translate.model.config.decoder_start_token_id == 2  # [CLS], which no file names
    assert isinstance(translate("good film", max_tokens=5)["text"], str)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("writer")
    small = {"data": str(pairs(folder / "small.tsv", 60)), "epochs": 1, "max_length": 8}
    train_translate(options(folder, **small), quiet=True)
    return folder / "out"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"length_penalty": 1e300}, "length_penalty must be a number from -10 to 10, got 1e"),
        ({"length_penalty": float("nan")}, "length_penalty must be"),
        ({"sample": True, "temperature": 1e-300}, "temperature must be a number from 0.001 to"),
        ({"sample": True, "temperature": 1e300}, "temperature must be a number from 0.001 to"),
        ({"sample": True, "top_p": 1.5}, "top_p must be"),
        ({"sample": True, "seed": -1}, "seed must be a whole number from 0"),
        ({"beams": 100_000}, "beams must be a whole number from 1 to 64, got 100000"),
        ({"beams": 0}, "beams must be"),
        ({"beams": 2.5}, "beams must be a whole number"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must be"),
        ({"min_tokens": 9, "max_tokens": 4}, "min_tokens must be from 0 to max_tokens, 4, got 9"),
        ({"min_tokens": 99}, "min_tokens must be from 0 to max_tokens, 12, got 99"),
        ({"temperature": 0.7}, "temperature is for drawing words at random; say --sample"),
        ({"top_p": 0.7}, "top-p is for drawing words at random; say --sample"),
        ({"top_k": 7}, "top-k is for drawing words at random; say --sample"),
        ({"seed": 7}, "seed is for drawing words at random; say --sample"),
        ({"sample": True, "beams": 3}, "sampling writes one text, so beams must be 1, got 3"),
    ],
)
def test_searches_that_cannot_be(writer: Path, asked: dict[str, Any], message: str) -> None:
    translate = load(writer, device="cpu", precision="float32")
    with pytest.raises(UsageError, match=message):
        translate("good film", **asked)


def test_a_source_that_is_cut_is_told(writer: Path, caplog: pytest.LogCaptureFixture) -> None:
    translate = load(writer, device="cpu", precision="float32")
    rows = ["good film", "good " * 20, "good " * 6, "good " * 7]  # the model reads 6 words
    answers = translate(rows)
    assert ["cut" in answer for answer in answers] == [False, True, False, True]
    assert answers[1]["cut"] is True
    assert translate(rows[1])["text"] == answers[1]["text"]
    assert caplog.text.count("a text has more than the 8 tokens that the model reads") == 1
    assert translate.writer.model_max_length == 16  # as many as its decoder has places for


def test_what_is_drawn_depends_on_the_text_alone(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the place, the block, a bad row before it, or where a run was cut off."""
    translate = load(writer, device="cpu", precision="float32")
    drawing: dict[str, Any] = {"sample": True, "seed": 3, "max_tokens": 8}
    words = [f"{one} {other}" for one in WORDS[:6] for other in WORDS[10:]]  # 30
    rows = [*words, *words[:10]]
    texts = [answer["text"] for answer in translate(rows, **drawing)]
    assert texts[30:] == texts[:10] and len({*texts}) > 20
    assert texts != [answer["text"] for answer in translate(rows, **{**drawing, "seed": 4})]
    streamed = stream(translate, iter(rows), window=16, **drawing)
    assert [answer["text"] for answer in streamed] == texts
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"text": " "}, *({"text": row} for row in rows)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

    blocks: list[int] = []
    plain = Translator.answer_rows

    def cut_off(self: Translator, rows: Any, **options: Any) -> Any:
        blocks.append(len(rows))
        if len(blocks) == 2:
            raise KeyboardInterrupt
        return plain(self, rows, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Translator, "answer_rows", cut_off)
        with pytest.raises(KeyboardInterrupt, match="16 rows are safe"):
            predict_file(translate, source, out, window=16, progress=False, **drawing)
    predict_file(translate, source, out, window=16, progress=False, resume=True, **drawing)
    answers = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert "error" in answers[0]
    assert [answer["text"] for answer in answers[1:]] == texts


def test_stems_of_a_bundle_that_summarizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = task_bundle(
        tmp_path / "out", "summarize", kind=BertForSeq2SeqLM, settings={"stem": True}
    )
    path = tmp_path / "dev.tsv"
    path.write_text("text\tsummary\nthe cat was running to the bank\tthe cat runs\n", "utf-8")
    written = [{"text": "the cats running"}]
    monkeypatch.setattr(Translator, "answer_rows", lambda self, rows, **options: written)
    summarize = load(bundle, device="cpu", precision="float32")
    for stem, wanted in ((None, 1.0), (True, 1.0), (False, 1 / 3)):
        assert summarize.evaluate(path, stem=stem)["scores"]["rouge1"] == pytest.approx(wanted)


def test_an_empty_line_is_answered_in_its_place(
    writer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = SimpleNamespace(buffer=io.BytesIO(b"good film\n\nbad film\n"), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", pipe)
    predict(PredictOptions(bundle=str(writer)), True)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[1] == {
        "error": "standard input, line 2: the text is empty; there is nothing to write about"
    }
    assert "text" in answers[0] and "text" in answers[2] and len(answers) == 3


def test_what_a_training_run_refuses_of_its_files_and_limits(tmp_path: Path) -> None:
    given = options(tmp_path)
    with pytest.raises(UsageError, match=r"train\.tsv is a table, which holds both sides"):
        train_translate(given.model_copy(update={"target_data": given.data}), quiet=True)
    with pytest.raises(UsageError, match="--min-tokens 13 is more than --max-target 12"):
        train_translate(given.model_copy(update={"min_tokens": 13}), quiet=True)


def test_targets_too_few_for_a_vocabulary(tmp_path: Path) -> None:
    data = tmp_path / "one.tsv"
    data.write_text("source\ttarget\nA dog.\txyz\n", "utf-8")
    given = options(tmp_path).model_copy(update={"data": str(data)})
    with pytest.raises(FilbertError, match=r"the targets of 1 pairs: no word.*--target-vocab"):
        train_translate(given, quiet=True)
