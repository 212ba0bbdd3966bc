import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from meinst.codecs import Moments, NotFittedError, PCACodec
from meinst.codecs.clipped_logit import LOGIT, LOGIT_VARIANCE, clipped_logits

VARIANTS = [(True, True), (True, False), (False, True), (False, False)]


def ellipses(count: int, side: int = 8, seed: int = 0) -> Tensor:
    """Filled ellipses, ``(count, side, side)`` uint8: masks as smooth as real ones."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    masks = np.empty((count, side, side), dtype=np.uint8)
    for mask in masks:
        center, radius = rng.uniform(0.3, 0.7, 2) * side, rng.uniform(0.2, 0.6, 2) * side
        mask[:] = ((x - center[0]) / radius[0]) ** 2 + ((y - center[1]) / radius[1]) ** 2 < 1
    return torch.from_numpy(masks)


def fitted(sigmoid: bool = True, whiten: bool = True, k: int = 6) -> PCACodec:
    return PCACodec(k, 8, sigmoid=sigmoid, whiten=whiten).fit(ellipses(300))


@pytest.mark.parametrize(("sigmoid", "whiten"), VARIANTS)
def test_no_masks_and_no_codes(sigmoid: bool, whiten: bool) -> None:
    codec = fitted(sigmoid, whiten)
    assert codec.transform(torch.zeros(0, 8, 8)).shape == (0, 6)
    assert codec.inverse_transform(torch.zeros(0, 6)).shape == (0, 8, 8)


def test_one_component_by_hand() -> None:
    # Two masks of 2 x 2, differing in the right column: (1, 1, 1, 1) and (1, 0, 1, 0).
    # Without sigmoid: mean (1, .5, 1, .5), component (0, 1, 0, 1) / sqrt 2, deviations
    # +- .5 sqrt 2 along it, variance (n - 1 = 1) 2 * .5 = 1, all of the total.
    masks = torch.tensor([[[1, 1], [1, 1]], [[1, 0], [1, 0]]])
    codec = PCACodec(1, 2, sigmoid=False).fit(masks)
    root = 2**-0.5
    torch.testing.assert_close(codec.mean_, torch.tensor([[1, 0.5, 1, 0.5]]))
    torch.testing.assert_close(codec.components_, torch.tensor([[[0, root, 0, root]]]))
    torch.testing.assert_close(codec.explained_variance_, torch.ones(1, 1))
    torch.testing.assert_close(codec.explained_variance_ratio_, torch.ones(1, 1))
    torch.testing.assert_close(codec.transform(masks), torch.tensor([[root], [-root]]))
    # Decoding gives the masks again, clipped to 0.01 and 0.99.
    soft = codec.inverse_transform(codec.transform(masks))
    torch.testing.assert_close(soft, masks.float().clamp(0.01, 0.99))
    # With it: mean L (2 m - 1), variance (2 L)^2 + sigma^2, of the total (2 L)^2 + 4 sigma^2.
    codec = PCACodec(1, 2).fit(masks)
    variance = 4 * LOGIT**2 + LOGIT_VARIANCE
    torch.testing.assert_close(codec.mean_, torch.tensor([[LOGIT, 0, LOGIT, 0]]))
    torch.testing.assert_close(codec.explained_variance_, torch.tensor([[variance]]))
    torch.testing.assert_close(
        codec.explained_variance_ratio_,
        torch.tensor([[variance / (variance + 3 * LOGIT_VARIANCE)]]),
    )
    code = 2 * LOGIT * root / variance**0.5
    torch.testing.assert_close(codec.transform(masks), torch.tensor([[code], [-code]]))


@pytest.mark.parametrize("sigmoid", [True, False])
def test_components_as_from_the_singular_values_of_all_masks(sigmoid: bool) -> None:
    masks = ellipses(300)
    values = masks.flatten(1).double()
    centred = values - values.mean(0)
    _, singular, vectors = torch.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / 299
    if sigmoid:
        variances = 4 * LOGIT**2 * variances + LOGIT_VARIANCE
    codec = PCACodec(6, 8, sigmoid=sigmoid).fit(masks)
    torch.testing.assert_close(codec.explained_variance_[0], variances[:6].float())
    cosines = (codec.components_[0] * vectors[:6]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0)


def test_closed_form_is_the_limit_of_random_logits() -> None:
    masks = ellipses(300)
    inside = masks.flatten(1).bool().repeat(200, 1)
    logits = clipped_logits(inside, "random", torch.Generator().manual_seed(0)).double()
    variances = torch.linalg.eigvalsh(torch.cov(logits.T)).flip(0)
    codec = fitted()
    # The same masks 200 times: n - 1 grows from 299 / 300 to 1 in shares of n.
    measured = (variances[:6] - LOGIT_VARIANCE) * 300 / 299 + LOGIT_VARIANCE
    torch.testing.assert_close(
        codec.explained_variance_[0].double(), measured, rtol=0.01, atol=0.01
    )


def test_each_component_has_its_largest_entry_positive() -> None:
    codec = fitted()
    entries = codec.components_[0]
    largest = entries.gather(1, entries.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    torch.testing.assert_close(entries @ entries.T, torch.eye(6), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sigmoid", "whiten"), VARIANTS)
def test_all_components_give_the_masks_again(sigmoid: bool, whiten: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(400, 4, 4, generator=generator) < 0.5).float()
    codec = PCACodec(16, 4, sigmoid=sigmoid, whiten=whiten).fit(masks)
    soft = codec.inverse_transform(codec.transform(masks))
    low = 1 / (1 + np.exp(LOGIT)) if sigmoid else 0.01
    torch.testing.assert_close(soft, masks.clamp(low, 1 - low), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("sigmoid", "whiten"), VARIANTS)
def test_codes_follow_the_formula(sigmoid: bool, whiten: bool) -> None:
    codec, masks = fitted(sigmoid, whiten), ellipses(20, seed=1)
    values = masks.flatten(1).double()
    if sigmoid:
        values = LOGIT * (2 * values - 1)
    basis, mean = codec.components_[0].double(), codec.mean_[0].double()
    scale = codec.explained_variance_[0].double().sqrt() if whiten else torch.ones(6).double()
    codes = (values - mean) @ basis.T / scale
    torch.testing.assert_close(codec.transform(masks), codes.float(), atol=1e-4, rtol=1e-4)
    decoded = (codes @ (basis * scale[:, None]) + mean).reshape(20, 8, 8)
    # Zeros and ones stand for the logits -L and L.
    logits = decoded if sigmoid else LOGIT * (2 * decoded - 1)
    torch.testing.assert_close(
        codec.inverse_logits(codes.float()), logits.float(), atol=1e-4, rtol=1e-4
    )
    soft = decoded.sigmoid() if sigmoid else decoded.clamp(0.01, 0.99)
    torch.testing.assert_close(
        codec.inverse_transform(codes.float()), soft.float(), atol=1e-4, rtol=1e-4
    )


def test_whitened_codes_of_the_fitted_masks_have_unit_variance() -> None:
    codes = fitted(sigmoid=False).transform(ellipses(300))
    torch.testing.assert_close(torch.cov(codes.T), torch.eye(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(codes.mean(0), torch.zeros(6), atol=1e-4, rtol=0)


def test_random_logits_by_a_generator() -> None:
    codec, masks = fitted(), ellipses(5)
    many = masks.repeat(4000, 1, 1)
    codes = codec.transform(many, logits="random", generator=torch.Generator().manual_seed(0))
    again = codec.transform(many, logits="random", generator=torch.Generator().manual_seed(0))
    assert torch.equal(codes, again)
    # Their mean is the deterministic code; one draw has a deviation of at most 1.
    mean = codes.reshape(4000, 5, 6).mean(0)
    torch.testing.assert_close(mean, codec.transform(masks), atol=0.07, rtol=0)
    assert codes.reshape(4000, 5, 6).std(0).min() > 0.02
    with pytest.raises(ValueError, match="sigmoid=False"):
        fitted(sigmoid=False).transform(masks, logits="constant")


def test_decoding_is_differentiable() -> None:
    codec = fitted()
    codes = codec.transform(ellipses(3)).requires_grad_()
    codec.inverse_logits(codes).sum().backward()
    # d sum / d code_k = deviation_k * sum of component k.
    expected = codec.explained_variance_[0].sqrt() * codec.components_[0].sum(1)
    torch.testing.assert_close(codes.grad, expected.expand(3, 6), atol=1e-4, rtol=1e-4)
    codec.inverse_transform(codes).sum().backward()


def test_batch_equals_single_and_input_unchanged() -> None:
    codec, masks = fitted(), ellipses(7, seed=2)
    before = masks.clone()
    codes = codec.transform(masks)
    single = torch.cat([codec.transform(mask[None]) for mask in masks])
    torch.testing.assert_close(codes, single)
    kept = codes.clone()
    codec.inverse_transform(codes)
    assert torch.equal(masks, before)
    assert torch.equal(codes, kept)
    torch.testing.assert_close(codes, codec.transform(masks.bool()))
    torch.testing.assert_close(codes, codec.transform(masks * 255))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codes, codec.transform(masks))
        assert codec.inverse_logits(codes.bfloat16()).dtype == torch.float32


def test_any_split_and_order_gives_the_same_bits() -> None:
    masks = ellipses(300)
    whole = PCACodec(6, 8).fit(masks).state_dict()
    streamed = Moments(8)
    for part in masks.flip(0).split(77):
        streamed.add(part)
    merged = Moments(8).add(masks[200:]).merge(Moments(8).add(masks[:200]))
    for moments in (streamed, merged):
        codec = PCACodec(6, 8).fit_moments(moments)
        for name, buffer in codec.state_dict().items():
            assert torch.equal(buffer, whole[name]), name


def test_second_fit_discards_the_first() -> None:
    codec = PCACodec(6, 8).fit(ellipses(50, seed=3)).fit(ellipses(300))
    assert torch.equal(codec.components_, fitted().components_)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    moments, threads = Moments(28).add(ellipses(300, 28)), torch.get_num_threads()
    whole = PCACodec(60, 28).fit_moments(moments).state_dict()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other = PCACodec(60, 28).fit_moments(moments).state_dict()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(buffer, whole[name]) for name, buffer in other.items())


def test_unfitted() -> None:
    codec = PCACodec(6, 8)
    assert codec.components_.shape == (1, 6, 64)
    for call in (
        lambda: codec.transform(ellipses(1)),
        lambda: codec.inverse_logits(torch.zeros(1, 6)),
        lambda: codec.inverse_transform(torch.zeros(1, 6)),
        lambda: codec.save("never.npz"),
    ):
        with pytest.raises(NotFittedError, match=r"not fitted yet\. Call 'fit'"):
            call()


def test_too_few_masks() -> None:
    with pytest.raises(ValueError, match="at least 2 masks, got 0"):
        PCACodec(6, 8).fit(torch.zeros(0, 8, 8))
    with pytest.raises(ValueError, match="at least 2 masks, got 1"):
        PCACodec(6, 8).fit(ellipses(1))
    with pytest.raises(ValueError, match="all 9 are the same"):
        PCACodec(6, 8).fit(ellipses(1).repeat(9, 1, 1))


@pytest.mark.parametrize(("sigmoid", "whiten"), VARIANTS)
def test_components_beyond_the_rank_are_zero(sigmoid: bool, whiten: bool) -> None:
    # Four different masks span three directions around their mean.
    masks = ellipses(4).repeat(10, 1, 1)
    codec = PCACodec(6, 8, sigmoid=sigmoid, whiten=whiten)
    with pytest.warns(UserWarning, match="40 masks span 3 directions, fewer than n_components=6"):
        codec.fit(masks)
    codes = codec.transform(ellipses(30, seed=5))
    assert codes.isfinite().all()
    assert not codes[:, 3:].any()
    assert codes[:, :3].any(0).all()
    # The fitted masks are reconstructed exactly.
    assert torch.equal(codec.inverse_transform(codec.transform(masks)) >= 0.5, masks.bool())


def test_faulty_arguments() -> None:
    with pytest.raises(ValueError, match=r"between 1 and mask_size squared \(64\), got 65"):
        PCACodec(65, 8)
    with pytest.raises(ValueError, match="got 0"):
        PCACodec(0, 8)
    with pytest.raises(ValueError, match="between 1 and 512, got 0"):
        PCACodec(1, 0)
    codec = fitted()
    with pytest.raises(ValueError, match=r"shape \(N, 8, 8\), got \(1, 28, 28\)"):
        codec.transform(torch.zeros(1, 28, 28))
    with pytest.raises(ValueError, match=r"shape \(N, 6\), got \(1, 60\)"):
        codec.inverse_transform(torch.zeros(1, 60))
    with pytest.raises(ValueError, match="Masks must be finite"):
        codec.transform(torch.full((1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="mask_size of 8, got 5"):
        codec.fit_moments(Moments(5))


def test_unfitted_codec_loads_a_state() -> None:
    source = fitted(sigmoid=False)
    config = json.loads(json.dumps(source.get_config()))
    codec = PCACodec.from_config(config)
    assert codec.get_config() == source.get_config()
    codec.load_state_dict(source.state_dict())
    masks = ellipses(3)
    assert torch.equal(codec.transform(masks), source.transform(masks))
    assert torch.equal(copy.deepcopy(codec).transform(masks), source.transform(masks))
    # The state of an unfitted codec makes it unfitted.
    codec.load_state_dict(PCACodec(6, 8).state_dict())
    with pytest.raises(NotFittedError):
        codec.transform(masks)


@pytest.mark.parametrize(
    "change",
    [{"kind": "dct"}, {"n_components": "60"}, {"sigmoid": 1}, {"colour": "red"}],
)
def test_faulty_configurations(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="kind 'pca'"):
        PCACodec.from_config(PCACodec(6, 8).get_config() | change)
    with pytest.raises(ValueError, match="kind 'pca'"):
        PCACodec.from_config({"kind": "pca"})
