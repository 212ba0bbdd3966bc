"""Compact results: boxes, scores, classes and mask codes; pixels only on request."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from meinst.codecs.base import MaskDecoder
from meinst.detections.fields import check_fields
from meinst.detections.supervision_format import to_supervision
from meinst.ops.draw import PALETTE, Color, draw_objects
from meinst.ops.outlines import mask_to_polygons, mask_to_rings
from meinst.ops.paste import MAX_RLE_PIXELS, crop_masks, group_crops, paste_masks, soft_masks_to_rle
from meinst.options import printable

if TYPE_CHECKING:
    import supervision

    from meinst.stored_detections import StoredDetections

_AT_ONCE = 4096  # masks that are decoded together, where all are not needed at the same time


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects found in one image, best score first.

    A detection is a box, a score, a class and a mask code of ``K`` numbers. Methods that need
    pixels decode the codes when they are called and work inside the boxes; only :meth:`masks`
    allocates arrays of the size of the image.

    Attributes:
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2`` in pixels of the original image.
        scores: ``(N,)`` float32, 0 to 1.
        labels: ``(N,)`` int64, indices into ``class_names``.
        codes: ``(N, K)`` mask codes, float32; or uint8 for refined masks.
        image_size: height and width of the original image.
        codec: decodes the codes.
        class_names: names of the ``C`` classes.
        track_ids: ``(N,)`` int64 in videos: the same number for the same object, from 1, and -1
            without a track; None elsewhere.

    Raises:
        ValueError: if the fields do not fit together.

    Examples:
        >>> import torch
        >>> from meinst import Detections, PCACodec
        >>> codec = PCACodec(n_components=4, mask_size=28)
        >>> empty = torch.zeros(0)
        >>> Detections(torch.zeros(0, 4), empty, empty.long(), torch.zeros(0, 4), (480, 640),
        ...            codec, ("cell",))
        Detections(0; image 480 x 640)
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    codes: Tensor
    image_size: tuple[int, int]
    codec: MaskDecoder
    class_names: tuple[str, ...]
    track_ids: Tensor | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray | Tensor) -> Detections:
        """Select detections by index, slice, indices or boolean mask.

        Raises:
            IndexError: if there is no such detection, a boolean mask has another length, or
                indices are not integers.
        """
        if isinstance(index, slice):  # as indices: torch does not support negative steps
            index = list(range(len(self))[index])
        elif isinstance(index, np.ndarray):
            index = np.ascontiguousarray(index)  # nor negative strides
        chosen = torch.as_tensor(index, device=self.scores.device).reshape(-1)
        if chosen.dtype == torch.bool:
            if len(chosen) != len(self):
                raise IndexError(
                    f"a boolean mask of {len(chosen)} values does not fit {len(self)} detections"
                )
        elif chosen.numel() and (chosen.is_floating_point() or chosen.is_complex()):
            raise IndexError(f"detections must be indexed by integers or bools, got {chosen.dtype}")
        else:
            chosen = chosen.long()  # torch would take uint8 for a boolean mask
        return replace(
            self,
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            labels=self.labels[chosen],
            codes=self.codes[chosen],
            track_ids=None if self.track_ids is None else self.track_ids[chosen],
        )

    def __iter__(self) -> Iterator[Detections]:
        """Iterate over detections, each of length 1."""
        return (self[n : n + 1] for n in range(len(self)))

    def __repr__(self) -> str:
        counts = Counter(self.class_names[label] for label in self.labels.tolist())
        classes = ", ".join(f"{count} {printable(name)}" for name, count in counts.most_common())
        height, width = self.image_size
        return f"Detections({len(self)}{': ' * bool(classes)}{classes}; image {height} x {width})"

    def to(self, device: torch.device | str) -> Detections:
        """Move the tensors to another device.

        The codec, which a model may share, stays on its device; codes are moved there for decoding.
        """
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
            codes=self.codes.to(device),
            track_ids=None if self.track_ids is None else self.track_ids.to(device),
        )

    def resized(self, image_size: tuple[int, int]) -> Detections:
        """The same detections in an image of another size.

        Args:
            image_size: height and width of the resized image.
        """
        factors = [new / old for new, old in zip(image_size, self.image_size, strict=True)]
        scale = self.boxes.new_tensor([factors[1], factors[0]]).repeat(2)
        return replace(self, boxes=self.boxes * scale, image_size=image_size)

    def parts(self, count: int = _AT_ONCE) -> Iterator[Detections]:
        """The detections in parts, so that their masks take little memory.

        Args:
            count: most detections of a part; fewer if their boxes have many pixels.
        """
        boxes = self.boxes.detach().cpu().double().numpy()
        return (self[part] for part in group_crops(boxes, self.image_size, count))

    @torch.no_grad()
    def soft_masks(self) -> Tensor:
        """Decode the masks: ``(N, S, S)`` of 0 to 1, stretched over their boxes; cut at 0.5."""
        device = next((buffer.device for buffer in self.codec.buffers()), self.codes.device)
        soft = self.codec.inverse_transform(self.codes.to(device), self.labels.to(device))
        return soft.to(self.codes.device)

    def masks(self) -> Tensor:
        """Full-size masks ``(N, H, W)`` bool, one byte per pixel and detection."""
        return paste_masks(self.soft_masks(), self.boxes, self.image_size)

    def rle(self) -> list[dict[str, Any]]:
        """Masks as compressed COCO RLE: dicts of ``size`` and ``counts`` (``str``)."""
        return [
            rle
            for part in self.parts()
            for rle in soft_masks_to_rle(part.soft_masks(), part.boxes, part.image_size)
        ]

    def polygons(self) -> list[list[list[float]]]:
        """Masks as COCO polygons, which pycocotools rasterises to exactly the same pixels.

        Returns:
            For each detection one flat list ``x0 y0 x1 y1 ...`` per connected part, in pixels of
            the image; none for an empty mask. Holes are connected to the outline by slits of no
            width, which shapely rejects; :meth:`rings` does without. See
            :func:`meinst.ops.outlines.mask_to_polygons`.
        """
        return [mask_to_polygons(crop, corner) for crop, corner in self._crops()]

    def rings(self) -> list[list[tuple[np.ndarray, list[np.ndarray]]]]:
        """Masks as valid polygons with holes, for GeoJSON and shapely.

        Returns:
            For each detection its connected parts, each an outer ring and the rings of its holes,
            ``(V, 2)`` int64 corners x, y in pixels of the image; none for an empty mask. With
            shapely: ``MultiPolygon(rings)``. See :func:`meinst.ops.outlines.mask_to_rings`.
        """
        return [mask_to_rings(crop, corner) for crop, corner in self._crops()]

    def _crops(self) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """The mask of each detection inside its box, bool, and x and y of its first pixel."""
        for part in self.parts():
            crops, corners = crop_masks(part.soft_masks(), part.boxes, part.image_size)
            yield from zip(crops, map(tuple, corners.tolist()), strict=True)

    def to_coco(
        self,
        image_id: int,
        category_ids: Sequence[int] | None = None,
        *,
        soft_masks: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """Convert to entries of a COCO results file, ready for JSON.

        Args:
            image_id: id of the image in the annotation file.
            category_ids: the category id of each class name; 1, 2, 3, ... by default.
            soft_masks: the result of :meth:`soft_masks`, to avoid decoding the codes again.

        Returns:
            For each detection ``image_id``, ``category_id``, ``bbox`` (x, y, width and height in
            pixels), ``score`` and ``segmentation``: RLE, or polygons above 2^32 - 1 pixels; with
            tracks also ``track_id``.

        Raises:
            ValueError: if the number of category ids is not that of the class names.
        """
        if category_ids is None:
            category_ids = range(1, len(self.class_names) + 1)
        if len(category_ids) != len(self.class_names):
            raise ValueError(
                f"to_coco() needs a category id for each of the {len(self.class_names)} class "
                f"names, got {len(category_ids)}"
            )
        sides = torch.cat((self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]), dim=1)
        masks, tracks = self._coco_masks(soft_masks), _track_keys(self)
        rows = zip(sides.tolist(), self.scores.tolist(), self.labels.tolist(), masks, strict=True)
        return [
            {
                "image_id": int(image_id),
                "category_id": int(category_ids[label]),
                "bbox": side,
                "score": score,
                "segmentation": rle,
                **track,
            }
            for (side, score, label, rle), track in zip(rows, tracks, strict=True)
        ]

    def _coco_masks(self, soft_masks: Tensor | None) -> Sequence[Any]:
        """Masks as RLE, or as polygons if there are more pixels than RLE can count."""
        if math.prod(self.image_size) > MAX_RLE_PIXELS:
            return self.polygons()
        if soft_masks is None:
            return self.rle()
        return soft_masks_to_rle(soft_masks, self.boxes, self.image_size)

    def to_supervision(self) -> supervision.Detections:
        """Convert for supervision's annotators, trackers and sinks.

        Masks become a ``CompactMask`` of the pixels in the boxes; class names are in
        ``data["class_name"]``.

        Raises:
            ImportError: if supervision is missing, or older than its ``CompactMask``.
        """
        crops, corners = crop_masks(self.soft_masks(), self.boxes, self.image_size)
        return to_supervision(self, crops, corners)

    def to_parquet(self, path: str | Path, *, image_id: int = 1, file: str = "") -> None:
        """Write the detections as they are, without decoding them, to a Parquet file.

        Args:
            path: the file.
            image_id: id of the image.
            file: file of the image.

        Raises:
            ImportError: if pyarrow is missing.
            OSError: if the file cannot be written.
        """
        from meinst.parquet import make_batch, make_schema, write_parquet

        schema = make_schema(self.codec, self.class_names)
        write_parquet(Path(path), schema, [make_batch(schema, self, image_id, file)])

    @classmethod
    def from_parquet(cls, path: str | Path) -> StoredDetections[Detections]:
        """Open a file of :meth:`to_parquet` or of ``meinst predict --save parquet``.

        Returns:
            The detections by image id, read when they are accessed.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if it does not hold detections.
            ImportError: if pyarrow is missing.
        """
        from meinst.stored_detections import StoredDetections

        return StoredDetections(path, cls)

    def draw(
        self,
        image: np.ndarray,
        *,
        alpha: float = 0.4,
        boxes: bool | None = None,
        captions: bool | None = None,
        soft_masks: Tensor | None = None,
    ) -> np.ndarray:
        """Draw the detections over their image.

        Colours are by track; else by class or, for a single class, by detection. Captions contain
        the number of the track, if there is one.

        Args:
            image: ``(H, W, 3)`` uint8 RGB, the original image or a reduced copy of it.
            alpha: opacity of the masks, 0 (outlines only) to 1.
            boxes: whether to draw boxes; by default if there are at most 30 detections and at most
                one per 8,000 pixels of the image.
            captions: whether to write class and score, with the same default.
            soft_masks: the result of :meth:`soft_masks`, to avoid decoding the codes again.

        Returns:
            ``(H, W, 3)`` uint8 RGB, a copy.

        Raises:
            ValueError: if the image has another type or size, or ``alpha`` is out of range.
        """
        self._check_image(image, alpha)
        shown = self.resized((image.shape[0], image.shape[1]))

        def crops(chosen: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
            some = shown[chosen]
            soft = some.soft_masks() if soft_masks is None else soft_masks[torch.from_numpy(chosen)]
            return crop_masks(soft, some.boxes, some.image_size)

        sides = shown.boxes.detach().cpu().float().numpy()
        objects = sides, self._colors(), self._captions()
        return draw_objects(
            image, *objects, crops, alpha=alpha, boxes_shown=boxes, captions_shown=captions
        )

    def _colors(self) -> list[Color]:
        """The colour of each detection."""
        numbers = self.labels.tolist() if len(self.class_names) > 1 else range(len(self))
        if self.track_ids is not None:
            numbers = [max(0, track_id - 1) for track_id in self.track_ids.tolist()]
        return [PALETTE[number % len(PALETTE)] for number in numbers]

    def _captions(self) -> list[str]:
        """Class, score and track of each detection."""
        pairs = zip(self.labels.tolist(), self.scores.tolist(), strict=True)
        texts = [f"{self.class_names[label]} {score:.2f}" for label, score in pairs]
        if self.track_ids is None:
            return texts
        ids = self.track_ids.tolist()
        return [
            text + f" #{track_id}" * (track_id > 0)
            for text, track_id in zip(texts, ids, strict=True)
        ]

    def _check_image(self, image: np.ndarray, alpha: float) -> None:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise ValueError(
                "draw() needs an (H, W, 3) uint8 RGB array, got "
                f"{getattr(image, 'dtype', type(image).__name__)}; use meinst.data.images.to_rgb()"
            )
        # The sides of a reduced copy are rounded.
        factor = min(max(image.shape[:2], default=0) / max(self.image_size), 1.0)
        sides = [max(1, round(side * factor)) for side in self.image_size]
        if image.shape != (*sides, 3):
            raise ValueError(
                f"draw() needs the image of the detections, (H, W, 3) = "
                f"{(*self.image_size, 3)}, or a reduced copy, got {image.shape}"
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {alpha}")


def _track_keys(detections: Detections) -> list[dict[str, int]]:
    """``track_id`` of each detection; empty dicts without tracks."""
    if detections.track_ids is None:
        return [{}] * len(detections)
    return [{"track_id": track_id} for track_id in detections.track_ids.tolist()]
