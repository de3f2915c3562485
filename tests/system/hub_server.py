"""A stand-in for a Hugging Face hub on this machine's loopback, with a count of what it was asked.

It answers the requests that `huggingface_hub` sends to look up and download files:

    GET  /api/{models,datasets}/<name>[/revision/<rev>]     what a repository holds
    HEAD, GET  /[datasets/]<name>/resolve/<rev>/<file>      its files

    with Hub() as hub:
        hub.add("owner/model", {"config.json": b"{}"})
        subprocess.run(..., env={"HF_ENDPOINT": hub.url, ...})
        hub.requests    # ["GET /api/models/owner/model", ...]
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """The files of one repository at one commit, and its branches."""

    files: dict[str, bytes]
    card: dict[str, Any]
    gated: bool = False
    status: int | None = None  # answer everything with this HTTP status
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch or a commit."""
        states = {"main": self.files, **self.branches}
        for name, files in states.items():
            commit = _commit(files)
            if revision in (name, commit):
                return commit, files
        return None


def _commit(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return digest.hexdigest()


class Hub:
    """The server, running in a thread between `with` and the end of the block."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.agents: set[str] = set()
        self.repositories: dict[str, Repository] = {}
        hub = self

        class Handler(_Handler):
            owner = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(
        self,
        name: str,
        files: dict[str, bytes],
        *,
        kind: str = "models",
        card: dict[str, Any] | None = None,
        **options: Any,
    ) -> Repository:
        """Put a repository (kind "models" or "datasets") onto the hub."""
        self.repositories[f"{kind}/{name}"] = Repository(files, card or {}, **options)
        return self.repositories[f"{kind}/{name}"]

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop to listen: a connection is refused from now on."""
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.owner.requests.append(f"{self.command} {path}")
        self.owner.agents.add(self.headers.get("user-agent", ""))
        if path.startswith("/api/"):
            _, _, kind, rest = path.split("/", 3)
            name, _, revision = rest.partition("/revision/")
            file = None
        else:
            kind = "datasets" if path.startswith("/datasets/") else "models"
            name, _, rest = path.removeprefix("/datasets").strip("/").partition("/resolve/")
            # A branch such as refs/convert/parquet has slashes of its own.
            known = self.owner.repositories.get(f"{kind}/{name}")
            branches = [b for b in (known.branches if known else {}) if rest.startswith(f"{b}/")]
            revision = branches[0] if branches else rest.split("/", 1)[0]
            file = rest[len(revision) + 1 :]
        repository = self.owner.repositories.get(f"{kind}/{name}")
        if repository is None:
            # The real hub says 401 to strangers, so as not to tell what is private.
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if repository.status is not None:
            return self._send(repository.status, b"trouble", {})
        if repository.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        state = repository.at(revision or "main")
        if state is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        commit, files = state
        if file is None:
            listing = [{"rfilename": name} for name in sorted(files)]
            body = {"id": name, "sha": commit, "siblings": listing, "cardData": repository.card}
            return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if file not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return self._send(404, b"", headers)
        etag = hashlib.sha1(files[file], usedforsecurity=False).hexdigest()
        return self._send(200, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
