"""The compact result: boxes, scores, classes and codes; pixels on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from meinst.codecs.base import Codec
from meinst.ops.draw import PALETTE, blend_masks, draw_boxes, draw_captions
from meinst.ops.outlines import mask_to_polygons
from meinst.ops.paste import crop_masks, paste_masks, soft_masks_to_rle

if TYPE_CHECKING:
    import supervision

# With more objects than these, frames and captions would hide the picture.
_MOST_CAPTIONS = 30
_PIXELS_FOR_CAPTION = 8000


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """What was found in one image, in the order of selection (best score first).

    A detection is a box, a score, a class and ``K`` numbers. Whatever needs pixels decodes
    the codes when it is called and works inside the boxes; only :meth:`masks` makes arrays of
    the image's size.

    Attributes:
        boxes: ``(N, 4)`` float32, ``x1 y1 x2 y2`` in the original image's pixels.
        scores: ``(N,)`` float32 in 0..1.
        labels: ``(N,)`` int64, indices into ``class_names``.
        codes: ``(N, K)`` float32 mask codes.
        image_size: height and width of the original image.
        codec: what made the codes.
        class_names: the names of the ``C`` classes.
        corrections: ``(N, S, S)`` floating, what a model with sight adds to the decoded logits;
            None for others.

    Raises:
        ValueError: If the fields do not fit together.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    codes: Tensor
    image_size: tuple[int, int]
    codec: Codec
    class_names: tuple[str, ...]
    corrections: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.scores) if self.scores.ndim else 0
        expected = {
            "scores": (count,),
            "boxes": (count, 4),
            "labels": (count,),
            "codes": (count, self.codec.n_components),
        }
        if self.corrections is not None:
            expected["corrections"] = (count, self.codec.mask_size, self.codec.mask_size)
        for name, shape in expected.items():
            value: Tensor = getattr(self, name)
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"Detections: {name} must have the shape {shape} for {count} scores and a "
                    f"codec of {self.codec.n_components} components, got {tuple(value.shape)}"
                )
            if value.is_floating_point() != (name != "labels"):
                kind = "int64" if name == "labels" else "float32"
                raise ValueError(f"Detections: {name} must be {kind}, got {value.dtype}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(
                "Detections: image_size must be a height and a width of at least 1 pixel, "
                f"got {self.image_size}"
            )
        if self.codec.class_names not in (None, self.class_names):
            raise ValueError(
                f"Detections: the codec has bases for the classes {self.codec.class_names}, "
                f"class_names are {self.class_names}; take codec.for_classes(class_names)"
            )
        if count:
            low, high = (int(value) for value in self.labels.aminmax())
            if low < 0 or high >= len(self.class_names):
                raise ValueError(
                    f"Detections: labels must be indices into {len(self.class_names)} class "
                    f"names, got {low} to {high}"
                )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray | Tensor) -> Detections:
        """Detections chosen by number, slice, numbers or a bool mask; still ``(N, ...)``.

        Raises:
            IndexError: If there is no such detection, a bool mask has another length, or numbers
                are no integers.
        """
        if isinstance(index, slice):  # as numbers: torch knows no negative steps
            index = list(range(len(self))[index])
        elif isinstance(index, np.ndarray):
            index = np.ascontiguousarray(index)  # nor reversed arrays
        chosen = torch.as_tensor(index, device=self.scores.device).reshape(-1)
        if chosen.dtype == torch.bool:
            if len(chosen) != len(self):
                raise IndexError(
                    f"a mask of {len(chosen)} values chooses nothing of {len(self)} detections"
                )
        elif chosen.numel() and (chosen.is_floating_point() or chosen.is_complex()):
            raise IndexError(f"numbers or a bool mask choose detections, got {chosen.dtype}")
        else:
            chosen = chosen.long()  # torch takes bytes for masks, and few other kinds
        return replace(
            self,
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            labels=self.labels[chosen],
            codes=self.codes[chosen],
            corrections=None if self.corrections is None else self.corrections[chosen],
        )

    def __iter__(self) -> Iterator[Detections]:
        """Detections of length 1, one after the other."""
        return (self[n : n + 1] for n in range(len(self)))

    def __repr__(self) -> str:
        counts = Counter(self.class_names[label] for label in self.labels.tolist())
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        height, width = self.image_size
        return f"Detections({len(self)}{': ' * bool(found)}{found}; image {height} x {width})"

    def to(self, device: torch.device | str) -> Detections:
        """The same detections with tensors on another device.

        The codec, which the model may share, stays where it is; codes travel to it for
        decoding.
        """
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
            codes=self.codes.to(device),
            corrections=None if self.corrections is None else self.corrections.to(device),
        )

    @torch.no_grad()
    def soft_masks(self) -> Tensor:
        """Decoded masks ``(N, S, S)`` in 0..1, each stretched over its box; mask at 0.5."""
        device = next((buffer.device for buffer in self.codec.buffers()), self.codes.device)
        codes, labels = self.codes.to(device), self.labels.to(device)
        if self.corrections is None:
            soft = self.codec.inverse_transform(codes, labels)
        else:
            logits = self.codec.inverse_logits(codes, labels)
            soft = (logits + self.corrections.to(device)).sigmoid()
        return soft.to(self.codes.device)

    def masks(self) -> Tensor:
        """Full-size masks ``(N, H, W)`` bool: one byte for each pixel and detection."""
        return paste_masks(self.soft_masks(), self.boxes, self.image_size)

    def rle(self) -> list[dict[str, Any]]:
        """Masks as compressed COCO RLE, ``size`` and ``counts`` (``str``), for the image."""
        return soft_masks_to_rle(self.soft_masks(), self.boxes, self.image_size)

    def polygons(self) -> list[list[list[float]]]:
        """Masks as COCO polygons that pycocotools turns back into exactly the same pixels.

        Returns:
            For each detection a flat list ``x0 y0 x1 y1 ...`` in the image's pixels for each
            connected part, none for an empty mask. A polygon reaches holes over slits without
            width; see :func:`meinst.ops.outlines.mask_to_polygons`.
        """
        crops, corners = crop_masks(self.soft_masks(), self.boxes, self.image_size)
        return [
            mask_to_polygons(crop, (x, y))
            for crop, (x, y) in zip(crops, corners.tolist(), strict=True)
        ]

    def to_coco(
        self, image_id: int, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Entries of a COCO results file, ready for JSON.

        Args:
            image_id: the image's id in the annotation file.
            category_ids: the category id of each class name; without it 1, 2, 3, ...

        Returns:
            For each detection ``image_id``, ``category_id``, ``bbox`` (x, y, width and height
            in pixels), ``score`` and ``segmentation`` (RLE).

        Raises:
            ValueError: If there is not one category id for each class name.
        """
        if category_ids is None:
            category_ids = range(1, len(self.class_names) + 1)
        if len(category_ids) != len(self.class_names):
            raise ValueError(
                f"to_coco() needs a category id for each of the {len(self.class_names)} class "
                f"names, got {len(category_ids)}"
            )
        sides = torch.cat((self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]), dim=1)
        rows = zip(
            sides.tolist(), self.scores.tolist(), self.labels.tolist(), self.rle(), strict=True
        )
        return [
            {
                "image_id": int(image_id),
                "category_id": int(category_ids[label]),
                "bbox": side,
                "score": score,
                "segmentation": rle,
            }
            for side, score, label, rle in rows
        ]

    def to_supervision(self) -> supervision.Detections:
        """The detections for supervision's annotators, trackers and sinks.

        Masks become a ``CompactMask`` of the pixels in the boxes; class names stand in
        ``data["class_name"]``.

        Raises:
            ImportError: If supervision is missing, or older than its ``CompactMask``.
        """
        try:
            from supervision import CompactMask
            from supervision import Detections as Supervised
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs supervision 0.28 or newer: pip install 'meinst[app]'"
            ) from error
        crops, corners = crop_masks(self.soft_masks(), self.boxes, self.image_size)
        compact = CompactMask(
            [], np.empty((0, 2), np.int32), np.empty((0, 2), np.int32), self.image_size
        )
        parts = []
        for crop, (x, y) in zip(crops, corners.tolist(), strict=True):
            pixels = crop if crop.size else np.zeros((1, 1), dtype=np.bool_)
            height, width = pixels.shape
            # Supervision's corners are inclusive.
            whole = np.array([[0, 0, width - 1, height - 1]])
            part = CompactMask.from_dense(pixels[None], whole, (height, width))
            parts.append(part.with_offset(x, y, self.image_size))
        if parts:
            compact = CompactMask.merge(parts)
        labels = self.labels.cpu().numpy()
        return Supervised(
            xyxy=self.boxes.detach().cpu().numpy(),
            mask=compact,
            confidence=self.scores.detach().cpu().numpy(),
            class_id=labels,
            data={"class_name": np.array(self.class_names, dtype=np.str_)[labels]},
        )

    def draw(
        self,
        image: np.ndarray,
        *,
        alpha: float = 0.4,
        boxes: bool | None = None,
        captions: bool | None = None,
    ) -> np.ndarray:
        """Draw the detections over their image.

        Colours are those of :data:`meinst.ops.draw.PALETTE`, in turn: by class, or, for a
        model of one class, by the detection's place.

        Args:
            image: ``(H, W, 3)`` uint8 RGB, the original image; it stays as it is.
            alpha: share of the colour inside the masks, from 0 (outlines alone) to 1.
            boxes: whether to draw the boxes; by default while there is room: for up to 30
                detections and not more than one for each 8000 pixels of the image.
            captions: whether to write class and score, by the same default; captions that
                would cover others are left out.

        Returns:
            ``(H, W, 3)`` uint8 RGB.

        Raises:
            ValueError: If the image is of another kind or size, or ``alpha`` is out of range.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise ValueError(
                "draw() needs an (H, W, 3) array of uint8 RGB, got "
                f"{getattr(image, 'dtype', type(image).__name__)}; "
                "meinst.data.images.to_rgb() makes one"
            )
        if image.shape != (*self.image_size, 3):
            raise ValueError(
                f"draw() needs the image of the detections, (H, W, 3) = "
                f"{(*self.image_size, 3)}, got {image.shape}"
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
        room = min(_MOST_CAPTIONS, image.shape[0] * image.shape[1] // _PIXELS_FOR_CAPTION)
        few = len(self) <= room
        labels = self.labels.tolist()
        by_class = len(self.class_names) > 1
        colors = [PALETTE[(k if by_class else n) % len(PALETTE)] for n, k in enumerate(labels)]
        drawn = image.copy()
        crops, corners = crop_masks(self.soft_masks(), self.boxes, self.image_size)
        blend_masks(drawn, crops, corners, colors, alpha)
        sides = self.boxes.detach().cpu().numpy()
        if few if boxes is None else boxes:
            drawn = draw_boxes(drawn, sides, colors)
        if few if captions is None else captions:
            scores = self.scores.tolist()
            texts = [
                f"{self.class_names[label]} {score:.2f}"
                for label, score in zip(labels, scores, strict=True)
            ]
            drawn = draw_captions(drawn, sides, texts, colors)
        return drawn
