"""Compiled loops from soft masks to runs, RLE strings and crops; called through ``ops.paste``.

Only the window of a mask is computed: the pixels whose centres are inside its box. RLE and crops
are made from the same runs, so they agree in every pixel.
"""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

# Single precision throughout, as in grid_sample; plain literals would promote to double.
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_TWO = np.float32(2)

_LONGEST_COUNT = 13  # characters of 5 bits each for any 64-bit number


@compiled
def _place(
    first: int, count: int, low: np.float32, high: np.float32, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of pixel centres among the ``S`` values of one axis, stretched over the box.

    Args:
        first: first pixel of the window.
        count: number of pixels.
        low: lower side of the box in pixels.
        high: upper side of the box, greater than ``low``.
        size: ``S``.

    Returns:
        ``(count,)`` int64, the value before the centre (-1 to ``S - 1``), ascending, and
        ``(count,)`` float32, the weight of the value after it.
    """
    cells = np.empty(count, dtype=np.int64)
    weights = np.empty(count, dtype=np.float32)
    for k in range(count):
        centre = np.float32(first + k) + _HALF
        # Through the range -1..1, in the order of operations of grid_sample.
        grid = (centre - low) / (high - low) * _TWO - _ONE
        place = ((grid + _ONE) * np.float32(size) - _ONE) / _TWO
        cell = np.floor(place)
        cells[k] = np.int64(cell)
        weights[k] = np.float32(place - cell)
    return cells, weights


@compiled
def _stretch_ends(rows: np.ndarray, size: int) -> np.ndarray:
    """Ends of stretches of pixels that lie between the same two values, ``(E,)`` int64."""
    ends = np.empty(size + 2, dtype=np.int64)
    count = 0
    for row in range(1, len(rows) + 1):
        if row == len(rows) or rows[row] != rows[row - 1]:
            ends[count] = row
            count += 1
    return ends[:count]


@compiled
def _fill_line(soft: np.ndarray, cell: int, after: np.float32, line: np.ndarray) -> None:
    """Interpolate a column of ``(S, S)`` values into ``line[1 : S + 1]``; outside is zero."""
    size = soft.shape[0]
    before = _ONE - after
    for s in range(size):
        left = soft[s, cell] if cell >= 0 else np.float32(0)
        right = soft[s, cell + 1] if cell + 1 < size else np.float32(0)
        line[s + 1] = before * left + after * right


@compiled
def _find_runs(
    soft: np.ndarray, box: np.ndarray, window: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> int:
    """Find runs of pixels at 0.5 or more, column by column; no run crosses columns.

    Between two values a column is linear, so that the two values decide a stretch of pixels; only
    stretches that cross 0.5 are searched.

    Args:
        soft: ``(S, S)`` float32.
        box: ``(4,)`` float32, ``x1 y1 x2 y2``.
        window: ``(4,)`` int64, x, y, width, height in pixels.
        starts: takes the first pixel of each run, counted down the columns of the window.
        stops: takes the pixel after the last of each run.

    Returns:
        The number of runs, at most ``width * min(S + 1, (height + 1) // 2)``.
    """
    size = soft.shape[0]
    width, height = window[2], window[3]
    columns, column_weights = _place(window[0], width, box[0], box[2], size)
    rows, row_weights = _place(window[1], height, box[1], box[3], size)
    ends = _stretch_ends(rows, size)
    line = np.zeros(size + 2, dtype=np.float32)  # one column of values, a zero at either end
    found = 0
    for x in range(width):
        _fill_line(soft, columns[x], column_weights[x], line)
        inside = False
        low = 0
        for high in ends:
            top, bottom = line[rows[low] + 1], line[rows[low] + 2]
            ends_inside = bottom >= _HALF
            crossing = low
            if (top >= _HALF) != ends_inside:
                while crossing < high:
                    weight = row_weights[crossing]
                    if ((_ONE - weight) * top + weight * bottom >= _HALF) == ends_inside:
                        break
                    crossing += 1
            for row, end, state in (
                (low, crossing, not ends_inside),
                (crossing, high, ends_inside),
            ):
                if row < end and state != inside:
                    if state:
                        starts[found] = x * height + row
                    else:
                        stops[found] = x * height + row
                        found += 1
                    inside = state
            low = high
        if inside:
            stops[found] = (x + 1) * height
            found += 1
    return found


@compiled
def _run_space(windows: np.ndarray, size: int) -> int:
    """Largest possible number of runs in any of the windows ``(N, 4)``."""
    space = 0
    for n in range(windows.shape[0]):
        space = max(space, windows[n, 2] * min(size + 1, (windows[n, 3] + 1) // 2))
    return space


@compiled
def _write_count(number: int, text: np.ndarray, used: int) -> int:
    """Write a number as in COCO: 5 bits per character, lowest first, plus 48.

    The sixth bit is set if more characters follow; the fifth bit of the last one is the sign.

    Args:
        number: number to write.
        text: uint8, with room for ``_LONGEST_COUNT`` characters from ``used`` on.
        used: number of characters already written.

    Returns:
        The new number of characters.
    """
    more = True
    while more:
        digit = number & 31
        number >>= 5
        more = number != (-1 if digit & 16 else 0)
        text[used] = 48 + digit + (32 if more else 0)
        used += 1
    return used


@compiled
def _with_room(text: np.ndarray, used: int, needed: int) -> np.ndarray:
    """Copy the first ``used`` characters to a larger array if ``needed`` do not fit."""
    if needed <= text.size:
        return text
    larger = np.empty(2 * needed, dtype=np.uint8)
    larger[:used] = text[:used]
    return larger


@compiled
def encode_masks(
    soft: np.ndarray, boxes: np.ndarray, windows: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Encode masks as compressed COCO RLE of the whole image; only windows are computed.

    Args:
        soft: ``(N, S, S)`` float32.
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2`` in pixels of the image.
        windows: ``(N, 4)`` int64, x, y, width, height; of no area for an empty mask.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        uint8 characters of all masks, concatenated, and ``(N + 1,)`` int64, the start of each
        mask, and the end.
    """
    count = soft.shape[0]
    space = _run_space(windows, soft.shape[1])
    starts = np.empty(space, dtype=np.int64)
    stops = np.empty(space, dtype=np.int64)
    text = np.empty(256 * max(count, 1), dtype=np.uint8)
    begins = np.zeros(count + 1, dtype=np.int64)
    used = 0
    for n in range(count):
        x0, y0, tall = windows[n, 0], windows[n, 1], windows[n, 3]
        found = _find_runs(soft[n], boxes[n], windows[n], starts, stops)
        text = _with_room(text, used, used + (2 * found + 2) * _LONGEST_COUNT)
        # From the fourth number on, COCO writes the difference from the number before the
        # previous: background from background, foreground from foreground.
        end, gap, length, written = 0, 0, 0, 0
        k = 0
        while k < found:
            column = starts[k] // tall
            shift = (x0 + column) * height + y0 - column * tall  # window to image
            start = starts[k] + shift
            # In a window as tall as the image, runs may continue at the top of the next column.
            while tall == height and k + 1 < found and starts[k + 1] == stops[k]:
                k += 1
            stop = stops[k] + shift
            used = _write_count(start - end - (gap if written > 1 else 0), text, used)
            used = _write_count(stop - start - (length if written > 0 else 0), text, used)
            gap, length, end = start - end, stop - start, stop
            written += 1
            k += 1
        if end < height * width:
            rest = height * width - end
            used = _write_count(rest - (gap if written > 1 else 0), text, used)
        begins[n + 1] = used
    return text[:used], begins


@compiled
def paint_masks(
    soft: np.ndarray,
    boxes: np.ndarray,
    windows: np.ndarray,
    corners: np.ndarray,
    strides: np.ndarray,
    canvas: np.ndarray,
) -> None:
    """Set the pixels of masks in a flat array, each mask in row-major order.

    Args:
        soft: ``(N, S, S)`` float32.
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2`` in pixels of the image.
        windows: ``(N, 4)`` int64, x, y, width, height; of no area for an empty mask.
        corners: ``(N,)`` int64, index of each window's first pixel in ``canvas``.
        strides: ``(N,)`` int64, distance between rows of each mask in ``canvas``.
        canvas: flat bool array of False; changed in place.
    """
    space = _run_space(windows, soft.shape[1])
    starts = np.empty(space, dtype=np.int64)
    stops = np.empty(space, dtype=np.int64)
    for n in range(soft.shape[0]):
        tall = windows[n, 3]
        for k in range(_find_runs(soft[n], boxes[n], windows[n], starts, stops)):
            column = starts[k] // tall
            for y in range(starts[k] - column * tall, stops[k] - column * tall):
                canvas[corners[n] + y * strides[n] + column] = True


@compiled
def number_masks(
    soft: np.ndarray,
    boxes: np.ndarray,
    windows: np.ndarray,
    numbers: np.ndarray,
    top: int,
    canvas: np.ndarray,
) -> None:
    """Write the numbers of masks into some rows of a label image; later masks cover earlier ones.

    Args:
        soft: ``(N, S, S)`` float32.
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2`` in pixels of the image.
        windows: ``(N, 4)`` int64, x, y, width, height, within the rows; of no area for a mask that
            has no pixel there.
        numbers: ``(N,)`` of the type of ``canvas``.
        top: the first row of ``canvas`` in the image.
        canvas: ``(h, W)`` whole numbers; changed in place.
    """
    space = _run_space(windows, soft.shape[1])
    starts = np.empty(space, dtype=np.int64)
    stops = np.empty(space, dtype=np.int64)
    for n in range(soft.shape[0]):
        tall = windows[n, 3]
        for k in range(_find_runs(soft[n], boxes[n], windows[n], starts, stops)):
            column = starts[k] // tall
            x = windows[n, 0] + column
            y = windows[n, 1] - top - column * tall
            for row in range(y + starts[k], y + stops[k]):
                canvas[row, x] = numbers[n]
