from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from meinst.training.checkpoints import (
    AtomicCheckpointIO,
    first_non_finite,
    read_checkpoint,
    read_with_fallback,
)


def make_checkpoint(value: float = 1.0, update: int = 7) -> dict[str, Any]:
    state = {"weight": torch.full((1000,), value), "count": torch.tensor(3)}
    return {"state_dict": state, "global_step": update, "metrics": {}, "seed": 0}


def test_checkpoint_is_written_beside_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "last.ckpt"
    renamed: list[tuple[Path, Path]] = []
    replace = Path.replace

    def record(source: Path, target: Path) -> Path:
        renamed.append((source.parent, target))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", record)
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(), path)
    assert renamed == [(path.parent, path)]
    assert list(path.parent.iterdir()) == [path]
    assert torch.equal(read_checkpoint(path)["state_dict"]["weight"], torch.ones(1000))


def test_full_disk_keeps_the_checkpoint_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(1.0), path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint(make_checkpoint(2.0), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_found_in_weights_and_in_their_average() -> None:
    assert first_non_finite({}) is None
    assert first_non_finite(make_checkpoint()) is None
    assert first_non_finite(make_checkpoint(math.nan)) == "weight"
    average = make_checkpoint() | {"current_model_state": {"w": torch.tensor([1.0, math.inf])}}
    assert first_non_finite(average) == "w"


def test_damaged_checkpoints_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(ValueError, match=r"last\.ckpt does not exist"):
        read_checkpoint(path)
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(), path)
    content = path.read_bytes()
    for cut in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"last\.ckpt: not a complete checkpoint"):
            read_checkpoint(path)
    for other in ({"state_dict": {}}, [1, 2], torch.zeros(3)):
        torch.save(other, path)
        with pytest.raises(ValueError, match="not a checkpoint of `meinst train`"):
            read_checkpoint(path)
    torch.save(make_checkpoint(math.nan), path)
    with pytest.raises(ValueError, match=r"weights are not finite \(weight\)"):
        read_checkpoint(path)


def test_other_checkpoint_replaces_a_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    last.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"last\.ckpt: not .*best\.ckpt does not exist"):
        read_with_fallback(last, best, "continuing from")
    torch.save(make_checkpoint(update=4), best)
    path, checkpoint = read_with_fallback(last, best, "continuing from")
    assert (path, checkpoint["global_step"]) == (best, 4)
    assert caplog.text.count("\n") == 1
    assert f"{last}: not a complete checkpoint" in caplog.text
    assert f"continuing from {best} of update 4 instead" in caplog.text
    torch.save(make_checkpoint(update=6), last)
    caplog.clear()
    assert read_with_fallback(last, best, "continuing from")[0] == last
    assert not caplog.text
