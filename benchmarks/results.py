"""Converting soft masks to COCO RLE, compared with pasting and encoding in the same run.

    python benchmarks/results.py

The reference works like Detectron2 on a CPU: each mask is sampled with `grid_sample` at the pixels
of its box, written into a full-size boolean mask, and encoded by pycocotools. 100 synthetic
detections in images of 800 x 1333; memory is measured at 2160 x 3840.
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


def synthetic_results(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Soft masks ``(N, S, S)`` of rotated ellipses, and boxes ``(N, 4)``; always the same."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(COUNT, 1, 1, generator=generator) * (high - low) + low

    grid = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    angle, long, short = uniform(0, 3.14), uniform(0.7, 1.0), uniform(0.3, 0.7)
    u = angle.cos() * grid + angle.sin() * grid[:, None]
    v = angle.cos() * grid[:, None] - angle.sin() * grid
    soft = (12 * (1 - (u / long) ** 2 - (v / short) ** 2)).sigmoid()
    sides = torch.cat((uniform(0.03, 0.4) * width, uniform(0.03, 0.5) * height), dim=2)[
        :, 0
    ]  # (N, 2)
    room = torch.tensor([width, height]) - sides
    corners = torch.rand(COUNT, 2, generator=generator) * room
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
    """COCO RLE computed from full-size masks."""
    masks = paste(soft, boxes, height, width).numpy()
    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(2)
    print(versions("meinst", "torch", "numpy", "numba", "pycocotools"))
    height, width = 800, 1333
    soft, boxes = synthetic_results(height, width)
    found = soft_masks_to_rle(soft, boxes, (height, width))
    expected = paste_and_encode(soft, boxes, height, width)
    equal = sum(a["counts"] == b["counts"].decode() for a, b in zip(found, expected, strict=True))
    print(f"{COUNT} masks at {height} x {width}; equal RLE: {equal}")
    ratio = compare(
        lambda: soft_masks_to_rle(soft, boxes, (height, width)),
        lambda: paste_and_encode(soft, boxes, height, width),
        rounds=15,
    )
    print("soft masks to RLE:", ratio)

    height, width = 2160, 3840
    soft, boxes = synthetic_results(height, width)
    soft_masks_to_rle(soft, boxes, (height, width))
    peak = peak_memory(lambda: soft_masks_to_rle(soft, boxes, (height, width)))
    dense = COUNT * height * width / 1e6
    print(
        f"peak memory at {height} x {width}: {peak:.1f} MB against {dense:.0f} MB of full-size "
        f"boolean masks: {dense / max(peak, 0.1):.0f} x less"
    )


if __name__ == "__main__":
    main()
