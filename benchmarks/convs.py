"""3x3 convs on the CPU: Winograd's algorithm against torch's conv, alone and in whole networks.

    python benchmarks/convs.py [--rounds 9] [--networks | --depthwise]

Random maps and weights, float32, two threads, channels-last. Both are timed alternately. The median
and range of the ratios are printed, and the largest error of each against float64, relative to the
largest value. `--networks` measures the shipped models at 512 x 704 and published recipes with
random weights at 800 x 1088. `--depthwise` measures the depthwise convs of EfficientNet-Lite0,
forward and backward as in a training step of two images of 384 x 384, against timm's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measure import compare, versions
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor

from meinst.codecs import PCACodec
from meinst.detector import layers
from meinst.models.checkpoint import build_model, load_model
from meinst.models.recipe import load_recipe
from meinst.ops.depthwise import depthwise_conv2d
from meinst.ops.winograd import transform_weight, winograd_convs2d

CHANNELS = (32, 64, 96, 128, 256)
SIZES = ((7, 9), (13, 17), (25, 34), (50, 68), (100, 136), (128, 176))
# Channels, side of the map, kernel size and stride of every depthwise conv in the network.
DEPTHWISE = (
    *((32, 192, 3, 1), (96, 192, 3, 2), (144, 96, 3, 1), (144, 96, 5, 2), (240, 48, 5, 1)),
    *((240, 48, 3, 2), *[(480, 24, 3, 1)] * 2, (480, 24, 5, 1), *[(672, 24, 5, 1)] * 2),
    *((672, 24, 5, 2), *[(1152, 12, 5, 1)] * 3, (1152, 12, 3, 1)),
)
NETWORKS = ("nuclei", "photos", "MEInst_R_50_1x", "MEInst_R_50_1x_none")


def conv_row(channels: int, size: tuple[int, int], rounds: int) -> str:
    """Measure one conv with equal numbers of input and output channels."""
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(1, channels, *size, generator=generator).relu()
    weight = torch.randn(channels, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    bias = torch.randn(channels, generator=generator)
    feature, weight = (t.contiguous(memory_format=torch.channels_last) for t in (feature, weight))
    transformed = transform_weight(weight)
    sides: tuple[Callable[[], Tensor], Callable[[], Tensor]] = (
        lambda: winograd_convs2d(feature, [transformed], [bias])[0],
        lambda: F.conv2d(feature, weight, bias, padding=1),
    )
    expected = F.conv2d(feature.double(), weight.double(), bias.double(), padding=1)
    errors = [float((side() - expected).abs().max() / expected.abs().max()) for side in sides]
    ratio = compare(*sides, rounds)
    place = f"{channels:4} {size[0]:4} x {size[1]:<4}"
    return f"{place} {ratio}; errors {errors[0]:.1e} {errors[1]:.1e}"


def depthwise_rows(rounds: int) -> Iterator[str]:
    """Measure forward and backward of each conv, then of all together."""
    generator = torch.Generator().manual_seed(0)
    sides: list[tuple[Callable[[], object], Callable[[], object]]] = []
    for channels, side, size, stride in DEPTHWISE:
        feature = torch.randn(2, channels, side, side, generator=generator)
        feature = feature.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(channels, 1, size, size, generator=generator).requires_grad_()
        slope = torch.randn_like(feature[..., ::stride, ::stride])

        def tested(
            f: Tensor = feature, w: Tensor = weight, g: Tensor = slope, s: int = stride
        ) -> object:
            return torch.autograd.grad(depthwise_conv2d(f, w, None, s, same=True), (f, w), g)

        def reference(
            f: Tensor = feature, w: Tensor = weight, g: Tensor = slope, s: int = stride
        ) -> object:
            return torch.autograd.grad(conv2d_same(f, w, None, (s, s), groups=len(w)), (f, w), g)

        sides.append((tested, reference))
        ratio = compare(tested, reference, rounds)
        yield f"{channels:4} {side:3} {size} x {size} / {stride} {ratio}"

    def run_all(which: int) -> None:
        for pair in sides:
            pair[which]()

    yield f"all {compare(lambda: run_all(0), lambda: run_all(1), rounds)}"


def network_row(name: str, rounds: int) -> str:
    """Measure a whole network, from prepared pixels to its outputs (without codes)."""
    if name.startswith("MEInst"):
        codec = PCACodec(60, 28).fit(torch.rand(200, 28, 28) > 0.5)
        names = tuple(f"class {n}" for n in range(80))
        model, size = build_model(names, load_recipe(name), codec).eval(), (800, 1088)
    else:
        model, size = load_model(name), (512, 704)
    pixels = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)

    def plain() -> None:
        with patch.object(layers, "_FAST_TILES", math.inf):
            model.network(pixels)

    return f"{name} {size[0]} x {size[1]} {compare(lambda: model.network(pixels), plain, rounds)}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--networks", action="store_true")
    which.add_argument("--depthwise", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    print(versions("meinst", "torch", "numpy", "numba"))
    if options.depthwise:
        for row in depthwise_rows(options.rounds):
            print(row, flush=True)
        return
    with torch.inference_mode():
        if options.networks:
            for name in NETWORKS:
                print(network_row(name, options.rounds), flush=True)
            return
        for channels in CHANNELS:
            for size in SIZES:
                print(conv_row(channels, size, options.rounds), flush=True)


if __name__ == "__main__":
    main()
