import math
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from meinst.data.coco import read_coco
from meinst.training.plots import draw_curves, draw_sheet, read_logs, running_means


def write_log(folder: Path, version: int, rows: list[str]) -> None:
    path = folder / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["epoch,step,loss/total,val/segm_AP", *rows, ""]))
    os.utime(path, (version, version))


def test_no_logs_give_no_series_and_empty_panels(tmp_path: Path) -> None:
    assert read_logs(tmp_path) == {}
    draw_curves({}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.size[0] > 500


def test_running_means_are_centred() -> None:
    assert running_means([7], [2.0], 1) == ([7], [2.0])
    steps, means = running_means([1, 2, 3, 5, 8], [1.0, 2.0, 6.0, 4.0, 2.0], 3)
    assert steps == [2, 3, 5]
    np.testing.assert_allclose(means, [3, 4, 4])


def test_curves_of_losses_and_validation_are_drawn(tmp_path: Path) -> None:
    draw_curves({}, tmp_path / "empty.png")
    losses = {step: 4.0 / step for step in range(1, 121)}
    draw_curves({"loss/total": losses, "val/segm_AP": {60: 0.1, 120: 0.3}}, tmp_path / "some.png")
    with Image.open(tmp_path / "empty.png") as empty, Image.open(tmp_path / "some.png") as some:
        blue = (np.array(some.convert("RGB")) == (31, 119, 180)).all(2)  # matplotlib's first colour
        assert not (np.array(empty.convert("RGB")) == (31, 119, 180)).all(2).any()
    height, width = blue.shape
    assert blue[: height // 2, : width // 2].any()  # the sum of the losses
    assert blue[height // 2 :, : width // 2].any()  # validation
    assert not blue[:, width // 2 :].any()


def test_later_values_of_a_resumed_run_count(tmp_path: Path) -> None:
    write_log(tmp_path, 0, ["0,1,5.0,", "0,2,4.0,", "0,2,,0.1"])
    write_log(tmp_path, 1, ["0,2,3.5,", "0,3,3.0,"])
    os.utime(tmp_path / "version_0" / "metrics.csv")  # times of copied files are arbitrary
    assert read_logs(tmp_path) == {
        "loss/total": {1: 5.0, 2: 3.5, 3: 3.0},
        "val/segm_AP": {2: 0.1},
    }


def test_damaged_logs_and_other_folders_are_skipped(tmp_path: Path) -> None:
    write_log(tmp_path, 0, ["0,1,5.0,", "0,two,4.0,", "0,3", "0,4,1,2,3", "0,,7.0,", "0,6,x,0.5"])
    write_log(tmp_path, 1, ["0,8,3.0,", "0,9,nan,0.25"])
    torn = tmp_path / "version_1" / "metrics.csv"
    torn.write_bytes(torn.read_bytes() + b"0,10,,0.1")  # of 0.15
    for name in ("version_0_backup", "version_", "version_x"):
        shutil.copytree(tmp_path / "version_0", tmp_path / name)
    for number, content in ((2, b""), (3, b"\0" * 99), (4, b"epoch,step,loss\n\0\0\n\xff,\xfe\n")):
        write_log(tmp_path, number, [])
        (tmp_path / f"version_{number}" / "metrics.csv").write_bytes(content)
    series = read_logs(tmp_path)
    assert math.isnan(series["loss/total"].pop(9))
    assert series == {"loss/total": {1: 5.0, 8: 3.0}, "val/segm_AP": {9: 0.25}}
    draw_curves(read_logs(tmp_path) | {"val/none": {9: math.nan}}, tmp_path / "curves.png")


def test_sheet_has_a_tile_for_each_of_the_first_images(
    tiny_model, synthetic_data, tmp_path: Path
) -> None:
    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    draw_sheet(tiny_model, data, tmp_path / "sheet.jpg", count=5)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 * 360, 4 * 360, 3)
    assert pixels[:60, :90].std() > 10  # the first tile is not empty
