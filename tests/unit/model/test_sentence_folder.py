"""The files of a sentence-transformers folder: read in every layout, refused where not understood,
written so that they are read again. Files as the versions 2.0.0 and 6.2.0 write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from filbert.errors import FilbertError
from filbert.model.sentence_folder import FILES, SentenceSettings, read, write

OLD_TYPES = ("Transformer", "Pooling", "Normalize")


def old_folder(folder: Path, **changes: Any) -> Path:
    """What version 2 wrote for all-MiniLM-L6-v2, with files replaced by name."""
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": "" if n == 0 else f"{n}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(OLD_TYPES)
    ]
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": 384,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
    }
    return put(folder, files | changes)


def put(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_folder_of_version_2(tmp_path: Path) -> None:
    assert read(old_folder(tmp_path)) == SentenceSettings("mean", True, 256)


def test_a_folder_of_version_6(tmp_path: Path) -> None:
    base = "sentence_transformers."
    types = [
        *("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling"),
        "base.modules.normalize.Normalize",
    ]
    names = {"module_input_name": "sentence_embedding"}
    files = {
        "modules.json": [
            {"idx": n, "name": str(n), "path": path, "type": base + kind}
            for n, (kind, path) in enumerate(
                zip(types, ["", "1_Pooling", "2_Normalize"], strict=True)
            )
        ],
        "1_Pooling/config.json": {
            "embedding_dimension": 384,
            "pooling_mode": "cls",
            "include_prompt": True,
        },
        "2_Normalize/config.json": names | {"module_output_name": "sentence_embedding"},
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        },
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "6.2.0"},
            "default_prompt_name": None,
            "model_type": "SentenceTransformer",
            "prompts": {"document": "", "query": ""},
            "similarity_fn_name": "cosine",
        },
    }
    assert read(put(tmp_path, files)) == SentenceSettings("cls", True, None)


def test_no_such_folder_is_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_written_is_read_again(tmp_path: Path, pooling: Any, normalize: bool) -> None:
    settings = SentenceSettings(pooling, normalize, 128)
    write(tmp_path, settings, hidden_size=32)
    assert read(tmp_path) == settings
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")} == set(FILES)


MODULE = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
POOL = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("modules.json", [MODULE, POOL, DENSE], "Dense"),
        ("modules.json", [MODULE], "Pooling"),
        ("modules.json", [MODULE, {**POOL, "type": "custom.Pooling"}], "code of its own"),
        ("modules.json", [MODULE, {**POOL, "path": "../elsewhere"}], "elsewhere"),
        ("modules.json", [MODULE, {**POOL, "more": 1}], "'more'"),
        ("modules.json", {}, "list"),
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": True}, "lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "mean"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "power": 3}, "power"),
        ("1_Pooling/config.json", [], "object"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "token_embeddings"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        ("sentence_bert_config.json", {"max_seq_length": -3}, "max_seq_length"),
        ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}}, "model_args"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "prompt"),
        ("config_sentence_transformers.json", {"truncate_dim": 64}, "truncate_dim"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, name: str, content: Any, told: str
) -> None:
    old_folder(tmp_path, **{name: content})
    with pytest.raises(FilbertError, match=told) as caught:
        read(tmp_path)
    assert name.rpartition("/")[2] in str(caught.value)
