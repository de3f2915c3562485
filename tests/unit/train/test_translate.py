"""Training a translator in seconds, English words to Chinese ones, and the bundle it leaves."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import pytest
import transformers

from filbert.bundle import open_bundle, read_manifest
from filbert.errors import FilbertError, UsageError
from filbert.infer.predict import load, stream
from filbert.infer.translate import Translator
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.train.translate import train_translate
from filbert.train.translate_options import TranslateOptions
from tests.tiny import WORDS, save_base

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
    with pytest.raises(FilbertError, match=r"item 1: the text is empty"):
        translate(["good", " "])
    with pytest.raises(UsageError, match="no option 'beam'"):
        translate("good", beam=2)


def test_transformers_opens_the_bundle_and_writes_the_same(tmp_path: Path) -> None:
    train_translate(options(tmp_path, epochs=3), quiet=True)
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
        holdout=0.2, base=base,
    )  # fmt: skip
    result = train_translate(given, quiet=True)
    assert set(result.scores) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    bundle = open_bundle(tmp_path / "out")
    assert isinstance(bundle.model, BertForSeq2SeqLM)
    assert bundle.model.config.tie_encoder_decoder is (decoder == "share")
    assert bundle.manifest.task == "summarize"
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
