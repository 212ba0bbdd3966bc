"""Scale pixel values of more than 8 bits to 0..255, the range of the network's input."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.options import check_number

PERCENTILES = (0.1, 99.9)
"""Percentiles of the values that `percentile` maps to 0 and 255."""

COUNT_RANGES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Greatest values of 8, 10, 12, 14 and 16 bits."""

_NOISE_RANGE = 32  # the range is at least this many standard deviations of the noise ...
_MAX_WIDENING = 4  # ... but at most this many times that of the percentiles
_MIN_DIFFERENCES = 1000  # fewer do not tell noise from texture
_MIN_COUNTS = 32.0  # smallest range of whole numbers
MAX_SAMPLES = 4_000_000
"""Values from which percentiles are measured."""

MAX_CHANNEL = 65535
"""Greatest number of a channel."""

_MAX_CONVERTED = 1_000_000  # values that are held in float64 at once
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class InputOptions:
    """How pixel values become the network's input of 0 to 255.

    Attributes:
        intensity: for images of more than 8 bits, the values that become 0 and 255. percentile:
            percentiles 0.1 and 99.9 of the image, over all channels; full: its smallest and
            greatest value; LOW:HIGH, for example 0:4095: these values. 8-bit images never change.
        channels: numbers, from 0, of the channels that become red, green and blue, or of the one
            that becomes grey; each is scaled by itself. By default, images are used as they are.
        pixel_size: side of a pixel of the network's input in micrometres, if all training images
            had the same; slides whose files state a pixel size are resized to it. None if they
            differed or it is not known.
    """

    intensity: str = "percentile"
    channels: tuple[int, ...] = ()
    pixel_size: float | None = None

    def __post_init__(self) -> None:
        """Reject other rules."""
        self.limits()
        object.__setattr__(self, "channels", tuple(self.channels))
        if len(self.channels) not in (0, 1, 3):
            raise ValueError(
                "channels must be one number (grey) or three (red, green, blue), got "
                f"{','.join(map(str, self.channels))}."
            )
        for channel in self.channels:
            check_number("channels", channel, 0, MAX_CHANNEL, whole=True)
        if self.pixel_size is not None and not 0 < self.pixel_size < math.inf:
            raise ValueError(f"pixel_size must be above 0, got {self.pixel_size}.")

    def override(
        self, intensity: str | None = None, channels: tuple[int, ...] | None = None
    ) -> InputOptions:
        """A copy with the given rule and channels; None keeps the current ones."""
        return replace(
            self,
            intensity=self.intensity if intensity is None else intensity,
            channels=self.channels if channels is None else channels,
        )

    def limits(self) -> tuple[float, float] | None:
        """The given low and high value; None if they are taken from each image.

        Raises:
            ValueError: if ``intensity`` is none of the rules.
        """
        if self.intensity in ("percentile", "full"):
            return None
        match = re.fullmatch(rf"({_NUMBER}):({_NUMBER})", str(self.intensity))
        limits = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
        if not (limits[0] < limits[1] and math.isfinite(limits[1] - limits[0])):
            raise ValueError(
                "intensity must be percentile, full or LOW:HIGH with LOW below HIGH, such as "
                f"0:4095, got {self.intensity!r}."
            )
        return limits


def parse_channels(text: str) -> tuple[int, ...]:
    """The channels of a text such as ``2,0,0``.

    Raises:
        ValueError: if it is none, with the rule.
    """
    if not re.fullmatch(r"\d+(,\d+){0,2}", text):
        raise ValueError(
            "channels must be one number (grey) or three (red, green, blue), from 0 and separated "
            f"by commas, got {text!r}."
        )
    return tuple(map(int, text.split(",")))


@dataclass(frozen=True)
class Stretch:
    """How the values of one image became 0 to 255.

    Attributes:
        low: the value that became 0, as all below.
        high: the value that became 255, as all above.
        rule: the ``intensity`` of :class:`InputOptions`.
        dtype: type of the values, such as uint16.
        channels: the same of each chosen channel; ``low`` and ``high`` are then the smallest and
            the greatest of them. Empty if all channels were scaled together.
    """

    low: float
    high: float
    rule: str
    dtype: str
    channels: tuple[Stretch, ...] = ()

    @property
    def description(self) -> str:
        """Which values became 0 and 255, in words that fit many images."""
        if self.rule == "full":
            return "the smallest and greatest value of each image"
        if self.rule != "percentile":
            return self.rule.replace(":", " to ")
        if self.low == 0 and self.high in (1.0, *COUNT_RANGES):
            return f"0 to {self.high:g}"
        return "percentiles {:g} and {:g} of each image".format(*PERCENTILES)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        plain = {"low": self.low, "high": self.high, "rule": self.rule, "dtype": self.dtype}
        if self.channels:
            plain["channels"] = [{"low": each.low, "high": each.high} for each in self.channels]
        return plain

    @classmethod
    def of_channels(cls, channels: Sequence[Stretch]) -> Stretch:
        """That of several channels, each scaled by itself; of one channel, its own."""
        if len(channels) == 1:
            return channels[0]
        low, high = min(each.low for each in channels), max(each.high for each in channels)
        return cls(low, high, channels[0].rule, channels[0].dtype, tuple(channels))


def to_eight_bits(
    values: NDArray[Any], options: InputOptions | None = None
) -> tuple[NDArray[np.uint8], Stretch | None]:
    """Scale values linearly to 0..255.

    - uint8 is returned unchanged, bool becomes 0 and 255.
    - The rule ``percentile`` uses the whole range of 8, 10, 12, 14 or 16 bits, or 0..1 for floats,
      if the percentiles lie within it and at least half of it apart. So a well exposed image gives
      the same as in 8 bits. Otherwise it uses the percentiles, but a range of at least 32 standard
      deviations of the noise (at most 4 times that of the percentiles) and of 32 for whole
      numbers, so that an image without objects stays nearly uniform.
    - Values that are not finite become 0 and are not part of any range.

    Args:
        values: ``(H, W)`` or ``(H, W, C)``, of any integer or float type.
        options: the rule; percentile by default.

    Returns:
        The values in 8 bits, and what was done; None for uint8 and bool.

    Raises:
        ValueError: if the values are not real numbers.
    """
    stretch = find_stretch(values, options or InputOptions())
    return apply_stretch(values, stretch), stretch


def find_stretch(values: NDArray[Any], options: InputOptions) -> Stretch | None:
    """What :func:`to_eight_bits` does to values; None for uint8 and bool.

    Raises:
        ValueError: if the values are not real numbers.
    """
    if values.dtype in (np.uint8, np.bool_):
        return None
    if values.dtype.kind not in "iuf":
        raise ValueError(f"An image array must contain numbers, got {values.dtype}.")
    if options.channels and values.ndim == 3:
        alone = replace(options, channels=())
        planes = (values[..., n] for n in range(values.shape[2]))
        found = [find_stretch(plane, alone) for plane in planes]
        return Stretch.of_channels([each for each in found if each is not None])
    if options.intensity == "percentile":
        return stretch_of_sample(values[:: sample_step(values.size)])
    return stretch_of_parts(_row_groups(values), options)


def sample_step(count: int) -> int:
    """Of how many rows one is enough to measure the percentiles of ``count`` values."""
    return math.ceil(count / MAX_SAMPLES)


def stretch_of_sample(sample: NDArray[Any]) -> Stretch:
    """The range of the rule ``percentile``, from rows of an image.

    Args:
        sample: ``(R, W)`` or ``(R, W, C)``, of any integer or float type but uint8.
    """
    low, high = _percentile_range(sample.astype(np.float64), sample.dtype.kind in "iu")
    return Stretch(low, high, "percentile", sample.dtype.name)


def stretch_of_parts(parts: Iterable[NDArray[Any]], options: InputOptions) -> Stretch:
    """The range of the rules ``full`` and ``LOW:HIGH``.

    Args:
        parts: at least one, together all values of the image; of ``LOW:HIGH`` only the first is
            used.
        options: the rule.
    """
    parts = iter(parts)
    first = next(parts)
    limits = options.limits()
    if limits is None:
        ranges = [found for part in chain((first,), parts) if (found := _extremes(part))]
        low = min((each[0] for each in ranges), default=0.0)
        high = max((each[1] for each in ranges), default=0.0)
        limits = low, high if high > low else low + 1.0
    return Stretch(*limits, options.intensity, first.dtype.name)


def _percentile_range(sample: NDArray[np.float64], whole: bool) -> tuple[float, float]:
    """The values that become 0 and 255; ``whole`` if their type holds whole numbers only."""
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return 0.0, 1.0
    low, high = map(float, np.percentile(finite, PERCENTILES, method="nearest"))
    counts = whole or _are_whole(finite)
    for greatest in COUNT_RANGES if counts else (1.0,):
        if low >= 0 and greatest / 2 <= high - low and high <= greatest:
            return 0.0, greatest
    quiet = min(_NOISE_RANGE * _noise(sample), _MAX_WIDENING * (high - low))
    span = max(high - low, _MIN_COUNTS if counts else 0.0, quiet)
    if span == 0:  # constant: a fraction of one keeps its brightness
        return (0.0, 1.0) if 0 <= low <= 1 else (low, low + 1.0)
    return low, low + span


def _are_whole(finite: NDArray[np.float64]) -> bool:
    """Whether floats are counts: whole numbers that are not all 0 and 1."""
    return bool(np.abs(finite).max() > 1) and bool((finite == np.rint(finite)).all())


def _noise(sample: NDArray[np.float64]) -> float:
    """Standard deviation of the noise, from the median difference of horizontal neighbours."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        differences = np.abs(np.diff(sample, axis=1))
    differences = differences[np.isfinite(differences)]
    # The median of |a - b| is 0.6745 * sqrt(2) standard deviations for normal noise.
    enough = differences.size >= _MIN_DIFFERENCES
    return float(np.median(differences)) / 0.9539 if enough else 0.0


def _extremes(values: NDArray[Any]) -> tuple[float, float] | None:
    """The smallest and greatest finite value; None if there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def apply_stretch(values: NDArray[Any], stretch: Stretch | None) -> NDArray[np.uint8]:
    """Map the range of a stretch to 0 to 255, rounded.

    Args:
        values: of any shape and the type that the stretch was measured on; ``(..., C)`` for that
            of ``C`` channels.
        stretch: the range; None for uint8, which is returned itself, and bool.
    """
    if stretch is None:
        return values if values.dtype == np.uint8 else values.astype(np.uint8) * np.uint8(255)
    if stretch.channels:
        planes = [apply_stretch(values[..., n], each) for n, each in enumerate(stretch.channels)]
        return np.stack(planes, axis=-1)
    low, high = stretch.low, stretch.high

    def scale(numbers: NDArray[Any]) -> NDArray[np.uint8]:
        wide = numbers.astype(np.float64)
        wide = np.where(np.isfinite(wide), wide, low)
        scaled = (wide - low) * (255.0 / (high - low))
        return np.floor(np.clip(scaled, 0.0, 255.0) + 0.5).astype(np.uint8)

    table, first = None, 0
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        limits = np.iinfo(values.dtype)
        table, first = scale(np.arange(limits.min, limits.max + 1)), int(limits.min)
    result = np.empty(values.shape, np.uint8)
    for part, into in zip(_row_groups(values), _row_groups(result), strict=True):
        into[...] = scale(part) if table is None else table[part.astype(np.intp) - first]
    return result


def _row_groups(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of consecutive rows, of about a million values each."""
    rows = max(1, _MAX_CONVERTED * len(values) // max(values.size, 1))
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def opaque_value(alpha: NDArray[Any]) -> float:
    """The value of full opacity: the smallest of 1, 255 and 65535 that is not exceeded."""
    if alpha.dtype == np.bool_:
        return 1.0
    levels = (1.0, 255.0, 65535.0) if alpha.dtype.kind == "f" else (255.0, 65535.0)
    largest = float(_finite(alpha).max())
    return next((level for level in levels if largest <= level), largest)


def scale_opacity(alpha: NDArray[Any], opaque: float) -> NDArray[np.uint8]:
    """Opacity in 8 bits; ``opaque`` is the value of full opacity."""
    return np.floor(np.clip(_finite(alpha) / opaque, 0, 1) * 255 + 0.5).astype(np.uint8)


def _finite(alpha: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(alpha.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
