"""The image of a codec shows its means, components, curves and pairs."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from meinst.codec_tools.report.canvas import Canvas
from meinst.codec_tools.report.pairs import Pair
from meinst.codec_tools.report.sheet import codec_sheet, describe
from meinst.codecs import Codec, DCTCodec, GridCodec, PCACodec
from meinst.codecs.clipped_logit import LOGIT

NAMES = tuple(f"class {n}" for n in range(9))


@dataclass
class Drawn:
    """The content of a canvas."""

    texts: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    plots: list[Any] = field(default_factory=list)

    def signed(self) -> list[np.ndarray]:
        """Images of components: those with negative values."""
        return [image for image in self.images if image.ndim == 2 and image.min() < 0]

    def unsigned(self) -> list[np.ndarray]:
        """Images of mean masks: those without negative values."""
        return [image for image in self.images if image.ndim == 2 and image.min() >= 0]

    def clear(self) -> None:
        for content in (self.texts, self.images, self.plots):
            content.clear()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    content = Drawn()
    text, image, plot = Canvas.text, Canvas.image, Canvas.plot

    def record_text(
        canvas: Canvas, x: float, y: float, words: str, *rest: Any, **style: Any
    ) -> None:
        content.texts.append(words)
        text(canvas, x, y, words, *rest, **style)

    def record_image(canvas: Canvas, pixels: np.ndarray, *rest: Any, **colors: Any) -> None:
        content.images.append(pixels)
        image(canvas, pixels, *rest, **colors)

    def record_plot(canvas: Canvas, *place: float) -> Any:
        content.plots.append(plot(canvas, *place))
        return content.plots[-1]

    monkeypatch.setattr(Canvas, "text", record_text)
    monkeypatch.setattr(Canvas, "image", record_image)
    monkeypatch.setattr(Canvas, "plot", record_plot)
    return content


def contains(images: list[np.ndarray], expected: np.ndarray) -> bool:
    """Whether one of the images has these pixels."""
    return any(np.allclose(image.ravel(), expected.ravel(), atol=1e-4) for image in images)


def masks(count: int = 90, size: int = 12) -> torch.Tensor:
    """Boxes of random corners."""
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, size // 2, (count, 2)), rng.integers(size // 2, size, (count, 2))
    place = np.arange(size)
    inside = (place >= low[..., None]) & (place <= high[..., None])  # (N, 2, S)
    return torch.from_numpy(inside[:, 0, :, None] & inside[:, 1, None, :])


def pair(iou: float, name: str = "thing", shape: tuple[int, int] = (20, 30)) -> Pair:
    original = np.ones(shape, dtype=np.bool_)
    return Pair(original, original.copy(), iou, round(1000 * iou), name)


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_shows_mean_and_components(drawn: Drawn) -> None:
    codec = PCACodec(6, 12).fit(masks())
    codec_sheet(codec)
    # The mean of logits is L (2 p - 1), p being the share of masks that cover a pixel.
    share = (codec.mean_[0] / LOGIT + 1) / 2
    assert contains(drawn.unsigned(), share.numpy())
    assert share.max() > 0.9 > share.min()
    components = codec.components_[0].numpy()
    scaled = components / np.abs(components).max(axis=1, keepdims=True)
    assert len(drawn.signed()) == 6
    assert all(contains(drawn.signed(), component) for component in scaled)
    assert set("123456") <= set(drawn.texts)


def test_variance_curve_is_cumulative(drawn: Drawn) -> None:
    codec = PCACodec(6, 12).fit(masks())
    codec_sheet(codec)
    (plot,) = drawn.plots
    ratios = codec.explained_variance_ratio_[0].tolist()
    expected = [[k, sum(ratios[:k])] for k in range(1, 7)]
    np.testing.assert_allclose(plot.lines[0].get_xydata(), expected, atol=1e-6)


@pytest.mark.parametrize("codec", [DCTCodec(6, 12), GridCodec(4, 12)])
def test_codecs_without_variance_have_no_curve(codec: Codec, drawn: Drawn) -> None:
    codec_sheet(codec)
    assert drawn.plots == []
    assert "No variance curve" in drawn.texts
    assert len(drawn.images) == 1 + codec.n_components
    drawn.clear()
    codec_sheet(codec, iou=np.array([0.5, 0.9], dtype=np.float32))
    (plot,) = drawn.plots  # the IoU
    assert plot.lines[0].get_ydata().tolist() == pytest.approx([0.9, 0.5])
    assert "IoU of 2 instances, mean 0.700" in drawn.texts


def test_each_number_of_a_grid_fills_a_cell(drawn: Drawn) -> None:
    codec_sheet(GridCodec(4, 12))
    cells = set()
    for picture in drawn.images:
        if np.ptp(picture) > 0:  # not the mean
            row, column = divmod(int(picture.argmax()), 12)
            cells.add((row // 6, column // 6))
    assert cells == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_shows_at_most_60_components(drawn: Drawn) -> None:
    pages = []
    for count in (60, 256):
        drawn.clear()
        pages.append(size_of(codec_sheet(DCTCodec(count, 16))))
        assert len(drawn.images) == 1 + 60
    assert pages[0] == pages[1]
    assert "Components, the first 60 of 256" in drawn.texts


def test_pairs_keep_their_order(drawn: Drawn) -> None:
    codec = DCTCodec(6, 12)
    ious = (1.0, 0.95, 0.9, 0.5, 0.125)
    heights = []
    for pairs in ([], [pair(iou) for iou in ious[:4]], [pair(iou) for iou in ious]):
        drawn.clear()
        heights.append(size_of(codec_sheet(codec, pairs))[1])
    assert [text for text in drawn.texts if text.startswith("IoU ")] == [
        "IoU 1.000",
        "IoU 0.950",
        "IoU 0.900",
        "IoU 0.500",
        "IoU 0.125",
    ]
    assert [text for text in drawn.texts if text.startswith("annotation")] == [
        f"annotation {n}" for n in (1000, 950, 900, 500, 125)
    ]
    pictures = [image for image in drawn.images if image.shape == (20, 30, 3)]
    assert len(pictures) == 2 * len(ious)
    assert heights[0] < heights[1] < heights[2]


def test_shows_means_and_components_of_classes(drawn: Drawn) -> None:
    codec = PCACodec(5, 12, class_names=NAMES, shrinkage=1.0)
    codec.fit(masks(), torch.arange(90) % 9)
    codec_sheet(codec)
    # A mean of all, 6 of 9 classes with a mean and 5 components, 9 means.
    assert len(drawn.images) == 1 + 6 * (1 + 5) + 9
    # Evenly spaced over 9: 0, 1.6, 3.2, 4.8, 6.4 and 8 rounded; these have a row and a mean.
    assert [drawn.texts.count(name) for name in NAMES] == [2, 1, 2, 2, 1, 2, 2, 1, 2]
    assert len(drawn.signed()) == 6 * 5
    means = ((codec.mean_ / LOGIT + 1) / 2).clamp(0, 1).numpy()
    assert all(contains(drawn.unsigned(), mean) for mean in means)
    (plot,) = drawn.plots
    median = codec.explained_variance_ratio_.numpy().cumsum(1)
    np.testing.assert_allclose(plot.lines[0].get_ydata(), np.median(median, axis=0), atol=1e-6)


def test_class_names_with_special_characters(drawn: Drawn) -> None:
    # Math is not parsed, and a missing glyph does not warn.
    names = ["$\\frac{$", "\u732b", "a" * 200, "<b>"]
    codec_sheet(DCTCodec(6, 12), [pair(0.5, name) for name in names])
    shown = [text for text in drawn.texts if text in names]
    assert shown == [names[0], names[1], names[3]]
    assert any(text.startswith("aaa") and text.endswith("\u2026") for text in drawn.texts)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (3000, 2)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    codec_sheet(DCTCodec(6, 12), [pair(0.5, shape=shape)])


def test_description_lists_the_options() -> None:
    title, options = describe(PCACodec(5, 12, whiten=False, class_names=NAMES, shrinkage=2.5))
    assert title == "PCA codec: 5 numbers for 12 x 12 masks"
    assert options.split("  ·  ") == [
        "20 bytes per instance (float32)",
        "sigmoid on",
        "whiten off",
        "shrinkage 2.5",
        "a basis for each of 9 classes",
    ]
    assert describe(GridCodec(4, 12))[1].endswith("one basis for all classes")
