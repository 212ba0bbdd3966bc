"""Scores of codecs: by hand, and against dense masks and pycocotools."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CATEGORIES, SyntheticData, column_runs, draw_mask
from pycocotools import mask as coco_mask
from torch import Tensor

import meinst.codec_tools.evaluate as module
from meinst.codec_tools.evaluate import evaluate_codec, write_scores
from meinst.codecs import Codec, DCTCodec, GridCodec, NotFittedError, PCACodec
from meinst.data.coco import CocoData, read_coco
from meinst.ops.paste import paste_masks

Dict = dict[str, Any]


def write(path: Path, annotations: list[Dict], size: tuple[int, int] = (100, 100)) -> CocoData:
    """Images 1, 2, ... as annotated, of the given height and width."""
    last = max((entry["image_id"] for entry in annotations), default=1)
    images = [
        {"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]}
        for i in range(1, last + 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}
    path.write_text(json.dumps(content))
    return read_coco(path)


def entry(number: int, mask: np.ndarray, image_id: int = 1, category: int = 7) -> Dict:
    """A mask as run lengths, with its tight box."""
    rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
    x, y = columns[0], rows[0]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "segmentation": {"size": list(mask.shape), "counts": column_runs(mask)},
        "bbox": [x, y, columns[-1] + 1 - x, rows[-1] + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": 0,
    }


def rectangle(*corners: int, size: tuple[int, int] = (100, 100)) -> np.ndarray:
    return draw_mask("box", corners, *size)


# Three quarters of a box of 40 x 40: the lower right quarter is missing.
CORNER = rectangle(20, 30, 60, 70) & ~rectangle(40, 50, 60, 70)


def test_rejects_data_without_instances(tmp_path: Path) -> None:
    codec = DCTCodec(4, 8)
    nothing = write(tmp_path / "none.json", [])
    crowd = write(tmp_path / "crowd.json", [entry(1, CORNER) | {"iscrowd": 1}])
    line = {"segmentation": [[5, 5, 5, 9, 5, 7]]}
    flat = write(tmp_path / "flat.json", [entry(1, CORNER) | line])
    for data in (nothing, crowd, flat, [nothing, crowd]):
        with pytest.raises(ValueError, match=r"\.json: no instances to measure"):
            evaluate_codec(codec, data)
    with pytest.raises(ValueError, match="no annotation file"):
        evaluate_codec(codec, [])


def test_rejects_unfitted_codec(synthetic_data: SyntheticData) -> None:
    with pytest.raises(NotFittedError):
        evaluate_codec(PCACodec(4, 8), read_coco(synthetic_data.annotations))


def test_lossless_codec_has_scores_of_one(tmp_path: Path) -> None:
    # As many cells as pixels: all numbers are 1.
    ring = rectangle(5, 5, 45, 45) & ~rectangle(20, 10, 30, 40)
    data = write(tmp_path / "a.json", [entry(1, CORNER), entry(2, ring)])
    scores = evaluate_codec(GridCodec(1600, 40), data)
    assert scores.iou.tolist() == scores.boundary_iou.tolist() == [1, 1]
    assert scores.pooled_miou == 1
    assert scores.ap_ceiling.ap == pytest.approx(1)
    assert scores.overall == module.ShapeScores(2, 1, 1, 1, 1, 1)


def test_scores_by_hand(tmp_path: Path) -> None:
    # One cell for all: 3/4 of it are covered, so the decoded mask is the full box.
    scores = evaluate_codec(GridCodec(1, 40), write(tmp_path / "a.json", [entry(1, CORNER)]))
    assert scores.iou.dtype == scores.boundary_iou.dtype == np.float32
    assert scores.iou.tolist() == [0.75]  # 1200 / 1600 pixels
    # d = round(0.02 * 141.4) = 3. The box's boundary has 40^2 - 34^2 = 444 pixels. Within 3
    # pixels of the corner's outside are all but an inner corner of 34^2 - 20^2 pixels: it has
    # 1200 - 756 = 444 as well. Shared: 444 of the box without those of the missing quarter,
    # 20^2 - 17^2 = 111.
    shared = 444 - 111
    assert scores.boundary_iou.tolist() == [np.float32(shared / (444 + 444 - shared))]
    # Pooled at S x S: foreground 3/4, background 0 of a quarter.
    assert scores.pooled_miou == 0.375
    # 0.75 reaches the thresholds 0.50, 0.55, ..., 0.75: six of ten.
    assert scores.ap_ceiling.ap == pytest.approx(0.6)
    assert (scores.ap_ceiling.ap_medium, scores.ap_ceiling.ap_small) == (pytest.approx(0.6), None)
    assert (scores.bytes_per_instance, scores.areas.tolist()) == (4, [1200])
    assert scores.codec == {"kind": "grid", "n_components": 1, "mask_size": 40}


def test_percentiles_and_groups(tmp_path: Path) -> None:
    # IoU 0.75 for the corner (1200 pixels: medium), 1 for the three boxes.
    data = write(
        tmp_path / "a.json",
        [
            entry(11, CORNER, image_id=2, category=3),
            entry(12, rectangle(0, 0, 31, 33)),  # 1023 pixels: small
            entry(13, rectangle(40, 0, 72, 32), image_id=2),  # 1024 pixels: medium
            entry(14, rectangle(0, 0, 96, 96), image_id=2),  # 9216 pixels: large
        ],
    )
    scores = evaluate_codec(GridCodec(1, 96), data)
    # Image by image, and in the file's order within each.
    assert scores.annotation_ids.tolist() == [12, 11, 13, 14]
    assert scores.image_ids.tolist() == [1, 2, 2, 2]
    assert scores.class_names == ("disc", "box", "star")
    assert scores.labels.tolist() == [1, 0, 1, 1]
    assert scores.iou.tolist() == [1, 0.75, 1, 1]
    assert scores.areas.tolist() == [1023, 1200, 1024, 9216]
    # Sorted 0.75, 1, 1, 1: the p-th percentile lies 3 p / 100 places from the first.
    overall = scores.overall
    assert overall.mean_iou == 0.9375
    found = (overall.iou_p1, overall.iou_p5, overall.iou_p25)
    assert found == pytest.approx((0.75 + 0.03 * 0.25, 0.75 + 0.15 * 0.25, 0.75 + 0.75 * 0.25))
    counts = {name: one.instances for name, one in scores.by_size.items()}
    assert counts == {"small": 1, "medium": 2, "large": 1}
    assert scores.by_size["medium"].mean_iou == 0.875
    assert scores.by_category["disc"].mean_iou == 0.75
    assert scores.by_category["box"] == module.ShapeScores(3, 1, 1, 1, 1, 1)
    assert scores.by_category["star"] == module.ShapeScores(0, None, None, None, None, None)


def test_an_instance_without_pixels(tmp_path: Path) -> None:
    # So thin that COCO's rule gives it no pixel; neither has its box the centre of any.
    thin = entry(1, CORNER) | {
        "segmentation": [[10.1, 10.1, 10.3, 10.1, 10.3, 10.4]],
        "bbox": [10.1, 10.1, 0.2, 0.3],
    }
    scores = evaluate_codec(DCTCodec(9, 8), write(tmp_path / "a.json", [thin]))
    assert scores.areas.tolist() == [0]
    assert scores.iou.tolist() == scores.boundary_iou.tolist() == [1]


def dense(data: CocoData, codec: Codec) -> tuple[list[np.ndarray], list[np.ndarray], list[Dict]]:
    """Full-size masks, annotated and decoded, of all but crowds, and COCO results."""
    true, found, results = [], [], []
    content = json.loads(data.annotations.read_text())
    for record, instances in zip(data.images, data.instances, strict=True):
        shapes = instances.select(np.flatnonzero(~instances.crowd))
        size = (record.height, record.width)
        entries = [e for e in content["annotations"] if e["image_id"] == record.id]
        entries = [e for e in entries if not e["iscrowd"]]
        for e in entries:
            runs = e["segmentation"]
            if isinstance(runs, list):
                runs = coco_mask.merge(coco_mask.frPyObjects(runs, *size))
            elif isinstance(runs["counts"], list):
                runs = coco_mask.frPyObjects(runs, *size)
            true.append(coco_mask.decode(runs).astype(bool))
        codes = codec.transform(torch.from_numpy(shapes.masks(codec.mask_size)))
        boxes = torch.from_numpy(shapes.boxes)
        full = paste_masks(codec.inverse_transform(codes), boxes, size).numpy()
        found += list(full)
        results += [
            {
                "image_id": record.id,
                "category_id": e["category_id"],
                "score": 1.0,
                "bbox": e["bbox"],
                "segmentation": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))),
            }
            for e, mask in zip(entries, full, strict=True)
        ]
    return true, found, results


def dense_boundary(mask: np.ndarray) -> np.ndarray:
    """The mask minus its erosion, row by row and column by column of the square."""
    distance = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    padded = np.pad(mask, distance)
    for axis, length in enumerate(mask.shape):
        shifts = range(2 * distance + 1)
        padded = np.all([padded.take(range(k, k + length), axis=axis) for k in shifts], axis=0)
    return mask & ~padded


def test_equal_to_dense_masks_and_pycocotools(
    synthetic_data: SyntheticData, coco_reference: Callable[..., Dict]
) -> None:
    data = read_coco(synthetic_data.annotations)
    codec = DCTCodec(20, 14)
    scores = evaluate_codec(codec, data)
    true, found, results = dense(data, codec)

    def iou(first: np.ndarray, second: np.ndarray) -> np.float32:
        return np.float32((first & second).sum() / (first | second).sum())

    assert len(true) == len(scores.iou) == 9
    pairs = list(zip(true, found, strict=True))
    assert scores.iou.tolist() == [iou(*pair) for pair in pairs]
    edges = [[dense_boundary(mask) for mask in pair] for pair in pairs]
    assert scores.boundary_iou.tolist() == [iou(*pair) for pair in edges]
    assert 0.5 < scores.iou.min() < scores.iou.max() <= 1
    assert scores.areas.tolist() == [mask.sum() for mask in true]

    reference = coco_reference(synthetic_data.content(), results, "segm", 100)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")
    assert [scores.ap_ceiling.to_dict()[name] for name in names] == pytest.approx(
        reference["all"], abs=1e-12
    )


def test_pooled_miou_follows_the_published_formula(synthetic_data: SyntheticData) -> None:
    data = read_coco(synthetic_data.annotations)
    codec = DCTCodec(6, 14)
    shapes = [one.select(np.flatnonzero(~one.crowd)) for one in data.instances]
    masks = torch.from_numpy(np.concatenate([one.masks(14) for one in shapes]))
    decoded, original = codec.inverse_transform(codec.transform(masks)) >= 0.5, masks.bool()
    hits, rest = int((decoded & original).sum()), int((~decoded & ~original).sum())
    wrong = int((decoded ^ original).sum())
    expected = (hits / (hits + wrong) + rest / (rest + wrong)) / 2
    assert evaluate_codec(codec, data).pooled_miou == pytest.approx(expected, abs=1e-12)
    assert expected < 1


def test_chunks_do_not_change_scores(
    synthetic_data: SyntheticData, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_coco(synthetic_data.annotations)
    codec = DCTCodec(20, 14)
    whole = evaluate_codec(codec, data)
    monkeypatch.setattr(module, "_CHUNK", 1)
    steps: list[int] = []
    parts = evaluate_codec(codec, data, steps.append)
    assert steps == [2, 2, 1, 2, 2]  # of each image that has instances
    assert parts.to_dict() == whole.to_dict()
    assert np.array_equal(parts.iou, whole.iou)


def test_faulty_annotations_do_not_shift_scores(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    content = synthetic_data.content()
    good = evaluate_codec(DCTCodec(9, 14), read_coco(synthetic_data.annotations))
    first = content["annotations"][0]
    broken = [
        first | {"id": 900, "segmentation": []},
        first | {"id": 901, "segmentation": [[1, 2, 3]]},
    ]
    content["annotations"] = [broken[0], first, broken[1], *content["annotations"][1:]]
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(content))
    scores = evaluate_codec(DCTCodec(9, 14), read_coco(path))
    assert scores.annotation_ids.tolist() == good.annotation_ids.tolist()
    assert scores.to_dict() | {"annotations": []} == good.to_dict() | {"annotations": []}


def test_several_files_equal_a_joined_file(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    # The second file has the same ids, and categories of the same names under other ids.
    content = synthetic_data.content()
    other = json.loads(json.dumps(content))
    new_ids = {3: 8, 7: 2, 20: 5}
    for one in other["annotations"]:
        one["category_id"] = new_ids[one["category_id"]]
    for one in other["categories"]:
        one["id"] = new_ids[one["id"]]
    (tmp_path / "b.json").write_text(json.dumps(other))
    # By hand: new ids for all of the second.
    for one in json.loads(json.dumps(content["images"])):
        content["images"].append(one | {"id": one["id"] + 100})
    for one in json.loads(json.dumps(content["annotations"])):
        more = {"id": one["id"] + 100, "image_id": one["image_id"] + 100}
        content["annotations"].append(one | more)
    (tmp_path / "ab.json").write_text(json.dumps(content))
    files = [synthetic_data.annotations, tmp_path / "b.json"]
    codec = DCTCodec(5, 14)
    apart = evaluate_codec(codec, [read_coco(path) for path in files])
    joined = evaluate_codec(codec, read_coco(tmp_path / "ab.json"))
    assert apart.annotations == tuple(map(str, files))
    assert apart.to_dict() | {"annotations": []} == joined.to_dict() | {"annotations": []}
    assert apart.iou.tolist() == joined.iou.tolist() == apart.iou[:9].tolist() * 2
    assert apart.labels.tolist() == joined.labels.tolist()
    assert apart.files.tolist() == [0] * 9 + [1] * 9
    assert apart.image_ids.tolist() == apart.image_ids[:9].tolist() * 2
    assert apart.annotation_ids.tolist() == apart.annotation_ids[:9].tolist() * 2
    assert 0 < apart.ap_ceiling.ap < 1


class PerClass(Codec):
    """Keeps the masks of all classes but the first, which it inverts."""

    kind = "grid"
    title = "Test"

    def __init__(self, class_names: tuple[str, ...], size: int = 14) -> None:
        super().__init__()
        self.class_names, self.mask_size, self.n_components = class_names, size, size * size

    def fit(self, masks: Tensor, labels: Tensor | None = None) -> PerClass:  # noqa: ARG002
        return self

    def transform(self, masks: Tensor, *, labels: Tensor | None = None, **_: Any) -> Tensor:
        assert labels is not None
        signs = 1 - 2 * (labels == 0).float()[:, None]
        return (masks.flatten(1).float() - 0.5) * signs

    def inverse_logits(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        assert labels.dtype == torch.int64
        return codes.reshape(-1, self.mask_size, self.mask_size)

    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.inverse_logits(codes, labels) + 0.5

    def get_config(self) -> Dict:
        return {"kind": self.kind}

    @classmethod
    def from_options(cls, options: Any, class_names: Any = None) -> PerClass:
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PerClass:
        raise NotImplementedError

    @property
    def fitted(self) -> bool:
        return True


def test_classes_are_matched_by_name(synthetic_data: SyntheticData) -> None:
    data = read_coco(synthetic_data.annotations)
    everything = evaluate_codec(GridCodec(14 * 14, 14), data)
    scores = evaluate_codec(PerClass(("moon", "disc")), data)
    discs = everything.labels == 0
    assert scores.class_names == ("disc",)
    assert scores.unknown_categories == ("box", "star")
    assert scores.iou.tolist() == everything.iou[discs].tolist()
    assert scores.annotation_ids.tolist() == everything.annotation_ids[discs].tolist()
    assert set(scores.labels.tolist()) == {0}
    assert set(scores.by_category) == set(scores.ap_ceiling.per_class) == {"disc"}
    # Boxes are not measured, so that nothing is missed.
    disc_ap = everything.ap_ceiling.per_class["disc"].ap
    assert scores.ap_ceiling.ap == pytest.approx(disc_ap)

    inverted = evaluate_codec(PerClass(("disc", "box")), data)
    assert inverted.unknown_categories == ("star",)
    assert inverted.iou[~discs].tolist() == everything.iou[~discs].tolist()
    assert inverted.iou[discs].max() < 0.5


def test_rejects_data_without_known_categories(synthetic_data: SyntheticData) -> None:
    message = r"\(disc, box, star\).*\(moon\)"
    with pytest.raises(ValueError, match=message):
        evaluate_codec(PerClass(("moon",)), read_coco(synthetic_data.annotations))


def test_detection_limit_grows_with_the_fullest_image(tmp_path: Path) -> None:
    # 121 boxes that are kept whole in one image: with COCO's 100 the ceiling would be below 1.
    corners = [(9 * i, 9 * j) for i in range(11) for j in range(11)]
    boxes = [entry(n, rectangle(x, y, x + 8, y + 8)) for n, (x, y) in enumerate(corners, 1)]
    scores = evaluate_codec(GridCodec(64, 8), write(tmp_path / "a.json", boxes))
    assert scores.ap_ceiling.ap == pytest.approx(1)


def test_memory_does_not_grow_with_image_size(tmp_path: Path) -> None:
    size = (4000, 4000)  # 16 MB for a mask of bytes
    outline = [10.5, 20, 3900, 30, 3800, 3950, 60, 3600]
    box = {"bbox": [10.5, 20, 3889.5, 3930]}
    polygon = entry(1, CORNER) | box | {"segmentation": [outline]}
    data = write(tmp_path / "a.json", [polygon, polygon | {"id": 2}], size)
    evaluate_codec(DCTCodec(20, 14), data)  # what is made once
    tracemalloc.start()
    scores = evaluate_codec(DCTCodec(20, 14), data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6
    assert scores.areas.min() > 1e7
    assert scores.iou.min() > 0.95


def test_written_files_contain_the_scores(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    scores = evaluate_codec(DCTCodec(9, 14), read_coco(synthetic_data.annotations))
    write_scores(scores, tmp_path / "new")
    numbers = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert numbers == json.loads(json.dumps(scores.to_dict()))
    assert numbers["overall"]["mean_iou"] == pytest.approx(float(scores.iou.mean()))
    assert numbers["by_category"]["star"]["mean_iou"] is None
    with (tmp_path / "new" / "instances.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["iou"]) for row in rows] == pytest.approx(scores.iou.tolist(), abs=1e-6)
    assert [int(row["annotation_id"]) for row in rows] == scores.annotation_ids.tolist()
    assert rows[0] == {
        "file": str(synthetic_data.annotations),
        "image_id": "11",
        "annotation_id": "1",
        "category": "disc",
        "area": str(scores.areas[0]),
        "iou": f"{scores.iou[0]:.6f}",
        "boundary_iou": f"{scores.boundary_iou[0]:.6f}",
    }
