"""MEInst: read this first. An image's whole way, from pixels to compact detections.

``predict`` resizes an image, ``prepare`` normalises and pads it, ``network`` is backbone, pyramid
and head; ``select_detections`` keeps the best points. A detection stays a box, a score, a label
and a short code until somebody asks it for pixels (:mod:`meinst.detections`). All but ``network``
is :class:`Predictor`, which exported models share (:mod:`meinst.engine.runtime`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor, nn

from meinst.codecs import Codec
from meinst.data.images import ImageLike, to_rgb
from meinst.data.transforms import InputOptions, ResizedImage, resize_image
from meinst.detections import Detections
from meinst.detector.backbone import Backbone
from meinst.detector.fpn import FPN
from meinst.detector.head import Head, HeadOptions
from meinst.detector.layers import use_fast_convs
from meinst.detector.select import ImageSize, SelectOptions, select_detections
from meinst.detector.sight import MaskRefiner, SightMap
from meinst.options import check_range
from meinst.types import HeadOutputs

Given: TypeAlias = "ImageLike | ResizedImage"
PAD_MULTIPLE = 32  # the coarsest stride of usual backbones


@dataclass(frozen=True)
class ModelOptions:
    """The network's shape.

    Attributes:
        backbone: a timm model that supports ``features_only``.
        backbone_levels: timm's ``out_indices``; index ``i`` has stride ``2 ** (i + 1)``.
        strides: strides of the pyramid's levels; two more than backbone levels at most.
        distance_limits: largest distance from a point to a side of its box, in pixels, of every
            level but the last, which has none.
        channels: channels of pyramid and head; a multiple of the groups of their norms.
        pyramid_norm_groups: groups of the group norm after each conv of the pyramid; 0 for none.
        head: the head's layers.
        sight_channels: channels of a finer map that corrects decoded masks, see
            :mod:`meinst.detector.sight`; 0 for none.
        stride_in_1x1: ResNets have their strides on the first 1x1 conv of a stage, as MSRA's and
            the published models, instead of on the 3x3.
        frozen_norm: the backbone's batch norms are not trained at all.
        channel_order: in which the network takes the channels.
        pixel_mean: subtracted from the channels R, G, B, 0 to 255, in this order.
        pixel_std: divides them after that.
    """

    backbone: str = "tf_efficientnet_lite0"
    backbone_levels: tuple[int, ...] = (2, 3, 4)
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    distance_limits: tuple[float, ...] = (64, 128, 256, 512)
    channels: int = 128
    pyramid_norm_groups: int = 0
    head: HeadOptions = field(default_factory=HeadOptions)
    sight_channels: int = 0
    stride_in_1x1: bool = False
    frozen_norm: bool = False
    channel_order: Literal["rgb", "bgr"] = "rgb"
    pixel_mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    pixel_std: tuple[float, float, float] = (128.0, 128.0, 128.0)

    def __post_init__(self) -> None:
        """Refuse sizes that do not go together."""
        check_range(self, 1, math.inf, "channels")
        check_range(self, 0, math.inf, "pyramid_norm_groups", "sight_channels")
        if not self.backbone_levels or any(b <= a for a, b in pairwise(self.backbone_levels)):
            raise ValueError(f"backbone_levels must be some that rise, got {self.backbone_levels}.")
        if min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_std must be above 0, got {self.pixel_std}.")
        if len(self.distance_limits) != len(self.strides) - 1:
            raise ValueError(
                f"distance_limits has {len(self.distance_limits)} numbers for "
                f"{len(self.strides)} strides: give one fewer than strides."
            )
        if any(after != 2 * before for before, after in pairwise(self.strides)):
            raise ValueError(f"strides must double from level to level, got {self.strides}.")
        if any(after <= before for before, after in pairwise((0.0, *self.distance_limits))):
            raise ValueError(f"distance_limits must rise from above 0, got {self.distance_limits}.")
        if self.sight_channels and self.backbone_levels[0] == 0:
            raise ValueError(
                "sight_channels asks for a backbone level before the first of backbone_levels = "
                f"{self.backbone_levels}: leave out level 0."
            )
        for groups in (self.head.norm_groups, self.pyramid_norm_groups):
            if groups and self.channels % groups:
                raise ValueError(
                    f"channels = {self.channels} is no multiple of norm_groups = {groups}: "
                    "change one of them."
                )


class Predictor(nn.Module, ABC):
    """Everything around a network: images in, detections out.

    Args:
        class_names: names of the ``C`` classes, in the order of the logits.
        codec: turns masks to codes and back; part of the model, its arrays are buffers.
        options: the network's shape.
        image_size: to what size images are brought before the network sees them.
        selection: what counts as a detection, unless a call says otherwise.

    Raises:
        ValueError: if there are no classes, or the codec is for others.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        codec: Codec,
        options: ModelOptions,
        image_size: InputOptions,
        selection: SelectOptions,
    ) -> None:
        super().__init__()
        self.options = options
        self.image_size = image_size
        self.selection = selection
        self.class_names = tuple(class_names)
        if not self.class_names:
            raise ValueError("class_names is empty: a model has at least one class.")
        if codec.class_names not in (None, self.class_names):
            raise ValueError(
                f"the codec has bases for the classes {codec.class_names}, the model has "
                f"{self.class_names}: take codec.for_classes(class_names)."
            )
        self.codec = codec
        self.refiner = MaskRefiner(options.sight_channels) if options.sight_channels else None
        self.register_buffer("pixel_mean", torch.tensor(options.pixel_mean).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(options.pixel_std).view(3, 1, 1), False)

    pixel_mean: Tensor
    pixel_std: Tensor

    def forward(self, images: Sequence[Tensor]) -> HeadOutputs:
        """Predict for a batch, in training and in evaluation alike.

        Args:
            images: ``B`` images ``(3, H, W)``, R, G, B of 0 to 255, uint8, of any sizes.
        """
        return self.network(self.prepare(images))

    def prepare(self, images: Sequence[Tensor]) -> Tensor:
        """Normalise, then pad right and bottom with zeros to one size: ``(B, 3, H, W)``.

        Sides are multiples of :data:`PAD_MULTIPLE`.
        """
        height = -(-max(image.shape[1] for image in images) // PAD_MULTIPLE) * PAD_MULTIPLE
        width = -(-max(image.shape[2] for image in images) // PAD_MULTIPLE) * PAD_MULTIPLE
        pixels = self.pixel_mean.new_zeros((len(images), 3, height, width))
        for place, image in zip(pixels, images, strict=True):
            normalised = (image.to(place.device) - self.pixel_mean) / self.pixel_std
            if self.options.channel_order == "bgr":
                normalised = normalised.flip(0)
            place[:, : image.shape[1], : image.shape[2]] = normalised
        return pixels.contiguous(memory_format=torch.channels_last)

    @abstractmethod
    def network(self, pixels: Tensor) -> HeadOutputs:
        """What the network says of prepared pixels ``(B, 3, H, W)``."""

    def resize(self, image: ImageLike) -> ResizedImage:
        """Bring an image to the size that the network sees; ``predict`` does it if need be.

        Raises:
            ValueError: if the image cannot be read.
        """
        original = to_rgb(image)
        return ResizedImage(original, resize_image(original, self.image_size))

    @overload
    def predict(
        self,
        image: Given,
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> Detections: ...

    @overload
    def predict(
        self,
        image: list[Given] | tuple[Given, ...],
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> list[Detections]: ...

    @torch.no_grad()
    def predict(
        self,
        image: Given | list[Given] | tuple[Given, ...],
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> Detections | list[Detections]:
        """Find the objects of one image, or of several in one batch.

        Args:
            image: a path, a PIL image or an ``(H, W, 3)`` uint8 array in R, G, B, or what
                :meth:`resize` made of it; or a list of these.
            score_threshold: smallest final score of a detection, 0 to 1; the model's own,
                ``selection.score_threshold``, if None.
            max_detections: most detections of an image; the model's own if None.

        Returns:
            The detections, best first, in the pixels of the image as given; a list for a list.

        Raises:
            ValueError: if an image cannot be read or a threshold is out of range.
        """
        if isinstance(image, (list, tuple)):
            return self._predict_batch(image, score_threshold, max_detections)
        return self._predict_batch([image], score_threshold, max_detections)[0]

    def _predict_batch(
        self,
        images: Sequence[Given],
        score_threshold: float | None,
        max_detections: int | None,
    ) -> list[Detections]:
        changed = {"score_threshold": score_threshold, "max_detections": max_detections}
        given = {name: value for name, value in changed.items() if value is not None}
        selection = replace(self.selection, **given)  # type: ignore[arg-type]
        if not images:
            return []
        resized = [i if isinstance(i, ResizedImage) else self.resize(i) for i in images]
        sizes = [ImageSize(i.original.shape[:2], i.resized.shape[:2]) for i in resized]
        found: dict[int, Detections] = {}
        # Images of one padded size together: padding would change what group norms see.
        for places in _same_padded_size(sizes):
            with torch.inference_mode():  # results shall be ordinary tensors, so not around all
                outputs = self(
                    [torch.from_numpy(resized[i].resized).permute(2, 0, 1) for i in places]
                )
            group = [sizes[i] for i in places]
            kept = select_detections(
                outputs, group, self.codec, self.class_names, selection, self.refiner
            )
            found.update(zip(places, kept, strict=True))
        return [found[i] for i in range(len(images))]


class MEInst(Predictor):
    """Single-shot instance segmentation by mask encoding (arXiv 2003.11712).

    It is made of what :class:`Predictor` is made of; all but names and codec have defaults.

    Raises:
        ValueError: if sizes do not go together.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        codec: Codec,
        options: ModelOptions | None = None,
        image_size: InputOptions | None = None,
        selection: SelectOptions | None = None,
    ) -> None:
        options = options or ModelOptions()
        super().__init__(
            class_names,
            codec,
            options,
            image_size or InputOptions(),
            selection or SelectOptions(),
        )
        levels = options.backbone_levels
        self.backbone = Backbone(
            options.backbone,
            (levels[0] - 1, *levels) if options.sight_channels else levels,
            stride_in_1x1=options.stride_in_1x1,
            frozen_norm=options.frozen_norm,
        )
        channels = self.backbone.channels[-len(levels) :]
        strides = self.backbone.strides[-len(levels) :]
        if strides != options.strides[: len(levels)]:
            raise ValueError(
                f"strides {options.strides} do not begin with those of backbone_levels "
                f"{levels}, {strides}: change one of them."
            )
        self.fpn = FPN(
            channels,
            options.channels,
            len(options.strides),
            options.pyramid_norm_groups,
        )
        self.head = Head(
            options.channels,
            len(self.class_names),
            codec.n_components,
            options.strides,
            options.head,
        )
        self.sight: SightMap | None = None
        if options.sight_channels:
            finer = self.backbone.channels[0]
            self.sight = SightMap(finer, options.channels, options.sight_channels)
        use_fast_convs(self)
        self.to(memory_format=torch.channels_last)  # oneDNN's and cuDNN's faster layout

    def network(self, pixels: Tensor) -> HeadOutputs:
        """Backbone, pyramid and head on prepared pixels ``(B, 3, H, W)``."""
        features = self.backbone(pixels)
        pyramid = self.fpn(features[-len(self.options.backbone_levels) :])
        outputs: HeadOutputs = self.head(pyramid)
        if self.sight is None:
            return outputs
        return replace(outputs, sight=self.sight(features[0], pyramid[0]))


def _same_padded_size(sizes: Sequence[ImageSize]) -> list[list[int]]:
    """Places of images that are padded to the same size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        height, width = (-(-side // PAD_MULTIPLE) for side in size.resized)
        groups.setdefault((height, width), []).append(place)
    return list(groups.values())
