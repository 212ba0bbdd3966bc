"""`meinst predict --resume`: nothing is repeated or lost, and other options are rejected."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SyntheticData, make_tiny_model

import meinst.inference.results as results_module
from meinst.detector.meinst import MEInst
from meinst.inference.journal import JOURNAL, Journal, Row
from meinst.inference.predict import ImageResult, predict_files
from meinst.inference.results import without_overlays
from meinst.locks import lock_folder


def content_of(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones included."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def sources(synthetic_data: SyntheticData, tmp_path: Path) -> list[Path]:
    """Images, two of them with the same stem and one that cannot be read."""
    (tmp_path / "more").mkdir()
    broken, equal = tmp_path / "broken.png", tmp_path / "more" / "two.png"
    broken.write_bytes(b"")
    shutil.copy(synthetic_data.images / "small.png", equal)
    names = ("two.png", "tall.jpg", "empty.png", "crowd.png", "small.png")
    first, *rest = (synthetic_data.images / name for name in names)
    return [first, broken, equal, *rest]


def stop_after(count: int) -> Callable[[ImageResult], None]:
    """A callback that ends the run without the results being written, like a kill."""
    done: list[ImageResult] = []

    def stop(result: ImageResult) -> None:
        done.append(result)
        if len(done) == count:
            raise OSError("killed")

    return stop


@pytest.mark.parametrize("batch_size", [1, 2])
def test_resumed_run_ends_with_the_same_files(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path, batch_size: int
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = predict_files(tiny_model, sources, whole, batch_size=batch_size)
    assert (expected.images, expected.failed) == (7, 1)
    assert "two_2.jpg" in content_of(whole)
    for count in range(1, 8):
        shutil.rmtree(out, ignore_errors=True)
        with pytest.raises(OSError, match=f"killed; {count} of 7 images are done; continue with"):
            predict_files(
                tiny_model, sources, out, batch_size=batch_size, on_image=stop_after(count)
            )
        journal = out / JOURNAL
        journal.write_bytes(journal.read_bytes() + b'{"image": {"id"')  # a torn row
        (out / ".meinst.abc").write_bytes(b"half an overlay")
        reported: list[ImageResult] = []
        summary = predict_files(
            tiny_model,
            without_overlays(sources, out),
            out,
            batch_size=batch_size,
            resume=True,
            on_image=reported.append,
        )
        assert summary == expected
        assert content_of(out) == content_of(whole)
        again = count if count == 7 else count - count % batch_size  # whole batches
        failed_before = [sources[1]] if again >= 2 else []
        assert [each.source for each in reported] == failed_before + sources[again:]


def test_unfinished_run_is_not_overwritten(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no unfinished run to resume"):
        predict_files(tiny_model, sources, tmp_path / "out", resume=True)
    with pytest.raises(OSError, match="killed"):
        predict_files(tiny_model, sources, tmp_path / "out", on_image=stop_after(2))
    before = content_of(tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"--resume.*--output.*predictions\.journal"):
        predict_files(tiny_model, sources, tmp_path / "out")
    assert content_of(tmp_path / "out") == before


def test_other_options_are_rejected(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError, match="killed"):
        predict_files(tiny_model, sources, out, on_image=stop_after(2))
    before = content_of(out)
    selection = tiny_model.selection.override(0.9, 7)
    with pytest.raises(ValueError, match=r"score_threshold is 0\.9, but was None"):
        predict_files(tiny_model, sources, out, resume=True, selection=selection)
    with pytest.raises(ValueError, match=r"the model .* but was"):
        predict_files(make_tiny_model(seed=1), sources, out, resume=True)
    with pytest.raises(ValueError, match="the number of images is 6, but was 7"):
        predict_files(tiny_model, sources[1:], out, resume=True)
    with pytest.raises(ValueError, match="the list of images "):
        predict_files(tiny_model, sources[::-1], out, resume=True)
    (out / "tall.jpg").write_bytes(b"a picture of the user, which takes an overlay's name")
    with pytest.raises(ValueError, match="the overlays' names"):
        predict_files(tiny_model, sources, out, resume=True)
    (out / "tall.jpg").unlink()
    assert content_of(out) == before
    predict_files(tiny_model, sources, out, resume=True)


def test_full_disk_keeps_what_was_done(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the third overlay, at the fifth row, and at the end."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict_files(tiny_model, sources, whole)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write, append = results_module.write_atomically, Journal.append

    def write_overlay(path: Path, content: bytes) -> None:
        full() if path.name == "two_2.jpg" else write(path, content)

    def append_row(journal: Journal, row: Row) -> None:
        full() if journal.done == 4 else append(journal, row)

    faults: list[tuple[object, str, Callable[..., None], int]] = [
        (results_module, "write_atomically", write_overlay, 2),
        (Journal, "append", append_row, 4),
        (results_module, "open_atomically", full, 7),
    ]
    for target, name, replacement, done in faults:
        message = f"No space left on device; {done} of 7 images are done; free some space and"
        with monkeypatch.context() as patch:
            patch.setattr(target, name, replacement)
            with pytest.raises(OSError, match=message):
                predict_files(tiny_model, sources, out, resume=out.exists())
    assert "predictions.json" not in content_of(out)
    predict_files(tiny_model, sources, out, resume=True)
    assert content_of(out) == content_of(whole)


def test_results_of_an_interrupted_run_can_be_resumed(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict_files(tiny_model, sources, whole)

    def interrupt(result: ImageResult) -> None:
        if result.source == sources[3]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(tiny_model, sources, out, on_image=interrupt)
    assert {"images.json", "predictions.json", JOURNAL} <= content_of(out).keys()
    predict_files(tiny_model, sources, out, resume=True)
    assert content_of(out) == content_of(whole)


def test_two_processes_do_not_share_a_folder(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with lock_folder(out), pytest.raises(BlockingIOError, match=f"{out}: another process"):
        predict_files(tiny_model, sources, out)
    assert content_of(out) == {}
