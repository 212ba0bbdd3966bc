from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from meinst.data.coco import CocoData, read_coco
from meinst.data.images import ImageError
from meinst.data.training_dataset import ResumableSampler, TrainingDataset, collate
from meinst.data.transforms import AugmentOptions, ResizeOptions
from meinst.types import Target

STILL = AugmentOptions(horizontal_flip=0.0)
LIVELY = AugmentOptions(scale_jitter=(0.7, 1.5), crop_size=24, vertical_flip=0.5, brightness=0.3)


@pytest.fixture
def data(tmp_path: Path) -> CocoData:
    """Five images of a single grey, 10 + their number; image 3 is empty, image 4 is a crowd."""
    images, annotations = [], []
    for i in range(5):
        name = f"{i}.png"
        Image.new("L", (24, 16), 10 + i).save(tmp_path / name)
        images.append({"id": i, "file_name": name, "width": 24, "height": 16})
        if i != 3:
            counts = {"size": [16, 24], "counts": [4 * 16, 8 * 16, 12 * 16]}
            square = [[4, 2, 12, 2, 12, 10, 4, 10]]
            annotations.append(
                {
                    "id": i,
                    "image_id": i,
                    "category_id": 1,
                    "bbox": [4, 2, 8, 8],
                    "segmentation": counts if i == 4 else square,
                    "iscrowd": int(i == 4),
                }
            )
    path = tmp_path / "annotations.json"
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return read_coco(path, tmp_path)


def make_dataset(
    data: CocoData, augment: AugmentOptions = STILL, seed: int = 0, skip_empty: bool = False
) -> TrainingDataset:
    return TrainingDataset(
        data, ResizeOptions(16, 24), augment, 14, seed=seed, skip_empty=skip_empty
    )


def same(one: tuple[Tensor, Target], other: tuple[Tensor, Target]) -> bool:
    pairs = [
        (one[0], other[0]),
        (one[1].boxes, other[1].boxes),
        (one[1].labels, other[1].labels),
        (one[1].masks, other[1].masks),
    ]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def test_sample(data: CocoData) -> None:
    dataset = make_dataset(data)
    assert len(dataset) == 5
    for k in range(5):
        image, target = dataset[k]
        assert image.shape == (3, 16, 24)
        assert image.dtype == torch.uint8
        number = int(image[0, 0, 0]) - 10
        assert (image == number + 10).all()
        if number >= 3:
            assert target.boxes.shape == (0, 4)
            assert target.masks.shape == (0, 14, 14)
        else:
            assert target.boxes.tolist() == [[4, 2, 12, 10]]
            assert target.labels.tolist() == [0]


def test_each_epoch_is_a_new_permutation(data: CocoData) -> None:
    dataset = make_dataset(data)
    epochs = [[int(dataset[5 * e + i][0][0, 0, 0]) - 10 for i in range(5)] for e in range(8)]
    for epoch in epochs:
        assert sorted(epoch) == [0, 1, 2, 3, 4]
    assert len({tuple(epoch) for epoch in epochs}) > 4
    other = make_dataset(data, seed=1)
    assert epochs != [[int(other[5 * e + i][0][0, 0, 0]) - 10 for i in range(5)] for e in range(8)]


def test_sample_depends_only_on_its_number_and_the_seed(data: CocoData) -> None:
    straight = make_dataset(data, LIVELY)
    expected = [straight[k] for k in range(20)]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    again = make_dataset(data, LIVELY)
    for k in (19, 3, 12, 0, 7, 3):
        assert same(again[k], expected[k])
    restored = pickle.loads(pickle.dumps(again))  # as in a spawned worker
    assert same(restored[13], expected[13])
    other = make_dataset(data, LIVELY, seed=1)
    assert not all(same(other[k], expected[k]) for k in range(20))
    shapes = {tuple(image.shape) for image, _ in expected}
    assert len(shapes) > 5


def test_workers_give_the_same_samples(data: CocoData) -> None:
    dataset = make_dataset(data, LIVELY)
    loader = DataLoader(
        dataset,
        batch_size=3,
        sampler=ResumableSampler(12),
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context="fork",
    )
    for step, (images, targets) in enumerate(loader):
        for i, sample in enumerate(zip(images, targets, strict=True)):
            assert same(sample, dataset[3 * step + i])


def test_skip_empty_drops_images_without_instances(data: CocoData) -> None:
    dataset = make_dataset(data, skip_empty=True)
    assert len(dataset) == 3
    assert {int(dataset[k][0][0, 0, 0]) - 10 for k in range(3)} == {0, 1, 2}
    for k in range(9):
        assert len(dataset[k][1].labels) == 1


def test_unusable_data_are_rejected(data: CocoData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed must be at least 0"):
        make_dataset(data, seed=-1)
    with pytest.raises(ValueError, match="without an image folder"):
        make_dataset(read_coco(data.annotations))
    content = json.loads(data.annotations.read_text())
    data.annotations.write_text(json.dumps({**content, "annotations": []}))
    empty = read_coco(data.annotations, tmp_path)
    assert len(make_dataset(empty)) == 5
    with pytest.raises(ValueError, match="no image with instances"):
        make_dataset(empty, skip_empty=True)


def test_image_of_another_size_is_rejected(data: CocoData, tmp_path: Path) -> None:
    dataset = make_dataset(data)
    for i in range(5):
        Image.new("L", (16, 24)).save(tmp_path / f"{i}.png")
    with pytest.raises(ImageError, match=r"16 x 24 pixels.*24 x 16"):
        dataset[0]


def test_sampler() -> None:
    assert list(ResumableSampler(0)) == []
    assert list(ResumableSampler(4)) == [0, 1, 2, 3]
    assert list(ResumableSampler(9, start=5)) == [5, 6, 7, 8]
    assert list(ResumableSampler(3, start=5)) == []
    ranks = [list(ResumableSampler(11, start=2, rank=rank, world_size=2)) for rank in (0, 1)]
    assert ranks == [[2, 4, 6, 8], [3, 5, 7, 9]]  # the incomplete round of sample 10 is dropped
    for rank in (0, 1):
        # 11 // 2 samples of the whole run, including those before the start.
        assert len(ResumableSampler(11, start=2, rank=rank, world_size=2)) == 5
    with pytest.raises(ValueError, match="rank"):
        ResumableSampler(4, rank=2, world_size=2)


def test_collate(data: CocoData) -> None:
    assert collate([]) == ([], [])
    samples = [make_dataset(data)[k] for k in range(2)]
    images, targets = collate(samples)
    assert images[1] is samples[1][0]
    assert targets[0] is samples[0][1]
