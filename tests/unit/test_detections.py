from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from meinst.codecs.base import Codec
from meinst.detections import Detections
from meinst.ops.draw import PALETTE

# pycocotools 2.0 does not support NumPy 2's copy argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIDE = 4
NAMES = ("cat", "dog", "otter")


class PlainCodec(Codec):
    """Codes are the soft masks themselves."""

    kind = "plain"
    n_components = SIDE * SIDE
    mask_size = SIDE

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_", torch.ones(1))

    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None  # detections pass their labels
        return (codes * self.scale_).reshape(-1, SIDE, SIDE)

    def _unused(self, *_: object) -> None:
        raise NotImplementedError

    fit = transform = inverse_logits = get_config = _unused
    from_config = from_options = classmethod(_unused)
    fitted = True


def make(count: int = 3, names: tuple[str, ...] = NAMES, **changes: object) -> Detections:
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([30.0, 20.0])
    sizes = torch.rand(count, 2, generator=generator) * 15 + 5
    codes = torch.rand(count, SIDE * SIDE, generator=generator)
    fields = {
        "boxes": torch.cat((corners, corners + sizes), dim=1),
        "scores": torch.linspace(0.9, 0.3, count),
        "labels": torch.arange(count) % len(names),
        "codes": (codes + torch.tensor([0.3])).clamp(max=1),
        "image_size": (40, 50),
        "codec": PlainCodec(),
        "class_names": names,
    }
    return Detections(**(fields | changes))


def picture() -> np.ndarray:
    return np.full((40, 50, 3), 100, dtype=np.uint8)


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_no_detections():
    found = make(0)
    assert len(found) == 0
    assert list(found) == []
    assert repr(found) == "Detections(0; image 40 x 50)"
    assert found.soft_masks().shape == (0, SIDE, SIDE)
    assert found.masks().shape == (0, 40, 50)
    assert found.rle() == found.polygons() == found.to_coco(1) == []
    assert len(found[[]]) == len(found[:2]) == 0
    np.testing.assert_array_equal(found.draw(picture()), picture())
    empty = found.to_supervision()
    assert len(empty) == 0
    assert empty.mask.shape == (0, 40, 50)


def test_fields_cannot_be_assigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().image_size = (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, r"boxes .*\(3, 4\).*\(3, 5\)"),
        ({"scores": torch.zeros(2)}, r"boxes .*\(2, 4\)"),
        ({"scores": torch.tensor(0.5)}, r"scores .*\(0,\).*\(\)"),
        ({"labels": torch.zeros(3, 1).long()}, r"labels .*\(3,\)"),
        ({"codes": torch.zeros(3, 7)}, r"codes .*\(3, 16\)"),
        ({"labels": torch.zeros(3)}, r"labels .*int64.*float32"),
        ({"boxes": torch.zeros(3, 4).long()}, r"boxes .*float32.*int64"),
        ({"labels": torch.tensor([0, 1, 3])}, "3 class names, got 0 to 3"),
        ({"labels": torch.tensor([0, 1, -1])}, "3 class names, got -1 to 1"),
        ({"image_size": (0, 5)}, r"got \(0, 5\)"),
    ],
)
def test_rejects_fields_of_wrong_shape_type_or_range(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (1, [1]),
        (-1, [4]),
        (np.int64(2), [2]),
        (slice(1, None, 2), [1, 3]),
        (slice(None, None, -2), [4, 2, 0]),
        (slice(3, 3), []),
        (np.array([2, 0, 4])[::-1], [4, 0, 2]),
        ([3, 0], [3, 0]),
        (np.array([False, True, True, False, False]), [1, 2]),
        (torch.tensor([4, 4]), [4, 4]),
        (
            np.array([2, 1, 0], np.uint8),
            [2, 1, 0],
        ),  # indices, although torch takes uint8 for a mask
        (np.array([1, 1, 0, 0, 0], np.uint8), [1, 1, 0, 0, 0]),
        (np.array([-1, 2], np.int16), [4, 2]),
        (torch.tensor([True, False, False, False, True]), [0, 4]),
    ],
)
def test_indexing_keeps_the_fields_together(index, kept):
    found = make(5)
    chosen = found[index]
    for name in ("boxes", "scores", "labels", "codes"):
        assert torch.equal(getattr(chosen, name), getattr(found, name)[kept])
    assert chosen.codec is found.codec
    assert chosen.rle() == [found.rle()[n] for n in kept]


def test_iteration_gives_single_detections():
    singles = list(make(3))
    assert [len(single) for single in singles] == [1, 1, 1]
    assert [float(single.scores) for single in singles] == pytest.approx([0.9, 0.6, 0.3])


@pytest.mark.parametrize(
    "index", [3, -4, [0, 7], torch.ones(2, dtype=torch.bool), np.zeros(0, bool), 1.0]
)
def test_index_out_of_range_is_an_error(index):
    with pytest.raises(IndexError):
        make(3)[index]


def test_repr_counts_detections_by_class():
    found = make(4, image_size=(480, 640))
    assert repr(found) == "Detections(4: 2 cat, 1 dog, 1 otter; image 480 x 640)"


def test_to_keeps_the_codec():
    found = make(3)
    moved = found.to("cpu")
    assert moved.codec is found.codec
    assert moved.rle() == found.rle()


def test_codes_with_gradients_are_decoded_without():
    codes = torch.ones(1, 16, requires_grad=True)
    found = make(1, codes=codes, boxes=torch.tensor([[0.0, 0, 5, 5]], requires_grad=True))
    assert not found.soft_masks().requires_grad
    assert len(found.to_coco(1)) == 1
    assert found.draw(picture()).shape == (40, 50, 3)


def test_masks_rle_and_polygons_agree():
    found = make(6)
    masks = found.masks()
    assert masks.dtype == torch.bool
    assert masks.flatten(1).any(1).all()
    decoded = [coco_mask.decode(rle) > 0 for rle in found.rle()]
    from_polygons = [
        coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, 40, 50))) > 0
        for parts in found.polygons()
    ]
    np.testing.assert_array_equal(np.stack(decoded), masks.numpy())
    np.testing.assert_array_equal(np.stack(from_polygons), masks.numpy())


def test_coco_results():
    found = make(
        2,
        boxes=torch.tensor([[1.0, 2.0, 5.0, 10.0], [0.5, 0.25, 2.5, 3.0]]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([2, 0]),
    )
    results = json.loads(json.dumps(found.to_coco(7, category_ids=(10, 20, 30))))
    assert [entry["bbox"] for entry in results] == [[1, 2, 4, 8], [0.5, 0.25, 2, 2.75]]
    assert [entry["category_id"] for entry in results] == [30, 10]
    assert [entry["score"] for entry in results] == [0.75, 0.5]
    assert [entry["segmentation"] for entry in results] == found.rle()
    assert {entry["image_id"] for entry in results} == {7}
    assert [entry["category_id"] for entry in found.to_coco(7)] == [3, 1]
    with pytest.raises(ValueError, match="3 class names, got 2"):
        found.to_coco(7, category_ids=[1, 2])


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_supervision_gets_compact_masks():
    outside = torch.tensor([[60.0, 60.0, 70.0, 70.0], [49.0, 39.0, 50.0, 40.0]])
    found = make(5)
    found = dataclasses.replace(found, boxes=torch.cat((found.boxes[:3], outside)))
    converted = found.to_supervision()
    import supervision

    assert isinstance(converted.mask, supervision.CompactMask)
    np.testing.assert_array_equal(converted.mask.to_dense(), found.masks().numpy())
    np.testing.assert_array_equal(converted.xyxy, found.boxes.numpy())
    np.testing.assert_array_equal(converted.confidence, found.scores.numpy())
    assert converted.class_id.tolist() == [0, 1, 2, 0, 1]
    assert converted.data["class_name"].tolist() == ["cat", "dog", "otter", "cat", "dog"]


def test_missing_supervision_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install 'meinst\[app\]'"):
        make().to_supervision()


def test_drawing_stays_inside_the_masks():
    found, image = make(3), picture()
    drawn = found.draw(image, boxes=False, captions=False)
    assert drawn.dtype == np.uint8
    changed = torch.from_numpy((drawn != image).any(axis=-1))
    assert torch.equal(changed, found.masks().any(0))
    assert (image == 100).all()
    np.testing.assert_array_equal(drawn, found.draw(image, boxes=False, captions=False))


def test_colours_differ_by_class_or_by_object_for_one_class():
    square = {
        "boxes": torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9]]),
        "codes": torch.ones(2, 16),
        "labels": torch.tensor([0, 0]),
    }
    for names, second in ((NAMES, PALETTE[0]), (("nucleus",), PALETTE[1])):
        drawn = make(2, names, **square).draw(picture(), boxes=False, captions=False)
        assert tuple(drawn[0, 4]) == PALETTE[0]
        assert tuple(drawn[0, 24]) == second


def test_boxes_and_captions_are_drawn_if_there_is_room():
    large = np.full((400, 500, 3), 100, dtype=np.uint8)
    few, many = make(3, image_size=(400, 500)), make(31, image_size=(400, 500))
    plain = {"boxes": False, "captions": False}
    full = {"boxes": True, "captions": True}
    np.testing.assert_array_equal(few.draw(large), few.draw(large, **full))
    np.testing.assert_array_equal(many.draw(large), many.draw(large, **plain))
    # 40 x 50 pixels are too small for a caption.
    np.testing.assert_array_equal(make(1).draw(picture()), make(1).draw(picture(), **plain))
    for single in ({"boxes": True, "captions": False}, {"boxes": False, "captions": True}):
        assert (few.draw(large, **single) != few.draw(large, **plain)).any()
        assert (few.draw(large, **single) != few.draw(large, **full)).any()


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (picture().astype(np.float32), {}, "float32"),
        ("picture.jpg", {}, "str"),
        (picture()[:, :-1], {}, r"\(40, 50, 3\).+\(40, 49, 3\)"),
        (picture()[..., 0], {}, r"\(40, 50\)"),
        (picture(), {"alpha": 1.5}, r"alpha .+1\.5"),
    ],
)
def test_rejects_images_that_cannot_be_drawn_on(image, options, message):
    with pytest.raises(ValueError, match=message):
        make().draw(image, **options)


@pytest.mark.parametrize("size", [(480.0, 640), (480, "640"), (480,), (0, 640)])
def test_image_size_must_be_two_integers(size: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="image_size must be a height and a width"):
        make(1, image_size=size)


@pytest.mark.parametrize("value", [1e9, -1e9, float("nan"), float("inf")])
def test_boxes_far_away_are_rejected(value: float) -> None:
    boxes = torch.tensor([[0.0, 0.0, value, 5.0]])
    with pytest.raises(ValueError, match="coordinates of boxes must be within"):
        make(1, boxes=boxes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_boxes_and_scores_of_other_float_types_are_drawn(dtype: torch.dtype) -> None:
    detections = make(boxes=make().boxes.to(dtype), scores=make().scores.to(dtype))
    drawn = detections.draw(np.zeros((40, 50, 3), np.uint8), boxes=True, captions=True)
    assert drawn.any()
    assert len(detections.to_supervision().xyxy) == 3


def test_reduced_copies_are_drawn_on() -> None:
    found = make(3, image_size=(400, 500), boxes=make(3).boxes * 10)
    small = found.draw(picture(), boxes=False, captions=False)
    np.testing.assert_array_equal(small, make(3).draw(picture(), boxes=False, captions=False))
    odd = make(1, image_size=(401, 500), boxes=make(1).boxes * 10)
    assert odd.draw(picture()).shape == (40, 50, 3)


def test_resized_detections_have_resized_boxes() -> None:
    boxes = torch.tensor([[0.0, 4.0, 10.0, 20.0]])
    half = make(1, boxes=boxes).resized((20, 100))
    assert half.image_size == (20, 100)
    assert half.boxes.tolist() == [[0.0, 2.0, 20.0, 10.0]]


def test_parts_are_all_detections_in_order() -> None:
    found = make(5)
    parts = list(found.parts(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.scores for part in parts]), found.scores)
    assert list(make(0).parts()) == []


def test_number_of_masks_decoded_at_once_does_not_matter(monkeypatch) -> None:
    found = make(7)
    before = found.rle(), found.polygons(), found.to_coco(1), found.draw(picture())
    monkeypatch.setattr("meinst.detections.Detections.parts.__defaults__", (2,))
    monkeypatch.setattr("meinst.ops.draw._AT_ONCE", 2)
    assert (found.rle(), found.polygons(), found.to_coco(1)) == before[:3]
    np.testing.assert_array_equal(found.draw(picture()), before[3])


def test_images_that_rle_cannot_count_have_polygons() -> None:
    found = make(2, image_size=(70_000, 70_000))
    results = json.loads(json.dumps(found.to_coco(1)))
    assert [each["segmentation"] for each in results] == found.polygons()
    with pytest.raises(ValueError, match="COCO RLE is limited"):
        found.rle()
