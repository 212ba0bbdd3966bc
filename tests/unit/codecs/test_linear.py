"""What linear codecs share, above all bases for each class; `test_pca.py` has the rest."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from meinst.codecs import (
    ClassMoments,
    CodecFileError,
    DCTCodec,
    LinearCodec,
    Moments,
    NotFittedError,
    PCACodec,
    load_codec,
)
from meinst.codecs.clipped_logit import LOGIT

NAMES = ("wide", "tall", "round")
VARIANTS = [(True, True), (True, False), (False, True), (False, False)]


def ellipses(label: int, count: int, seed: int = 0) -> Tensor:
    """Filled ellipses of 8 x 8 pixels of one of the three shapes, ``(count, 8, 8)`` uint8."""
    rng = np.random.default_rng([seed, label])
    y, x = np.mgrid[:8, :8]
    scale = {0: (1.0, 0.4), 1: (0.4, 1.0), 2: (0.7, 0.7)}[label]
    masks = np.empty((count, 8, 8), dtype=np.uint8)
    for mask in masks:
        cx, cy = rng.uniform(2.5, 5.5, 2)
        rx, ry = rng.uniform(2, 5, 2) * scale
        mask[:] = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    return torch.from_numpy(masks)


def mixed(seed: int = 0, counts: tuple[int, ...] = (120, 60, 30)) -> tuple[Tensor, Tensor]:
    """Masks of all classes in no order, and their labels."""
    masks = torch.cat([ellipses(label, count, seed) for label, count in enumerate(counts)])
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = torch.randperm(len(masks), generator=torch.Generator().manual_seed(seed))
    return masks[order], labels[order]


def fitted(
    k: int = 5, *, sigmoid: bool = True, whiten: bool = True, shrinkage: float = 50
) -> PCACodec:
    codec = PCACodec(k, 8, sigmoid=sigmoid, whiten=whiten, class_names=NAMES, shrinkage=shrinkage)
    return codec.fit(*mixed())


def same_buffers(left: LinearCodec, right: LinearCodec) -> bool:
    reference = right.state_dict()
    return all(torch.equal(array, reference[name]) for name, array in left.state_dict().items())


# A basis for each class


@pytest.mark.parametrize(("sigmoid", "whiten"), VARIANTS)
def test_no_masks_and_no_codes(sigmoid: bool, whiten: bool) -> None:
    codec, none = fitted(sigmoid=sigmoid, whiten=whiten), torch.zeros(0, dtype=torch.int64)
    assert codec.transform(torch.zeros(0, 8, 8), labels=none).shape == (0, 5)
    assert codec.inverse_logits(torch.zeros(0, 5), none).shape == (0, 8, 8)
    assert codec.inverse_transform(torch.zeros(0, 5), none).shape == (0, 8, 8)


@pytest.mark.parametrize(("sigmoid", "whiten"), VARIANTS)
def test_each_class_uses_its_own_basis(sigmoid: bool, whiten: bool) -> None:
    # The formula, mask by mask: code = B_c (x - mean_c) / s_c, and back.
    codec, (masks, labels) = fitted(sigmoid=sigmoid, whiten=whiten), mixed(seed=1)
    codes = codec.transform(masks, labels=labels)
    decoded = codec.inverse_logits(codes, labels)
    soft = codec.inverse_transform(codes, labels)
    for mask, label, code, logits, one in zip(masks, labels, codes, decoded, soft, strict=True):
        x = mask.flatten().double()
        if sigmoid:
            x = LOGIT * (2 * x - 1)
        basis, mean = codec.components_[label].double(), codec.mean_[label].double()
        deviation = codec.explained_variance_[label].double().sqrt() if whiten else 1.0
        expected = basis @ (x - mean) / deviation
        torch.testing.assert_close(code.double(), expected, atol=1e-4, rtol=1e-4)
        values = (basis.T @ (expected * deviation) + mean).reshape(8, 8)
        expected = values if sigmoid else LOGIT * (2 * values - 1)
        torch.testing.assert_close(logits.double(), expected, atol=1e-3, rtol=1e-4)
        expected = values.sigmoid() if sigmoid else values.clamp(0.01, 0.99)
        torch.testing.assert_close(one.double(), expected, atol=1e-4, rtol=1e-4)


def test_batch_equals_single_and_input_unchanged() -> None:
    codec, (masks, labels) = fitted(), mixed(seed=1, counts=(4, 3, 2))
    before, kept = masks.clone(), labels.clone()
    codes = codec.transform(masks, labels=labels)
    for n in range(len(masks)):
        alone = codec.transform(masks[n : n + 1], labels=labels[n : n + 1])
        torch.testing.assert_close(codes[n : n + 1], alone)
    expected = codec.transform(masks, labels=labels.int())
    assert torch.equal(codes, expected)
    assert torch.equal(masks, before)
    assert torch.equal(labels, kept)


def test_labels_select_the_basis() -> None:
    codec, (masks, labels) = fitted(), mixed()
    wrong = (labels + 1) % 3
    codes = codec.transform(masks, labels=labels)
    again = codec.inverse_transform(codes, labels) >= 0.5
    other = codec.inverse_transform(codes, wrong) >= 0.5
    assert (again == masks.bool()).float().mean() > 0.95
    assert (other == masks.bool()).float().mean() < 0.9


def test_without_shrinkage_each_class_has_its_own_principal_components() -> None:
    masks, labels = mixed()
    codec = fitted(shrinkage=0)
    for label in range(3):
        own = PCACodec(5, 8).fit(masks[labels == label])
        for name, array in own.state_dict().items():
            assert torch.equal(codec.state_dict()[name][label], array[0]), name


def test_with_endless_shrinkage_all_classes_have_the_shared_basis() -> None:
    codec, shared = fitted(shrinkage=1e15), PCACodec(5, 8).fit(mixed()[0])
    for label in range(3):
        for name, array in shared.state_dict().items():
            torch.testing.assert_close(
                codec.state_dict()[name][label], array[0], atol=1e-4, rtol=1e-4
            )


def test_shrinkage_weighs_as_so_many_average_masks() -> None:
    # 30 round masks and 50 of shrinkage: 3/8 of their own statistics, 5/8 of all masks'.
    masks, labels = mixed()
    values = masks.flatten(1).double().numpy()
    own = values[labels == 2]
    covariance = 3 / 8 * np.cov(own, rowvar=False) + 5 / 8 * np.cov(values, rowvar=False)
    mean = 3 / 8 * own.mean(0) + 5 / 8 * values.mean(0)
    codec = fitted(sigmoid=False)
    np.testing.assert_allclose(codec.mean_[2].numpy(), mean, atol=1e-6)
    variances, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(codec.explained_variance_[2].numpy(), variances[:-6:-1], rtol=1e-5)
    ratios = variances[:-6:-1] / variances.sum()
    np.testing.assert_allclose(codec.explained_variance_ratio_[2].numpy(), ratios, rtol=1e-5)
    cosines = np.abs((codec.components_[2].numpy() * vectors.T[:-6:-1]).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_separate_bases_reconstruct_better() -> None:
    masks, labels = mixed(counts=(200, 200, 200))
    shared = PCACodec(4, 8).fit(masks)
    own = PCACodec(4, 8, class_names=NAMES, shrinkage=10).fit(masks, labels)
    wrong = (shared.inverse_transform(shared.transform(masks)) >= 0.5) != masks.bool()
    codes = own.transform(masks, labels=labels)
    fewer = (own.inverse_transform(codes, labels) >= 0.5) != masks.bool()
    assert fewer.sum() < 0.9 * wrong.sum()


def test_a_class_without_masks_has_the_basis_of_all() -> None:
    masks, labels = mixed(counts=(120, 60, 0))
    codec = PCACodec(5, 8, class_names=NAMES)
    with pytest.warns(UserWarning, match="1 of 3 classes have no masks and get .*: round"):
        codec.fit(masks, labels)
    shared = PCACodec(5, 8).fit(masks)
    for name, array in shared.state_dict().items():
        assert torch.equal(codec.state_dict()[name][2], array[0]), name
    codes = codec.transform(ellipses(2, 9), labels=torch.full((9,), 2))
    assert torch.equal(codes, shared.transform(ellipses(2, 9)))


def test_the_first_class_may_be_the_empty_one() -> None:
    # Its place is where the shared basis is worked out.
    masks, labels = mixed()
    codec = PCACodec(5, 8, class_names=("none", *NAMES), shrinkage=50)
    with pytest.warns(UserWarning, match="1 of 4 classes have no masks and get .*: none"):
        codec.fit(masks, labels + 1)
    assert torch.equal(codec.components_[1:], fitted().components_)
    assert torch.equal(codec.components_[:1], PCACodec(5, 8).fit(masks).components_)


@pytest.mark.parametrize("shrinkage", [0.0, 300.0])
@pytest.mark.parametrize(
    "rare", [ellipses(2, 1), ellipses(2, 1).repeat(9, 1, 1), torch.zeros(3, 8, 8)]
)
def test_classes_of_masks_that_do_not_differ(shrinkage: float, rare: Tensor) -> None:
    masks, labels = mixed(counts=(120, 60, 0))
    codec = PCACodec(5, 8, class_names=NAMES, shrinkage=shrinkage)
    labels = torch.cat((labels, torch.full((len(rare),), 2)))
    codec.fit(torch.cat((masks, rare.to(torch.uint8))), labels)
    assert all(array.isfinite().all() for array in codec.state_dict().values())
    codes = codec.transform(ellipses(2, 20, seed=4), labels=torch.full((20,), 2))
    assert codes.isfinite().all()
    assert codec.inverse_transform(codes, torch.full((20,), 2)).isfinite().all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "3 classes.* got None"),
        (torch.tensor([0, 1]), r"must be 4 integers, got torch.int64 of shape \(2,\)"),
        (torch.zeros(4, 1).long(), r"must be 4 integers, got torch.int64 of shape \(4, 1\)"),
        (torch.zeros(4), "must be 4 integers, got torch.float32"),
        (torch.tensor([0, 1, 2, 3]), "between 0 and 2, got 0 to 3"),
        (torch.tensor([0, -1, 2, 1]), "between 0 and 2, got -1 to 2"),
    ],
)
def test_faulty_labels(labels: Tensor | None, message: str) -> None:
    codec = fitted()
    for call in (
        lambda: codec.transform(torch.zeros(4, 8, 8), labels=labels),
        lambda: codec.inverse_logits(torch.zeros(4, 5), labels),
        lambda: codec.inverse_transform(torch.zeros(4, 5), labels),
        lambda: codec.fit(torch.zeros(4, 8, 8), labels),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert same_buffers(codec, fitted())  # a rejected fit changes nothing


def test_shared_basis_ignores_labels() -> None:
    masks, labels = mixed()
    codec = PCACodec(5, 8).fit(masks, labels)
    assert same_buffers(codec, PCACodec(5, 8).fit(masks))
    codes = codec.transform(masks[:3])
    assert torch.equal(codes, codec.transform(masks[:3], labels=torch.tensor([7, 8, 9])))
    assert torch.equal(codec.inverse_logits(codes), codec.inverse_logits(codes, labels[:1]))


@pytest.mark.parametrize("whiten", [True, False])
def test_decoding_is_differentiable(whiten: bool) -> None:
    codec, labels = fitted(whiten=whiten), torch.tensor([2, 0, 1, 0])
    codes = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    codec.inverse_logits(codes, labels).sum().backward()
    # d sum / d code_k = deviation_k * sum of component k, both of the row's own class.
    deviation = codec.explained_variance_.sqrt() if whiten else torch.ones(3, 5)
    expected = (deviation * codec.components_.sum(-1))[labels]
    torch.testing.assert_close(codes.grad, expected, atol=1e-4, rtol=1e-4)
    assert not any(buffer.requires_grad for buffer in codec.buffers())


def test_autocast_does_not_change_codes() -> None:
    codec, (masks, labels) = fitted(), mixed(seed=1)
    codes = codec.transform(masks, labels=labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codes, codec.transform(masks, labels=labels))
        assert torch.equal(
            codec.inverse_logits(codes, labels), codec.inverse_logits(codes.clone(), labels)
        )
        assert codec.inverse_logits(codes.bfloat16(), labels).dtype == torch.float32


# Fits from sums


def test_any_split_and_order_gives_the_same_bits() -> None:
    masks, labels = mixed()
    parts = [slice(0, 1), slice(1, 150), slice(150, None)]
    for order in (parts, parts[::-1]):
        sums = ClassMoments(8, NAMES)
        for part in order:
            sums.merge(ClassMoments(8, NAMES).add(masks[part], labels[part]))
        codec = PCACodec(5, 8, class_names=NAMES, shrinkage=50).fit_moments(sums)
        assert same_buffers(codec, fitted())


def test_copies_of_a_codec_hold_only_its_buffers() -> None:
    # 3 bases of 5 components, a mean, 5 variances and 5 ratios of float32.
    codec = fitted()
    assert len(pickle.dumps(codec)) < 4 * 3 * (5 * 64 + 64 + 5 + 5) + 10_000
    sums = ClassMoments(8, NAMES).add(*mixed())
    count = sums.count
    codec.fit_moments(sums)
    assert sums.count == count  # not changed
    sums.add(*mixed(seed=1))
    assert same_buffers(codec, fitted())  # not shared


def test_rejects_sums_of_other_classes() -> None:
    masks, labels = mixed()
    for sums in (Moments(8).add(masks), ClassMoments(8, NAMES[::-1]).add(masks, labels)):
        with pytest.raises(ValueError, match="needs their sums, got"):
            PCACodec(5, 8, class_names=NAMES).fit_moments(sums)
    # One basis can be fitted from sums that are kept apart.
    apart = PCACodec(5, 8).fit_moments(ClassMoments(8, NAMES).add(masks, labels))
    assert same_buffers(apart, PCACodec(5, 8).fit(masks))


def test_too_few_masks() -> None:
    none, codec = torch.zeros(0, dtype=torch.int64), PCACodec(5, 8, class_names=NAMES)
    with pytest.raises(ValueError, match="at least 2 masks, got 0"):
        codec.fit(torch.zeros(0, 8, 8), none)
    with pytest.raises(ValueError, match="at least 2 masks, got 1"):
        codec.fit(ellipses(0, 1), torch.tensor([1]))
    with pytest.raises(ValueError, match="all 4 are the same"):
        codec.fit(ellipses(0, 1).repeat(4, 1, 1), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(NotFittedError):
        codec.transform(ellipses(0, 1), labels=torch.tensor([0]))


# Derived codecs


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize(("sigmoid", "whiten"), VARIANTS)
def test_truncated_equals_a_fit_of_so_few(classes: bool, sigmoid: bool, whiten: bool) -> None:
    masks, labels = mixed()
    names = NAMES if classes else None
    long, short = (
        PCACodec(k, 8, sigmoid=sigmoid, whiten=whiten, class_names=names).fit(masks, labels)
        for k in (9, 4)
    )
    before = copy.deepcopy(long)
    cut = long.truncated(4)
    assert cut.get_config() == short.get_config()
    assert same_buffers(cut, short)
    assert same_buffers(long, before)
    codes = long.transform(masks, labels=labels)
    torch.testing.assert_close(cut.transform(masks, labels=labels), codes[:, :4])
    assert same_buffers(long.truncated(9), long)


def test_truncated_low_frequencies() -> None:
    masks, _ = mixed()
    for whiten in (True, False):
        long, short = (DCTCodec(k, 8, whiten=whiten).fit(masks) for k in (9, 4))
        cut = long.truncated(4)
        assert cut.get_config() == short.get_config()
        torch.testing.assert_close(cut.transform(masks), short.transform(masks))
        for name, array in short.state_dict().items():
            torch.testing.assert_close(cut.state_dict()[name], array, atol=1e-5, rtol=1e-5)
        assert same_buffers(long, DCTCodec(9, 8, whiten=whiten).fit(masks))


def test_truncated_rejects_unfitted_and_out_of_range() -> None:
    with pytest.raises(NotFittedError):
        PCACodec(5, 8).truncated(2)
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"between 1 and this codec's 5, got {count}"):
            fitted().truncated(count)


def test_for_classes_puts_the_bases_in_order() -> None:
    codec, (masks, labels) = fitted(), mixed(seed=1)
    assert codec.for_classes(NAMES) is codec
    other = codec.for_classes(["round", "wide"])
    assert other.class_names == ("round", "wide")
    assert other.get_config() == codec.get_config() | {"class_names": ["round", "wide"]}
    for new, old in ((0, 2), (1, 0)):
        chosen = masks[labels == old]
        expected = codec.transform(chosen, labels=torch.full((len(chosen),), old))
        codes = other.transform(chosen, labels=torch.full((len(chosen),), new))
        assert torch.equal(codes, expected)
    assert codec.class_names == NAMES
    with pytest.raises(ValueError, match="each of 3 classes, but none for flat, long"):
        codec.for_classes(["round", "flat", "long"])
    shared = PCACodec(5, 8).fit(masks)
    assert shared.for_classes(["anything"]) is shared


# Files and configurations


@pytest.mark.parametrize(("sigmoid", "whiten"), VARIANTS)
def test_saved_codec_loads(tmp_path: Path, sigmoid: bool, whiten: bool) -> None:
    codec, (masks, labels) = fitted(sigmoid=sigmoid, whiten=whiten), mixed(seed=1)
    codec.save(tmp_path / "classes.npz")
    again = load_codec(tmp_path / "classes.npz")
    assert isinstance(again, PCACodec)
    assert again.class_names == NAMES
    assert again.get_config() == codec.get_config()
    assert same_buffers(again, codec)
    assert torch.equal(again.transform(masks, labels=labels), codec.transform(masks, labels=labels))
    again.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "classes.npz").read_bytes()


def test_unfitted_codec_loads_a_state() -> None:
    source, (masks, labels) = fitted(), mixed(seed=1)
    codec = PCACodec.from_config(json.loads(json.dumps(source.get_config())))
    assert codec.components_.shape == (3, 5, 64)
    with pytest.raises(NotFittedError):
        codec.transform(masks, labels=labels)
    codec.load_state_dict(source.state_dict())
    assert torch.equal(
        codec.transform(masks, labels=labels), source.transform(masks, labels=labels)
    )
    assert torch.equal(
        copy.deepcopy(codec).double().float().transform(masks, labels=labels),
        source.transform(masks, labels=labels),
    )


def test_a_published_file_with_a_basis_for_each_class(tmp_path: Path) -> None:
    # The published layout has room for it, though the published tool never wrote one.
    codec, (masks, labels) = fitted(), mixed(seed=1)
    arrays = {
        "components_c": codec.components_.numpy(),
        "mean_c": codec.mean_.numpy(),
        "explained_variance_c": codec.explained_variance_.numpy(),
        "ratio_c": codec.explained_variance_ratio_.numpy(),
    }
    path = tmp_path / "coco_class_agnosticFalse_whitenTrue_sigmoidTrue_5.npz"
    np.savez(path, **arrays)
    assert PCACodec.load(path).class_names == ("1", "2", "3")
    named = PCACodec.load(path, class_names=NAMES)
    assert named.class_names == NAMES
    assert torch.equal(named.transform(masks, labels=labels), codec.transform(masks, labels=labels))
    with pytest.raises(CodecFileError, match=r"components_c must have the shape \(2, 5, 64\)"):
        PCACodec.load(path, class_names=NAMES[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ()}, "class_names must be"),
        ({"class_names": ("a", "b", "a")}, "class_names must be"),
        ({"class_names": (1, 2)}, "class_names must be"),
        ({"class_names": ([1], [2])}, "class_names must be"),
        ({"shrinkage": -1.0}, "shrinkage .* got -1.0"),
        ({"shrinkage": float("nan")}, "shrinkage .* got nan"),
        ({"shrinkage": float("inf")}, "shrinkage .* got inf"),
    ],
)
def test_faulty_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PCACodec(5, 8, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": "wide"},
        {"shrinkage": "50"},
        {"shrinkage": True},
        {"bases": 3},
    ],
)
def test_faulty_configurations(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="kind 'pca'"):
        PCACodec.from_config(fitted().get_config() | change)
    config = fitted().get_config()
    del config["shrinkage"]
    with pytest.raises(ValueError, match="kind 'pca'"):
        PCACodec.from_config(config)
