from pathlib import Path

import pytest
import torch

from meinst.codecs import GridCodec, load_codec
from meinst.codecs.clipped_logit import LOGIT


def random_masks(count: int, side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, side, side, generator=generator) < 0.4).to(torch.uint8)


def test_no_masks_and_no_codes() -> None:
    codec = GridCodec(9, 6).fit(torch.zeros(0, 6, 6))
    assert codec.transform(torch.zeros(0, 6, 6)).shape == (0, 9)
    assert codec.inverse_logits(torch.zeros(0, 9)).shape == (0, 6, 6)
    assert codec.inverse_transform(torch.zeros(0, 9)).shape == (0, 6, 6)


def test_codes_by_hand() -> None:
    # Cells of 2 x 2 pixels that cover 4, 1, 0 and 2 of them: 2 n / 4 - 1.
    mask = torch.tensor([[[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]])
    codec = GridCodec(4, 4)
    expected = torch.tensor([[1, -0.5, -1, 0]])
    for masks in (mask, mask.bool(), mask.float(), mask.to(torch.uint8) * 255):
        assert torch.equal(codec.transform(masks), expected)


def test_masks_by_hand() -> None:
    # The cells' centres lie at 0.5 and 2.5 of the four pixels along a side, so the pixels 0, 1,
    # 2, 3 have the shares 0, 1/4, 3/4, 1 of the second cell. Shares 1, 0 above and 0, 0 below.
    codes = torch.tensor([[1.0, -1, -1, -1]])
    falling = torch.tensor([1, 0.75, 0.25, 0])
    expected = (falling[:, None] * falling)[None]
    codec = GridCodec(4, 4)
    torch.testing.assert_close(codec.inverse_transform(codes), expected)
    torch.testing.assert_close(codec.inverse_logits(codes), LOGIT * (2 * expected - 1))


def test_as_many_cells_as_pixels_is_lossless() -> None:
    masks = random_masks(20, 6)
    codec = GridCodec(36, 6)
    codes = codec.transform(masks)
    assert torch.equal(codes, 2 * masks.flatten(1).float() - 1)
    assert torch.equal(codec.inverse_transform(codes), masks.float())


def test_single_cell_is_the_area() -> None:
    masks = random_masks(20, 6)
    codec = GridCodec(1, 6)
    shares = masks.flatten(1).float().mean(1, keepdim=True)
    torch.testing.assert_close(codec.transform(masks), 2 * shares - 1)
    soft = codec.inverse_transform(codec.transform(masks))
    torch.testing.assert_close(soft, shares[:, :, None].expand(20, 6, 6))


def test_cells_overlap_if_they_do_not_divide_the_mask() -> None:
    # Three cells on four pixels are the pixels 0-1, 1-2 and 2-3.
    mask = torch.tensor([[1, 0, 0, 1]]).repeat(4, 1)[None]
    codes = GridCodec(9, 4).transform(mask)
    assert torch.equal(codes, torch.tensor([[0.0, -1, 0] * 3]))


def test_masks_are_where_logits_are_positive() -> None:
    codec = GridCodec(49, 28)
    codes = codec.transform(random_masks(9, 28)) + 0.3 * torch.randn(
        9, 49, generator=torch.Generator().manual_seed(0)
    )
    soft, logits = codec.inverse_transform(codes), codec.inverse_logits(codes)
    assert soft.min() >= 0
    assert soft.max() <= 1
    assert torch.equal(soft >= 0.5, logits >= 0)


def test_every_code_gets_a_gradient() -> None:
    # Also those beyond -1 and 1, which a detector may predict.
    codec = GridCodec(9, 6)
    codes = torch.linspace(-3, 3, 9)[None].requires_grad_()
    codec.inverse_logits(codes).sum().backward()
    # A pixel's weights sum to one: sum(logits) = L * sum over cells of (pixels it counts for).
    assert codes.grad is not None
    torch.testing.assert_close(codes.grad.sum(), torch.tensor(36 * LOGIT))
    assert (codes.grad > 0).all()


def test_batch_equals_single_and_input_unchanged() -> None:
    masks, codec = random_masks(5, 7), GridCodec(9, 7)
    before = masks.clone()
    codes = codec.transform(masks, labels=torch.arange(5))
    for n in range(5):
        assert torch.equal(codec.transform(masks[n : n + 1]), codes[n : n + 1])
        alone = codec.inverse_transform(codes[n : n + 1])
        torch.testing.assert_close(alone, codec.inverse_transform(codes)[n : n + 1])
    assert torch.equal(masks, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.transform(masks), codes)
        assert codec.inverse_logits(codes.bfloat16()).dtype == torch.float32


def test_nothing_is_learned(tmp_path: Path) -> None:
    codec = GridCodec(9, 6)
    assert codec.fitted
    assert codec.fit(random_masks(3, 6), torch.tensor([0, 1, 2])) is codec
    assert not list(codec.parameters())
    assert not codec.state_dict()
    assert codec.for_classes(["any", "names"]) is codec
    codec.save(tmp_path / "grid.npz")
    again = load_codec(tmp_path / "grid.npz")
    assert isinstance(again, GridCodec)
    assert again.get_config() == {"kind": "grid", "n_components": 9, "mask_size": 6}
    assert torch.equal(again.transform(random_masks(3, 6)), codec.transform(random_masks(3, 6)))


@pytest.mark.parametrize(
    ("count", "side", "nearest"), [(60, 28, 49), (0, 28, 1), (-4, 28, 1), (49, 6, 36), (2, 1, 1)]
)
def test_rejects_sizes_that_are_not_square(count: int, side: int, nearest: int) -> None:
    message = rf"\({side**2}\), got {count}; use {nearest}\."
    with pytest.raises(ValueError, match=message):
        GridCodec(count, side)


def test_faulty_arguments() -> None:
    codec = GridCodec(9, 6)
    for call in (codec.transform, codec.fit):
        with pytest.raises(ValueError, match=r"shape \(N, 6, 6\), got \(1, 9, 9\)"):
            call(torch.zeros(1, 9, 9))
        with pytest.raises(ValueError, match="Masks must be finite"):
            call(torch.full((1, 6, 6), torch.nan))
    with pytest.raises(ValueError, match=r"shape \(N, 9\), got \(1, 6\)"):
        codec.inverse_transform(torch.zeros(1, 6))
    with pytest.raises(ValueError, match="logits='random'"):
        codec.transform(random_masks(1, 6), logits="random", generator=torch.Generator())
    for change in ({"kind": "dct"}, {"n_components": True}, {"sigmoid": True}):
        with pytest.raises(ValueError, match="kind 'grid'"):
            GridCodec.from_config(codec.get_config() | change)
