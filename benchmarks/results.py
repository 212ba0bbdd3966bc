"""From soft masks to COCO run lengths, beside pasting and encoding, in the same run.

    python benchmarks/results.py

The peer does as Detectron2 does on a CPU: each mask is sampled with `grid_sample` over the pixels
of its box, written into a full-size boolean picture, and encoded by pycocotools. One hundred drawn
detections in pictures of 800 x 1333; memory at 2160 x 3840.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from measure import compare, peak_memory, versions
from pycocotools import mask as coco_mask
from torch import Tensor

from meinst.ops.paste import soft_masks_to_rle

COUNT, SIDE = 100, 28


def drawn_results(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Soft masks ``(N, S, S)`` of tilted ellipses, and boxes ``(N, 4)``, from a seed."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(COUNT, 1, 1, generator=generator) * (high - low) + low

    grid = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    tilt, long, short = draw(0, 3.14), draw(0.7, 1.0), draw(0.3, 0.7)
    u = tilt.cos() * grid + tilt.sin() * grid[:, None]
    v = tilt.cos() * grid[:, None] - tilt.sin() * grid
    soft = (12 * (1 - (u / long) ** 2 - (v / short) ** 2)).sigmoid()
    sides = torch.cat((draw(0.03, 0.4) * width, draw(0.03, 0.5) * height), dim=2)[:, 0]  # (N, 2)
    spare = torch.tensor([width, height]) - sides
    corners = torch.rand(COUNT, 2, generator=generator) * spare
    return soft, torch.cat((corners, corners + sides), dim=1)


def paste(soft: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Full-size masks ``(N, H, W)`` bool."""
    masks = torch.zeros(len(soft), height, width, dtype=torch.bool)
    for n, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, width), min(int(y2) + 2, height)
        x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
        values = F.grid_sample(soft[None, n : n + 1], grid, align_corners=False)
        masks[n, top:bottom, left:right] = values[0, 0] >= 0.5
    return masks


def paste_and_encode(soft: Tensor, boxes: Tensor, height: int, width: int) -> list[dict]:
    """Run lengths by way of full-size masks."""
    masks = paste(soft, boxes, height, width).numpy()
    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(2)
    print(versions("meinst", "torch", "numpy", "numba", "pycocotools"))
    height, width = 800, 1333
    soft, boxes = drawn_results(height, width)
    ours = soft_masks_to_rle(soft, boxes, (height, width))
    theirs = paste_and_encode(soft, boxes, height, width)
    equal = sum(a["counts"] == b["counts"].decode() for a, b in zip(ours, theirs, strict=True))
    print(f"{COUNT} masks at {height} x {width}, equal run lengths: {equal}")
    ratio = compare(
        lambda: soft_masks_to_rle(soft, boxes, (height, width)),
        lambda: paste_and_encode(soft, boxes, height, width),
        rounds=15,
    )
    print("soft masks to run lengths:", ratio)

    height, width = 2160, 3840
    soft, boxes = drawn_results(height, width)
    soft_masks_to_rle(soft, boxes, (height, width))
    ours_mb = peak_memory(lambda: soft_masks_to_rle(soft, boxes, (height, width)))
    theirs_mb = COUNT * height * width / 1e6
    print(
        f"peak memory at {height} x {width}: {ours_mb:.1f} MB against {theirs_mb:.0f} MB of "
        f"full-size boolean masks: {theirs_mb / max(ours_mb, 0.1):.0f} x less"
    )


if __name__ == "__main__":
    main()
