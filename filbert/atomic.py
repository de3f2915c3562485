"""Writing so that a reader, or a crash, sees the whole old content or the whole new one.

Checkpoints, bundles and records are replaced while people and programs read them, and disks fill
up in the middle of it. So every file of ours is written beside its target under another name,
forced to the disk (fsync) and renamed; a folder is swapped in one step where the system can
(Linux), in two renames elsewhere. An `OSError` becomes a `FilbertError` that says what is whole.

    >>> write_file("run/state.json", "{}")
    >>> with atomic_path("run/big.bin") as temp:
    ...     temp.write_bytes(b"...")            # any code that wants a path to write to
    >>> replace_folder("run/.checkpoint.new", "run/checkpoint")
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filbert.errors import FilbertError, UsageError
from filbert.stopping import stoppable

LOCK = ".lock"  # in a folder that a process holds

# errno -> what to tell (EDQUOT is missing on Windows)
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_file(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write a small file in one step: `str` as UTF-8 with its newlines kept, or `bytes`.

    The folder must exist. Raises `FilbertError` where it cannot be written; an earlier file of that
    name is then unchanged.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_path(path) as temp:
        temp.write_bytes(data)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, which takes the name `path` when the block ends without an error.

    On any error or interrupt what was written is removed and `path` keeps its earlier content.
    Raises `FilbertError` for an `OSError`.
    """
    target = Path(path)
    # One name a writer: processes and threads that write the same file never share a half.
    temp = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        # Made here, so that the file's permissions follow the umask whoever fills it.
        with open(temp, "wb") as empty:
            mode = os.fstat(empty.fileno()).st_mode & 0o777
        yield temp
        os.chmod(temp, mode)
        sync(temp)
        os.replace(temp, target)
        sync(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        with contextlib.suppress(OSError):  # gone already after a rename; else nothing to be done
            temp.unlink()


def replace_folder(temp: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Put the finished folder `temp` in the place of `target`; the earlier folder is removed.

    Both must lie on one file system (make `temp` beside `target`). Everything in `temp` is forced
    to the disk first. A kill at any moment leaves a whole folder: under the name `target`, or,
    only where the system cannot swap folders in one step, as `.<name>.previous` beside it, which
    `restore_folder` brings back. Raises `FilbertError`; `target` is then as it was.
    """
    temp, target = Path(temp), Path(target)
    restore_folder(target)
    previous = _previous(target)
    try:
        for folder, _, files in os.walk(temp):
            for name in files:
                sync(Path(folder, name))
            sync(Path(folder))
        if not target.is_dir():
            os.rename(temp, target)
        elif _exchange(temp, target):
            previous = temp  # the old folder now has the temporary name
        else:
            os.rename(target, previous)
            os.rename(temp, target)
        sync(target.parent)
    except OSError as error:
        restore_folder(target)
        raise cannot_write(target, error) from error
    shutil.rmtree(previous, ignore_errors=True)  # the new folder stands; a rest harms nobody


def restore_folder(target: str | os.PathLike[str]) -> bool:
    """Bring back a folder that a killed two-step `replace_folder` left aside; True if it did.

    Call it before opening a folder that is replaced in this way. A rest of an earlier replacement
    that did finish is removed.
    """
    target = Path(target)
    previous = _previous(target)
    if not previous.is_dir():
        return False
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        return False
    os.rename(previous, target)
    return True


def clear_leftovers(folder: str | os.PathLike[str]) -> list[str]:
    """Remove what killed writers left in `folder`; returns the names, sorted.

    Only files that `atomic_path` names so, and whose process is gone from this machine: call it
    where no other machine writes. On Windows, where a process cannot be asked after, none.
    """
    removed = []
    for path in sorted(Path(folder).iterdir()):
        found = _TEMPORARY.fullmatch(path.name)
        if found and not path.is_dir() and _gone(int(found[1])):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


_TEMPORARY = re.compile(r"\..+\.([0-9]{1,18})-[0-9]{1,20}\.tmp", re.DOTALL)


def _gone(process: int) -> bool:
    """Whether no process of this number runs here."""
    if sys.platform == "win32":  # os.kill would end it
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it runs, as another user
        return False
    return False


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk; raises `OSError`."""
    if path.is_dir() and sys.platform == "win32":
        return  # Windows cannot open a folder; a rename is durable there by itself
    handle = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where there is none. Raises `FilbertError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def check_out(
    out: Path,
    what: str,
    ours: Callable[[set[str]], bool],
    *,
    overwrite: bool,
    reads: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Raise `UsageError` unless the folder `out` may be written: it is new or empty, or what is
    there is ours and `overwrite` was given, and nothing of `reads` lies in it.

    what: what is written, for messages ("vocabulary"); ours: whether a folder with these names in
    it is such a thing. A swap of folders that was cut off is ended first.
    """
    restore_folder(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    inside = [path for path in reads if Path(path).resolve().is_relative_to(out.resolve())]
    if inside:
        raise UsageError(f"--out {out} holds {inside[0]}, which is read; choose another folder")
    names = set(os.listdir(out)) if out.is_dir() else set()
    if names and not ours(names):
        foreign = min(name for name in names if not ours({name}))
        raise UsageError(
            f"--out {out} holds files that are not of a {what} ({foreign} ...); choose another "
            "folder"
        )
    if names and not overwrite:
        raise UsageError(f"--out {out} is not empty; --overwrite replaces the {what} in it")


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, for `replace_folder`, that is gone afterwards, whatever happens,
    SIGTERM included; what a killed process left of one is removed by the next call.
    Where `out` is a link, beside what it leads to. Raises `FilbertError` where it cannot be made
    or filled."""
    out = Path(os.path.realpath(out))
    temp = out.with_name(f".{out.name}.{os.getpid()}.new")
    with stoppable("run it again"):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            for left in out.parent.glob(f".{glob.escape(out.name)}.*.new"):  # by killed processes
                number = left.name[len(out.name) + 2 : -len(".new")]
                if left == temp or (number.isdecimal() and len(number) < 19 and _gone(int(number))):
                    shutil.rmtree(left, ignore_errors=True)
            temp.mkdir()
            yield temp
        except OSError as error:
            raise cannot_write(out, error) from error
        finally:
            shutil.rmtree(temp, ignore_errors=True)


def cannot_write(target: Path, error: OSError) -> FilbertError:
    """The error for a write to `target` that failed: the cause, what stayed whole, what to do."""
    if error.errno in _FULL:
        cause, advice = _full(target, error), "Free some space and try again."
    elif error.errno in _FORBIDDEN:
        cause, advice = (
            "this user may not write there",
            "Choose another place or mend the permissions.",
        )
    elif not target.parent.is_dir():
        cause, advice = f"there is no folder {target.parent}", "Make it first or mend the path."
    else:
        cause, advice = error.strerror or str(error), "Mend that and try again."
    whole = (
        f"The earlier {target.name} is whole and unchanged."
        if target.exists()
        else "Nothing was left behind."
    )
    return FilbertError(f"could not write {target}: {cause}. {whole} {advice}")


def _full(target: Path, error: OSError) -> str:
    if error.errno == errno.EFBIG:
        return "the file is larger than this process or file system may write"
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError:
        return "the disk is full"
    return f"the disk is full ({free / 1e6:.1f} MB free)"


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step (renameat2 with RENAME_EXCHANGE); False where it cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # an older C library
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <linux/fs.h>
    # A refusal, of a file system without it for one, is no error: two renames do it then.
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


@contextlib.contextmanager
def locked(out: Path, *, doing: str) -> Iterator[None]:
    """Hold the folder for one process. `doing`: what it does there, in words.
    Raises `UsageError` where another holds it. (On systems without `fcntl`, Windows for one,
    nothing is held.)"""
    try:
        import fcntl
    except ImportError:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UsageError(
                f"--out {out}: another process ({file.read().strip() or 'unknown'}) {doing} "
                "this folder; wait for it or choose another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)
