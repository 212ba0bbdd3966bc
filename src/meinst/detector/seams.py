"""Merge what is found in overlapping windows, on compact detections.

Two detections of one class in different windows are the same object if their masks agree inside
what both windows show. Of complete ones the best is kept. Cut ones give way to a complete one that
covers them; those that no window of any pass shows completely are joined to one mask. No mask of
the size of the image is made, and time is proportional to the number of detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from meinst.codecs import Codec
from meinst.codecs.packed import PackedMaskCodec
from meinst.detections import Detections
from meinst.detector.passes import Pass
from meinst.ops.rois import roi_grid
from meinst.ops.seam_kernels import connect, find_pairs, keep_best, pair_areas

_SAME = 0.5  # smallest IoU of one object's masks inside what two windows share
_CANDIDATE = 0.2  # ... and of their boxes
_COVERED = 0.5  # share of a mask that others must cover to replace it
_CONFIDENT = 0.5  # smaller objects replace a larger one if their scores are this share of its own
_PAIRS_AT_ONCE = 4096  # whose masks are decoded together
_FIELDS = ("boxes", "scores", "labels", "codes")


class DetectionArrays:
    """The detections of all windows, in arrays that grow in place.

    Millions of detections of some hundred bytes each are held once only; lists of tensors would
    have to be copied.
    """

    def __init__(self) -> None:
        self._passes: list[Pass] = []
        self._template: Detections | None = None
        self._arrays: dict[str, NDArray[Any]] = {}
        self._count = 0
        self._windows: list[tuple[int, int]] = []  # index of a window and number of its detections
        self._cut: list[NDArray[np.bool_]] = []

    def start(self, plan: Pass) -> None:
        """Begin a pass, coarser than the ones before."""
        self._passes.append(plan)

    def add(self, detections: Detections, window: int, cut: NDArray[np.bool_]) -> None:
        """Add the detections of a window.

        Args:
            detections: in pixels of the image.
            window: its index in the current pass; ascending.
            cut: ``(N,)``, which of them it cuts.
        """
        first = sum(len(each.windows) for each in self._passes[:-1])
        self._append(detections)
        self._windows.append((first + window, len(detections)))
        self._cut.append(cut)

    def _append(self, detections: Detections) -> None:
        end = self._count + len(detections)
        for name in _FIELDS:
            values = getattr(detections, name).detach().cpu().numpy()
            array = self._arrays.setdefault(name, np.empty((0, *values.shape[1:]), values.dtype))
            if end > len(array):  # the system moves pages instead of copying them
                array.resize((max(end, len(array) * 3 // 2), *values.shape[1:]), refcheck=False)
            array[self._count : end] = values
        self._template, self._count = detections[:0], end

    def _view(self) -> Detections:
        """All detections, on the CPU and without a copy; invalid after the next one is added."""
        assert self._template is not None
        fields: dict[str, Any] = {
            name: torch.from_numpy(self._arrays[name][: self._count]) for name in _FIELDS
        }
        return replace(self._template, **fields)

    def merge(self, max_detections: int | None = None) -> Detections:
        """The objects of the image.

        Args:
            max_detections: limit of detections; None for no limit.

        Returns:
            The detections, best first.
        """
        kept = np.arange(self._count)
        if sum(len(each.windows) for each in self._passes) > 1:
            merger = _Merger(self._passes, self._view(), self._windows, np.concatenate(self._cut))
            kept, joined = merger.merge()
            del merger
            if joined is not None:
                kept = np.concatenate((kept, np.arange(self._count, self._count + len(joined))))
                self._append(joined)
        scores = self._arrays["scores"][kept]
        order = np.argsort(-scores, kind="stable")[:max_detections]
        assert self._template is not None
        found = self._view()[torch.from_numpy(kept[order])]
        return found.to(self._template.boxes.device)


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Detections of the same image and codec, one after the other."""
    fields: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS
    }
    return replace(parts[0], **fields)


class _Merger:
    """Merges the detections of several windows.

    Args:
        passes: from fine to coarse.
        detections: their ``N`` detections, window by window.
        counts: index of each window and the number of its detections.
        cut: ``(N,)``, which of them are cut by their window.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        detections: Detections,
        counts: Sequence[tuple[int, int]],
        cut: NDArray[np.bool_],
    ) -> None:
        self._detections, self._cut = detections, cut
        self._windows = np.concatenate([each.windows for each in passes])
        lengths = [len(each.windows) for each in passes]
        self._levels = np.repeat(np.arange(len(passes)), lengths)
        in_window = np.zeros(len(self._windows), dtype=np.int64)
        in_window[[index for index, _ in counts]] = [count for _, count in counts]
        self._starts = np.concatenate(([0], np.cumsum(in_window)))
        self._level = np.repeat(self._levels, in_window)  # (N,)
        self._boxes = detections.boxes.cpu().numpy()
        self._labels = detections.labels.cpu().numpy()
        self._scores = detections.scores.cpu().numpy()

    def merge(self) -> tuple[NDArray[np.int64], Detections | None]:
        """Indices of the detections that remain, and new ones that were joined from several."""
        pairs, regions = self._find_pairs()
        areas = self._areas(pairs, regions)
        union = areas[:, 1] + areas[:, 2] - areas[:, 0]
        same = areas[:, 0] >= _SAME * np.maximum(union, 1e-9)
        keep = self._keep_complete(pairs[same])
        self._drop_covered(keep, pairs, areas)
        rest = self._uncovered(keep, pairs, areas)
        roots = np.arange(len(keep), dtype=np.int64)
        connect(pairs[same & rest[pairs].all(axis=1)], roots)
        members = np.flatnonzero(rest)
        parts, sizes = np.unique(roots[members], return_counts=True)
        keep[parts[sizes == 1]] = True  # a part of one is that detection itself
        several = members[np.isin(roots[members], parts[sizes > 1])]
        kept: NDArray[np.int64] = np.flatnonzero(keep)
        if not len(several):
            return kept, None
        return kept, join_masks(self._detections[torch.from_numpy(several)], roots[several])

    def _find_pairs(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Detections that may be the same object, and what their windows share."""
        space = 4 * len(self._boxes) + 64
        while True:
            pairs = np.empty((space, 2), dtype=np.int64)
            regions = np.empty((space, 4), dtype=np.float32)
            count = find_pairs(
                self._boxes,
                self._labels,
                self._starts,
                self._windows.astype(np.float32),
                self._levels,
                _CANDIDATE,
                pairs,
                regions,
            )
            if count <= space:
                return pairs[:count], regions[:count]
            space = count

    def _areas(self, pairs: NDArray[np.int64], regions: NDArray[np.float32]) -> NDArray[np.float64]:
        """``(P, 3)`` shared area of the masks of each pair, and that of either, in its region."""
        areas = np.zeros((len(pairs), 3))
        for first in range(0, len(pairs), _PAIRS_AT_ONCE):
            part = slice(first, first + _PAIRS_AT_ONCE)
            used, places = np.unique(pairs[part], return_inverse=True)
            soft = np.pad(self._soft(used), ((0, 0), (1, 1), (1, 1)))
            places = places.reshape(-1, 2)
            pair_areas(soft, self._boxes[used], places, regions[part], areas[part])
        return areas

    def _soft(self, used: NDArray[np.int64]) -> NDArray[np.float32]:
        """The masks of some detections, ``(n, S, S)``."""
        soft = self._detections[torch.from_numpy(used)].soft_masks()
        return soft.detach().cpu().float().contiguous().numpy()

    def _keep_complete(self, same: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of the complete detections the best of each object."""
        count = len(self._boxes)
        ends = np.concatenate((same, same[:, ::-1]))
        ends = ends[np.argsort(ends[:, 0], kind="stable")]
        starts = np.searchsorted(ends[:, 0], np.arange(count + 1))
        order = np.argsort(-self._scores, kind="stable")
        keep = np.zeros(count, dtype=np.bool_)
        keep_best(order[~self._cut[order]], starts, np.ascontiguousarray(ends[:, 1]), keep)
        return keep

    def _drop_covered(
        self, keep: NDArray[np.bool_], pairs: NDArray[np.int64], areas: NDArray[np.float64]
    ) -> None:
        """Drop large detections that are several smaller objects of a finer pass."""
        small, large = pairs.T
        finer = keep[small] & keep[large] & (self._level[small] < self._level[large])
        finer &= self._scores[small] >= _CONFIDENT * self._scores[large]
        if not finer.any():
            return
        used, places = np.unique(large[finer], return_inverse=True)
        covered = np.bincount(places, weights=areas[finer, 0])
        sides = self._boxes[used, 2:] - self._boxes[used, :2]
        whole = (self._soft(used) >= 0.5).mean(axis=(1, 2)) * sides.prod(axis=1)
        keep[used[covered >= _COVERED * whole]] = False

    def _uncovered(
        self, keep: NDArray[np.bool_], pairs: NDArray[np.int64], areas: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Cut detections that no complete one covers."""
        rest = self._cut.copy()
        for cut, other, area in ((0, 1, areas[:, 1]), (1, 0, areas[:, 2])):
            covers = keep[pairs[:, other]] & (areas[:, 0] >= _COVERED * np.maximum(area, 1e-9))
            rest[pairs[covers, cut]] = False
        return rest


def join_masks(detections: Detections, groups: NDArray[np.int64]) -> Detections:
    """Join the masks of each group to one detection, with the best score of the group.

    Args:
        detections: the detections of one image.
        groups: ``(N,)``, the number of each one's group.
    """
    _, places = np.unique(groups, return_inverse=True)
    group = torch.from_numpy(places).to(detections.scores.device)
    count = int(group.max()) + 1

    def reduced(values: Tensor, kind: str) -> Tensor:
        index = group.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
        empty = values.new_zeros(count, *values.shape[1:])
        return empty.scatter_reduce(0, index, values, kind, include_self=False)

    low = reduced(detections.boxes[:, :2], "amin")
    boxes = torch.cat((low, reduced(detections.boxes[:, 2:], "amax")), dim=1)
    labels = reduced(detections.labels, "amax")  # one class in each group
    soft = detections.soft_masks()
    grid = roi_grid(detections.boxes, boxes[group], soft.shape[-1])
    sampled = F.grid_sample(soft[:, None], grid, align_corners=False).squeeze(1)
    codes = _encode(reduced(sampled, "amax"), labels, detections)
    scores = reduced(detections.scores, "amax")
    return replace(detections, boxes=boxes, scores=scores, labels=labels, codes=codes)


def _encode(soft: Tensor, labels: Tensor, detections: Detections) -> Tensor:
    codec = detections.codec
    if isinstance(codec, PackedMaskCodec):
        return codec.encode(soft)
    assert isinstance(codec, Codec)
    device = next((buffer.device for buffer in codec.buffers()), soft.device)
    codes = codec.transform(soft.to(device), labels=labels.to(device))
    return codes.to(detections.codes)
