import shutil
from pathlib import Path

import layouts
import pytest

from meinst.data.coco import CocoData
from meinst.data.datasets.dataset import open_dataset
from meinst.data_tools.html import write_report
from meinst.data_tools.inspect import INPUT_SIDES, inspect_dataset


def read(root: Path) -> dict[str, CocoData]:
    dataset = open_dataset(root)
    return {name: dataset.read(name) for name in dataset.parts}


def test_figures_of_a_sound_data_set(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path)
    seen: list[int] = []
    found = inspect_dataset(read(tmp_path), lambda: seen.append(1))
    assert len(seen) == 4
    train, val = found.parts["train"], found.parts["val"]
    assert (train.images, val.images) == (3, 1)
    assert train.objects == {"cat": 6, "dog": 3}
    assert train.per_image == (3.0, 3)
    assert val.sides == ("64 x 64", "64 x 64")
    assert (found.doubles, found.leaks, found.faulty) == ((), (), False)
    assert [size.side for size in found.input_sizes] == list(INPUT_SIDES)
    assert found.input_sizes[1].cost == 1.0
    # Sides double with the input, since all images are square or scaled by their longer side.
    sizes = {size.side: size for size in found.input_sizes}
    assert sizes[640].median == pytest.approx(2 * sizes[320].median, rel=0.02)
    assert any(line.startswith("Input of 320 pixels: 0.0% of") for line in found.advice)
    assert any(line.startswith("Fewer than 20 objects of cat, dog:") for line in found.advice)


def test_input_size_follows_from_small_objects(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path)
    lines = ["0 0.1 0.1 0.109 0.1 0.109 0.109 0.1 0.109"] * 20  # 0.9 % of a side
    for name in "abc":
        (tmp_path / "labels/train" / f"{name}.txt").write_text("\n".join(lines))
    found = inspect_dataset(read(tmp_path))
    by_side = {size.side: size.below_stride for size in found.input_sizes}
    assert by_side[416] > 0.9
    assert by_side[1333] < 0.05
    assert any(line.startswith("Input of 1333 pixels: ") for line in found.advice)
    lines = ["0 0.1 0.1 0.103 0.1 0.103 0.103 0.1 0.103"] * 20
    for name in "abc":
        (tmp_path / "labels/train" / f"{name}.txt").write_text("\n".join(lines))
    advice = inspect_dataset(read(tmp_path)).advice
    assert any(line.startswith("Even with 1333 pixels, ") for line in advice)


def test_faults_doubles_and_leaks_are_found(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path)
    images, labels = tmp_path / "images", tmp_path / "labels"
    for source, target in (("train/a", "train/a2"), ("train/b", "val/b2")):
        shutil.copy(images / f"{source}.png", images / f"{target}.png")
        shutil.copy(labels / f"{source}.txt", labels / f"{target}.txt")
    (images / "train/c.png").write_bytes(b"no image")
    (labels / "val/d.txt").write_text("0 0.5 0.5 0.5 0.5 0.5 0.5")
    found = inspect_dataset(read(tmp_path))
    assert found.doubles == ((str(images / "train/a.png"), str(images / "train/a2.png")),)
    assert found.leaks == ((str(images / "train/b.png"), str(images / "val/b2.png")),)
    assert found.faulty
    (error,) = found.parts["train"].unusable
    assert "c.png" in error
    assert found.parts["val"].faults == (
        "1 x mask with zero area (object d.txt: 1); correct the mask or remove it",
    )
    advice = "\n".join(found.advice)
    assert "1 images are in several parts" in advice
    assert "1 images of train cannot be used" in advice


def test_report_is_one_file_with_everything(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path / "set")
    (tmp_path / "set/data.yaml").write_text(
        "train: images/train\nval: images/val\nnames: [cat, '<b>dog']\n"
    )
    parts = read(tmp_path / "set")
    path = tmp_path / "report.html"
    write_report(path, "my <data>", inspect_dataset(parts), parts)
    page = path.read_text()
    assert "<h1>my &lt;data&gt;</h1>" in page
    assert "<td>&lt;b&gt;dog</td>" in page
    assert page.count("data:image/jpeg;base64,") == 4
    assert "http" not in page
    assert "a.png: 3 objects" in page
