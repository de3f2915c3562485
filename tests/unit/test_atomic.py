"""Files and folders are replaced whole or not at all: real failed writes, interrupts and kills."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from filbert import atomic
from filbert.atomic import atomic_path, check_out, replace_folder, restore_folder, write_file
from filbert.errors import FilbertError, UsageError
from filbert.stopping import stoppable


def _leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def test_write_file_takes_text_and_bytes_exactly(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", "één\r\n字\n")
    assert (tmp_path / "a.txt").read_bytes() == "één\r\n字\n".encode()
    write_file(tmp_path / "a.txt", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == b"\x00\xff"
    assert _leftovers(tmp_path) == []


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_an_error_in_the_block_keeps_the_earlier_file(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "old")
    for raised in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(raised), atomic_path(tmp_path / "a") as temp:
            temp.write_text("half")
            raise raised
    assert (tmp_path / "a").read_text() == "old"
    assert _leftovers(tmp_path) == []


def test_a_full_disk_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a", "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        FilbertError, match=r"could not write .*a: the disk is full \([\d.]+ MB free\)"
    ) as caught:
        write_file(tmp_path / "a", "new")
    assert "The earlier a is whole and unchanged. Free some space" in str(caught.value)
    with pytest.raises(FilbertError, match="Nothing was left behind"):
        write_file(tmp_path / "b", "new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a"]


def test_a_write_that_the_kernel_refuses_keeps_the_earlier_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs setrlimit")
    write_file(tmp_path / "a", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(FilbertError, match=r"could not write .*larger than") as caught:
            write_file(tmp_path / "a", b"x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "whole and unchanged" in str(caught.value)
    assert (tmp_path / "a").read_text() == "old"
    assert _leftovers(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FilbertError, match=r"there is no folder .*nowhere"):
        write_file(tmp_path / "nowhere" / "a", "x")


def test_threads_that_write_one_file_leave_one_whole_content(tmp_path: Path) -> None:
    contents = [str(i) * 50_000 for i in range(8)]
    threads = [threading.Thread(target=write_file, args=(tmp_path / "a", c)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in contents
    assert _leftovers(tmp_path) == []


def _make(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("one_step", [True, False])
def test_a_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_step: bool
) -> None:
    if not one_step:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    replace_folder(_make(tmp_path / "t1", a="1", b="1"), tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["a", "b"]
    replace_folder(_make(tmp_path / "t2", a="2"), tmp_path / "run")
    assert os.listdir(tmp_path / "run") == ["a"]
    assert (tmp_path / "run" / "a").read_text() == "2"
    assert os.listdir(tmp_path) == ["run"]


def test_linux_swaps_in_one_step(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is a Linux call")
    one, other = _make(tmp_path / "one", a="1"), _make(tmp_path / "other", b="2")
    if not atomic._exchange(one, other):
        pytest.skip("this file system cannot swap folders")
    assert os.listdir(one) == ["b"] and os.listdir(other) == ["a"]


def test_a_failed_folder_swap_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    run = _make(tmp_path / "run", a="old")
    temp = _make(tmp_path / "temp", a="new")
    rename = os.rename

    def fail_second(source: Path, target: Path) -> None:
        if Path(source) == temp:
            raise OSError(errno.ENOSPC, "full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(FilbertError, match="disk is full"):
        replace_folder(temp, run)
    assert (run / "a").read_text() == "old"


def test_a_kill_between_two_renames_is_healed(tmp_path: Path) -> None:
    _make(tmp_path / ".run.previous", a="old")
    assert restore_folder(tmp_path / "run")
    assert (tmp_path / "run" / "a").read_text() == "old"
    assert not restore_folder(tmp_path / "run")
    _make(tmp_path / ".run.previous", a="rest")  # the swap was done, only the removal was not
    assert not restore_folder(tmp_path / "run")
    assert (tmp_path / "run" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_writers_never_leave_a_torn_folder(tmp_path: Path) -> None:
    """Thirty kills at random moments: the folder always holds two files of one generation."""
    script = (
        "import sys, shutil, itertools\nfrom pathlib import Path\n"
        "from filbert.atomic import replace_folder\n"
        "root = Path(sys.argv[1])\nstart = int(sys.argv[2])\nprint('ready', flush=True)\n"
        "for i in itertools.count(start):\n"
        "    temp = root / 'temp'\n    shutil.rmtree(temp, ignore_errors=True)\n    temp.mkdir()\n"
        "    for name in 'ab':\n        (temp / name).write_text(str(i) * 2000)\n"
        "    replace_folder(temp, root / 'run')\n"
    )
    moments = random.Random(0)
    for kill in range(30):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), str(kill * 10_000)],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(moments.random() * 0.05 + (0.1 if kill == 0 else 0))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        restore_folder(tmp_path / "run")
        a, b = ((tmp_path / "run" / name).read_text() for name in "ab")
        assert a == b and len(a) >= 2000


def test_leftovers_of_dead_writers_are_cleared(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [
        f".model.safetensors.{dead.pid}-140.tmp",
        f".huge.{10**17}-1.tmp",
        f".model.safetensors.{os.getpid()}-140.tmp",  # this process lives
        ".a.1-2.tmp",  # process 1 too, of another user
        f".notes.{dead.pid}.tmp",  # not named by us
        f"model.{dead.pid}-1.tmp",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / f".folder.{dead.pid}-1.tmp").mkdir()
    assert atomic.clear_leftovers(tmp_path) == sorted(names[:2])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names[2:], f".folder.{dead.pid}-1.tmp"}


def test_folders_of_dead_writers_are_cleared_beside_a_new_one(tmp_path: Path) -> None:
    """A kill leaves the folder that was to take the place of another."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = tmp_path / f".out.{child.pid}.new"
    alive, other = tmp_path / f".out.{os.getppid()}.new", tmp_path / f".out.2.{child.pid}.new"
    foreign = tmp_path / ".out.x.new"
    for folder in (dead, alive, other, foreign):
        folder.mkdir()
        (folder / "file").write_text("x")
    with atomic.beside(tmp_path / "out") as temp:
        assert sorted(tmp_path.iterdir()) == sorted([alive, other, foreign, temp])


def test_a_foreign_file_in_the_way_is_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"not of a thing \(b\.txt \.\.\.\)"):
        check_out(tmp_path, "thing", {"a.txt"}.issuperset, overwrite=True)


def test_sigterm_leaves_no_folder_behind(tmp_path: Path) -> None:
    words = (
        "import sys, time; from pathlib import Path; from filbert.atomic import beside\n"
        "with beside(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').write_text('x'); print('there', flush=True)\n"
        "    try: time.sleep(60)\n"
        "    except BaseException as error: raise ValueError('a library took it for its own')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", words, str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "there\n"
    assert list(tmp_path.glob(".out.*.new/a"))
    child.terminate()
    child.send_signal(signal.SIGINT)  # managers signal the group and the process
    _, told = child.communicate(timeout=60)
    last = told.strip().splitlines()[-1]  # Python takes pending signals in the order of numbers
    assert re.fullmatch("KeyboardInterrupt: stopped by SIG(TERM|INT); run it again", last)
    assert not list(tmp_path.iterdir())


def test_the_words_of_the_outer_block_are_told(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM; the outer words"),
        stoppable("the outer words"),
        atomic.beside(tmp_path / "out") as temp,
    ):
        (temp / "a").touch()
        signal.raise_signal(signal.SIGTERM)
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
