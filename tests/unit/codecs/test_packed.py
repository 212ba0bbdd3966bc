from __future__ import annotations

import pytest
import torch

from meinst.codecs.packed import PackedMaskCodec


def test_no_masks() -> None:
    codec = PackedMaskCodec(28)
    codes = codec.encode(torch.zeros(0, 28, 28))
    assert codes.shape == (0, 392)
    assert codec.inverse_transform(codes).shape == (0, 28, 28)


def test_two_pixels_per_byte() -> None:
    # Levels round(15 x): 0, 15, 8 (0.5 rounds up to the even 8), 5; bytes 0 * 16 + 15, 8 * 16 + 5.
    codes = PackedMaskCodec(2).encode(torch.tensor([[[0.0, 1.0], [0.5, 1 / 3]]]))
    assert (codes.dtype, codes.tolist()) == (torch.uint8, [[15, 133]])
    soft = PackedMaskCodec(2).inverse_transform(codes)
    torch.testing.assert_close(soft, torch.tensor([[[0.0, 1.0], [8 / 15, 1 / 3]]]))


@pytest.mark.parametrize("mask_size", [1, 7, 28])
def test_at_most_half_a_level_is_lost(mask_size: int) -> None:
    soft = torch.rand(5, mask_size, mask_size, generator=torch.Generator().manual_seed(0))
    codec = PackedMaskCodec(mask_size)
    codes = codec.encode(soft)
    assert codes.shape == (5, codec.n_components)
    decoded = codec.inverse_transform(codes)
    torch.testing.assert_close(decoded, soft, atol=1 / 30 + 1e-6, rtol=0)
    assert torch.equal(decoded >= 0.5, soft >= 0.5)
