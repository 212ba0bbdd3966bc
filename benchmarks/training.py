"""Training with this project's deformable conv, compared with torchvision's in the same run.

    python benchmarks/training.py [--recipe MEInst_R_50_1x] [--size 800 1088] [--bfloat16]

First, one conv of 256 channels on a map of 100 x 136, forward and backward, also compared with a
plain conv; then whole training steps (forward, losses, backward, update) of two images with
synthetic instances, from random weights. Both are timed alternately; the median and range of the
ratios are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measure import Ratio, compare, versions
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from meinst.codecs import PCACodec
from meinst.detector import layers
from meinst.detector.losses import compute_losses
from meinst.detector.meinst import MEInst
from meinst.models.checkpoint import build_model
from meinst.models.recipe import Recipe, load_recipe
from meinst.ops.deform_conv import deform_conv2d
from meinst.training.schedule import make_optimizer
from meinst.types import Target

IMAGES, INSTANCES, CLASSES, SIDE = 2, 8, 80, 28  # COCO has 7.3 instances per image
CHANNELS, ROWS, COLUMNS = 256, 100, 136  # of the head's finest level at 800 x 1088


def torchvision_conv(
    feature: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Call torchvision's operator like this project's."""
    result: Tensor = torchvision_deform_conv2d(feature, offset, weight, padding=1, mask=mask)
    return result


def compare_convs(rounds: int) -> None:
    """Print one conv's times: forward alone, and forward and backward."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator)
        return tensor.contiguous(memory_format=torch.channels_last).requires_grad_()

    feature, offset = random(1, CHANNELS, ROWS, COLUMNS), random(1, 18, ROWS, COLUMNS)
    weight, grad = random(CHANNELS, CHANNELS, 3, 3), random(1, CHANNELS, ROWS, COLUMNS)
    inputs = (feature, offset, weight)

    def plain(feature: Tensor, _offset: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(feature, weight, padding=1)

    def forward(conv: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: conv(*inputs))

    def both(conv: Callable[..., Tensor]) -> Callable[[], None]:
        def run() -> None:
            for tensor in inputs:
                tensor.grad = None
            conv(*inputs).backward(grad)

        return run

    for name, timed in (("forward", forward), ("forward and backward", both)):
        tested = timed(deform_conv2d)
        reference = timed(torchvision_conv)
        print(f"{name}, against torchvision:", compare(tested, reference, rounds))
        print(f"{name}, against a plain conv:", compare(tested, timed(plain), rounds))


def synthetic_targets(height: int, width: int) -> list[Target]:
    """Ellipses whose boxes measure 32 pixels to half the image."""
    generator = torch.Generator().manual_seed(1)
    grid = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    targets = []
    for _ in range(IMAGES):
        share = torch.rand(INSTANCES, 4, generator=generator)
        sides = 32 + share[:, :2] * (torch.tensor([width, height]) / 2 - 32)
        corners = share[:, 2:] * (torch.tensor([width, height]) - sides)
        radius = torch.rand(INSTANCES, 1, 1, generator=generator) * 0.6 + 0.4
        masks = (grid / radius) ** 2 + grid[:, None] ** 2 <= 1  # (G, S, S)
        labels = torch.randint(CLASSES, (INSTANCES,), generator=generator)
        targets.append(Target(torch.cat((corners, corners + sides), 1), labels, masks.byte()))
    return targets


def random_model(recipe: Recipe, targets: list[Target]) -> MEInst:
    """A model of random weights; its codec is fitted on the synthetic masks with noise."""
    generator = torch.Generator().manual_seed(2)
    masks = torch.cat([target.masks for target in targets]).repeat(10, 1, 1)
    noise = torch.rand(masks.shape, generator=generator) < 0.05
    codec = PCACodec(recipe.codec.n_components, SIDE).fit(masks ^ noise)
    torch.manual_seed(3)
    model = build_model([f"class {index}" for index in range(CLASSES)], recipe, codec)
    model.backbone.freeze(recipe.optimizer.frozen_stages)
    return model.train()


def compare_steps(recipe: Recipe, size: tuple[int, int], rounds: int, bfloat16: bool) -> Ratio:
    """Compare whole training steps on images of ``size`` (height, width)."""
    targets = synthetic_targets(*size)
    model = random_model(recipe, targets)
    generator = torch.Generator().manual_seed(4)
    images = list(torch.randint(256, (IMAGES, 3, *size), generator=generator, dtype=torch.uint8))
    optimizer = make_optimizer(model.backbone, (model.fpn, model.head), recipe.optimizer)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            outputs = model(images)
        limits = model.options.distance_limits
        losses = compute_losses(
            outputs, targets, model.codec, limits, recipe.loss, generator=generator
        )
        loss = torch.stack(list(losses.values())).sum()
        assert loss.isfinite()
        loss.backward()
        # Small, so that the network stays about the same in all rounds.
        for group in optimizer.param_groups:
            group["lr"] = 1e-6
        optimizer.step()

    def torchvision_step() -> None:
        with patch.object(layers, "deform_conv2d", torchvision_conv):
            step()

    return compare(step, torchvision_step, rounds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", default="MEInst_R_50_1x")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), help="height and width")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision, as on new CPUs")
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(versions("meinst", "torch", "torchvision", "numba"), f"{torch.get_num_threads()} threads")
    compare_convs(options.rounds)
    ratio = compare_steps(
        load_recipe(options.recipe), tuple(options.size), options.rounds, options.bfloat16
    )
    height, width = options.size
    print(f"step of {options.recipe}, {IMAGES} images of {height} x {width}:", ratio)


if __name__ == "__main__":
    main()
