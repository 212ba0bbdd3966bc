"""Masks as COCO polygons that give back the same pixels."""

from __future__ import annotations

import numpy as np

from meinst.ops.outline_kernels import trace_loops


def mask_to_polygons(mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> list[list[float]]:
    """Polygons along the pixel edges of a mask, one for each 4-connected part.

    Pixel ``(i, j)`` covers ``j..j + 1`` by ``i..i + 1``. COCO's rasteriser
    (``pycocotools.mask.frPyObjects``) turns the polygons back into exactly these pixels, holes
    included: COCO's format has no holes, so the polygon reaches each one over a vertical slit
    without width, walks around it and comes back. Fillers by the even-odd or the non-zero
    rule leave the hole free as well; filling the outermost ring alone closes it.

    Args:
        mask: ``(h, w)`` bool.
        corner: x and y of the mask's first pixel in the image.

    Returns:
        A flat list ``x0 y0 x1 y1 ...`` for each part, clockwise, not closed; no list for a
        mask without pixels.
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
    """Insert the walk around each hole into the walk that lies straight above its top corner.

    Args:
        loops: walks of unit steps, each ``(V, 2)``.
        areas: the area that each encloses, negative for holes.

    Returns:
        The walks around parts, with those around their holes inserted.
    """
    tops = [int(np.lexsort((loop[:, 0], loop[:, 1]))[0]) for loop in loops]
    loops = [np.roll(loop, -top, axis=0) for loop, top in zip(loops, tops, strict=True)]
    # Two walks share a corner only where pixels touch at it; a slit, with foreground at both
    # sides, never comes up to such a corner, so it does not matter which of the two is kept.
    above = {
        (x, y): (index, place)
        for index, loop in enumerate(loops)
        for place, (x, y) in enumerate(loop.tolist())
    }
    inserted: dict[int, list[tuple[int, np.ndarray]]] = {index: [] for index in range(len(loops))}
    parts = []
    # What lies above a hole's top reaches higher than the hole: from the lowest top to the
    # highest, every walk is whole when its turn comes.
    order = sorted(range(len(loops)), key=lambda index: loops[index][0, 1], reverse=True)
    for index in order:
        loop = loops[index]
        # From the last place to the first, so that the earlier places stay valid.
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
