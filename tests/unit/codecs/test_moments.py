from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from meinst.codecs import ClassMoments, CodecFileError, Moments, PCACodec, load_moments


def synthetic_masks(count: int, side: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, side, side, generator=generator) < 0.4).to(torch.uint8)


def same_bits(left: Moments, right: Moments) -> bool:
    return (
        left.count == right.count
        and torch.equal(left.total, right.total)
        and torch.equal(left.products, right.products)
    )


def test_no_masks() -> None:
    moments = Moments(3).add(torch.zeros(0, 3, 3))
    assert moments.count == 0
    assert not moments.varied()
    with pytest.raises(ValueError, match="at least 1 mask, got 0"):
        moments.mean()
    with pytest.raises(ValueError, match="at least 2 masks, got 0"):
        moments.covariance()


def test_two_masks_by_hand() -> None:
    # m1 = (1, 0, 0, 1), m2 = (1, 1, 0, 0): mean (1, .5, 0, .5); deviations -+(0, .5, 0, -.5),
    # so with n - 1 = 1 the variances are 2 * .25 = .5 and cov(1, 3) = -.5.
    moments = Moments(2).add(torch.tensor([[[1, 0], [0, 1]], [[1, 1], [0, 0]]]))
    assert moments.total.tolist() == [2, 1, 0, 1]
    # The upper triangle alone.
    assert moments.products.tolist() == [[2, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert moments.mean().tolist() == [1, 0.5, 0, 0.5]
    assert moments.covariance().tolist() == [
        [0, 0, 0, 0],
        [0, 0.5, 0, -0.5],
        [0, 0, 0, 0],
        [0, -0.5, 0, 0.5],
    ]
    assert moments.varied()


def test_covariance_equals_numpy() -> None:
    masks = synthetic_masks(300)
    covariance = Moments(5).add(masks).covariance()
    expected = np.cov(masks.flatten(1).numpy().astype(np.float64), rowvar=False)
    np.testing.assert_allclose(covariance.numpy(), expected, atol=1e-14)


def test_masks_without_variance_give_exact_zeros() -> None:
    moments = Moments(5).add(synthetic_masks(1).expand(777, 5, 5))
    assert not moments.covariance().any()
    assert not moments.varied()


def test_any_order_split_and_type_give_the_same_bits() -> None:
    # More masks than one block holds.
    masks = synthetic_masks(5000)
    whole = Moments(5).add(masks)
    assert whole.count == 5000
    assert same_bits(whole, Moments(5).add(masks.flip(0)))
    assert same_bits(whole, Moments(5).add(masks.bool()))
    assert same_bits(whole, Moments(5).add(masks * 255))
    assert same_bits(whole, Moments(5).add(masks.float() * 0.5))
    shards = [Moments(5).add(part) for part in masks.split([1, 0, 799, 4200])]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        merged = Moments(5)
        for k in order:
            merged.merge(shards[k])
        assert same_bits(whole, merged)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_bits(whole, Moments(5).add(masks))


def test_merge_and_add_do_not_change_arguments() -> None:
    masks = synthetic_masks(10)
    copy = masks.clone()
    other = Moments(5).add(masks)
    Moments(5).add(synthetic_masks(4, seed=1)).merge(other).add(masks)
    assert torch.equal(masks, copy)
    assert same_bits(other, Moments(5).add(masks))


def test_faulty_arguments() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, 5, 5\), got \(2, 4, 5\)"):
        Moments(5).add(torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match="Masks must be finite"):
        Moments(2).add(torch.full((1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="got 5 and 4"):
        Moments(5).merge(Moments(4))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Moments(0)


def test_any_memory_layout() -> None:
    masks = synthetic_masks(70)
    whole = Moments(5).add(masks)
    # Pixels first, every second of twice as many, and sides exchanged twice.
    assert same_bits(whole, Moments(5).add(masks.permute(1, 2, 0).contiguous().permute(2, 0, 1)))
    twice = torch.stack((masks, 1 - masks), dim=1).flatten(0, 1)
    assert same_bits(whole, Moments(5).add(twice[::2]))
    assert same_bits(whole, Moments(5).add(masks.mT.contiguous().mT))


# Separate classes

NAMES = ("ant", "bee", "cat")


def random_labels(count: int, classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def by_name(moments: ClassMoments) -> dict[str, Moments]:
    return {
        name: one
        for name, one in zip(moments.class_names, moments.classes, strict=True)
        if one is not None
    }


def test_no_masks_of_any_class() -> None:
    moments = ClassMoments(5, NAMES).add(torch.zeros(0, 5, 5), torch.zeros(0).long())
    assert moments.count == 0
    assert moments.classes == [None, None, None]
    assert moments.empty_classes() == [0, 1, 2]
    assert same_bits(moments.pooled(), Moments(5))


def test_each_class_has_the_sums_of_its_masks() -> None:
    masks, labels = synthetic_masks(300), random_labels(300)
    labels[labels == 1] = 2  # no bee
    before = masks.clone(), labels.clone()
    moments = ClassMoments(5, NAMES).add(masks[:200], labels[:200]).add(masks[200:], labels[200:])
    assert moments.count == 300
    assert moments.empty_classes() == [1]
    assert moments.classes[1] is None
    for label in (0, 2):
        one = moments.classes[label]
        assert one is not None
        assert same_bits(one, Moments(5).add(masks[labels == label]))
    assert same_bits(moments.pooled(), Moments(5).add(masks))
    assert torch.equal(masks, before[0])
    assert torch.equal(labels, before[1])


def test_pooled_sums_are_a_copy() -> None:
    moments = ClassMoments(5, NAMES).add(synthetic_masks(60), random_labels(60))
    pooled = moments.pooled()
    pooled.add(synthetic_masks(10))
    assert moments.count == 60
    assert pooled.count == 70


def test_classes_of_other_files_are_matched_by_name() -> None:
    masks, labels = synthetic_masks(90), random_labels(90)
    left = ClassMoments(5, NAMES).add(masks[:40], labels[:40])
    # The other file's names in another order, one of them unknown here, one of ours unknown there.
    order = ("dog", "cat", "ant")
    new_labels = torch.tensor([2, 0, 1])[labels[40:]]  # ant, bee, cat as ant, dog, cat
    right = ClassMoments(5, order).add(masks[40:], new_labels)
    kept = {name: one.count for name, one in by_name(right).items()}
    assert left.merge(right) is left
    assert left.class_names == ("ant", "bee", "cat", "dog")
    expected = {
        "ant": masks[labels == 0],
        "bee": masks[:40][labels[:40] == 1],
        "cat": masks[labels == 2],
        "dog": masks[40:][labels[40:] == 1],
    }
    for name, one in by_name(left).items():
        assert same_bits(one, Moments(5).add(expected[name])), name
    assert {name: one.count for name, one in by_name(right).items()} == kept
    assert right.class_names == order


def test_classes_of_any_files_in_any_order_give_the_same(tmp_path: Path) -> None:
    masks = synthetic_masks(30)
    files = [("cat", "ant"), ("bee", "cat"), ("dog", "ant", "bee")]
    found = set()
    for order in permutations(range(3)):
        first, *rest = (
            ClassMoments(5, files[k]).add(masks[10 * k :][:10], random_labels(10, 2, seed=k))
            for k in order
        )
        for other in rest:
            first.merge(other)
        first.save(tmp_path / "all")
        found.add((tmp_path / "all").read_bytes())
        assert first.class_names == ("ant", "bee", "cat", "dog")
    assert len(found) == 1


def test_merge_of_equal_names_keeps_their_order() -> None:
    names = ("cat", "ant", "bee")
    merged = ClassMoments(5, names).merge(ClassMoments(5, names))
    assert merged.class_names == names


def test_merge_copies_the_other_sums() -> None:
    other = ClassMoments(5, NAMES).add(synthetic_masks(20), random_labels(20))
    ClassMoments(5, NAMES).merge(other).add(synthetic_masks(30), random_labels(30))
    assert other.count == 20


def test_faulty_classes() -> None:
    moments = ClassMoments(5, NAMES)
    with pytest.raises(ValueError, match="labels, got None"):
        moments.add(synthetic_masks(2), None)
    with pytest.raises(ValueError, match="between 0 and 2, got 1 to 3"):
        moments.add(synthetic_masks(2), torch.tensor([1, 3]))
    with pytest.raises(ValueError, match=r"shape \(N, 5, 5\)"):
        moments.add(torch.zeros(1, 4, 4), torch.tensor([1]))
    # Nothing is merged in part: names stay too.
    with pytest.raises(ValueError, match="got 5 and 4"):
        moments.merge(ClassMoments(4, ("dog",)).add(synthetic_masks(1, 4), torch.tensor([0])))
    assert moments.class_names == NAMES
    assert moments.count == 0


# Files

Sums = Moments | ClassMoments


def both_kinds(count: int = 50) -> list[Sums]:
    masks, labels = synthetic_masks(count), random_labels(count)
    return [Moments(5).add(masks), ClassMoments(5, NAMES).add(masks, labels)]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_saved_sums_load(which: int, count: int, tmp_path: Path) -> None:
    path, moments = tmp_path / "all.moments", both_kinds(count)[which]
    moments.save(path)
    again = load_moments(str(path))
    assert type(again) is type(moments)
    assert (again.mask_size, again.count) == (5, count)
    assert same_bits(again.pooled(), moments.pooled())
    if isinstance(again, ClassMoments):
        assert again.class_names == NAMES
        assert isinstance(moments, ClassMoments)
        for name, one in by_name(moments).items():
            assert same_bits(by_name(again)[name], one)
    again.save(tmp_path / "again.moments")
    assert (tmp_path / "again.moments").read_bytes() == path.read_bytes()


def test_empty_sums_of_a_class_change_nothing(tmp_path: Path) -> None:
    masks, labels = synthetic_masks(9), torch.zeros(9).long()
    plain, touched = (ClassMoments(5, NAMES).add(masks, labels) for _ in range(2))
    touched.of_class(2)
    assert touched.empty_classes() == [1, 2]
    plain.save(tmp_path / "plain")
    touched.save(tmp_path / "touched")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "touched").read_bytes()
    with pytest.warns(UserWarning, match="2 of 3 classes have no masks"):
        codec = PCACodec(3, 5, class_names=NAMES, shrinkage=0).fit_moments(touched)
    assert all(array.isfinite().all() for array in codec.state_dict().values())


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_any_shards_in_any_order_give_the_same_bytes(
    shards: int, per_class: bool, tmp_path: Path
) -> None:
    masks, labels = synthetic_masks(400), random_labels(400)

    def counted(rows: Tensor, names: tuple[str, ...] = NAMES) -> Sums:
        if not per_class:
            return Moments(5).add(masks[rows])
        new_labels = torch.tensor([names.index(name) for name in NAMES])[labels[rows]]
        return ClassMoments(5, names).add(masks[rows], new_labels)

    def files_of(moments: Sums) -> tuple[bytes, bytes]:
        moments.save(tmp_path / "sums")
        names = NAMES if per_class else None
        PCACodec(4, 5, class_names=names).fit_moments(moments).save(tmp_path / "codec")
        return (tmp_path / "sums").read_bytes(), (tmp_path / "codec").read_bytes()

    expected = files_of(counted(torch.arange(400)))
    # Parts of very different sizes; those of odd number know the classes in another order.
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    sizes = [400 - 9 * (shards - 1), *[9] * (shards - 1)]
    parts = order.split(sizes)
    rng = np.random.default_rng(0)
    orders = list(permutations(range(shards))) if shards < 4 else [*map(rng.permutation, [7] * 5)]
    for chosen in orders:
        merged: Sums = ClassMoments(5, NAMES) if per_class else Moments(5)
        for k in chosen:
            part = counted(parts[k], NAMES if k % 2 else NAMES[::-1])
            part.save(tmp_path / "part")
            merged.merge(load_moments(tmp_path / "part"))  # type: ignore[arg-type]
        assert files_of(merged) == expected


def test_files_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.moments does not exist"):
        load_moments(tmp_path / "none.moments")
    PCACodec(3, 5).fit(synthetic_masks(50)).save(tmp_path / "codec.npz")
    with pytest.raises(CodecFileError, match=r"must hold sums over masks.*; found 'pca'"):
        load_moments(tmp_path / "codec.npz")
    np.savez(tmp_path / "plain.npz", count=np.array(3))
    with pytest.raises(CodecFileError, match=r"must hold sums over masks.*; found None"):
        load_moments(tmp_path / "plain.npz")


def damaged(path: Path, moments: Sums, **changes: np.ndarray | None) -> None:
    """A file of these sums with some arrays changed, or left out."""
    moments.save(path)
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    content |= {name: array for name, array in changes.items() if array is not None}
    np.savez(path, **{k: v for k, v in content.items() if changes.get(k, v) is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": None}, "contain the array count"),
        ({"count": np.array([50])}, r"count must have the shape \(\); found \(1,\)"),
        ({"count": np.array(50.5)}, "count must be int64; found float64"),
        ({"count": np.array(-1)}, "count must not be negative; found -1"),
        ({"count": np.array(3)}, "products .* 3; found"),
        ({"products": None}, "contain the array products"),
        ({"products": np.zeros(324, np.int64)}, r"must have the shape \(325,\); found \(324,\)"),
        ({"products": np.zeros(325)}, "products must be int64; found float64"),
        ({"products": np.full(325, -2)}, "products must not be negative; found -2"),
        ({"config": np.array("{}")}, "mask_size, .*; found None"),
        ({"config": np.array('{"mask_size": 0}')}, "mask_size, .*; found 0"),
        ({"config": np.array('{"mask_size": 5.0}')}, "mask_size, .*; found 5.0"),
        # The shape is checked before memory of this size is allocated.
        (
            {"config": np.array('{"mask_size": 10000000}')},
            r"products must have the shape \(5000000",
        ),
        ({"version": np.array(2)}, "version must be 1"),
    ],
)
def test_damaged_sums(changes: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.npz"
    damaged(path, both_kinds()[0], **changes)
    with pytest.raises(CodecFileError, match=message) as caught:
        load_moments(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"products_1": None}, "contain the array products_1"),
        ({"products_2": np.zeros(3, np.int64)}, "products_2 must have the shape"),
        ({"count_0": np.array(1)}, "products_0 .* 1; found"),
        ({"config": np.array('{"mask_size": 5}')}, "class_names, .*; found None"),
        (
            {"config": np.array('{"mask_size": 5, "class_names": ["a", 2, "c"]}')},
            "class_names, ",
        ),
        (
            {"config": np.array('{"mask_size": 5, "class_names": ["a", "b", "a"]}')},
            "class_names, ",
        ),
    ],
)
def test_damaged_sums_of_classes(
    changes: dict[str, np.ndarray | None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.npz"
    damaged(path, both_kinds()[1], **changes)
    with pytest.raises(CodecFileError, match=message):
        load_moments(path)
