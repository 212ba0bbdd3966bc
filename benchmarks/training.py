"""Training with this project's deformable conv and with torchvision's, in the same run.

    python benchmarks/training.py [--recipe MEInst_R_50_1x] [--size 800 1088] [--bfloat16]

First one conv of 256 channels on a map of 100 x 136, forward and backward, beside a plain conv too;
then whole training steps (forward, losses, backward, update) of two images with drawn instances,
from random weights. The sides take turns; medians of the ratios and their range are printed.
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
from meinst.engine.checkpoint import build_model
from meinst.engine.config import Recipe, load_recipe
from meinst.engine.schedule import make_optimizer
from meinst.ops.deform_conv import deform_conv2d
from meinst.types import Target

IMAGES, INSTANCES, CLASSES, SIDE = 2, 8, 80, 28  # COCO has 7.3 instances an image
CHANNELS, ROWS, COLUMNS = 256, 100, 136  # of the head's finest level at 800 x 1088


def theirs(feature: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """The operator of torchvision, called as the project's own."""
    result: Tensor = torchvision_deform_conv2d(feature, offset, weight, padding=1, mask=mask)
    return result


def compare_convs(rounds: int) -> None:
    """Print one conv's times: forward alone, and forward and backward."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator)
        return tensor.contiguous(memory_format=torch.channels_last).requires_grad_()

    feature, offset = draw(1, CHANNELS, ROWS, COLUMNS), draw(1, 18, ROWS, COLUMNS)
    weight, grad = draw(CHANNELS, CHANNELS, 3, 3), draw(1, CHANNELS, ROWS, COLUMNS)
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

    for name, way in (("forward", forward), ("forward and backward", both)):
        ours = way(deform_conv2d)
        print(f"{name}, against torchvision's:", compare(ours, way(theirs), rounds))
        print(f"{name}, against a plain conv:", compare(ours, way(plain), rounds))


def drawn_targets(height: int, width: int) -> list[Target]:
    """Ellipses in boxes of 32 pixels to half the image."""
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


def drawn_model(recipe: Recipe, targets: list[Target]) -> MEInst:
    """Random weights; a codec fitted on the drawn masks and noise of as many as it needs."""
    generator = torch.Generator().manual_seed(2)
    masks = torch.cat([target.masks for target in targets]).repeat(10, 1, 1)
    noise = torch.rand(masks.shape, generator=generator) < 0.05
    codec = PCACodec(recipe.codec.n_components, SIDE).fit(masks ^ noise)
    torch.manual_seed(3)
    model = build_model([f"class {index}" for index in range(CLASSES)], recipe, codec)
    model.backbone.freeze(recipe.optimizer.frozen_stages)
    return model.train()


def compare_steps(recipe: Recipe, size: tuple[int, int], rounds: int, bfloat16: bool) -> Ratio:
    """Whole training steps on images of ``size``, height and width."""
    targets = drawn_targets(*size)
    model = drawn_model(recipe, targets)
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
        # Small, so that all rounds see about the same network.
        for group in optimizer.param_groups:
            group["lr"] = 1e-6
        optimizer.step()

    def torchvisions_step() -> None:
        with patch.object(layers, "deform_conv2d", theirs):
            step()

    return compare(step, torchvisions_step, rounds)


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
