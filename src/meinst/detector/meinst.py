"""MEInst: read this first. The whole route of an image, from pixels to compact detections.

1. :meth:`Predictor.resize <meinst.detector.predictor.Predictor.resize>` resizes the image and
   :meth:`~meinst.detector.predictor.Predictor.prepare` normalises and pads it.
2. :meth:`MEInst.network` is backbone, feature pyramid and head. The head predicts a class, a box
   and a mask code for every point of the feature maps (:class:`meinst.types.HeadOutputs`).
3. :func:`meinst.detector.select.select_detections` scores the points and keeps the best.
4. A detection remains a box, a score, a label and a short code until pixels are requested
   (:class:`meinst.detections.Detections`).

Training takes the same ``HeadOutputs``: :mod:`meinst.detector.assign` assigns points to instances
and :mod:`meinst.detector.losses` computes the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import Self

from meinst.codecs import Codec
from meinst.data.transforms import ResizeOptions
from meinst.detector.backbone import Backbone
from meinst.detector.fpn import FPN
from meinst.detector.head import Head
from meinst.detector.layers import FastConv, use_fast_convs
from meinst.detector.mask_refinement import RefinementFeatures
from meinst.detector.predictor import ModelOptions, Predictor
from meinst.detector.select import SelectOptions
from meinst.images.intensity import InputOptions
from meinst.types import HeadOutputs


class MEInst(Predictor):
    """Single-shot instance segmentation by mask encoding (arXiv 2003.11712).

    The arguments are those of :class:`Predictor`; all but names and codec have defaults.

    Attributes:
        fused: whether :meth:`fuse` was called.

    Raises:
        ValueError: if sizes do not fit together.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        codec: Codec,
        options: ModelOptions | None = None,
        resize: ResizeOptions | None = None,
        selection: SelectOptions | None = None,
        input_options: InputOptions | None = None,
    ) -> None:
        options = options or ModelOptions()
        super().__init__(
            class_names,
            codec,
            options,
            resize or ResizeOptions(),
            selection or SelectOptions(),
            input_options or InputOptions(),
        )
        self.fused = False
        self.backbone = _make_backbone(options)
        self.fpn = FPN(
            self.backbone.channels[-len(options.backbone_levels) :],
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
        self.refinement: RefinementFeatures | None = None
        if options.refine_channels:
            self.refinement = RefinementFeatures(
                self.backbone.channels[0], options.channels, options.refine_channels
            )
        use_fast_convs(self)
        self.to(memory_format=torch.channels_last)  # oneDNN's and cuDNN's faster layout

    def network(self, pixels: Tensor) -> HeadOutputs:
        """Run backbone, pyramid and head on prepared pixels ``(B, 3, H, W)``."""
        features = self.backbone(pixels)
        pyramid = self.fpn(features[-len(self.options.backbone_levels) :])
        outputs: HeadOutputs = self.head(pyramid)
        if self.refinement is None:
            return outputs
        return replace(outputs, refinement=self.refinement(features[0], pyramid[0]))

    def fuse(self) -> Self:
        """Make the model faster for inference, in place; it can no longer be trained or saved.

        Merges the backbone's batch norms into its convs and prepares the weights of the other
        convs. Results change by rounding only.

        Returns:
            The model itself, in evaluation mode.
        """
        if not self.fused:
            self.eval()
            self.backbone.fuse()
            for module in self.modules():
                if isinstance(module, FastConv):
                    module.freeze()
            self.fused = True
        return self


def _make_backbone(options: ModelOptions) -> Backbone:
    """The backbone, with one more level at half the finest stride if masks are refined."""
    levels = options.backbone_levels
    backbone = Backbone(
        options.backbone,
        (levels[0] - 1, *levels) if options.refine_channels else levels,
        stride_in_1x1=options.stride_in_1x1,
        frozen_norm=options.frozen_norm,
    )
    strides = backbone.strides[-len(levels) :]
    if strides != options.strides[: len(levels)]:
        raise ValueError(
            f"strides must begin with {strides}, those of backbone_levels {levels}, got "
            f"{options.strides}; change one of them."
        )
    return backbone
