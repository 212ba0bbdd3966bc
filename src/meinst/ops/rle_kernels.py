"""Compiled loops from soft masks to runs, RLE strings and crops; called through ``ops.paste``.

A mask is looked at inside its window only: the pixels whose centres lie in its box. All
products come from the same runs, so they agree pixel for pixel.
"""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

# Single precision throughout, as grid_sample computes: a plain literal would widen the sums.
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_TWO = np.float32(2)

_LONGEST_COUNT = 13  # characters of 5 bits each that hold any 64-bit number


@compiled
def _place(
    first: int, count: int, low: np.float32, high: np.float32, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixel centres of one axis fall among the ``S`` values stretched on the box.

    Args:
        first: the window's first pixel.
        count: its number of pixels.
        low: the box's lower side in pixels.
        high: its upper side, beyond ``low``.
        size: ``S``.

    Returns:
        ``(count,)`` int64, the value before the centre (-1 to ``S - 1``), ascending, and
        ``(count,)`` float32, the weight of the value after it.
    """
    cells = np.empty(count, dtype=np.int64)
    weights = np.empty(count, dtype=np.float32)
    for k in range(count):
        centre = np.float32(first + k) + _HALF
        # By way of grid_sample's -1..1, in its order of operations.
        grid = (centre - low) / (high - low) * _TWO - _ONE
        place = ((grid + _ONE) * np.float32(size) - _ONE) / _TWO
        cell = np.floor(place)
        cells[k] = np.int64(cell)
        weights[k] = np.float32(place - cell)
    return cells, weights


@compiled
def _find_runs(
    soft: np.ndarray, box: np.ndarray, window: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> int:
    """Runs of pixels at 0.5 or more, column after column; no run crosses columns.

    Between two values a column of the stretched mask is a straight line, so whole stretches
    of pixels are decided by their two ends; only a stretch that crosses 0.5 is searched.

    Args:
        soft: ``(S, S)`` float32.
        box: ``(4,)`` float32, ``x1 y1 x2 y2``.
        window: ``(4,)`` int64, x, y, width, height in pixels.
        starts: takes the first pixel of each run, counted down the window's columns.
        stops: takes the pixel after its last.

    Returns:
        The number of runs, at most ``width * min(S + 1, (height + 1) // 2)``.
    """
    size = soft.shape[0]
    width, height = window[2], window[3]
    columns, column_weights = _place(window[0], width, box[0], box[2], size)
    rows, row_weights = _place(window[1], height, box[1], box[3], size)
    ends = np.empty(size + 2, dtype=np.int64)  # where each stretch between two values ends
    stretches = 0
    for row in range(1, height + 1):
        if row == height or rows[row] != rows[row - 1]:
            ends[stretches] = row
            stretches += 1
    line = np.zeros(size + 2, dtype=np.float32)  # one column's values, a zero at either end
    found = 0
    for x in range(width):
        cell, after = columns[x], column_weights[x]
        before = _ONE - after
        for s in range(size):
            left = soft[s, cell] if cell >= 0 else np.float32(0)
            right = soft[s, cell + 1] if cell + 1 < size else np.float32(0)
            line[s + 1] = before * left + after * right
        inside = False
        low = 0
        for stretch in range(stretches):
            high = ends[stretch]
            cell = rows[low]
            top, bottom = line[cell + 1], line[cell + 2]
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
    """The largest number of runs that any of the windows ``(N, 4)`` can hold."""
    space = 0
    for n in range(windows.shape[0]):
        space = max(space, windows[n, 2] * min(size + 1, (windows[n, 3] + 1) // 2))
    return space


@compiled
def _write_count(number: int, text: np.ndarray, used: int) -> int:
    """Write one number as COCO does: 5 bits a character, lowest first, from ``0`` (48) on.

    The sixth bit says that more follow; the last character's fifth bit is the sign.

    Args:
        number: what to write.
        text: uint8, has room for ``_LONGEST_COUNT`` characters from ``used`` on.
        used: characters written so far.

    Returns:
        Characters written then.
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
def encode_masks(
    soft: np.ndarray, boxes: np.ndarray, windows: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compressed COCO run lengths of whole-image masks, made inside the windows only.

    Args:
        soft: ``(N, S, S)`` float32.
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2`` in the image's pixels.
        windows: ``(N, 4)`` int64, x, y, width, height; of no area for an empty mask.
        height: the image's, in pixels.
        width: the image's, in pixels.

    Returns:
        uint8 characters of all masks, one after the other, and ``(N + 1,)`` int64, where each
        mask's begin, and the end.
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
        needed = used + (2 * found + 2) * _LONGEST_COUNT
        if needed > text.size:
            larger = np.empty(2 * needed, dtype=np.uint8)
            larger[:used] = text[:used]
            text = larger
        # From the fourth count on, COCO writes the difference to the count before the last:
        # of background to background, of foreground to foreground.
        end, gap, length, written = 0, 0, 0, 0
        k = 0
        while k < found:
            column = starts[k] // tall
            shift = (x0 + column) * height + y0 - column * tall  # window to image
            start = starts[k] + shift
            # In a window as tall as the image a run may go on at the top of the next column.
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
    """Set the pixels of masks in flat storage, each mask row after row.

    Args:
        soft: ``(N, S, S)`` float32.
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2`` in the image's pixels.
        windows: ``(N, 4)`` int64, x, y, width, height; of no area for an empty mask.
        corners: ``(N,)`` int64, where in ``canvas`` each window's first pixel is.
        strides: ``(N,)`` int64, from one row of the mask to the next in ``canvas``.
        canvas: flat bool of False; changed in place.
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
