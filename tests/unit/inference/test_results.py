from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from meinst.inference.journal import Row
from meinst.inference.results import overlay_names, write_images

CLASSES = ("disc", "böx")


def rows(count: int, size: int = 10) -> Iterator[Row]:
    for k in range(1, count + 1):
        yield Row({"id": k, "file_name": f"ü{k}\n" + "x" * size, "overlay": f"{k}.jpg"})
        yield Row(None, "broken")


def test_files_are_those_of_json_dump(tmp_path: Path) -> None:
    for count in (0, 1, 2, 5):
        plain = [row for row in rows(count) if row.image is not None]
        write_images(tmp_path, CLASSES, rows(count))
        categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "böx"}]
        images = [row.image for row in plain]
        content = {"images": images, "categories": categories, "annotations": []}
        assert (tmp_path / "images.json").read_text() == json.dumps(content, indent=1)
        assert overlay_names([], tmp_path) == []  # the files are recognised


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (30, 300):
        tracemalloc.start()
        write_images(tmp_path, CLASSES, rows(count, 50_000))
        assert overlay_names([], tmp_path) == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "images.json").stat().st_size > 10e6
    assert peaks[1] < peaks[0] + 200_000
    images = tmp_path / "images.json"
    images.write_bytes(images.read_bytes() + b" " * 10**7)  # of a million images
    tracemalloc.start()
    assert overlay_names([], tmp_path) == []
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
