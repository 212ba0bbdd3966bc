import os
import sys
import threading
from pathlib import Path

import pytest

from meinst.files import write_atomically


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
