"""Files of models and data sets from a Hugging Face hub: the local cache first, then the network.

Nothing else in filbert talks to a network on its own, and this does so only for a name that the
cache cannot serve. Cache, mirror and offline switch are those of `huggingface_hub`, which is
imported here alone and only when needed: `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`.
Only JSON, text and safetensors files of known names are fetched for a model; never code, never
pickle. Every failure is a `FilbertError` in plain words.

A cached branch is not asked for news: for a newer state name its revision, or delete its folder.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from filbert.errors import FilbertError, UsageError, did_you_mean
from filbert.layout import INDEX, SINGLE, plain, read_index, refuse_other_weights

logger = logging.getLogger("filbert")
Result = TypeVar("Result")
Kind = Literal["model", "dataset"]
_NOUNS: dict[Kind, str] = {"model": "model", "dataset": "data set"}

# What a model folder may hold besides weights. config.json comes last: once it is in the cache,
# everything else that was wanted is there too.
_SMALL_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json",
    "added_tokens.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "filbert.json", "config.json",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "vocab.txt")
# The folders of sentence-transformers, such as 1_Pooling.
_MODULE = re.compile(r"[0-9]_[A-Za-z]{1,40}/(config\.json|model\.safetensors)")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Unreachable(FilbertError):
    """The hub could not be asked, or not now; what the cache has may still do."""


class Listing(NamedTuple):
    """What a repository holds at one commit; `card` is the YAML head of its README."""

    commit: str
    files: list[str]
    card: dict[str, Any]


def model_folder(
    name: str,
    *,
    revision: str | None = None,
    weights: bool = True,
    known: Iterable[str] = (),
    hint: str = "",
) -> Path:
    """The cached folder of a hub model with its configuration, tokenizer and (if asked) weights.

    Downloads what the cache lacks. `known` are further names to suggest for a misspelt one, `hint`
    is added where the hub cannot help. Raises `FilbertError`.
    """
    check_name(name, revision)
    folder = _cached_model(name, revision, weights=weights)
    if folder is not None:
        return folder
    try:
        return ask(
            lambda: _download_model(name, revision, weights=weights),
            kind="model",
            name=name,
            revision=revision,
            known=known,
            hint=hint,
        )
    except Unreachable as error:
        # A cache that another program filled may lack a small file that we would have fetched.
        folder = _cached_model(name, revision, weights=weights, lenient=True)
        if folder is None:
            raise
        logger.warning("%s Going on with the files that are cached in %s.", error, folder)
        return folder


def check_name(name: str, revision: str | None = None) -> None:
    """Refuse what cannot be a repository's name or revision, before anything is looked up."""
    odd = ".." in name or "--" in name or name.endswith((".git", ".", "-"))
    if odd or not _NAME.fullmatch(name):
        raise UsageError(
            f"'{plain(name)}' is neither a folder on this disk nor a hub name. A hub name is "
            f"'name' or 'owner/name' with letters, digits, '-', '_' and '.'; a folder is given as "
            f"a path, such as ./folder."
        )
    if revision is not None and (".." in revision or not _REVISION.fullmatch(revision)):
        raise UsageError(
            f"'{plain(revision)}' cannot be a revision: expected a branch, a tag or a commit hash"
        )


def hub_settings() -> Any:
    """`huggingface_hub.constants`: the environment as that library understood it."""
    endpoint = os.environ.get("HF_ENDPOINT", "").strip()
    if endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"HF_ENDPOINT is '{plain(endpoint)}'; expected an address such as "
                f"https://hub.example.org"
            )
    # Otherwise the library tells each hub what it runs with and asks it for a registry first.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    return constants


def notes_folder() -> Path:
    """The cache's place for what filbert itself wants to remember."""
    return Path(hub_settings().HF_ASSETS_CACHE, "filbert")


def cached_names(kind: Kind) -> list[str]:
    """The names of the models or data sets that the local hub cache knows."""
    try:
        folders = sorted(os.listdir(hub_settings().HF_HUB_CACHE))
    except OSError:  # no cache yet
        return []
    start = f"{kind}s--"
    return [f.removeprefix(start).replace("--", "/") for f in folders if f.startswith(start)]


def cached_file(name: str, kind: Kind, file: str, revision: str | None) -> Path | None:
    """The path of a file in the cache, or None; no network."""
    path = _look_in_cache(name, kind, file, revision)
    return Path(path) if isinstance(path, str) else None


def _look_in_cache(name: str, kind: Kind, file: str, revision: str | None) -> Any:
    """A path, None for "not here", or another object for "known not to exist"."""
    hub_settings()
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(name, file, repo_type=kind, revision=revision)


def _cached_model(
    name: str, revision: str | None, *, weights: bool, lenient: bool = False
) -> Path | None:
    """The snapshot folder if it holds all that is needed; no network, whatever happens."""
    config = cached_file(name, "model", "config.json", revision)
    if config is None:
        return None
    folder = config.parent
    if not lenient:
        # The library remembers too which files a model does not have.
        vocabularies = [_look_in_cache(name, "model", file, revision) for file in _VOCABULARIES]
        if None in vocabularies and not any(isinstance(path, str) for path in vocabularies):
            return None
        if _look_in_cache(name, "model", "tokenizer_config.json", revision) is None:
            return None
    if weights and not (folder / SINGLE).is_file():
        if not (folder / INDEX).is_file():
            return None
        if not all((folder / shard).is_file() for shard in read_index(folder / INDEX).values()):
            return None
    return folder


def _download_model(name: str, revision: str | None, *, weights: bool) -> Path:
    listing = list_files(name, "model", revision)
    files = set(listing.files)
    if "config.json" not in files:
        if "bert_config.json" in files:  # a Google checkpoint
            raise refuse_other_weights(name, files)
        shown = ", ".join(plain(file) for file in sorted(files)[:12])
        raise FilbertError(
            f"'{name}' on the hub is no model that filbert can open: it has no config.json. "
            f"It has: {shown or 'no files'}."
        )
    modules = sorted(file for file in files if _MODULE.fullmatch(file))
    wanted = [file for file in modules if weights or file.endswith(".json")]
    if weights and SINGLE in files:
        wanted.append(SINGLE)
    elif weights and INDEX in files:
        index = read_index(Path(fetch(name, "model", INDEX, listing.commit)))
        wanted += sorted(set(index.values()))
    elif weights:
        raise refuse_other_weights(name, files)
    lacking = [file for file in wanted if file not in files]
    if lacking:
        raise FilbertError(
            f"'{name}' on the hub is incomplete: its index names {lacking[0]}, which is not there"
        )
    _remember_absent(name, files, listing.commit)
    path = ""
    for file in [*wanted, *(file for file in _SMALL_FILES if file in files)]:
        path = fetch(name, "model", file, listing.commit)
    if revision is None or not _COMMIT.fullmatch(revision):
        # Asked for by its branch at last: this writes down at which commit the branch is, and only
        # now, so that a download that broke off is never taken for a whole one.
        fetch(name, "model", "config.json", revision)
    return Path(path).parent


def _remember_absent(name: str, files: set[str], commit: str) -> None:
    """Let the cache remember which tokenizer files there are not, so that nobody asks again."""
    from huggingface_hub.errors import EntryNotFoundError

    absent = [] if files.intersection(_VOCABULARIES) else list(_VOCABULARIES)
    if "tokenizer_config.json" not in files:
        absent.append("tokenizer_config.json")
    for file in absent:
        try:
            fetch(name, "model", file, commit)
        except EntryNotFoundError:
            logger.debug("%s has no %s", name, file)


def list_files(name: str, kind: Kind, revision: str | None) -> Listing:
    """Ask the hub what a repository holds (one request); call it inside `ask`."""
    timeout = hub_settings().HF_HUB_ETAG_TIMEOUT
    from huggingface_hub import HfApi

    api = HfApi(library_name="filbert")
    get_info = api.model_info if kind == "model" else api.dataset_info
    info = get_info(name, revision=revision, timeout=timeout)
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise ValueError("the answer names no commit; is this the address of a hub?")
    card = info.card_data.to_dict() if info.card_data is not None else {}
    return Listing(info.sha, [file.rfilename for file in info.siblings or []], card)


def has_revision(name: str, kind: Kind, revision: str) -> bool:
    """Ask the hub whether a repository has this branch, tag or commit; call it inside `ask`."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        list_files(name, kind, revision)
    except HfHubHTTPError:
        return False
    return True


def fetch(name: str, kind: Kind, file: str, revision: str | None) -> str:
    """The cached path of one file, downloaded if need be; call it inside `ask`."""
    from huggingface_hub import hf_hub_download

    return hf_hub_download(name, file, repo_type=kind, revision=revision, library_name="filbert")


def ask(
    work: Callable[[], Result],
    *,
    kind: Kind,
    name: str,
    revision: str | None,
    known: Iterable[str] = (),
    hint: str = "",
) -> Result:
    """Do work that needs the hub; every way in which it can fail becomes a `FilbertError`."""
    settings = hub_settings()
    from huggingface_hub.errors import HfHubHTTPError

    noun = _NOUNS[kind]
    if settings.HF_HUB_OFFLINE:
        raise Unreachable(
            f"the {noun} '{name}' is not in the local cache ({settings.HF_HUB_CACHE}), and offline "
            f"mode is on (HF_HUB_OFFLINE). Unset it, or copy the files here from another machine "
            f"and give their path.{hint}"
        )
    # Besides its own errors the library lets those of its HTTP package through; which package that
    # is (httpx, httpx2) changes with its version, but its own errors derive from the same base.
    http_error = next(
        base
        for base in HfHubHTTPError.__mro__
        if issubclass(base, Exception) and base.__name__ == "HTTPError"
    )
    try:
        return work()
    except FilbertError:
        raise
    # ImportError: a proxy that needs a package; the last three: an answer that no hub would give.
    except (http_error, OSError, ImportError, ValueError, TypeError, KeyError) as error:
        raise _explain(
            error, kind=kind, name=name, revision=revision, known=known, hint=hint
        ) from error


def _explain(
    error: BaseException,
    *,
    kind: Kind,
    name: str,
    revision: str | None,
    known: Iterable[str],
    hint: str,
) -> FilbertError:
    settings = hub_settings()
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where, noun = settings.ENDPOINT, _NOUNS[kind]
    page = f"{where}/{'datasets/' if kind == 'dataset' else ''}{name}"
    log_in = "type: hf auth login (or set HF_TOKEN)"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return FilbertError(
            f"the {noun} '{name}' is gated: its owner gives it to people who accepted the terms. "
            f"Accept them at {page}, then {log_in}."
        )
    if isinstance(error, RevisionNotFoundError):
        return FilbertError(
            f"the {noun} '{name}' has no revision '{revision}'. Leave the revision out for the "
            f"newest state; {page}/tree/main lists branches and tags."
        )
    if isinstance(error, EntryNotFoundError):
        url = urlsplit(str(getattr(getattr(error, "response", None), "url", "")))
        return Unreachable(
            f"the hub at {where} lists a file of the {noun} '{name}' that it does not give: "
            f"{plain(url.path)}. Try again later.{hint}"
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        near = did_you_mean(name, {*known, *cached_names(kind)} - {name})
        return FilbertError(
            f"the hub at {where} has no {noun} '{name}', or it is private.{near} Check the name; "
            f"for a private one {log_in}. What is on this disk is given as a path, such as "
            f"./{name}.{hint}"
        )
    if status is not None:
        return Unreachable(
            f"the hub at {where} answered with HTTP status {status} when asked for the {noun} "
            f"'{name}'. Try again later.{hint}"
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS):
        return FilbertError(
            f"could not write to the hub cache {settings.HF_HUB_CACHE} while fetching '{name}': "
            f"{getattr(error, 'strerror', error)}. Free some space, or set HF_HOME to another "
            f"place."
        )
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return Unreachable(
        f"the {noun} '{name}' is not in the local cache, and the hub at {where} could not be "
        f"asked: {plain(reason, limit=200)}. Check the network or the proxy, set HF_ENDPOINT to a "
        f"mirror, or copy the files from another machine and give their path.{hint}"
    )
