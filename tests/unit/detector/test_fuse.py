"""Convs with merged batch norms give the same outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from meinst.detector.backbone import Backbone
from meinst.detector.fuse import fuse_norms

EXAMPLE = torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)


class Small(nn.Module):
    """A norm after a conv, and a norm after a sum."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.Conv2d(3, 3, 1)
        self.late = nn.BatchNorm2d(3)
        self.twice = twice

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        first = self.norm(self.conv(pixels))
        if self.twice:
            first = self.norm(self.conv(first))
        return [first, self.late(self.other(first) + first)]


def shuffle_norms(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


@pytest.mark.parametrize(("twice", "left"), [(False, 1), (True, 2)])
def test_merges_only_norms_directly_after_a_conv(twice: bool, left: int) -> None:
    network = Small(twice).eval()
    shuffle_norms(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fused = fuse_norms(network, EXAMPLE)
    assert count_norms(fused) == left
    pixels = torch.randn(2, 3, 20, 30)
    for expected, found in zip(network(pixels), fused(pixels), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, tensor in network.state_dict().items():  # the original is unchanged
        torch.testing.assert_close(tensor, before[name])


def test_network_whose_outputs_would_change_is_kept() -> None:
    class Odd(Small):
        def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
            feature = self.conv(pixels)
            return [feature, self.norm(feature)]  # the conv's own output is needed too

    network = Odd().eval()
    shuffle_norms(network)
    assert fuse_norms(network, EXAMPLE) is network


def test_backbone_without_norms_is_not_changed() -> None:
    backbone = Backbone("resnet10t", (2, 3)).eval()
    backbone.net = nn.Sequential(nn.Conv2d(3, 4, 3))  # no batch norms
    before = backbone.net
    backbone.fuse()
    assert backbone.net is before


@torch.no_grad()
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet50"])
def test_backbones_lose_all_norms(name: str) -> None:
    backbone = Backbone(name, (2, 3, 4)).eval()
    shuffle_norms(backbone)
    pixels = torch.randn(1, 3, 96, 64)
    expected = backbone(pixels)
    assert count_norms(backbone) > 0
    backbone.fuse()
    assert count_norms(backbone) == 0
    for before, after in zip(expected, backbone(pixels), strict=True):
        torch.testing.assert_close(after, before, atol=1e-4 * before.abs().max().item(), rtol=1e-4)
