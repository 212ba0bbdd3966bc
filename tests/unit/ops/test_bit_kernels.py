import numpy as np
import pytest

from meinst.ops.bit_kernels import WORD, add_shared, pack_pixels


def synthetic_masks(count: int, pixels: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((count, pixels)) < 0.4).astype(np.uint8)


def packed(masks: np.ndarray) -> np.ndarray:
    count, pixels = masks.shape
    # Start from other values than zeros: every word must be written.
    bits = np.full((pixels, -(-count // WORD)), 0xDEADBEEF, dtype=np.uint64)
    pack_pixels(masks, bits)
    return bits


def test_no_masks() -> None:
    bits = packed(synthetic_masks(0, 5))
    assert bits.shape == (5, 0)
    products = np.arange(25).reshape(5, 5)
    add_shared(bits, products)
    np.testing.assert_array_equal(products, np.arange(25).reshape(5, 5))


def test_no_pixels() -> None:
    bits = packed(synthetic_masks(3, 0))
    add_shared(bits, np.zeros((0, 0), dtype=np.int64))
    assert bits.shape == (0, 1)


def test_three_masks_by_hand() -> None:
    # Pixel 0 is set in masks 0 and 2 (bits 101), pixel 1 in masks 1 and 2 (bits 110).
    masks = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.uint8)
    assert packed(masks).tolist() == [[0b101], [0b110]]
    products = np.array([[10, 20], [30, 40]])
    add_shared(packed(masks), products)
    # Pixel 0 twice, pixel 1 twice, both once; the lower triangle does not change.
    assert products.tolist() == [[12, 21], [30, 42]]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 200])
def test_each_mask_sets_only_its_own_bit(count: int) -> None:
    masks = synthetic_masks(count, 7)
    bits = packed(masks)
    for pixel in range(7):
        for n in range(bits.shape[1] * WORD):
            expected = int(masks[n, pixel]) if n < count else 0
            assert (int(bits[pixel, n // WORD]) >> (n % WORD)) & 1 == expected


@pytest.mark.parametrize("count", [1, 64, 65, 1000])
@pytest.mark.parametrize("pixels", [1, 9, 256, 257, 600])  # a tile holds 256 rows
def test_counts_equal_the_matrix_product(count: int, pixels: int) -> None:
    masks = synthetic_masks(count, pixels)
    products = np.full((pixels, pixels), 7)
    add_shared(packed(masks), products)
    wide = masks.astype(np.float32)  # exact below 2^24
    np.testing.assert_array_equal(products, 7 + np.triu((wide.T @ wide).astype(np.int64)))


def test_highest_bit_is_counted_and_counts_do_not_overflow() -> None:
    # A word of 64 ones would be -1 if it were signed. 300 masks exceed a byte.
    masks = np.ones((300, 2), dtype=np.uint8)
    assert int(packed(masks)[0, 0]) == 2**64 - 1
    products = np.zeros((2, 2), dtype=np.int64)
    add_shared(packed(masks), products)
    assert products.tolist() == [[300, 300], [0, 300]]


def test_arguments_are_not_changed() -> None:
    masks = synthetic_masks(100, 12)
    before, bits = masks.copy(), packed(masks)
    kept = bits.copy()
    add_shared(bits, np.zeros((12, 12), dtype=np.int64))
    np.testing.assert_array_equal(masks, before)
    np.testing.assert_array_equal(bits, kept)
