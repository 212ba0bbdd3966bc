import numpy as np

from meinst.data.datasets.class_masks import _commonest_classes


def test_commonest_class_of_each_object() -> None:
    nothing = np.zeros((3, 4), np.uint8)
    assert _commonest_classes(nothing, nothing, np.zeros(0, np.uint8)).tolist() == []
    rng = np.random.default_rng(0)
    objects, classes = rng.integers(0, 40, (60, 70)), rng.integers(0, 9, (60, 70))
    numbers = np.unique(objects[objects > 0])
    expected = [np.bincount(classes[objects == number]).argmax() for number in numbers]
    assert _commonest_classes(objects, classes, numbers).tolist() == expected
