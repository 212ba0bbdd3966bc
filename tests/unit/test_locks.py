from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meinst import locks
from meinst.locks import lock_file, lock_folder

_HOLD = """
import sys
from pathlib import Path
from meinst.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_lock_is_exclusive_and_leaves_no_file(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        with (
            pytest.raises(BlockingIOError, match=f"{tmp_path}.*process {os.getpid()}.*--output"),
            lock_folder(tmp_path),
        ):
            pass
        with lock_folder(tmp_path.parent):  # another folder
            pass
    assert list(tmp_path.iterdir()) == []
    with lock_folder(tmp_path):
        pass


def test_lock_of_a_file_is_beside_it(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)  # a longer name is not possible
    with lock_file(path):
        with pytest.raises(BlockingIOError, match=r"nnn.*another process"), lock_file(path):
            pass
        with lock_file(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == []
    with lock_file(Path(os.devnull)):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_process_holds_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"locked\n"
            with (
                pytest.raises(BlockingIOError, match=f"process {process.pid}"),
                lock_folder(tmp_path),
            ):
                pass
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1  # its file
    with lock_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


_FORK_AND_DIE = """
import os, signal, sys, time
from pathlib import Path
from meinst.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_forked_workers_do_not_keep_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK_AND_DIE, str(tmp_path)], stdout=subprocess.PIPE, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    worker = int(done.stdout)
    try:
        os.kill(worker, 0)  # it is still there
        with lock_folder(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_file_system_without_locks_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(_: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "try_lock", unsupported)
    with lock_folder(tmp_path):
        pass
    assert f"{tmp_path}: cannot be locked (No locks available)" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    message = r"missing cannot be written to \(No such file.*--output"
    with pytest.raises(OSError, match=message), lock_folder(tmp_path / "missing"):
        pass


def test_lock_that_is_removed_while_another_waits_for_it_is_not_shared(tmp_path: Path) -> None:
    """Its file is removed after the other has opened it: the other creates a new one."""
    path = tmp_path / locks._NAME
    opened = os.open

    def remove_after_opening(*arguments: object) -> int:
        descriptor = opened(*arguments)  # type: ignore[arg-type]
        if not removed:
            removed.append(path)
            path.unlink()
        return descriptor

    removed: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks.os, "open", remove_after_opening)
        with lock_folder(tmp_path):
            assert removed
            assert path.exists()
