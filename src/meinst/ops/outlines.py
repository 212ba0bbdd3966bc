"""Convert masks to polygons without loss: COCO's, and simple rings."""

from __future__ import annotations

import numpy as np

from meinst.ops.outline_kernels import split_loops, trace_loops


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
    corners, ends, areas = trace_loops(_framed(mask))
    loops = np.split(corners, ends[:-1])  # each (V, 2)
    if (areas < 0).any():
        loops = _join_holes(loops, areas)
    polygons = (_drop_straight(loop) + corner for loop in loops)
    return [polygon.astype(np.float64).ravel().tolist() for polygon in polygons]


def _framed(mask: np.ndarray) -> np.ndarray:
    """The mask with a border of zeros, ``(h + 2, w + 2)``."""
    framed = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), dtype=mask.dtype)
    framed[1:-1, 1:-1] = mask
    return framed


def _drop_straight(loop: np.ndarray) -> np.ndarray:
    """The corners ``(V, 2)`` of a walk at which its heading changes."""
    # Concatenated, since np.roll takes several times as long for so few corners.
    heading = np.sign(np.concatenate((loop[1:], loop[:1])) - loop)
    turns: np.ndarray = (heading != np.concatenate((heading[-1:], heading[:-1]))).any(
        axis=1
    )  # (V,)
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


def mask_to_rings(
    mask: np.ndarray, corner: tuple[int, int] = (0, 0)
) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Convert a mask to simple rings along its pixel edges, with holes as rings of their own.

    These are valid polygons of the OGC's Simple Features, as GeoJSON and shapely use them: rings do
    not touch themselves, and touch each other only in single points.

    Args:
        mask: ``(h, w)`` bool.
        corner: x and y of the first pixel of the mask in the image.

    Returns:
        For each 4-connected part its outer ring, clockwise in the image, and the rings of its
        holes, anticlockwise: int64 ``(V, 2)`` corners x, y, not closed.
    """
    if not mask.any():
        return []
    corners, ends, areas = trace_loops(_framed(mask))
    parents = _find_parents(corners, ends, areas, mask.shape)
    corners, ring_ends, loops = split_loops(corners, ends, *mask.shape)
    outer: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    for ring, loop in zip(np.split(corners, ring_ends[:-1]), loops.tolist(), strict=True):
        parent, simple = parents[loop], _drop_straight(ring) + corner
        if _signed_area(ring) > 0:
            outer[parent] = simple
        else:
            holes.setdefault(parent, []).append(simple)
    return [(ring, holes.get(part, [])) for part, ring in sorted(outer.items())]


def _find_parents(
    corners: np.ndarray, ends: np.ndarray, areas: np.ndarray, shape: tuple[int, ...]
) -> list[int]:
    """For each walk of :func:`trace_loops` the walk around the part that it belongs to."""
    if len(ends) == 1:
        return [0]
    starts = np.concatenate(([0], ends[:-1]))
    walks = np.full((shape[0] + 1, shape[1] + 1), -1)  # of each corner
    walks[corners[:, 1], corners[:, 0]] = np.repeat(np.arange(len(ends)), ends - starts)
    parents = list(range(len(ends)))
    # A walk around a hole begins below its top edge, and the walk above it begins higher up.
    tops = [corners[start:end, 1].min() for start, end in zip(starts, ends, strict=True)]
    for index in np.argsort(tops, kind="stable").tolist():
        if areas[index] < 0:
            own = corners[starts[index] : ends[index]]
            x = own[own[:, 1] == tops[index], 0].min()
            column = walks[: tops[index], x]
            parents[index] = parents[column[column >= 0][-1]]
    return parents


def _signed_area(ring: np.ndarray) -> float:
    """Area in square pixels; positive if clockwise in the image."""
    following = np.concatenate((ring[1:], ring[:1]))
    return float((ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum() / 2)
