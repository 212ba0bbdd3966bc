"""Draw masks, boxes and captions over images; masks are blended inside their crops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from meinst.ops.paste import group_crops, pixel_windows

# RGB colours that people with colour blindness can distinguish: those of M. Okabe and K. Ito
# ("Color Universal Design", 2008) without black, and wine from P. Tol's muted scheme.
PALETTE = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (0, 158, 115),  # bluish green
    (213, 94, 0),  # vermillion
    (0, 114, 178),  # blue
    (136, 34, 85),  # wine
)

# With more objects than this, boxes and captions would hide the picture.
_MAX_CAPTIONS = 30
_PIXELS_PER_CAPTION = 8000
_AT_ONCE = 4096  # masks that are in memory at the same time

Color = tuple[int, int, int]
Plate = tuple[int, int, int, int]  # x1 y1 x2 y2; covers the pixels from x1 to x2 - 1


def blend_masks(
    image: np.ndarray,
    crops: Sequence[np.ndarray],
    corners: np.ndarray,
    colors: Sequence[Color],
    alpha: float,
) -> None:
    """Tint masks and draw their outlines in full colour, large masks first.

    Args:
        image: ``(H, W, 3)`` uint8; changed in place.
        crops: ``N`` masks ``(h, w)`` of bool.
        corners: ``(N, 2)`` x and y of the first pixel of each crop in the image.
        colors: ``N`` RGB colours.
        alpha: opacity of the colour inside the outline, 0 to 1.
    """
    levels = np.arange(256, dtype=np.float32)[:, None]
    thickness = min(max(round(max(image.shape[:2]) / 300), 1), 3)
    for n in sorted(range(len(crops)), key=lambda n: -crops[n].size):
        crop, (x, y) = crops[n], corners[n]
        height, width = crop.shape
        region = image[y : y + height, x : x + width]  # (h, w, 3)
        color = np.array(colors[n], dtype=np.float32)
        tinted = levels * np.float32(1 - alpha) + color * np.float32(alpha)  # (256, 3)
        for channel, table in enumerate(np.rint(tinted).astype(np.uint8).T):
            plane = region[..., channel]
            plane[crop] = table[plane[crop]]  # in bytes: a crop may be as large as the image
        region[crop & ~_erode(crop, thickness)] = colors[n]


def _erode(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erode a mask ``(h, w)`` by its 4-neighbourhood, ``steps`` times."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    colors: Sequence[Color],
    captions: Sequence[str],
    crops: Callable[[np.ndarray], tuple[list[np.ndarray], np.ndarray]],
    *,
    alpha: float,
    boxes_shown: bool | None = None,
    captions_shown: bool | None = None,
) -> np.ndarray:
    """Draw masks, boxes and captions; see :meth:`meinst.detections.Detections.draw`.

    Args:
        image: ``(H, W, 3)`` uint8.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels.
        colors: ``N`` RGB colours.
        captions: ``N`` single lines of text.
        crops: the result of :func:`meinst.ops.paste.crop_masks` for objects of given indices.
        alpha: opacity of the masks.
        boxes_shown: whether to draw boxes; None if there are few objects.
        captions_shown: whether to write the captions; None if there are few objects.

    Returns:
        ``(H, W, 3)`` uint8, a copy.
    """
    height, width = image.shape[:2]
    few = len(colors) <= min(_MAX_CAPTIONS, height * width // _PIXELS_PER_CAPTION)
    drawn = image.copy()
    areas = pixel_windows(boxes, (height, width))[:, 2:].prod(axis=1)
    order = np.argsort(-areas, kind="stable")  # large ones first
    for part in group_crops(boxes[order], (height, width), _AT_ONCE):
        chosen = np.sort(order[part])
        blend_masks(drawn, *crops(chosen), [colors[n] for n in chosen], alpha)
    sides = boxes.clip(0, np.array([width, height, width, height]))
    if few if boxes_shown is None else boxes_shown:
        drawn = draw_boxes(drawn, sides, colors)
    if few if captions_shown is None else captions_shown:
        drawn = draw_captions(drawn, sides, captions, colors)
    return drawn


def draw_boxes(image: np.ndarray, boxes: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Draw thin rectangles.

    Args:
        image: ``(H, W, 3)`` uint8.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels.
        colors: ``N`` RGB colours.

    Returns:
        ``(H, W, 3)`` uint8, a new array.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    for (x1, y1, x2, y2), color in zip(boxes.tolist(), colors, strict=True):
        # Colour the outermost pixels of the box; its last column is the one before x2.
        left, top = int(x1), int(y1)
        pen.rectangle((left, top, max(left, int(x2 - 0.5)), max(top, int(y2 - 0.5))), outline=color)
    return np.array(canvas)


def draw_captions(
    image: np.ndarray, boxes: np.ndarray, captions: Sequence[str], colors: Sequence[Color]
) -> np.ndarray:
    """Write captions on plates next to their boxes; captions that would overlap are omitted.

    Args:
        image: ``(H, W, 3)`` uint8.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels; captions are placed in this order.
        captions: ``N`` single lines of text.
        colors: ``N`` RGB colours of the plates.

    Returns:
        ``(H, W, 3)`` uint8, a new array.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=min(max(max(canvas.size) / 50, 11), 36))
    margin = 2
    taken: list[Plate] = []
    for (x1, y1, x2, y2), caption, color in zip(boxes.tolist(), captions, colors, strict=True):
        left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
        width = math.ceil(right - left) + 2 * margin
        height = math.ceil(bottom - top) + 2 * margin
        # Try above the box, below it, inside at the top and inside at the bottom.
        places = [
            _place_plate(x, y, (width, height), canvas.size)
            for y in (y1 - height, y2, y1, y2 - height)
            for x in (x1, x2 - width)
        ]
        free = [place for place in places if not any(_overlap(place, other) for other in taken)]
        if not free:
            continue
        # Take the first place that hides the least area of the boxes.
        plate = min(free, key=lambda place: sum(_overlap(place, box) for box in boxes.tolist()))
        taken.append(plate)
        pen.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=color)
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 120
        text_color = (0, 0, 0) if bright else (255, 255, 255)
        text_corner = (plate[0] + margin - left, plate[1] + margin - top)
        pen.text(text_corner, caption, fill=text_color, font=font)
    return np.array(canvas)


def _place_plate(x: float, y: float, size: tuple[int, int], image: tuple[int, int]) -> Plate:
    """Move a plate into the image; one that is too large starts at the border.

    Args:
        x: preferred left side in pixels.
        y: preferred top side in pixels.
        size: width and height of the plate.
        image: width and height of the image.
    """
    left = max(0, min(round(x), image[0] - size[0]))
    top = max(0, min(round(y), image[1] - size[1]))
    return left, top, left + size[0], top + size[1]


def _overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Area of the intersection of two boxes."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
