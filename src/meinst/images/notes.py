"""What users should know about how images were used, in one line for each kind."""

from __future__ import annotations

from dataclasses import dataclass

from meinst.images.extent import ONE_IMAGE, Extent
from meinst.images.frames import PictureSource
from meinst.images.intensity import Stretch

# When objects are missed because an image was shrunk, in pixels of the network's input and factors
# by which sides are divided; measured in docs/explanation/images.md.
_SMALL_OBJECT = 12.0  # typical side below which many objects are missed
_MIN_SHRINK = 1.5  # below it, tiles would show objects hardly larger
_MAX_SHRINK_EMPTY = 4.0  # for images in which nothing is found
MAX_SHRINK = 12.0
"""Factor above which any image is too large for the network."""


@dataclass(frozen=True)
class ImageNotes:
    """How an image was read and resized.

    Attributes:
        stretch: how values of more than 8 bits became 0 to 255; None for 8-bit images.
        extent: frames and channels in the file, of which the first was used.
        shrink: factor by which the sides were divided for the network.
        object_side: median side of the objects found, in pixels of the network's input (the square
            root of the box's area); None if there are none.
        windows: number of windows in which the image was predicted; 1 for the whole image.
        lost_windows: how many of them could not be read.
        damage: why the first of those could not be read.
    """

    stretch: Stretch | None = None
    extent: Extent = ONE_IMAGE
    shrink: float = 1.0
    object_side: float | None = None
    windows: int = 1
    lost_windows: int = 0
    damage: str = ""

    @property
    def shrunk_too_much(self) -> bool:
        """Whether objects are probably missed because the image was shrunk for the network.

        Either the objects found are at the limit of what the network can see, or nothing is found
        after shrinking the image 4 times, or it was shrunk more than 12 times.
        """
        if self.object_side is None:
            return self.shrink > _MAX_SHRINK_EMPTY
        small = self.object_side < _SMALL_OBJECT
        return self.shrink > MAX_SHRINK or (small and self.shrink > _MIN_SHRINK)

    @property
    def visible_side(self) -> float:
        """Side of the smallest objects that are found reliably, in pixels of the image."""
        return _SMALL_OBJECT * self.shrink

    @property
    def warnings(self) -> list[str]:
        """What may be missing in the result, without the name of the image."""
        found = []
        if self.extent.frames > 1:
            found.append(f"only the first of {self.extent.frames} pages or frames is used.")
        if self.extent.channels > 1:
            found.append(f"only the first of {self.extent.channels} channels is used.")
        if self.shrunk_too_much:
            found.append(
                f"the image is shrunk {self.shrink:.1f} times for the network, so many objects "
                f"smaller than about {self.visible_side:.0f} pixels are missed; set tile to "
                "a number of pixels to predict it in windows."
            )
        if self.lost_windows:
            found.append(
                f"{self.lost_windows} of {self.windows} windows were left out: {self.damage}"
            )
        return found


NO_NOTES = ImageNotes()
"""Notes of an 8-bit image that was not shrunk."""


@dataclass
class _Group:
    """Images with one kind of note: how many, and the first."""

    count: int = 0
    first: str = ""
    total: float = 0.0

    def add(self, first: str, value: float = 0.0) -> None:
        self.count += 1
        self.first = self.first or first
        self.total += value

    def __str__(self) -> str:
        return f"{self.count} image{'s' * (self.count > 1)}"


class NoteSummary:
    """Collects notes of many images; its size does not depend on their number."""

    def __init__(self) -> None:
        self._stretched: dict[tuple[str, str], _Group] = {}
        self._frames, self._channels = _Group(), _Group()
        self._shrunk = _Group()
        self._tiled = _Group()
        self._damaged = _Group()

    @property
    def damaged(self) -> int:
        """Number of images of which parts could not be read."""
        return self._damaged.count

    @property
    def tiled(self) -> int:
        """Number of images that were predicted in windows."""
        return self._tiled.count

    def add(self, path: PictureSource, notes: ImageNotes) -> None:
        """Add the notes of one image."""
        stretch = notes.stretch
        if stretch is not None:
            group = self._stretched.setdefault((stretch.dtype, stretch.description), _Group())
            group.add(f"{path}, {stretch.low:g} to {stretch.high:g}")
        frames, channels = notes.extent.frames, notes.extent.channels
        if frames > 1:
            self._frames.add(f"{path}, {frames} pages", frames - 1)
        if channels > 1:
            self._channels.add(f"{path}, {channels} channels")
        if notes.shrunk_too_much:
            self._shrunk.add(
                f"{path}, {notes.shrink:.1f} times: objects smaller than about "
                f"{notes.visible_side:.0f} pixels"
            )
        if notes.windows > 1:
            self._tiled.add(f"{path}, {notes.windows:,} windows")
        if notes.lost_windows:
            self._damaged.add(notes.damage, notes.lost_windows)

    def lines(self) -> list[str]:
        """One line for each kind, each starting with "note:" or "warning:"."""
        found = []
        for (dtype, limits), group in sorted(self._stretched.items()):
            found.append(
                f"note: {group} of type {dtype}: {limits} scaled to 0 to 255 (for example "
                f"{group.first}); the option intensity changes this"
            )
        if self._frames.count:
            found.append(
                f"warning: {self._frames} with several pages or frames; only the first of each was "
                f"used and {self._frames.total:g} were left out (for example "
                f"{self._frames.first}); `meinst predict --frames all` uses them all"
            )
        if self._channels.count:
            found.append(
                f"warning: {self._channels} with several channels; only the first of each was used "
                f"(for example {self._channels.first}); choose one or three with --channels"
            )
        if self._shrunk.count:
            found.append(
                f"warning: {self._shrunk} shrunk so much for the network that many small objects "
                f"are missed (for example {self._shrunk.first}); --tile with a number of pixels "
                "predicts such images in windows"
            )
        if self._tiled.count:
            found.append(
                f"note: {self._tiled} predicted in windows (for example {self._tiled.first})"
            )
        if self._damaged.count:
            found.append(
                f"warning: {self._damaged} with damaged parts; {self._damaged.total:g} windows "
                f"were left out (for example {self._damaged.first})"
            )
        return found
