"""Everything around a network: images in, compact detections out.

:class:`Predictor` resizes images, normalises and pads them, runs ``network`` and selects
detections. :class:`meinst.detector.meinst.MEInst` is the PyTorch network;
:class:`meinst.models.exported.ExportedMEInst` runs the same network in OpenVINO or ONNX Runtime.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn
from typing_extensions import Self

from meinst.codecs import Codec
from meinst.data.images import Picture, read_image
from meinst.data.inputs import ChannelOrder, ImageInput, to_image_like
from meinst.data.transforms import ResizedImage, ResizeOptions, resize_image
from meinst.detections import Detections
from meinst.detector.head import HeadOptions
from meinst.detector.mask_refinement import MaskRefiner
from meinst.detector.passes import Tile, TileOptions
from meinst.detector.select import ImageSizes, SelectOptions, select_detections
from meinst.detector.tiled import predict_images
from meinst.images.intensity import InputOptions
from meinst.images.notes import ImageNotes
from meinst.images.sources import MemoryFile
from meinst.options import check_range
from meinst.types import HeadOutputs

ModelInput: TypeAlias = "ImageInput | ResizedImage"
MAX_CHANNELS = 4096
"""Largest number of channels of the pyramid and the head; published models have 256."""

PAD_MULTIPLE = 32  # the coarsest stride of common backbones

if hasattr(os, "register_at_fork"):
    # A forked process has none of its parent's OpenMP threads, and would wait for them forever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@dataclass(frozen=True)
class ModelOptions:
    """The architecture of the network.

    Attributes:
        backbone: a timm model that supports ``features_only``.
        backbone_levels: timm's ``out_indices``; index ``i`` has stride ``2 ** (i + 1)``.
        strides: strides of the pyramid's levels; at most two more than backbone levels.
        distance_limits: for every level but the last, the largest distance in pixels from a point
            to a side of its box.
        channels: channels of the pyramid and the head; a multiple of their norm groups.
        pyramid_norm_groups: groups of the group norm after each conv of the pyramid; 0 for none.
        head: the layers of the head.
        refine_channels: channels of the features for mask refinement
            (:mod:`meinst.detector.mask_refinement`); 0 for no refinement.
        stride_in_1x1: whether a ResNet's stride is in the first 1x1 conv of a stage, as in MSRA's
            weights and the published models, instead of the 3x3 conv.
        frozen_norm: whether the backbone's batch norms are frozen.
        channel_order: order of the channels in the network's input.
        pixel_mean: mean of the channels R, G, B (0 to 255), subtracted from the pixels.
        pixel_std: standard deviation of the channels R, G, B, by which pixels are divided.
    """

    backbone: str = "tf_efficientnet_lite0"
    backbone_levels: tuple[int, ...] = (2, 3, 4)
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    distance_limits: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    channels: int = 128
    pyramid_norm_groups: int = 0
    head: HeadOptions = field(default_factory=HeadOptions)
    refine_channels: int = 0
    stride_in_1x1: bool = False
    frozen_norm: bool = False
    channel_order: Literal["rgb", "bgr"] = "rgb"
    pixel_mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    pixel_std: tuple[float, float, float] = (128.0, 128.0, 128.0)

    def __post_init__(self) -> None:
        """Reject sizes that do not fit together."""
        check_range(self, 1, MAX_CHANNELS, "channels")
        check_range(self, 0, MAX_CHANNELS, "pyramid_norm_groups", "refine_channels")
        if not self.backbone_levels or any(b <= a for a, b in pairwise(self.backbone_levels)):
            raise ValueError(
                f"backbone_levels must be increasing and not empty, got {self.backbone_levels}."
            )
        if min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_std must be above 0, got {self.pixel_std}.")
        if len(self.distance_limits) != len(self.strides) - 1:
            raise ValueError(
                "distance_limits must have one number fewer than strides, got "
                f"{len(self.distance_limits)} for {len(self.strides)} strides."
            )
        if any(after != 2 * before for before, after in pairwise(self.strides)):
            raise ValueError(f"strides must double from level to level, got {self.strides}.")
        if any(after <= before for before, after in pairwise((0.0, *self.distance_limits))):
            raise ValueError(
                f"distance_limits must be positive and increasing, got {self.distance_limits}."
            )
        if self.refine_channels and self.backbone_levels[0] == 0:
            raise ValueError(
                "refine_channels needs a backbone level finer than the first of backbone_levels = "
                f"{self.backbone_levels}; leave out level 0."
            )
        for groups in (self.head.norm_groups, self.pyramid_norm_groups):
            if groups and self.channels % groups:
                raise ValueError(
                    f"channels = {self.channels} is not a multiple of norm_groups = {groups}; "
                    "change one of them."
                )


class Predictor(nn.Module, ABC):
    """Base class of all models that turn images into detections.

    Args:
        class_names: names of the ``C`` classes, in the order of the logits.
        codec: encodes and decodes masks; part of the model, its arrays are buffers.
        options: the architecture of the network.
        resize: the size images are resized to before the network.
        selection: what counts as a detection, unless a call overrides it.
        input_options: how pixel values become the network's input; may be replaced.

    Attributes:
        metadata: further content of the model's file (recipe, metrics), which
            :func:`meinst.save_model` writes again.

    Raises:
        ValueError: if there are no classes, or the codec has bases for other classes.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        codec: Codec,
        options: ModelOptions,
        resize: ResizeOptions,
        selection: SelectOptions,
        input_options: InputOptions,
    ) -> None:
        super().__init__()
        self.options = options
        self.input_options = input_options
        self.resize_options = resize
        self.selection = selection
        self.metadata: dict[str, Any] = {}
        self.class_names = tuple(class_names)
        if not self.class_names:
            raise ValueError("class_names must contain at least one class, got none.")
        if codec.class_names not in (None, self.class_names):
            raise ValueError(
                f"the codec has bases for the classes {codec.class_names}, but the model has "
                f"{self.class_names}; use codec.for_classes(class_names)."
            )
        self.codec = codec
        self.refiner = MaskRefiner(options.refine_channels) if options.refine_channels else None
        self.reset_constants()

    def reset_constants(self) -> None:
        """Set the buffers that follow from the options and are not part of a file."""
        options = self.options
        self.register_buffer("pixel_mean", torch.tensor(options.pixel_mean).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(options.pixel_std).view(3, 1, 1), False)

    def forward(self, images: Sequence[Tensor]) -> HeadOutputs:
        """Predict for a batch, in training and in evaluation mode alike.

        Args:
            images: ``B`` images ``(3, H, W)`` of any sizes, RGB, 0 to 255, uint8.
        """
        return self.network(self.prepare(images))

    def prepare(self, images: Sequence[Tensor]) -> Tensor:
        """Normalise images and pad them on the right and bottom with zeros: ``(B, 3, H, W)``.

        The sides of the result are multiples of :data:`PAD_MULTIPLE`.
        """
        height = -(-max(image.shape[1] for image in images) // PAD_MULTIPLE) * PAD_MULTIPLE
        width = -(-max(image.shape[2] for image in images) // PAD_MULTIPLE) * PAD_MULTIPLE
        pixels = self.pixel_mean.new_zeros((len(images), 3, height, width))
        for padded, image in zip(pixels, images, strict=True):
            normalised = (image.to(padded.device) - self.pixel_mean) / self.pixel_std
            if self.options.channel_order == "bgr":
                normalised = normalised.flip(0)
            padded[:, : image.shape[1], : image.shape[2]] = normalised
        return pixels.contiguous(memory_format=torch.channels_last)

    @abstractmethod
    def network(self, pixels: Tensor) -> HeadOutputs:
        """Run the network on prepared pixels ``(B, 3, H, W)``."""

    def fuse(self) -> Self:
        """Make the model faster for inference, in place; it can no longer be trained or saved."""
        return self

    def resize(
        self, image: ImageInput | MemoryFile | Picture, channel_order: ChannelOrder = "rgb"
    ) -> ResizedImage:
        """Resize an image for the network; :meth:`predict` does it where necessary.

        Args:
            image: as for :meth:`predict`.
            channel_order: as for :meth:`predict`.

        Raises:
            ValueError: if the image cannot be read.
        """
        if isinstance(image, Picture):
            picture = image
        else:
            picture = read_image(to_image_like(image, channel_order), self.input_options)
        original = picture.pixels
        resized = resize_image(original, self.resize_options)
        shrink = max(original.shape[:2]) / max(resized.shape[:2])
        return ResizedImage(
            original, resized, ImageNotes(picture.stretch, picture.extent, shrink=shrink)
        )

    @overload
    def predict(
        self,
        image: ModelInput,
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        tile: Tile = "auto",
        pixel_size: float | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Detections: ...

    @overload
    def predict(
        self,
        image: list[ModelInput] | tuple[ModelInput, ...],
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        tile: Tile = "auto",
        pixel_size: float | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> list[Detections]: ...

    def predict(
        self,
        image: ModelInput | list[ModelInput] | tuple[ModelInput, ...],
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        tile: Tile = "auto",
        pixel_size: float | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Detections | list[Detections]:
        """Detect the objects in one image, or in several images as one batch.

        Images that are much larger than the network's input are predicted in overlapping windows.

        Args:
            image: a path, address, array, tensor, PIL image, open file or the bytes of one
                (:mod:`meinst.data.inputs`), or the result of :meth:`resize`; or a list of these.
            score_threshold: smallest score of a detection, 0 to 1; the model's own if None.
            max_detections: limit of detections per image; the model's own if None, which does not
                hold for images that are predicted in windows.
            tile: see :class:`meinst.TileOptions`.
            pixel_size: see :class:`meinst.TileOptions`.
            channel_order: of the channels of arrays and tensors; "bgr" for OpenCV's.

        Returns:
            The detections, best first, in pixels of the given image; a list for a list.

        Raises:
            ValueError: if an image cannot be read or a threshold is out of range.

        Warns:
            UserWarning: if pages are left out, windows cannot be read, or small objects are missed.
        """
        selection = self.selection.override(score_threshold, max_detections)
        tiles = TileOptions(tile, pixel_size, max_detections)
        several = isinstance(image, (list, tuple))
        images: Sequence[ModelInput] = image if isinstance(image, (list, tuple)) else [image]
        inputs = [
            each if isinstance(each, ResizedImage) else to_image_like(each, channel_order)
            for each in images
        ]
        results = predict_images(self, inputs, tiles, selection)
        for text in dict.fromkeys(text for each in results for text in each.notes.warnings):
            warnings.warn(text, stacklevel=2)
        return [r.detections for r in results] if several else results[0].detections

    def track(
        self,
        frames: str | Path | Iterable[ModelInput],
        *,
        rate: float | None = None,
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> Iterator[Detections]:
        """Follow objects through a video.

        Args:
            frames: a video file, the address of a stream, or images as for :meth:`predict`, in
                order.
            rate: frames per second; by default that of the video, or 30 for images.
            score_threshold: smallest score of an object's first detection, 0 to 1; the model's own
                if None. Detections down to half of it continue a track.
            max_detections: limit of detections per frame; the model's own if None.

        Yields:
            For each frame the detections that reach the threshold or continue a track, best first.
            Those of the same object have the same number in ``track_ids``; -1 means that the object
            was seen in one frame only so far.

        Raises:
            ValueError: if the video cannot be read, or a threshold is out of range.
            ImportError: if the packages of ``meinst[video]`` are missing.

        Examples:
            >>> for found in meinst.load("photos").track("clip.mp4"):  # doctest: +SKIP
            ...     print(found.track_ids.tolist(), found.boxes.tolist())
        """
        from meinst.detector.track import track_images, track_video  # which uses this class

        selection = self.selection.override(score_threshold, max_detections)
        if isinstance(frames, (str, Path)):
            return track_video(self, frames, rate, selection)
        return track_images(self, frames, rate or 30.0, selection)

    @torch.no_grad()
    def predict_batch(
        self, images: Sequence[ModelInput], selection: SelectOptions | None = None
    ) -> list[Detections]:
        """Detect the objects in several images.

        Args:
            images: as for :meth:`predict`.
            selection: what counts as a detection; the model's own if None.

        Raises:
            ValueError: if an image cannot be read, or the model is in 16 bits.
        """
        if self.pixel_mean.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"prediction needs a model in float32, got {self.pixel_mean.dtype}; call its "
                "float()."
            )
        resized = [i if isinstance(i, ResizedImage) else self.resize(i) for i in images]
        sizes = [ImageSizes(i.original.shape[:2], i.resized.shape[:2]) for i in resized]
        detections: dict[int, Detections] = {}
        # Only images of one padded size share a batch: padding would change the group norms.
        for group in _same_padded_size(sizes):
            with torch.inference_mode():  # not around everything: results are ordinary tensors
                outputs = self(
                    [torch.from_numpy(resized[i].resized).permute(2, 0, 1) for i in group]
                )
            selected = select_detections(
                outputs,
                [sizes[i] for i in group],
                self.codec,
                self.class_names,
                selection or self.selection,
                self.refiner,
            )
            detections.update(zip(group, selected, strict=True))
        return [detections[i] for i in range(len(images))]


def _same_padded_size(sizes: Sequence[ImageSizes]) -> list[list[int]]:
    """Indices of images that are padded to the same size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        height, width = (-(-side // PAD_MULTIPLE) for side in size.resized)
        groups.setdefault((height, width), []).append(index)
    return list(groups.values())
