"""What programs hold of an image: bytes, open files, addresses, tensors, and OpenCV's arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from meinst.data.images import ImageError, ImageLike
from meinst.images.sources import Address, MemoryFile, is_address

ImageInput: TypeAlias = "ImageLike | Address | bytes | bytearray | memoryview | BinaryIO | Tensor"
ChannelOrder: TypeAlias = Literal["rgb", "bgr"]

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_FULL = 255.0
_ROUNDING = 1e-4  # by which floats may exceed 0 to 1


def to_image_like(
    image: ImageInput | Any, channel_order: ChannelOrder = "rgb"
) -> ImageLike | MemoryFile:
    """Convert what programs hold to what :func:`meinst.data.images.read_image` reads.

    - bytes and open binary files hold an image file in any format that is read from disk; a file is
      read from its position to its end.
    - A text with ``://`` is an address, which fsspec opens; any other text is a path.
    - Tensors are ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)`` with 1, 3 (RGB) or 4 (RGBA) channels,
      on any device. If both the first and the last size could be that of the channels, they come
      first, as in torchvision. uint8 is used as it is; floats are 0 to 1, as torchvision's
      transforms return them, and are rounded to 8 bits.

    Args:
        image: the image.
        channel_order: of the channels of an array or tensor; OpenCV's is "bgr".

    Raises:
        ImageError: if a tensor has another shape or range, or a file cannot be read.
        ValueError: if the channel order is unknown, or given for what is not an array or tensor.
    """
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f"channel_order must be rgb or bgr, got {channel_order!r}.")
    if isinstance(image, Tensor):
        return _reversed(_from_tensor(image), channel_order)
    if isinstance(image, np.ndarray):
        return _reversed(image, channel_order)
    if channel_order == "bgr":
        raise ValueError(
            f"channel_order is for arrays and tensors, got a {type(image).__name__}; leave it out."
        )
    if isinstance(image, str) and is_address(image):
        image = Address(image)
    if isinstance(image, Address):
        return image.fetch()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return MemoryFile(bytes(image), "the image in memory")
    if isinstance(image, (str, Path, Image.Image, MemoryFile)):
        return image
    if hasattr(image, "read"):
        return _from_file(image)
    raise ImageError(
        "An image must be a path, an address, bytes, an open file, a Pillow image, a NumPy array "
        f"or a tensor, got {type(image).__name__}."
    )


def _from_file(file: BinaryIO) -> MemoryFile:
    """The rest of an open file."""
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) else "the open file"
    content = file.read()
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise ImageError(f"{name} is open as text; open it in binary mode.")
    return MemoryFile(bytes(content), name)


def _from_tensor(tensor: Tensor) -> NDArray[Any]:
    """``(H, W)`` or ``(H, W, C)``; floats become uint8."""
    shape = tuple(tensor.shape)
    if tensor.ndim == 3 and shape[0] in _CHANNELS:
        tensor = tensor.permute(1, 2, 0)
    elif tensor.ndim not in (2, 3) or (tensor.ndim == 3 and shape[2] not in _CHANNELS):
        raise ImageError(
            "An image tensor must be (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels, got "
            f"{shape}; give the images of a batch as a list."
        )
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return np.ascontiguousarray(tensor.numpy())
    tensor = tensor.float()
    low, high = (float(value) for value in tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # so that NaN is rejected, too
        raise ImageError(
            f"A tensor of floats must be within 0 and 1, got {low:g} to {high:g}; divide it by its "
            "greatest value, or pass a NumPy array, whose range is measured."
        )
    return np.ascontiguousarray((tensor.clamp(0, 1) * _FULL).round().to(torch.uint8).numpy())


def _reversed(values: NDArray[Any], channel_order: ChannelOrder) -> NDArray[Any]:
    """An array with its colours in the order red, green, blue."""
    if channel_order == "rgb" or values.ndim != 3 or values.shape[2] < 3:
        return values
    order = [2, 1, 0, *range(3, values.shape[2])]
    return np.ascontiguousarray(values[..., order])
