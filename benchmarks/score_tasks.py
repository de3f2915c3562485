"""What `scores.py` runs: for each recipe the verb, its files below the data root, what is scored.

Why: everything that one would type for a recipe stands here in one table, beside the few files that
are made first because a data set does not come in the form that the recipe takes. Nothing to run;
scores.py (its README stands here too) does.

Files that are made, always the same:

- sms-spam: a fifth of the messages set aside as the test, by `split_holdout` with seed 0.
- embed-simcse: the different sentences of STS-B's training pairs, one a line, without their scores.
- distil-sst2: the sentences of IMDB's training reviews without their labels, one a line: those of 4
  to 30 words (`filbert.text.sentences`) whose zlib.crc32 is below 0.35 * 2**32, each once.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filbert.data.examples import read_examples, split_holdout
from filbert.data.sentence_pairs import read_sentences
from filbert.text.sentences import split_sentences

SMS_TEST = 0.2  # share of the messages that is set aside: 1,114 messages, one is 0.09 points
IMDB_SHARE = 0.35  # of the sentences of its training reviews: 85,390 of them
IMDB_WORDS = (4, 30)
Files = dict[str, Path]
Prepare = Callable[[Files, Path, dict[str, Any]], Files]


@dataclass(frozen=True)
class Task:
    """What is typed for a recipe, and what is told of the outcome."""

    files: dict[str, str]  # options of the verb, and their files below the data root
    metrics: tuple[str, ...]  # the first one is the task's own
    scored: str = "dev"  # whose file is scored; one named "test" picked nothing
    verb: str = "classify"
    recipe: str = ""  # where it is not the task's own name
    typed: tuple[str, ...] = ()  # more options
    also: dict[str, str] = field(default_factory=dict)  # other files that the bundle is scored on
    prepare: Prepare | None = None  # makes files, in the folder of the runs
    teacher: str = ""  # the task whose bundle of seed 0 teaches

    @property
    def is_dev(self) -> bool:
        """Whether the scored rows also pick the epoch."""
        return self.scored == "dev"


def split_sms(files: Files, folder: Path, recipe: dict[str, Any]) -> Files:
    """The fixed split of the SMS Spam Collection, as two UTF-8 files with the recipe's columns."""
    made = {"data": folder / "sms-train.csv", "test": folder / "sms-test.csv"}
    text, label = recipe["text_column"], recipe["label_column"]
    examples = read_examples(
        str(files["data"]),
        text_column=text,
        label_column=label,
        encoding=recipe["encoding"],
        header=recipe["header"],
    )
    parts = split_holdout(
        examples, fraction=SMS_TEST, seed=0, problem_type="single_label_classification"
    )
    for path, part in zip(made.values(), parts, strict=True):
        assert part.labels is not None
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow([text, label])
            writer.writerows(zip(part.texts, part.labels, strict=True))
    return {**files, **made}


def sentences_of_pairs(files: Files, folder: Path, recipe: dict[str, Any]) -> Files:
    """Every different sentence of a file of pairs, one a line."""
    made = folder / "stsb-sentences.txt"
    write_lines(made, read_sentences(str(files["data"]), kind="scored").texts)
    return {**files, "data": made}


def sentences_of_reviews(files: Files, folder: Path, recipe: dict[str, Any]) -> Files:
    """A fixed share of the sentences of IMDB's training reviews, one a line."""
    made = folder / "imdb-sentences.txt"
    if not made.exists():
        found: dict[str, None] = {}
        with gzip.open(files["unlabelled"], "rt", encoding="utf-8") as file:
            for line in file:
                text = re.sub(r"<br\s*/?>", "\n", json.loads(line)["text"])
                for sentence in split_sentences(text):
                    fits = IMDB_WORDS[0] <= len(sentence.split()) <= IMDB_WORDS[1]
                    if fits and zlib.crc32(sentence.encode()) < IMDB_SHARE * 2**32:
                        found[sentence] = None
        write_lines(made, found)
    return {**files, "unlabelled": made}


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """One text a line; whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    part.replace(path)


def of_folder(folder: str, suffix: str, **names: str) -> dict[str, str]:
    """Options and their files in one folder."""
    return {option: f"{folder}/{name}{suffix}" for option, name in names.items()}


def glue(folder: str, metric: str, *others: str) -> Task:
    """A task whose folder holds train.tsv and dev.tsv."""
    return Task(of_folder(folder, ".tsv", data="train", dev="dev"), (metric, *others))


SST2 = of_folder("glue/SST-2", ".tsv", data="train", dev="dev")
STSB = of_folder("glue/STS-B", ".tsv", data="train", dev="dev")
CSL = of_folder("csl_title", ".tsv", data="dev", test="test")
BANKING = of_folder("banking77", ".csv", data="train", test="test")

TASKS = {
    "sms-spam": Task(
        {"data": "sms_spam/spam.csv"}, ("accuracy", "f1"), scored="test", prepare=split_sms
    ),
    "sst2": Task(SST2, ("accuracy",)),
    "mrpc": glue("glue/MRPC", "accuracy", "f1"),
    "rte": glue("glue/RTE", "accuracy"),
    "stsb": Task(STSB, ("pearson", "spearman")),
    "cola": glue("glue/CoLA", "mcc"),
    "banking77": Task(BANKING, ("accuracy", "f1_macro"), scored="test"),
    "agnews": Task(
        of_folder("agnews", ".tsv", data="train", test="test"),
        ("accuracy", "f1_macro"),
        scored="test",
    ),
    "mini-chnsenticorp": glue("chnsenticorp", "accuracy"),
    "mini-tnews": glue("tnews", "accuracy"),
}
# the recipes of the models that filbert carries: the same files, another base
TASKS |= {f"mini-{name}": TASKS[name] for name in ("sst2", "mrpc", "rte", "cola", "stsb")}
TASKS |= {
    "answer-squad": Task(
        of_folder("squad", "-v1.1.json.gz", data="train", dev="dev"),
        ("f1", "exact_match"),
        verb="answer",
    ),
    "answer-cmrc": Task(
        of_folder("cmrc2018", ".json.gz", data="train", dev="dev"),
        ("f1", "exact_match"),
        verb="answer",
        also={"DRCD test": "drcd/test.json.gz"},
    ),
    "answer-drcd": Task(
        of_folder("drcd", ".json.gz", data="dev", test="test"),
        ("f1", "exact_match"),
        verb="answer",
        scored="test",
    ),
    "tag-wnut17": Task(
        of_folder(
            "wnut17",
            "",
            data="wnut17train.conll",
            dev="emerging.dev.conll",
            test="emerging.test.annotated",
        ),
        ("f1", "precision", "recall"),
        verb="tag",
        scored="test",
    ),
    "tag-msra": Task(
        of_folder("msra_ner", ".txt.gz", data="train", test="test"),
        ("f1", "precision", "recall"),
        verb="tag",
        scored="test",
    ),
    "embed-stsb": Task(STSB, ("spearman", "pearson"), verb="embed"),
    "embed-simcse": Task(STSB, ("spearman", "pearson"), verb="embed", prepare=sentences_of_pairs),
    # one step that moves nothing: the vectors of the base as it comes, whatever kind of folder
    "embed-untouched": Task(
        STSB,
        ("spearman", "pearson"),
        verb="embed",
        recipe="embed-stsb",
        typed=("--lr", "1e-12", "--epochs", "0.0001"),
    ),
    "embed-csl": Task(CSL, ("mrr@10", "recall@1", "recall@10"), verb="embed", scored="test"),
    "few-shot-banking77": Task(BANKING, ("accuracy", "f1_macro"), verb="few-shot", scored="test"),
    "few-shot-sst2": Task(  # the dev file as a test: nothing is picked on it
        of_folder("glue/SST-2", ".tsv", data="train", test="dev"),
        ("accuracy",),
        verb="few-shot",
        scored="test",
    ),
    "distil-sst2": Task(
        {**SST2, "unlabelled": "imdb/train.jsonl.gz"},
        ("accuracy",),
        prepare=sentences_of_reviews,
        teacher="sst2",
    ),
    # as many steps as distil-sst2 has, in batches of the same size, scored as often
    "distil-sst2-alone": Task(
        SST2,
        ("accuracy",),
        recipe="mini-sst2",
        typed=(
            "--batch-tokens",
            "512",
            "--lr",
            "3e-4",
            "--epochs",
            "6.2086",
            "--eval-every",
            "5698",
        ),
    ),
    "summarize-scitldr": Task(
        of_folder("scitldr", ".jsonl", data="train", dev="dev", test="test"),
        ("rouge1", "rouge2", "rougeL", "lead_rouge1", "oracle_rouge1"),
        verb="summarize",
        scored="test",
    ),
    "summarize-csl": Task(
        CSL,
        ("rouge1", "rouge2", "rougeL", "lead_rouge1", "oracle_rouge1"),
        verb="summarize",
        scored="test",
    ),
    "translate-scitldr": Task(
        of_folder("scitldr", ".jsonl", data="train", dev="dev", test="test"),
        ("rouge1", "rouge2", "rougeL"),
        verb="translate",
        scored="test",
    ),
    "translate-multi30k": Task(
        of_folder(
            "multi30k",
            ".gz",
            data="train.en",
            target_data="train.de",
            dev="val.en",
            target_dev="val.de",
            test="test_2016_flickr.en",
            target_test="test_2016_flickr.de",
        ),
        ("bleu", "chrf"),
        verb="translate",
        scored="test",
    ),
    # the recipe holds dev and test rows out by a hash of the English side
    "translate-tatoeba": Task(
        {"data": "tatoeba/cmn.txt"}, ("bleu", "chrf"), verb="translate", scored="test"
    ),
}
