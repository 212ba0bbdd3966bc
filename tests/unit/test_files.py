import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meinst.files import check_folder, open_atomically, remove_leftovers, write_atomically


def test_new_file_and_folder_are_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"1")
    assert path.read_bytes() == b"1"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_link_is_followed_and_file_keeps_its_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"1")
    target.chmod(0o600)
    link.symlink_to(target)
    write_atomically(link, b"2")
    assert link.is_symlink()
    assert target.read_bytes() == b"2"
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"1")
    reader.join()
    assert read == [b"1"]
    assert pipe.is_fifo()


def test_failed_write_keeps_the_old_file_and_removes_its_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"), open_atomically(path) as file:  # noqa: PT012
        file.write(b"new")
        file.flush()
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_full_disk_is_reported_with_the_file_even_if_a_library_hides_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for hidden in (False, True):
        with pytest.raises(OSError, match="No space left") as caught, open_atomically(path):  # noqa: PT012
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                if hidden:
                    raise RuntimeError("unexpected pos 768 vs 662")  # noqa: B904
                raise
        assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from meinst.files import open_atomically
with open_atomically(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_only_files_of_killed_processes_are_left_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    remove_leftovers(tmp_path / "missing")
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            check_folder(tmp_path)  # what every command does first
            assert len(list(tmp_path.glob(".meinst.*"))) == 1  # it is still being written
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
    assert len(list(tmp_path.glob(".meinst.*"))) == 1
    check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"
