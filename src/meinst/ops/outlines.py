"""Convert masks to COCO polygons without loss."""

from __future__ import annotations

import numpy as np

from meinst.ops.outline_kernels import trace_loops


def mask_to_polygons(mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> list[list[float]]:
    """Convert a mask to polygons along its pixel edges, one for each 4-connected part.

    Pixel ``(i, j)`` covers ``j..j + 1`` by ``i..i + 1``. COCO's rasteriser
    (``pycocotools.mask.frPyObjects``) converts the polygons back to exactly the same pixels.
    COCO's format has no holes, so the outline is connected to each hole by a vertical slit of no
    width. The hole stays empty with the even-odd and the non-zero filling rule.

    Args:
        mask: ``(h, w)`` bool.
        corner: x and y of the first pixel of the mask in the image.

    Returns:
        A flat list ``x0 y0 x1 y1 ...`` for each part, clockwise, not closed; empty for an empty
        mask.
    """
    if not mask.any():
        return []
    corners, ends, areas = trace_loops(np.pad(mask, 1))
    loops = np.split(corners, ends[:-1])  # each (V, 2)
    if (areas < 0).any():
        loops = _join_holes(loops, areas)
    polygons = (_drop_straight(loop) + corner for loop in loops)
    return [polygon.astype(np.float64).ravel().tolist() for polygon in polygons]


def _drop_straight(loop: np.ndarray) -> np.ndarray:
    """The corners ``(V, 2)`` of a walk at which its heading changes."""
    heading = np.sign(np.roll(loop, -1, axis=0) - loop)
    turns: np.ndarray = (heading != np.roll(heading, 1, axis=0)).any(axis=1)  # (V,)
    return np.compress(turns, loop, axis=0)


def _join_holes(loops: list[np.ndarray], areas: np.ndarray) -> list[np.ndarray]:
    """Insert the walk around each hole into the nearest walk above its top corner.

    Args:
        loops: walks of unit steps, each ``(V, 2)``.
        areas: area enclosed by each walk, negative for holes.

    Returns:
        The walks around parts, including their holes.
    """
    tops = [int(np.lexsort((loop[:, 0], loop[:, 1]))[0]) for loop in loops]
    loops = [np.roll(loop, -top, axis=0) for loop, top in zip(loops, tops, strict=True)]
    # Two walks share a corner only where pixels touch diagonally. Slits have foreground on both
    # sides and never reach such a corner, so it does not matter which of the two walks is kept.
    above = {
        (x, y): (index, place)
        for index, loop in enumerate(loops)
        for place, (x, y) in enumerate(loop.tolist())
    }
    inserted: dict[int, list[tuple[int, np.ndarray]]] = {index: [] for index in range(len(loops))}
    parts = []
    # The walk above a hole has a higher top than the hole. In order from the lowest to the highest
    # top, every walk contains its holes before it is inserted itself.
    order = sorted(range(len(loops)), key=lambda index: loops[index][0, 1], reverse=True)
    for index in order:
        loop = loops[index]
        # Insert from last to first, so that earlier places stay valid.
        for place, hole in sorted(inserted[index], key=lambda item: -item[0]):
            loop = np.concatenate((loop[: place + 1], hole, hole[:1], loop[place:]))  # (V, 2)
        if areas[index] > 0:
            parts.append(loop)
            continue
        x, y = loop[0].tolist()
        y -= 1
        while (x, y) not in above:
            y -= 1
        parent, place = above[x, y]
        inserted[parent].append((place, loop))
    return parts[::-1]
