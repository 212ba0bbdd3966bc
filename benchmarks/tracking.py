"""Tracks on real sequences with masks: ByteTrack on boxes against matching on masks and shapes.

    python benchmarks/tracking.py DAVIS --sequences breakdance dance-twirl parkour

``DAVIS`` holds ``JPEGImages/480p`` and ``Annotations/480p`` of DAVIS 2016, in which one object of
each sequence is labelled. The GitHub repository MathLee/EOR-VOS has them (commit 1bde4d5f9363);
DAVIS is free for research (davischallenge.org).

Both sides get the same detections. HOTA (Luiten et al., IJCV 2021) is computed on masks. Other
objects in the pictures have no labels, so tracks that never overlap the labelled one by an IoU of
0.5 are ignored.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from measure import versions
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment

import meinst
from meinst import Detections
from meinst.detector.track import NO_TRACK, Tracker, predict_frames

RATE = 24.0  # frames per second of DAVIS
ALPHAS = np.arange(0.05, 0.96, 0.05)
Masks = NDArray[np.bool_]


class AnyTracker(Protocol):
    """Joins detections to tracks."""

    def update(self, detections: Detections) -> Detections:
        """Detections of the next frame with ``track_ids``."""


class MaskTracker:
    """Matches detections to tracks by the IoU of their masks, and by their shapes.

    A track's mask is moved on by the speed of its box. The shape is the mask inside its box, which
    does not depend on place and size: what the code describes. As in ByteTrack, high scores are
    matched first and begin tracks, low ones only continue them.

    Args:
        new_score: smallest score of a detection that begins a track.
        shape: weight of the shape, 0 to 1; the rest is that of the masks.
        kept: frames after which a track without its object ends.
    """

    def __init__(self, new_score: float, shape: float = 0.3, kept: int = 24) -> None:
        self._new_score, self._shape, self._kept = new_score, shape, kept
        self._tracks: list[_Track] = []
        self._next = 1

    def update(self, detections: Detections) -> Detections:
        """Detections of the next frame with ``track_ids``."""
        masks, soft = reduced(detections), detections.soft_masks().numpy() >= 0.5
        boxes, scores = detections.boxes.numpy(), detections.scores.numpy()
        labels = detections.labels.numpy()
        ids = np.full(len(detections), NO_TRACK)
        free = list(range(len(self._tracks)))
        for chosen in (scores >= self._new_score, scores < self._new_score):
            rows = np.flatnonzero(chosen)
            if not (len(rows) and free):
                continue
            likeness = np.zeros((len(rows), len(free)))
            for column, number in enumerate(free):
                track = self._tracks[number]
                overlap = ious(masks[rows], track.expected())
                shapes = ious(soft[rows], track.soft)
                likeness[:, column] = np.where(
                    (labels[rows] == track.label) & (overlap > 0.1),
                    (1 - self._shape) * overlap + self._shape * shapes,
                    0,
                )
            taken = []
            for row, column in zip(*linear_sum_assignment(-likeness), strict=True):
                if likeness[row, column] > 0:
                    n = rows[row]
                    track = self._tracks[free[column]]
                    track.move_to(boxes[n], masks[n], soft[n])
                    ids[n] = track.number
                    taken.append(free[column])
            free = [number for number in free if number not in taken]
        self._tracks = [track for track in self._tracks if track.age(self._kept)]
        for n in np.flatnonzero((ids == NO_TRACK) & (scores >= self._new_score)):
            ids[n] = self._next
            self._tracks.append(_Track(self._next, int(labels[n]), boxes[n], masks[n], soft[n]))
            self._next += 1
        tracked = replace(detections, track_ids=torch.from_numpy(ids))
        return tracked[tracked.track_ids != NO_TRACK]


class _Track:
    def __init__(
        self, number: int, label: int, box: NDArray[np.float32], mask: Masks, soft: Masks
    ) -> None:
        self.number, self.label, self.soft = number, label, soft
        self._box, self._mask, self._speed = box, mask, np.zeros(2)
        self._lost = 0

    def expected(self) -> Masks:
        """The mask where it should be now."""
        steps = self._lost + 1
        return np.roll(self._mask, tuple(np.rint(self._speed * steps / 4).astype(int)), (1, 0))

    def move_to(self, box: NDArray[np.float32], mask: Masks, soft: Masks) -> None:
        """Continue with a detection."""
        moved = (box[:2] + box[2:] - self._box[:2] - self._box[2:]) / 2 / (self._lost + 1)
        self._speed = 0.5 * self._speed + 0.5 * moved
        self._box, self._mask, self.soft, self._lost = box, mask, soft, -1

    def age(self, kept: int) -> bool:
        """One frame later; whether the track is kept."""
        self._lost += 1
        return self._lost <= kept


def reduced(detections: Detections) -> Masks:
    """Masks of every fourth pixel."""
    return detections.masks().numpy()[:, ::4, ::4]


def ious(masks: Masks, other: Masks) -> NDArray[np.float64]:
    """IoU of each of ``(N, h, w)`` with one mask."""
    common = (masks & other).sum((1, 2))
    return np.asarray(common / np.maximum((masks | other).sum((1, 2)), 1))


def scores_of(frames: Sequence[Detections], truth: Sequence[Masks]) -> dict[str, float]:
    """HOTA and its parts for one labelled object, and its identity switches."""
    overlaps, tracks = [], []
    for found, mask in zip(frames, truth, strict=True):
        assert found.track_ids is not None
        overlaps.append(ious(reduced(found), mask))
        tracks.append(found.track_ids.numpy())
    known = {
        t for o, ids in zip(overlaps, tracks, strict=True) for t in ids[o >= 0.5].tolist() if t > 0
    }
    lengths = Counter(t for ids in tracks for t in ids.tolist() if t in known)
    there = sum(bool(mask.any()) for mask in truth)
    shared: Counter[int] = Counter()  # sums of IoU, for the alignment by which HOTA prefers tracks
    for overlap, ids in zip(overlaps, tracks, strict=True):
        shared.update(dict(zip(ids.tolist(), overlap.tolist(), strict=True)))
    rows = []
    for alpha in ALPHAS:
        matched = []
        for overlap, ids in zip(overlaps, tracks, strict=True):
            candidates = [
                (shared[t] / (there + lengths[t] - shared[t]) * o, t)
                for t, o in zip(ids.tolist(), overlap.tolist(), strict=True)
                if t in known and o >= alpha
            ]
            if candidates:
                matched.append(max(candidates)[1])
        hits = len(matched)
        detected = hits / max(there + sum(lengths.values()) - hits, 1)
        counts = Counter(matched)
        associated = sum(c * c / (there + lengths[t] - c) for t, c in counts.items()) / max(hits, 1)
        switches = sum(a != b for a, b in pairwise(matched))
        rows.append((np.sqrt(detected * associated), detected, associated, switches, hits / there))
    hota, detected, associated = np.mean(rows, axis=0)[:3]
    at_half = rows[int(np.argmin(abs(ALPHAS - 0.5)))]
    return {
        "HOTA": 100 * hota,
        "DetA": 100 * detected,
        "AssA": 100 * associated,
        "switches": at_half[3],
        "found": 100 * at_half[4],
        "tracks": len(known),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", nargs="+", default=["breakdance", "dance-twirl", "parkour"])
    parser.add_argument("--model", default="photos")
    parser.add_argument("--label", default="person", help="class of the labelled objects")
    options = parser.parse_args()
    model = meinst.load(options.model).fuse()
    print(json.dumps(versions("torch", "trackers", "supervision")))
    threshold = model.selection.threshold
    wide = Tracker(RATE, model.class_names, threshold).select(model.selection)
    sides: dict[str, Callable[[], AnyTracker]] = {
        "ByteTrack": lambda: Tracker(RATE, model.class_names, threshold),
        "masks": lambda: MaskTracker(threshold, shape=0),
        "masks and shapes": lambda: MaskTracker(threshold),
    }
    label = model.class_names.index(options.label)
    print("| sequence | tracker | HOTA | DetA | AssA | switches | tracks | found, % |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for name in options.sequences:
        paths = sorted((options.folder / "JPEGImages/480p" / name).glob("*.jpg"))
        annotated = options.folder / "Annotations/480p" / name
        truth = [
            np.asarray(Image.open(annotated / f"{path.stem}.png"))[::4, ::4] > 0 for path in paths
        ]
        frames = [found for _, found in predict_frames(model, ((p, p) for p in paths), wide)]
        frames = [found[found.labels == label] for found in frames]
        for side, make in sides.items():
            tracker = make()
            result = scores_of([tracker.update(found) for found in frames], truth)
            cells = [f"{result[key]:.1f}" for key in ("HOTA", "DetA", "AssA")]
            cells += [f"{result[key]:.0f}" for key in ("switches", "tracks", "found")]
            print(f"| {name} | {side} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
