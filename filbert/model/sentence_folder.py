"""The files by which a sentence-transformers folder says how texts become vectors; no torch here.

    modules.json                   the steps: Transformer, Pooling and, perhaps, Normalize
    1_Pooling/config.json          how the states of the tokens become one vector
    sentence_bert_config.json      after how many tokens a text is cut off
    config_sentence_transformers.json      versions and prompts

What is read is a closed schema, in the layouts of the versions 2 to 6: a step, a key or a value
that is not understood is an error, because vectors computed without it would be other vectors.
`write` leaves the layout of version 2, which all of them open.

    settings = read(Path("all-MiniLM-L6-v2"))       # mean, normalised, 256 tokens

Source: https://www.sbert.net/docs/package_reference (module configurations), and folders that the
versions 2.0.0 and 6.2.0 wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filbert.atomic import write_file
from filbert.errors import FilbertError
from filbert.layout import plain, stays_inside, strict_json

Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

MODULES = "modules.json"
POOLING = "1_Pooling/config.json"
LIMITS = "sentence_bert_config.json"
ABOUT = "config_sentence_transformers.json"
FILES = (MODULES, POOLING, LIMITS, ABOUT)  # what `write` writes

# Names of LIMITS in folders whose encoder is another kind's; the first that is there counts.
_LIMITS = (LIMITS, *(f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert")))
_MODES = {  # of the versions before 6; the pooling that we call by its name
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


@dataclass(frozen=True)
class SentenceSettings:
    """How a text becomes a vector. `max_length`: tokens after which it is cut off, special ones
    included; None: the model's own limit."""

    pooling: Pooling = "mean"
    normalize: bool = True
    max_length: int | None = None


def read(folder: Path) -> SentenceSettings | None:
    """The settings of a sentence-transformers folder; None where it is none.

    Raises `FilbertError` naming the file and what in it is not understood.
    """
    if not (folder / MODULES).is_file():
        return None
    paths = _steps(folder)
    pooling = _pooling(folder, paths["Pooling"])
    _check_normalize(folder, paths.get("Normalize"))
    _check_about(folder)
    name = next((name for name in _LIMITS if (folder / name).is_file()), None)
    max_length = None if name is None else _limits(folder / name)
    return SentenceSettings(pooling, "Normalize" in paths, max_length)


def write(folder: Path, settings: SentenceSettings, *, hidden_size: int) -> None:
    """Write the files of `settings` beside a model's own; `hidden_size` is the vectors' length."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if settings.normalize else [])]
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": "" if kind == "Transformer" else f"{place}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    pooling: dict[str, Any] = {"word_embedding_dimension": hidden_size}
    pooling |= {key: mode == settings.pooling for key, mode in _MODES.items()}
    about: dict[str, Any] = {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    limits = {"max_seq_length": settings.max_length, "do_lower_case": False}
    (folder / POOLING).parent.mkdir(parents=True, exist_ok=True)
    for name, content in ((POOLING, pooling), (LIMITS, limits), (ABOUT, about), (MODULES, modules)):
        write_file(folder / name, json.dumps(content, indent=2) + "\n")


def _steps(folder: Path) -> dict[str, str]:
    """Transformer, Pooling and Normalize, as far as they are there: kind -> folder of each."""
    path = folder / MODULES
    modules = _json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise FilbertError(f"{path}: a list of modules was expected")
    kinds, paths = [], {}
    for module in modules:
        _known_keys(path, module, {"idx", "name", "path", "type", "kwargs"})
        if module.get("kwargs"):
            raise FilbertError(f"{path}: 'kwargs' {plain(module['kwargs'])} is not understood")
        name, place = module.get("type"), module.get("path", "")
        if not isinstance(name, str) or not isinstance(place, str):
            raise FilbertError(f"{path}: 'type' and 'path' of a module must be texts")
        if not name.startswith("sentence_transformers."):
            raise FilbertError(
                f"{path}: the module {plain(name)!r} is code of its own, which is never run here"
            )
        kinds.append(name.rpartition(".")[2])
        paths[kinds[-1]] = place
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise FilbertError(
            f"{path}: the modules are {plain(', '.join(kinds))}; understood are Transformer, "
            "Pooling and, behind them, Normalize. A model with others (Dense, Router ...) gives "
            "vectors that filbert does not compute"
        )
    if paths["Transformer"]:
        raise FilbertError(
            f"{path}: the encoder lies in {plain(paths['Transformer'])!r}; it is expected in the "
            "folder itself"
        )
    return paths


def _pooling(folder: Path, place: str) -> Pooling:
    path = folder / place / "config.json"
    if not stays_inside(path, folder) or not path.is_file():
        raise FilbertError(f"{folder / MODULES}: there is no {plain(place)}/config.json")
    values = _object(path)
    _known_keys(
        path,
        values,
        {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
        | set(_MODES),
    )
    modes = values.get("pooling_mode", [mode for key, mode in _MODES.items() if values.get(key)])
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLINGS:
        raise FilbertError(
            f"{path}: the pooling is {plain(modes)}; understood is one of {', '.join(POOLINGS)}"
        )
    mode: Pooling = modes[0]
    return mode


def _check_normalize(folder: Path, place: str | None) -> None:
    path = folder / (place or "") / "config.json"
    if place and path.is_file() and stays_inside(path, folder):
        for key, value in _object(path).items():
            if key not in ("module_input_name", "module_output_name") or (
                value != "sentence_embedding"
            ):
                raise FilbertError(f"{path}: {plain(key)} = {plain(value)} is not understood")


def _check_about(folder: Path) -> None:
    """A prompt that is put before every text would change the vectors; others are for callers."""
    path = folder / ABOUT
    if not path.is_file():
        return
    values = _object(path)
    if values.get("default_prompt_name") is not None:
        raise FilbertError(
            f"{path}: each text is to begin with the prompt "
            f"{plain(values['default_prompt_name'])!r}; filbert puts none before a text. Put it "
            "there yourself and set default_prompt_name to null"
        )
    if values.get("model_type") not in (None, "SentenceTransformer"):
        raise FilbertError(f"{path}: model_type {plain(values['model_type'])} is no sentence model")
    if values.get("truncate_dim") is not None:
        raise FilbertError(f"{path}: truncate_dim is not understood; give the number when asking")


def _limits(path: Path) -> int | None:
    values = _object(path)
    length = values.pop("max_seq_length", None)
    if length is not None and (type(length) is not int or not 2 < length <= 1_000_000):
        raise FilbertError(f"{path}: max_seq_length {plain(length)} is no number of tokens")
    harmless: dict[str, Callable[[Any], bool]] = {
        "do_lower_case": lambda value: value is False,
        "transformer_task": lambda value: value == "feature-extraction",
        "modality_config": lambda value: value == _TEXT_ONLY,
        "module_output_name": lambda value: value == "token_embeddings",
        "unpad_inputs": lambda value: value is None or isinstance(value, bool),
    }
    for key, value in values.items():
        empty = key.endswith(("_args", "_kwargs")) and not value
        if not empty and not (key in harmless and harmless[key](value)):
            raise FilbertError(f"{path}: {plain(key)} = {plain(value)} is not understood")
    return length


def _json(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FilbertError(f"could not read {path}: {error.strerror or error}") from None
    return strict_json(data, what=str(path))


def _object(path: Path) -> dict[str, Any]:
    values = _json(path)
    if not isinstance(values, dict):
        raise FilbertError(f"{path}: an object was expected")
    return values


def _known_keys(path: Path, values: dict[str, Any], known: set[str]) -> None:
    for key in values:
        if key not in known:
            raise FilbertError(f"{path}: the key {plain(key)!r} is not understood")
