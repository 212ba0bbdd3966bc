import numpy as np
import pytest
import torch
from torch import Tensor

from meinst.codecs import Moments


def drawn_masks(count: int, side: int = 5, seed: int = 0) -> Tensor:
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
    with pytest.raises(ValueError, match="at least 1 mask, found 0"):
        moments.mean()
    with pytest.raises(ValueError, match="at least 2 masks, found 0"):
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


def test_covariance_as_numpys() -> None:
    masks = drawn_masks(300)
    covariance = Moments(5).add(masks).covariance()
    expected = np.cov(masks.flatten(1).numpy().astype(np.float64), rowvar=False)
    np.testing.assert_allclose(covariance.numpy(), expected, atol=1e-14)


def test_masks_without_variance_give_exact_zeros() -> None:
    moments = Moments(5).add(drawn_masks(1).expand(777, 5, 5))
    assert not moments.covariance().any()
    assert not moments.varied()


def test_any_order_split_and_type_give_the_same_bits() -> None:
    # More masks than one block holds.
    masks = drawn_masks(5000)
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


def test_merge_and_add_leave_their_arguments() -> None:
    masks = drawn_masks(10)
    copy = masks.clone()
    other = Moments(5).add(masks)
    Moments(5).add(drawn_masks(4, seed=1)).merge(other).add(masks)
    assert torch.equal(masks, copy)
    assert same_bits(other, Moments(5).add(masks))


def test_faulty_arguments() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, 5, 5\), found \(2, 4, 5\)"):
        Moments(5).add(torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match="Masks must be finite"):
        Moments(2).add(torch.full((1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="found 5 and 4"):
        Moments(5).merge(Moments(4))
    with pytest.raises(ValueError, match="at least 1, found 0"):
        Moments(0)
