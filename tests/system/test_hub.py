"""Models and data sets of a hub: fetched once, then served by the cache with no network at all.

Each look-up runs in a process of its own against a stand-in hub on the loopback, whose requests are
counted; no test here needs the internet.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.system.hub_server import Hub

pytest.importorskip("huggingface_hub")

ROOT = Path(__file__).resolve().parents[2]
SAFE = {".json", ".txt", ".safetensors"}

_SCRIPT = """
import json, sys
from filbert import sources
from filbert.errors import FilbertError
for function, name, options in json.loads(sys.argv[1]):
    said = {"paths": [], "error": ""}
    try:
        answer = getattr(sources, function)(name, **options)
    except FilbertError as error:
        said["error"] = str(error)
    else:
        said["paths"] = [str(path) for path in (answer if isinstance(answer, list) else [answer])]
    print(json.dumps({**said, "torch": "torch" in sys.modules}), flush=True)
"""


class Answer(NamedTuple):
    """What a look-up in another process said."""

    paths: list[Path]
    error: str
    seconds: float
    stderr: str


class Machine:
    """A fresh machine: a cache folder of its own, and a process for each look-up."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.endpoint = endpoint

    def ask(
        self, *questions: tuple[str, str, dict[str, Any]], env: dict[str, str] | None = None
    ) -> list[Answer]:
        """The answers to (function, name, options), all out of one new process."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE"))}
        environment = {
            **clean, "HF_HOME": str(self.cache), "HF_ENDPOINT": self.endpoint, "NO_PROXY": "*",
            "PYTHONPATH": str(ROOT), "HF_HUB_ETAG_TIMEOUT": "2", **(env or {}),
        }  # fmt: skip
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-c", _SCRIPT, json.dumps(questions)],
            capture_output=True, text=True, env=environment, cwd=self.folder, timeout=120,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr  # never a traceback
        seconds = time.perf_counter() - start
        answers = [json.loads(line) for line in run.stdout.splitlines()]
        assert len(answers) == len(questions) and not any(said["torch"] for said in answers)
        return [Answer([*map(Path, a["paths"])], a["error"], seconds, run.stderr) for a in answers]

    def model(self, name: str, *, env: dict[str, str] | None = None, **options: Any) -> Answer:
        return self.ask(("resolve", name, options), env=env)[0]

    def dataset(self, name: str, *, env: dict[str, str] | None = None, **options: Any) -> Answer:
        return self.ask(("dataset_files", name, options), env=env)[0]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(tmp_path, hub.url)


CONFIG = json.dumps({"architectures": ["BertModel"], "vocab_size": 5}).encode()
MODEL = {
    "config.json": CONFIG,
    "tokenizer.json": b"{ }",
    "tokenizer_config.json": b"{  }",
    "vocab.txt": b"a\nb\n",
    "model.safetensors": b"x" * 1000,
    "pytorch_model.bin": b"never",
    "tf_model.h5": b"never",
    "modeling_custom.py": b"never",
    "onnx/model.onnx": b"never",
    "training_args.bin": b"never",
    "README.md": b"never",
    "modules.json": b"[]",
    "1_Pooling/config.json": b"{}",
}


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_model_is_fetched_once_and_then_needs_no_network(hub: Hub, machine: Machine) -> None:
    hub.add("owner/model", MODEL)
    first = machine.model("owner/model")
    (folder,) = first.paths
    assert _names(folder) == sorted(
        name for name in MODEL if Path(name).suffix in SAFE and not name.startswith("onnx")
    )
    assert (folder / "model.safetensors").read_bytes() == b"x" * 1000
    # one question, then two requests a file, and one more that writes down where main is
    assert hub.requests[0] == "GET /api/models/owner/model"
    assert len(hub.requests) == 1 + 2 * 7 + 1
    assert not any("never" in agent or "torch" in agent for agent in hub.agents)

    asked = len(hub.requests)
    assert machine.model("owner/model").paths == [folder]
    assert len(hub.requests) == asked
    hub.stop()
    assert machine.model("owner/model").paths == [folder]
    assert machine.model("hub:owner/model").paths == [folder]
    assert machine.model("owner/model", env={"HF_HUB_OFFLINE": "1"}).paths == [folder]
    assert machine.model("owner/model", revision=folder.name).paths == [folder]


def test_a_name_without_owner_goes_as_it_is(hub: Hub, machine: Machine) -> None:
    hub.add("bert-base-uncased", MODEL)
    assert machine.model("bert-base-uncased").paths[0].is_dir()
    assert hub.requests[0] == "GET /api/models/bert-base-uncased"


def test_weights_only_when_asked(hub: Hub, machine: Machine) -> None:
    hub.add("owner/model", MODEL)
    (folder,) = machine.model("owner/model", weights=False).paths
    assert not (folder / "model.safetensors").exists()
    asked = len(hub.requests)
    assert machine.model("owner/model", weights=False).paths == [folder]
    assert len(hub.requests) == asked
    assert machine.model("owner/model").paths == [folder]  # now they are fetched
    assert (folder / "model.safetensors").is_file()
    assert [request for request in hub.requests[asked:] if "safetensors" in request] == [
        f"{verb} /owner/model/resolve/{folder.name}/model.safetensors" for verb in ("HEAD", "GET")
    ]


def test_shards_are_known_by_their_index(hub: Hub, machine: Machine) -> None:
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = {"metadata": {}, "weight_map": {f"tensor{n}": shard for n, shard in enumerate(shards)}}
    files = {**MODEL, "model.safetensors.index.json": json.dumps(index).encode()}
    del files["model.safetensors"]
    files |= {shard: shard.encode() for shard in shards}
    hub.add("owner/sharded", files)
    (folder,) = machine.model("owner/sharded").paths
    assert all((folder / shard).read_text() == shard for shard in shards)
    asked = len(hub.requests)
    assert machine.model("owner/sharded").paths == [folder]
    assert len(hub.requests) == asked
    (folder / shards[1]).unlink()  # a cache that lost one asks for that one only
    assert machine.model("owner/sharded").paths == [folder]
    assert [r for r in hub.requests[asked:] if "safetensors" in r] == [
        f"HEAD /owner/sharded/resolve/{folder.name}/{shards[1]}"
    ]


def test_a_hostile_index_reaches_no_file(hub: Hub, machine: Machine) -> None:
    index = json.dumps({"weight_map": {"a": "../../secret.safetensors"}}).encode()
    files = {**MODEL, "model.safetensors.index.json": index}
    del files["model.safetensors"]
    hub.add("owner/hostile", files)
    error = machine.model("owner/hostile").error
    assert "'../../secret.safetensors'; only .safetensors files beside the index" in error
    assert not any("secret" in request for request in hub.requests)
    index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode()
    hub.add("owner/lacking", {**files, "model.safetensors.index.json": index})
    error = machine.model("owner/lacking").error
    assert "its index names model-00001-of-00001.safetensors, which is not there" in error


def test_a_download_that_broke_off_is_not_taken_for_a_whole_one(hub: Hub, machine: Machine) -> None:
    class Listed(dict[str, bytes]):
        """Lists a file that it then does not give."""

        def __contains__(self, name: object) -> bool:
            return name != "vocab.txt" and super().__contains__(name)

    repository = hub.add("owner/model", Listed(MODEL))
    assert "vocab.txt" in machine.model("owner/model").error
    assert machine.model("owner/model", env={"HF_HUB_OFFLINE": "1"}).error
    repository.files = MODEL
    asked = len(hub.requests)
    (folder,) = machine.model("owner/model").paths
    assert (folder / "vocab.txt").is_file() and len(hub.requests) > asked
    # what had come is not fetched twice
    assert not any(request.endswith("model.safetensors") for request in hub.requests[asked:])


def test_a_cache_that_another_program_filled_will_do(hub: Hub, machine: Machine) -> None:
    hub.add("owner/model", MODEL)
    script = (
        "from huggingface_hub import hf_hub_download\n"
        "for file in ('config.json', 'model.safetensors', 'vocab.txt'{extra}):\n"
        "    hf_hub_download('owner/model', file)\n"
    )
    for extra in (", 'tokenizer_config.json'", ""):
        cache = machine.folder / f"cache{len(extra)}"
        environment = {**os.environ, "HF_HOME": str(cache), "HF_ENDPOINT": hub.url, "NO_PROXY": "*"}
        command = [sys.executable, "-c", script.format(extra=extra)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        asked = len(hub.requests)
        used = {"HF_HOME": str(cache)}
        if extra:
            assert machine.model("owner/model", env=used).paths
            assert len(hub.requests) == asked
        else:  # a small file may be missing: asked for if the hub answers, told if it does not
            offline = machine.model("owner/model", env={**used, "HF_HUB_OFFLINE": "1"})
            assert offline.paths and "Going on with the files that are cached" in offline.stderr
            (folder,) = machine.model("owner/model", env=used).paths
            assert (folder / "tokenizer_config.json").is_file()


def test_a_model_without_tokenizer_is_asked_for_once(hub: Hub, machine: Machine) -> None:
    hub.add("owner/bare", {"config.json": CONFIG, "model.safetensors": b"x"})
    assert machine.model("owner/bare").paths
    asked = len(hub.requests)
    assert machine.model("owner/bare").paths
    assert len(hub.requests) == asked


def test_revisions(hub: Hub, machine: Machine) -> None:
    other = {**MODEL, "model.safetensors": b"other"}
    hub.add("owner/model", MODEL, branches={"v2": other, "refs/pr/1": {**other, "vocab.txt": b"c"}})
    folders = [machine.model("owner/model", revision=r).paths[0] for r in (None, "v2", "refs/pr/1")]
    assert len(set(folders)) == 3
    assert (folders[1] / "model.safetensors").read_bytes() == b"other"
    assert (folders[2] / "vocab.txt").read_bytes() == b"c"
    hub.stop()
    assert machine.model("owner/model", revision="v2").paths == [folders[1]]
    assert machine.model("owner/model", revision="refs/pr/1").paths == [folders[2]]


# --- what can go wrong: plain words, within seconds -------------------------------------------


def test_unknown_gated_and_broken_models(hub: Hub, machine: Machine) -> None:
    hub.add("owner/model", MODEL)
    hub.add("owner/gated", MODEL, gated=True)
    hub.add("owner/broken", MODEL, status=503)
    hub.add("owner/pickled", {"config.json": CONFIG, "pytorch_model.bin": b"never"})
    hub.add("owner/google", {"bert_config.json": b"{}", "bert_model.ckpt.index": b""})
    hub.add("owner/nothing", {"README.md": b""})
    assert machine.model("owner/model").paths
    expected = {
        "owner/modle": "has no model 'owner/modle', or it is private. Did you mean 'owner/model'?",
        "all-MiniLM-L6-v3": "Did you mean 'all-MiniLM-L6-v2'?",
        "owner/gated": "is gated: its owner gives it to people who accepted the terms",
        "owner/broken": "answered with HTTP status 503",
        "owner/pickled": "only as pytorch_model.bin. Such a file can run any code",
        "owner/google": "filbert convert FOLDER OUT",
        "owner/nothing": "it has no config.json. It has: README.md",
    }
    answers = machine.ask(*(("resolve", name, {}) for name in expected))
    for answer, (name, words) in zip(answers, expected.items(), strict=True):
        assert words in answer.error, (name, answer.error)
    assert answers[0].seconds < 20
    answer = machine.model("owner/model", revision="v9")
    assert "the model 'owner/model' has no revision 'v9'" in answer.error
    assert not any("pytorch_model" in request for request in hub.requests)


def test_no_network_offline_and_a_silent_hub(hub: Hub, machine: Machine) -> None:
    hub.stop()
    answer = machine.model("owner/model")
    assert "is not in the local cache, and the hub at http://127.0.0.1" in answer.error
    assert "could not be asked" in answer.error and answer.seconds < 20
    answer = machine.model("owner/model", env={"HF_HUB_OFFLINE": "1"})
    assert "offline mode is on (HF_HUB_OFFLINE)" in answer.error
    answer = machine.model("owner/model", env={"HF_ENDPOINT": "http://no-such-host.invalid"})
    assert "could not be asked" in answer.error and answer.seconds < 20
    for address in ("hub.example.org", "ftp://hub.example.org", "http://"):
        answer = machine.model("owner/model", env={"HF_ENDPOINT": address})
        assert "expected an address such as https://hub.example.org" in answer.error
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        port = silent.getsockname()[1]
        answer = machine.model("owner/model", env={"HF_ENDPOINT": f"http://127.0.0.1:{port}"})
    assert "could not be asked" in answer.error and answer.seconds < 20


def test_an_address_that_is_no_hub(machine: Machine) -> None:
    answers = [b"<html>log in to the network</html>", b"[]", b"{}", b'{"sha": 1}', b"null"]

    def serve(listener: socket.socket) -> None:
        for body in answers:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                head = (
                    f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                connection.sendall(head.encode() + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        endpoint = {"HF_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}"}
        for _ in answers:
            assert "could not be asked" in machine.model("owner/model", env=endpoint).error
        thread.join(5)


def test_strange_names_reach_no_network(hub: Hub, machine: Machine) -> None:
    strange = ["a b", "../../etc/passwd", "owner/name/more", "http://x.org/model", "a" * 300, "é",
               "-x", "owner/na me", "owner\\name", "x?y=1", "x\ny", "hub:../x", "hub:", "owner/",
               "a--b", "x.git", "owner/.hidden", "%2e%2e/x"]  # fmt: skip
    for name, answer in zip(
        strange, machine.ask(*(("resolve", name, {}) for name in strange)), strict=True
    ):
        assert "neither a folder on this disk nor a hub name" in answer.error or (
            "there is no folder" in answer.error
        ), (name, answer.error)
        assert "\n" not in answer.error and len(answer.error) < 600
    revisions = [{"revision": revision} for revision in ("../x", "", "a b", "-r", "/x")]
    for answer in machine.ask(*(("resolve", "owner/model", options) for options in revisions)):
        assert "cannot be a revision" in answer.error
    assert hub.requests == []


def test_minilm_is_known_to_the_hub_by_its_full_name(hub: Hub, machine: Machine) -> None:
    # A revision is never served by the installed package.
    answer = machine.model("minilm", revision="main")
    assert "has no model 'sentence-transformers/all-MiniLM-L6-v2'" in answer.error
    assert "pip install 'filbert[demo]'" in answer.error
    hub.add("sentence-transformers/all-MiniLM-L6-v2", MODEL)
    assert machine.model("minilm", revision="main").paths


# --- data sets ---------------------------------------------------------------------------------


def test_a_split_is_fetched_once_and_then_needs_no_network(hub: Hub, machine: Machine) -> None:
    files = {
        "README.md": b"", "load.py": b"never",
        "data/train-00000-of-00002.parquet": b"0", "data/train-00001-of-00002.parquet": b"1",
        "data/test-00000-of-00001.parquet": b"t",
    }  # fmt: skip
    hub.add("owner/data", files, kind="datasets")
    first = machine.dataset("owner/data", split="train")
    assert [path.read_bytes() for path in first.paths] == [b"0", b"1"]
    assert hub.requests[0] == "GET /api/datasets/owner/data" and len(hub.requests) == 1 + 2 * 2
    assert machine.dataset("owner/data", split="train").paths == first.paths
    assert len(hub.requests) == 5
    test = machine.dataset("owner/data", split="test")
    assert [path.read_bytes() for path in test.paths] == [b"t"]
    asked = len(hub.requests)
    hub.stop()
    assert machine.dataset("owner/data", split="train").paths == first.paths
    offline = machine.dataset("owner/data", split="test", env={"HF_HUB_OFFLINE": "1"})
    assert offline.paths == test.paths
    assert len(hub.requests) == asked
    assert "could not be asked" in machine.dataset("owner/data", split="validation").error
    offline = machine.dataset("owner/else", env={"HF_HUB_OFFLINE": "1"})
    assert "the data set 'owner/else' is not in the local cache" in offline.error


def test_the_card_and_the_converted_branch_of_a_data_set(hub: Hub, machine: Machine) -> None:
    card = {
        "configs": [
            {"config_name": "mrpc", "data_files": [{"split": "train", "path": "mrpc/train-*"}]},
            {"config_name": "sst2", "data_files": [{"split": "train", "path": "sst2/train-*"}]},
        ]
    }
    files = {f"{c}/train-00000-of-00001.parquet": c.encode() for c in ("mrpc", "sst2")}
    hub.add("owner/glue", files, kind="datasets", card=card)
    (path,) = machine.dataset("owner/glue", config="sst2", split="train").paths
    assert path.read_bytes() == b"sst2"
    error = machine.dataset("owner/glue", split="train").error
    assert "has several configs; name one of them, as in hub:owner/glue/mrpc: mrpc, sst2" in error
    hub.add(
        "owner/script", {"script.py": b"never", "data.zip": b""}, kind="datasets",
        branches={"refs/convert/parquet": {"default/train/0000.parquet": b"converted"}},
    )  # fmt: skip
    (path,) = machine.dataset("owner/script", split="train").paths
    assert path.read_bytes() == b"converted"
    hub.add("owner/code", {"script.py": b"never"}, kind="datasets")
    error = machine.dataset("owner/code").error
    assert "holds no Parquet, CSV, TSV or JSON-lines files" in error
    error = machine.dataset("owner/nothing").error
    assert "has no data set 'owner/nothing', or it is private" in error
    assert not any(".py" in request for request in hub.requests)
