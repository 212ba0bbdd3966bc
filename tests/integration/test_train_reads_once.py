"""A training run parses each annotation file once."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from short_training import WARNINGS, make_options, with_values

from meinst.data.annotations import coco_file

if TYPE_CHECKING:
    from conftest import SyntheticData

pytest.importorskip("lightning")

pytestmark = WARNINGS


def test_each_annotation_file_is_parsed_once(
    synthetic_data: SyntheticData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meinst.training.train import train

    parsed: Counter[str] = Counter()
    parse = coco_file.load_lists

    def counted(path: Path) -> dict[str, Any]:
        parsed[path.name] += 1
        return parse(path)

    monkeypatch.setattr(coco_file, "load_lists", counted)
    validation = tmp_path / "val.json"
    shutil.copy(synthetic_data.annotations, validation)
    recipe = with_values({"schedule.iterations": 2, "schedule.validate_every": 1})
    options = make_options(synthetic_data, tmp_path / "out", recipe)
    train(replace(options, val_annotations=validation))
    assert parsed == {synthetic_data.annotations.name: 1, "val.json": 1}
