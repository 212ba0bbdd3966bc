import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from meinst.codecs import ClassMoments, DCTCodec, NotFittedError, load_codec
from meinst.codecs.clipped_logit import LOGIT, LOGIT_VARIANCE


def ellipses(count: int, side: int = 8, seed: int = 0) -> Tensor:
    """Filled ellipses, ``(count, side, side)`` uint8: masks as smooth as real ones."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    masks = np.empty((count, side, side), dtype=np.uint8)
    for mask in masks:
        center, radius = rng.uniform(0.3, 0.7, 2) * side, rng.uniform(0.2, 0.6, 2) * side
        mask[:] = ((x - center[0]) / radius[0]) ** 2 + ((y - center[1]) / radius[1]) ** 2 < 1
    return torch.from_numpy(masks)


def dct(values: np.ndarray) -> np.ndarray:
    """The orthonormal DCT-II of a square, term by term as the formula stands.

    ``X(u, v) = a(u) a(v) sum x(i, j) cos(pi (2 i + 1) u / 2 S) cos(pi (2 j + 1) v / 2 S)`` with
    ``a(0) = sqrt(1 / S)``, ``a(u) = sqrt(2 / S)``.
    """
    size = len(values)
    result = np.zeros((size, size))
    for u in range(size):
        for v in range(size):
            a = math.sqrt((1 if u == 0 else 2) / size) * math.sqrt((1 if v == 0 else 2) / size)
            for i in range(size):
                for j in range(size):
                    result[u, v] += (
                        a
                        * values[i, j]
                        * math.cos(math.pi * (2 * i + 1) * u / (2 * size))
                        * math.cos(math.pi * (2 * j + 1) * v / (2 * size))
                    )
    return result


# Frequencies along rows and columns in the order of JPEG (ITU T.81, figure A.6).
ZIG_ZAG = [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0)]


def test_no_masks_and_no_codes() -> None:
    codec = DCTCodec(6, 8)
    assert codec.transform(torch.zeros(0, 8, 8)).shape == (0, 6)
    assert codec.inverse_transform(torch.zeros(0, 6)).shape == (0, 8, 8)


def test_two_by_two_by_hand() -> None:
    # Both factors of each product are 1 / sqrt 2, or +-1 / sqrt 2: the four components are
    # (+ + + +), (+ - + -), (+ + - -), (+ - - +), halved. x - mean is +-1/2 for zeros and ones.
    codec = DCTCodec(4, 2, sigmoid=False)
    expected = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    torch.testing.assert_close(codec.components_[0], expected)
    full, corner = torch.ones(1, 2, 2), torch.tensor([[[1, 0], [0, 0]]])
    torch.testing.assert_close(codec.transform(full), torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(codec.transform(corner), torch.tensor([[-0.5, 0.5, 0.5, 0.5]]))
    # The mean alone: -1/4 - ... the share of the corner, 1/4, dense.
    soft = DCTCodec(1, 2, sigmoid=False).inverse_transform(torch.tensor([[-0.5]]))
    torch.testing.assert_close(soft, torch.full((1, 2, 2), 0.25))


def test_first_coefficient_is_the_area() -> None:
    # With S = 4 and 5 pixels of 16: sum(x) / S, x being L inside and -L outside.
    mask = torch.zeros(1, 4, 4)
    mask[0, 0] = mask[0, 1, 0] = 1
    code = DCTCodec(1, 4).transform(mask)
    torch.testing.assert_close(code, torch.tensor([[(5 - 11) * LOGIT / 4]]))


def test_frequencies_come_in_zig_zag_order() -> None:
    codec = DCTCodec(10, 5)
    for component, (u, v) in zip(codec.components_[0], ZIG_ZAG, strict=True):
        only = np.zeros((5, 5))
        only[u, v] = 1
        np.testing.assert_allclose(dct(component.reshape(5, 5).numpy()), only, atol=1e-6)
    # To the end: nine products of three frequencies, the last of both highest.
    rows = DCTCodec(9, 3).components_[0].reshape(9, 3, 3).numpy()
    places = [np.unravel_index(np.abs(dct(row)).argmax(), (3, 3)) for row in rows]
    assert places == [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (1, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize("size", [1, 2, 7, 28])
def test_components_are_orthonormal(size: int) -> None:
    rows = DCTCodec(size * size, size).components_[0]
    torch.testing.assert_close(rows @ rows.T, torch.eye(size * size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_codes_follow_the_formula(sigmoid: bool) -> None:
    masks = ellipses(5, side=6)
    codes = DCTCodec(10, 6, sigmoid=sigmoid).transform(masks)
    for mask, code in zip(masks.numpy().astype(float), codes, strict=True):
        frequencies = dct(LOGIT * (2 * mask - 1) if sigmoid else mask - 0.5)
        expected = [frequencies[place] for place in ZIG_ZAG]
        np.testing.assert_allclose(code.numpy(), expected, atol=1e-5)


def test_codes_equal_scipy() -> None:
    fft = pytest.importorskip("scipy.fft")
    masks = ellipses(20, side=28)
    codes = DCTCodec(10, 28).transform(masks)
    frequencies = fft.dctn(LOGIT * (2.0 * masks.numpy() - 1), axes=(1, 2), norm="ortho")
    expected = np.stack([frequencies[:, u, v] for u, v in ZIG_ZAG], axis=1)
    np.testing.assert_allclose(codes.numpy(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
def test_all_frequencies_reconstruct_exactly(sigmoid: bool, whiten: bool) -> None:
    masks = ellipses(60, side=5)
    codec = DCTCodec(25, 5, sigmoid=sigmoid, whiten=whiten).fit(masks)
    soft = codec.inverse_transform(codec.transform(masks))
    low = 1 / (1 + math.exp(LOGIT)) if sigmoid else 0.01
    torch.testing.assert_close(soft, masks.float().clamp(low, 1 - low), atol=1e-4, rtol=0)


def test_without_sigmoid_values_are_clipped() -> None:
    codec = DCTCodec(6, 8, sigmoid=False)
    codes = codec.transform(ellipses(9)) * 3
    values = codes @ codec.components_[0] + 0.5
    soft, logits = codec.inverse_transform(codes), codec.inverse_logits(codes)
    torch.testing.assert_close(soft.flatten(1), values.clamp(0.01, 0.99))
    torch.testing.assert_close(logits.flatten(1), LOGIT * (2 * values - 1))
    assert (soft == 0.01).any()
    with pytest.raises(ValueError, match="sigmoid=False"):
        codec.transform(ellipses(1), logits="random", generator=torch.Generator())


# Whitening


@pytest.mark.parametrize("sigmoid", [True, False])
def test_whitened_codes_have_mean_0_and_variance_1(sigmoid: bool) -> None:
    masks = ellipses(400)
    codec = DCTCodec(12, 8, sigmoid=sigmoid, whiten=True).fit(masks)
    codes = codec.transform(masks)
    torch.testing.assert_close(codes.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    plain = DCTCodec(12, 8, sigmoid=sigmoid).transform(masks).double()
    # The codes' own variances; logits have that of their draw on top.
    variances = plain.var(0) + (LOGIT_VARIANCE if sigmoid else 0)
    torch.testing.assert_close(codec.explained_variance_[0].double(), variances, rtol=1e-4, atol=0)
    torch.testing.assert_close(codes.double().var(0), plain.var(0) / variances, rtol=1e-3, atol=0)
    # Shares of the variance of all pixels, from the same masks.
    x = (LOGIT * (2 * masks.double() - 1) if sigmoid else masks.double()).flatten(1)
    total = x.var(0).sum() + (64 * LOGIT_VARIANCE if sigmoid else 0)
    ratios = codec.explained_variance_ratio_[0].double()
    torch.testing.assert_close(ratios, variances / total, rtol=1e-4, atol=0)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_whitening_changes_codes_but_not_masks(sigmoid: bool) -> None:
    masks, other = ellipses(200), ellipses(50, seed=1)
    plain = DCTCodec(9, 8, sigmoid=sigmoid)
    white = DCTCodec(9, 8, sigmoid=sigmoid, whiten=True).fit(masks)
    for decode in ("inverse_logits", "inverse_transform"):
        before = getattr(plain, decode)(plain.transform(other))
        after = getattr(white, decode)(white.transform(other))
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(white.transform(other), plain.transform(other), atol=0.1)


def test_without_whitening_a_fit_changes_no_code() -> None:
    masks, codec = ellipses(50), DCTCodec(9, 8)
    assert codec.fitted
    before = codec.transform(masks)
    assert codec.fit(masks) is codec
    torch.testing.assert_close(codec.transform(masks), before)
    assert 0.5 < codec.explained_variance_ratio_.sum() < 1


def test_whitening_needs_a_fit() -> None:
    codec = DCTCodec(9, 8, whiten=True)
    assert not codec.fitted
    for call in (
        lambda: codec.transform(ellipses(1)),
        lambda: codec.inverse_logits(torch.zeros(1, 9)),
        lambda: codec.save("never.npz"),
    ):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call()
    with pytest.raises(ValueError, match="at least 2 masks, got 0"):
        codec.fit(torch.zeros(0, 8, 8))
    with pytest.raises(ValueError, match="at least 2 masks, got 1"):
        codec.fit(ellipses(1))
    with pytest.raises(ValueError, match="masks that differ, but all 7 are the same"):
        codec.fit(ellipses(1).repeat(7, 1, 1))
    assert not codec.fitted


@pytest.mark.parametrize("sigmoid", [True, False])
def test_frequencies_without_variance_are_not_divided(sigmoid: bool) -> None:
    # Masks that are the same from all sides have no odd frequencies, up to rounding.
    masks = ellipses(80)
    even = masks | masks.flip(1)
    even |= even.flip(2)
    codec = DCTCodec(12, 8, sigmoid=sigmoid, whiten=True).fit(even)
    odd = [n for n, (u, v) in enumerate(ZIG_ZAG) if u % 2 or v % 2]
    base = LOGIT_VARIANCE if sigmoid else 0.0
    torch.testing.assert_close(codec.explained_variance_[0, odd], torch.full((len(odd),), base))
    codes = codec.transform(masks)
    assert codes.abs().max() < 100  # not divided by what rounding has left
    assert codes[:, odd].any()
    plain = DCTCodec(12, 8, sigmoid=sigmoid)
    torch.testing.assert_close(
        codec.inverse_logits(codes), plain.inverse_logits(plain.transform(masks)), atol=1e-4, rtol=0
    )


def test_class_moments_are_pooled() -> None:
    masks = ellipses(60)
    sums = ClassMoments(8, ["a", "b"]).add(masks, torch.arange(60) % 2)
    apart = DCTCodec(9, 8, whiten=True).fit_moments(sums).state_dict()
    for name, array in DCTCodec(9, 8, whiten=True).fit(masks).state_dict().items():
        assert torch.equal(apart[name], array), name


# Files and configurations


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
def test_saved_codec_loads(tmp_path: Path, sigmoid: bool, whiten: bool) -> None:
    masks = ellipses(60)
    codec = DCTCodec(9, 8, sigmoid=sigmoid, whiten=whiten)
    if whiten:
        codec.fit(masks)
    codec.save(tmp_path / "dct.npz")
    again = load_codec(tmp_path / "dct.npz")
    assert isinstance(again, DCTCodec)
    assert again.get_config() == codec.get_config()
    assert torch.equal(again.transform(masks), codec.transform(masks))
    again.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "dct.npz").read_bytes()


def test_loading_a_state_makes_it_fitted() -> None:
    source = DCTCodec(9, 8, whiten=True).fit(ellipses(60))
    codec = DCTCodec.from_config(json.loads(json.dumps(source.get_config())))
    assert not codec.fitted
    codec.load_state_dict(source.state_dict())
    assert torch.equal(codec.transform(ellipses(3)), source.transform(ellipses(3)))
    codec.load_state_dict(DCTCodec(9, 8, whiten=True).state_dict())
    assert not codec.fitted


def test_faulty_arguments() -> None:
    with pytest.raises(ValueError, match=r"between 1 and mask_size squared \(64\), got 65"):
        DCTCodec(65, 8)
    for change in ({"kind": "pca"}, {"whiten": 1}, {"class_names": ["a"]}):
        with pytest.raises(ValueError, match="kind 'dct'"):
            DCTCodec.from_config(DCTCodec(4, 8).get_config() | change)
