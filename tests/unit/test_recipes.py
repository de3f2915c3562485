"""Every recipe that ships is valid, says how it was measured, and is tied to no machine."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import re
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest

from filbert.cli_verbs import parse
from filbert.data.prepare_options import PrepareOptions
from filbert.errors import UsageError
from filbert.train.options import ClassifyOptions, TuneOptions, parse_options, read_recipe
from filbert.train.pretrain_options import PretrainOptions

ROOT = Path(__file__).resolve().parents[2]
FOUND = sorted((ROOT / "recipes").glob("*.toml"))
ENCODERS = ("bert-", "modernbert-")
RECIPES = [path for path in FOUND if not path.stem.startswith(ENCODERS)]  # they fine-tune
PRETRAIN = [path for path in FOUND if path.stem.startswith(ENCODERS)]
NAMES = [path.stem for path in RECIPES]
PRETRAIN_NAMES = [path.stem for path in PRETRAIN]
EXPECTED = {
    *("agnews", "banking77", "cola", "mrpc", "rte", "sms-spam", "sst2", "stsb"),
    *("mini-chnsenticorp", "mini-cola", "mini-mrpc", "mini-rte", "mini-sst2", "mini-stsb"),
    *("mini-tnews", "answer-cmrc", "answer-drcd", "answer-squad", "distil-sst2", "embed-simcse"),
    *("embed-stsb", "few-shot-banking77", "few-shot-sst2", "summarize-scitldr", "tag-msra"),
    *("tag-wnut17", "translate-multi30k", "translate-tatoeba", "embed-csl", "summarize-csl"),
    "translate-scitldr",
}
# runs of benchmarks/scores.py for comparison, of another task's recipe
COMPARED = {"distil-sst2-alone", "embed-untouched"}
BASES = {"all-MiniLM-L6-v2", "filbert-mini-en", "filbert-mini-zh"}
# recipes of other tasks than classification begin with the task's name
TASKS = ("answer", "embed", "few-shot", "summarize", "tag", "translate")


def options_of(path: Path) -> TuneOptions:
    task = next((task for task in TASKS if path.stem.startswith(task + "-")), None)
    kind: type[TuneOptions] = ClassifyOptions
    if task is not None:
        module = importlib.import_module(f"filbert.train.{task.replace('-', '_')}_options")
        kind = getattr(module, f"{task.title().replace('-', '')}Options")
    return parse_options({**read_recipe(path), "out": "runs/x"}, kind, source=str(path))


def header_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n\n")[0]


# layers, width, heads: Turc et al. 2019, table 1; Devlin et al. 2019, section 3
SHAPES = {
    "tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "medium": (8, 512, 8),
    "base": (12, 768, 12), "large": (24, 1024, 16),
}  # fmt: skip


def test_the_recipes_that_we_claim_are_there() -> None:
    assert set(NAMES) >= EXPECTED
    assert {f"bert-{size}" for size in SHAPES} <= set(PRETRAIN_NAMES)
    assert {"bert-mini-zh", "bert-base-zh", "modernbert-mini"} <= set(PRETRAIN_NAMES)


@pytest.mark.parametrize("path", PRETRAIN, ids=PRETRAIN_NAMES)
def test_a_pre_training_recipe_parses_and_has_its_shape(path: Path) -> None:
    values = read_recipe(path)
    options = parse_options({**values, "data": "s", "out": "o"}, PretrainOptions, source=str(path))
    assert {key: getattr(options, key) for key in values} == values
    size = path.stem.split("-")[1]
    assert SHAPES[size] == (
        options.num_hidden_layers, options.hidden_size, options.num_attention_heads
    )  # fmt: skip
    assert "out" not in values and "data" not in values
    header = header_of(path)
    assert f"filbert pretrain recipes/{path.name}" in header
    for word in ("data", "command", "scored on", "score", "time", "hardware"):
        assert re.search(rf"^# {word}\s+\S", header, flags=re.MULTILINE), word


def test_base_and_large_have_the_numbers_of_the_paper() -> None:
    """Devlin et al. 2019, appendix A.2."""
    for name in ("bert-base", "bert-large"):
        path = ROOT / "recipes" / f"{name}.toml"
        options = parse_options(
            {**read_recipe(path), "data": "s", "out": "o"}, PretrainOptions, source=name
        )
        assert (options.steps, options.batch_size, options.lr) == (1_000_000, 256, 1e-4)
        assert (options.max_length, options.last_length, options.last_share) == (128, 512, 0.1)
        assert (options.warmup, options.weight_decay, options.beta2) == (0.01, 0.01, 0.999)
        assert (options.mask_rate, options.dropout, options.schedule) == (0.15, 0.1, "linear")
        assert (options.objective, options.optimizer) == ("next_sentence", "adamw")


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_parses(path: Path) -> None:
    values = read_recipe(path)
    options = options_of(path)
    assert options.base in BASES
    assert options.out == "runs/x"
    # what the file says is what the run gets
    assert {key: getattr(options, key) for key in values} == values


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_leaves_the_place_to_the_user(path: Path) -> None:
    values = read_recipe(path)
    assert "out" not in values
    for key in ("data", "dev", "test"):
        if key in values:
            assert values[key].startswith("data/"), key
            assert ".." not in values[key]


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_scores_rows_that_it_did_not_train_on(path: Path) -> None:
    options = options_of(path)
    assert options.data not in (options.dev, options.test)
    assert options.dev is None or options.test is None


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_the_header_tells_command_score_time_and_hardware(path: Path) -> None:
    header = header_of(path)
    for word in ("data", "command", "scored on", "score", "time", "hardware"):
        assert re.search(rf"^# {word}\s+\S", header, flags=re.MULTILINE), word


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_the_command_of_the_header_names_real_options(path: Path) -> None:
    header = header_of(path)
    task = next((task for task in TASKS if path.stem.startswith(task + "-")), "classify")
    assert f"filbert train {task} --recipe recipes/{path.name}" in header
    command = header.split("# command")[1].split("# scored on")[0]
    flags = set(re.findall(r"--([a-z-]+)", command)) - {"recipe"}
    assert {"data", "out"} <= flags
    assert {flag.replace("-", "_") for flag in flags} <= set(type(options_of(path)).model_fields)


def test_a_misspelt_key_is_refused_with_its_neighbour(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text('data = "a.csv"\nbase = "m"\nout = "o"\nbatch_token = 5\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"unknown key 'batch_token'.*batch_tokens") as caught:
        parse_options(read_recipe(path), ClassifyOptions, source=str(path))
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_toml_and_no_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("data = = 1\n", encoding="utf-8")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_recipe(path)
    with pytest.raises(UsageError, match="no recipe at"):
        read_recipe(tmp_path / "absent.toml")


def load_benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:  # they import what stands beside them
        patch.syspath_prepend(ROOT / "benchmarks")
        spec.loader.exec_module(module)
    return module


def test_scores_covers_every_recipe_with_the_metric_that_picks_its_checkpoint() -> None:
    scores = load_benchmark("scores")
    assert set(scores.TASKS) == EXPECTED | COMPARED
    assert set(NAMES) == EXPECTED
    for name, task in scores.TASKS.items():
        options = options_of(scores.recipe_file(name))
        assert options.metric in (task.metrics[0], None), name
        assert not (task.is_dev and options.dev is None), name
        assert task.scored in ("dev", "test"), name


def test_scores_types_commands_that_the_verbs_take(tmp_path: Path) -> None:
    """The options of each run, over its recipe, are valid ones of the verb."""
    scores = load_benchmark("scores")
    for name, task in scores.TASKS.items():
        path = scores.recipe_file(name)
        files = {option: tmp_path / file for option, file in task.files.items()}
        verb = scores.train_verb(task, path, files, seed=1, out=tmp_path / "out")
        assert verb[:4] == ["train", task.verb, "--recipe", str(path)]
        typed = dict(zip(verb[4::2], verb[5::2], strict=True))
        values = {key.removeprefix("--").replace("-", "_"): typed[key] for key in typed}
        kind = type(options_of(path))
        options = parse(values, str(path), kind, verb=task.verb)
        assert (options.seed, options.out) == (1, str(tmp_path / "out"))
        assert {option: getattr(options, option) for option in files} == {
            option: str(file) for option, file in files.items()
        }


def test_scores_keeps_runs_of_another_base_apart() -> None:
    scores = load_benchmark("scores")
    names = {
        scores.folder_of("embed-stsb", {"lr": 1}, 0, scores.parse_arguments(typed)).name
        for typed in ([], ["--random"], ["--base", "a/b"], ["--base", "c", "--random"])
    }
    assert len(names) == 4
    assert all(re.fullmatch(r"embed-stsb(-random)?(-[bc])?-[0-9a-f]{8}-seed0", n) for n in names)


def test_scores_tabulates_mean_and_deviation_of_the_seeds() -> None:
    scores = load_benchmark("scores")
    records = [
        {"task": "cola", "seed": seed, "rows": 1043, "scores": {"mcc": value},
         "last_epoch": 0.25, "process_seconds": 90.0}
        for seed, value in enumerate((0.2, 0.3, 0.4))
    ]  # fmt: skip
    row = scores.table(records).splitlines()[-1]
    # by hand: mean 30, sample deviation sqrt((100 + 0 + 100) / 2) = 10
    cells = ["cola", "1,043 dev rows", "mcc x 100", "**30.00**", "10.00", "20.00, 30.00, 40.00"]
    assert row == "| " + " | ".join([*cells, "25.00", "1.5"]) + " |"


def test_scores_shows_other_files_of_a_run_and_scores_of_a_hundred() -> None:
    scores = load_benchmark("scores")
    run = {"seed": 0, "last_epoch": None, "process_seconds": 60.0, "rows": 1000}
    both = {"f1": 0.5, "exact_match": 0.25}
    lines = scores.table(
        [
            {**run, "task": "translate-multi30k", "scores": {"bleu": 30.5, "chrf": 50.0}},
            {**run, "task": "answer-cmrc", "scores": both, "last_epoch": 0.4,
             "also": {"DRCD test": {"rows": 7, "scores": both}}},
        ]
    ).splitlines()  # fmt: skip
    assert "| answer-cmrc | 1,000 dev rows | f1 % | **50.00** | - | 50.00 | 40.00 | 1.0 |" in lines
    assert "| answer-cmrc | 7 DRCD test rows | f1 % | **50.00** | - | 50.00 | - | 1.0 |" in lines
    assert lines[-2].startswith("| translate-multi30k | 1,000 test rows | bleu | **30.50** |")


def test_scores_takes_sentences_of_reviews_each_once(tmp_path: Path) -> None:
    tasks = load_benchmark("score_tasks")
    text = "".join(f"This is sentence number {i}.<br /><br />No. " for i in range(100))
    with gzip.open(tmp_path / "r.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(f"{json.dumps({'text': text})}\n" * 2)
    made = tasks.sentences_of_reviews({"unlabelled": tmp_path / "r.jsonl.gz"}, tmp_path, {})
    expected = [
        line for line in (f"This is sentence number {i}." for i in range(100))
        if zlib.crc32(line.encode()) < 0.35 * 2**32
    ]  # fmt: skip
    assert 20 < len(expected) < 50
    assert made["unlabelled"].read_text(encoding="utf-8").split("\n") == [*expected, ""]


def test_finetune_pairs_its_ratios_within_a_seed_and_rotates_the_arms() -> None:
    finetune = load_benchmark("finetune")
    arms = ("a", "b", "c")
    orders = [finetune.rotation(arms, turn) for turn in range(3)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]

    def run(arm: str, seed: int, seconds: float) -> dict[str, object]:
        return {"arm": arm, "seed": seed, "train_seconds": seconds, "process_seconds": seconds + 2,
                "ms_per_step": 1.0, "steps": 10, "accuracy": 0.9, "peak_mb": 100.0}  # fmt: skip

    runs = [run("filbert", 1, 4.0), run("filbert", 0, 2.0), run("trainer-bf16", 0, 6.0),
            run("trainer-bf16", 1, 8.0)]  # fmt: skip
    summary = finetune.summarise(runs)
    assert summary["ratios"]["trainer-bf16"]["train_seconds"] == [3.0, 2.0]
    assert summary["ratios"]["trainer-bf16"]["process_seconds"] == [2.0, 10 / 6]
    assert summary["arms"]["filbert"]["train_seconds"] == 3.0
    assert "| trainer-bf16 | **2.50x** (3.00, 2.00) | 1.83x | 2x |" in finetune.tables(summary)


# --- recipe and command line together ----------------------------------------------------------


@pytest.mark.parametrize("path", PRETRAIN, ids=PRETRAIN_NAMES)
def test_a_typed_length_replaces_that_of_the_recipe(path: Path) -> None:
    """runs/cpu.sh gives --budget with every recipe."""
    for name, value, other in (("budget", "60m", "steps"), ("steps", 5, "budget")):
        typed = {"data": "s", "out": "o", name: value}
        options = parse(typed, str(path), PretrainOptions, verb="pretrain")
        assert (getattr(options, name), getattr(options, other)) == (value, None)


def told(typed: dict[str, object], recipe: Path | None, kind: type = PretrainOptions) -> str:
    with pytest.raises(UsageError) as caught:
        parse(typed, None if recipe is None else str(recipe), kind, verb="verb")
    return str(caught.value)


def test_both_lengths_in_one_place_stay_an_error(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('budget = "5m"\nsteps = 5\n')
    paths = {"data": "s", "out": "o"}
    assert told(paths, recipe).startswith(f"{recipe}: give either steps or budget")
    recipe.write_text("steps = 5\n")
    message = told({**paths, "steps": 5, "budget": "5m"}, recipe)
    assert message.startswith("--budget, --steps: give either")


def test_a_typed_value_is_not_blamed_on_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('data = "s"\nout = "o"\nsteps = 5\nclip = -3.0\n')
    message = told({"lr": -1.0, "mix": "a:2"}, recipe)
    assert message.startswith("--lr -1.0: Input should be greater than 0; ")
    assert f"; {recipe}: 'clip' = -3.0: " in message
    assert "; --mix a:2: write it as source=passes" in message
    with pytest.raises(UsageError, match=r"^prepare: 'corpus' is required \(CORPUS, without"):
        parse(
            {"vocab": "v", "out": "o"}, None, PrepareOptions, verb="prepare", arguments=("corpus",)
        )
    assert told({}, None).count("verb: ") == 1  # the source is named once


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps = true", "'steps' = True: a number was expected"),
        ('lr = "1e-3"', "'lr' = '1e-3': a number was expected, without quotation marks"),
        ('resume = "yes"', "'resume' = 'yes': true or false was expected, without"),
        ("resume = 1", "'resume' = 1: true or false was expected"),
    ],
)
def test_types_of_a_recipe_are_not_converted(tmp_path: Path, line: str, message: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'data = "s"\nout = "o"\n{line}\n')
    assert message in told({}, recipe)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_bytes(b"\xef\xbb\xbfsteps = 3\r\nlr = 0.1\r\n")
    assert read_recipe(recipe) == {"steps": 3, "lr": 0.1}


def test_batches_do_not_begin_larger_than_they_become() -> None:
    message = told({"data": "s", "out": "o", "steps": 5, "batch_start": 300}, None)
    assert "batch_start 300 is more than batch_size 256" in message


def test_a_source_with_an_equals_sign_can_be_mixed() -> None:
    typed = {"data": "s", "out": "o", "steps": 5, "mix": "a=b=2,c=0.5"}
    options = parse(typed, None, PretrainOptions, verb="pretrain")
    assert options.mix == {"a=b": 2.0, "c": 0.5}
