import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from meinst.codecs import AutoencoderCodec, CodecFileError, NotFittedError, PCACodec, load_codec

SMALL = {"n_components": 6, "mask_size": 8, "hidden": 16, "iterations": 20, "batch_size": 32}


def shapes(count: int, side: int = 8, seed: int = 0) -> Tensor:
    """Ellipses cut by a line, ``(count, side, side)`` uint8."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    angle, shift = rng.uniform(0, 2 * np.pi, count), rng.uniform(-0.6, 0.6, count)
    middle, radius = (
        rng.uniform(-0.3, 0.3, (2, count, 1, 1)),
        rng.uniform(0.4, 1.2, (2, count, 1, 1)),
    )
    round_ = ((x - middle[0]) / radius[0]) ** 2 + ((y - middle[1]) / radius[1]) ** 2 < 1
    cut = (
        np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
        < shift[:, None, None] + 0.4
    )
    return torch.from_numpy((round_ & cut).astype(np.uint8))


def mean_iou(codec: AutoencoderCodec | PCACodec, masks: Tensor) -> float:
    inside = masks.bool().flatten(1)
    decoded = (codec.inverse_transform(codec.transform(masks)) >= 0.5).flatten(1)
    union = (inside | decoded).sum(1)
    return ((inside & decoded).sum(1)[union > 0] / union[union > 0]).mean().item()


@pytest.fixture(scope="module")
def fitted() -> AutoencoderCodec:
    return AutoencoderCodec(**SMALL).fit(shapes(300))  # type: ignore[arg-type]


def test_no_masks_and_no_codes(fitted: AutoencoderCodec) -> None:
    assert fitted.transform(torch.zeros(0, 8, 8)).shape == (0, 6)
    assert fitted.inverse_transform(torch.zeros(0, 6)).shape == (0, 8, 8)


def test_reconstructs_new_masks_better_than_pca() -> None:
    masks, new = shapes(3000, side=16), shapes(500, side=16, seed=1)
    learned = AutoencoderCodec(8, 16, hidden=64, iterations=600).fit(masks)
    linear = PCACodec(8, 16).fit(masks)
    iou, reference = mean_iou(learned, new), mean_iou(linear, new)
    assert iou > 0.9
    assert iou > reference + 0.05


def test_initial_network_equals_principal_components() -> None:
    # One step of a learning rate of nearly nothing leaves the linear start as it is; codes are
    # standardised in both, though whitened logits count the noise of the pixels as well.
    masks = shapes(300)
    codec = AutoencoderCodec(6, 8, hidden=16, iterations=1, lr=1e-12).fit(masks)
    linear = PCACodec(6, 8).fit(masks)
    torch.testing.assert_close(
        codec.inverse_logits(codec.transform(masks)),
        linear.inverse_logits(linear.transform(masks)),
        atol=1e-3,
        rtol=0,
    )
    codes = linear.transform(masks)
    expected = (codes - codes.mean(0)) / codes.std(0, correction=0)
    torch.testing.assert_close(codec.transform(masks), expected, atol=1e-4, rtol=0)


def test_codes_of_the_training_masks_are_standardised(fitted: AutoencoderCodec) -> None:
    codes = fitted.transform(shapes(300)).double()
    torch.testing.assert_close(codes.mean(0), torch.zeros(6).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        codes.std(0, correction=0), torch.ones(6).double(), atol=1e-4, rtol=0
    )


def test_codes_and_masks_follow_the_formula(fitted: AutoencoderCodec) -> None:
    arrays = {name: value.double() for name, value in fitted.state_dict().items()}

    def run(part: str, values: Tensor) -> Tensor:
        linear, hidden, hidden_bias, output, bias = (
            arrays[f"{part}_{name}_"]
            for name in ("linear", "hidden", "hidden_bias", "output", "bias")
        )
        inner = values @ hidden.T + hidden_bias
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2  # GELU
        return values @ linear.T + inner @ output.T + bias

    masks = shapes(20, seed=1)
    codes = run("encoder", 2 * masks.flatten(1).double() - 1)
    logits = run("decoder", codes).reshape(-1, 8, 8)
    assert fitted.transform(masks).dtype == torch.float32
    torch.testing.assert_close(fitted.transform(masks).double(), codes, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        fitted.inverse_logits(codes.float()).double(), logits, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        fitted.inverse_transform(codes.float()), logits.sigmoid().float(), atol=1e-4, rtol=0
    )


def test_same_seed_same_bits(fitted: AutoencoderCodec) -> None:
    before = torch.get_rng_state()
    again = AutoencoderCodec(**SMALL).fit(shapes(300))  # type: ignore[arg-type]
    other = AutoencoderCodec(**SMALL, seed=1).fit(shapes(300))  # type: ignore[arg-type]
    for name, array in fitted.state_dict().items():
        assert torch.equal(again.state_dict()[name], array), name
    assert not torch.equal(other.decoder_linear_, fitted.decoder_linear_)
    assert torch.equal(torch.get_rng_state(), before)


def test_second_fit_discards_the_first(fitted: AutoencoderCodec) -> None:
    again = copy.deepcopy(fitted).fit(shapes(100, seed=2)).fit(shapes(300))
    assert torch.equal(again.decoder_linear_, fitted.decoder_linear_)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.float64])
def test_any_mask_dtype_and_input_unchanged(fitted: AutoencoderCodec, dtype: torch.dtype) -> None:
    masks = shapes(40, seed=3).to(dtype)
    before = masks.clone()
    codec = AutoencoderCodec(**SMALL).fit(shapes(300).to(dtype))  # type: ignore[arg-type]
    assert torch.equal(codec.transform(masks), fitted.transform(shapes(40, seed=3)))
    assert torch.equal(masks, before)


def test_batch_equals_single_masks(fitted: AutoencoderCodec) -> None:
    masks = shapes(5, seed=4)
    alone = torch.cat([fitted.transform(mask[None]) for mask in masks])
    torch.testing.assert_close(alone, fitted.transform(masks), atol=1e-5, rtol=0)


def test_labels_are_ignored(fitted: AutoencoderCodec) -> None:
    masks, labels = shapes(300), torch.arange(300)
    assert fitted.class_names is None
    codec = AutoencoderCodec(**SMALL).fit(masks, labels)  # type: ignore[arg-type]
    codes = codec.transform(masks, labels=labels)
    assert torch.equal(codes, fitted.transform(masks))
    assert torch.equal(codec.inverse_transform(codes, labels), fitted.inverse_transform(codes))


def test_on_step_counts_steps_with_fewer_masks_than_a_batch() -> None:
    steps: list[int] = []
    codec = AutoencoderCodec(2, 8, hidden=4, iterations=3)
    codec.fit(shapes(20), on_step=steps.append)
    assert steps == [1, 2, 3]
    assert torch.isfinite(codec.transform(shapes(20))).all()


def test_gradient_reaches_codes_but_not_weights(fitted: AutoencoderCodec) -> None:
    assert list(fitted.parameters()) == []
    assert not any(buffer.requires_grad for buffer in fitted.buffers())
    codes = torch.zeros(3, 6, requires_grad=True)
    fitted.inverse_logits(codes).square().sum().backward()
    assert codes.grad is not None
    assert (codes.grad != 0).all()
    # By finite differences along the first coefficient of the first code.
    step = torch.zeros(3, 6)
    step[0, 0] = 0.01
    up, down = (fitted.inverse_logits(s).double().square().sum() for s in (step, -step))
    assert codes.grad[0, 0].item() == pytest.approx((up - down).item() / 0.02, rel=1e-2)


def test_fit_under_no_grad(fitted: AutoencoderCodec) -> None:
    with torch.no_grad():
        codec = AutoencoderCodec(**SMALL).fit(shapes(300))  # type: ignore[arg-type]
    assert torch.equal(codec.decoder_linear_, fitted.decoder_linear_)


def test_autocast_does_not_change_codes(fitted: AutoencoderCodec) -> None:
    masks = shapes(20, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = fitted.transform(masks)
        soft = fitted.inverse_transform(codes)
    assert torch.equal(codes, fitted.transform(masks))
    assert torch.equal(soft, fitted.inverse_transform(codes))


# Files and configurations


def test_saved_codec_loads(fitted: AutoencoderCodec, tmp_path: Path) -> None:
    fitted.save(tmp_path / "codec.npz")
    again = AutoencoderCodec.load(tmp_path / "codec.npz")
    assert again.get_config() == fitted.get_config()
    masks = shapes(20, seed=1)
    assert torch.equal(again.transform(masks), fitted.transform(masks))
    again.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "codec.npz").read_bytes()
    assert isinstance(load_codec(tmp_path / "codec.npz"), AutoencoderCodec)
    with pytest.raises(CodecFileError, match="its kind must be 'pca'"):
        PCACodec.load(tmp_path / "codec.npz")


def test_config_and_state_restore_the_codec(fitted: AutoencoderCodec) -> None:
    config = json.loads(json.dumps(fitted.get_config()))
    again = AutoencoderCodec.from_config(config)
    assert not again.fitted
    again.load_state_dict(fitted.state_dict())
    assert again.fitted
    masks = shapes(20, seed=1)
    assert torch.equal(again.transform(masks), fitted.transform(masks))
    for wrong in ({"kind": "pca"}, {"hidden": "16"}, {"lr": True}, {"depth": 2}):
        with pytest.raises(ValueError, match="kind 'autoencoder'"):
            AutoencoderCodec.from_config(config | wrong)


# Errors


def test_not_fitted() -> None:
    codec = AutoencoderCodec(6, 8)
    for use in (
        lambda: codec.transform(shapes(2)),
        lambda: codec.inverse_logits(torch.zeros(2, 6)),
        lambda: codec.inverse_transform(torch.zeros(2, 6)),
        lambda: codec.save("nowhere.npz"),
    ):
        with pytest.raises(NotFittedError, match="AutoencoderCodec instance is not fitted yet"):
            use()


def test_rejects_random_and_constant_logits(fitted: AutoencoderCodec) -> None:
    with pytest.raises(ValueError, match="logits='random'"):
        fitted.transform(shapes(2), logits="random", generator=torch.Generator())
    with pytest.raises(ValueError, match="logits='constant'"):
        fitted.transform(shapes(2), logits="constant")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(0, 8, 8), "at least 2 masks, got 0"),
        (shapes(1), "at least 2 masks, got 1"),
        (torch.ones(50, 8, 8), "masks that differ, but all 50 are the same"),
        (shapes(6), r"n_components=6 .* 6 masks span \d"),
        (shapes(3).repeat(100, 1, 1), "300 masks span 2"),
        (shapes(50, side=9), r"shape \(N, 8, 8\), got \(50, 9, 9\)"),
        (torch.full((50, 8, 8), torch.nan), "got NaN"),
    ],
)
def test_rejects_masks_of_low_rank(fitted: AutoencoderCodec, masks: Tensor, message: str) -> None:
    codec = copy.deepcopy(fitted)
    with pytest.raises(ValueError, match=message):
        codec.fit(masks)
    assert torch.equal(codec.decoder_linear_, fitted.decoder_linear_)


def test_diverging_fit_raises() -> None:
    codec = AutoencoderCodec(6, 8, hidden=16, iterations=20, lr=1e30)
    with pytest.raises(ValueError, match=r"diverged at lr=1e\+30.*Lower lr"):
        codec.fit(shapes(300))
    assert not codec.fitted


@pytest.mark.parametrize(
    "options",
    [
        {"mask_size": 0},
        {"n_components": 0},
        {"n_components": 65, "mask_size": 8},
        {"hidden": 0},
        {"iterations": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
    ],
)
def test_rejects_hyper_parameters_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        AutoencoderCodec(**options)  # type: ignore[arg-type]
