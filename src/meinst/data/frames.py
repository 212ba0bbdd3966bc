"""Read the frames of stacks, time series and animations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image

from meinst.data.images import (
    ImageError,
    Picture,
    check_file,
    file_error,
    from_pillow_frame,
    read_image,
)
from meinst.data.regions import ArrayRegions, RegionImage, TiffImage, open_picture
from meinst.images.extent import ONE_IMAGE, image_extent
from meinst.images.frames import Frame, FrameChoice, PictureSource, expand_frames
from meinst.images.intensity import InputOptions
from meinst.images.readers import (
    HEAD,
    UnsupportedImageError,
    check_pixels,
    is_deep,
    is_tiff,
    open_image,
    open_tiff,
)
from meinst.images.rgb import Pixels
from meinst.images.sources import ImageFile, ImageSource, to_file, to_source
from meinst.images.tiff_frames import OpenTiff, no_frame


class PictureReader:
    """Reads files and frames; a file stays open until another one is read.

    Args:
        options: how pixel values become the network's input.
        fits: whether an image of a height and width is read as a whole.
    """

    def __init__(self, options: InputOptions, fits: Callable[[int, int], bool]) -> None:
        self._options, self._fits = options, fits
        self._source: ImageSource | None = None
        self._file: ImageFile | None = None
        self._animation: Image.Image | None = None
        self._tiff: OpenTiff | None = None
        self._open = ExitStack()

    def close(self) -> None:
        """Close the file that was read last."""
        self._open.close()
        self._source = self._file = self._animation = self._tiff = None

    def read(self, source: PictureSource) -> Picture | RegionImage:
        """Read an image as a whole, or open it for reading regions.

        Raises:
            ImageError: if it cannot be read, or there is no such frame.
        """
        if isinstance(source, Frame):
            return self._read_frame(source)
        file = to_file(source)
        if isinstance(file, Path):
            return open_picture(file, self._options, fits=self._fits)
        return read_image(file, self._options)

    def _read_frame(self, frame: Frame) -> Picture | RegionImage:
        if frame.file != self._source:
            self.close()
            self._file, self._source = to_file(frame.file), frame.file
        file = self._file
        assert file is not None
        if isinstance(file, Path):
            check_file(file)
        try:
            with file.open("rb") as stream:
                head = stream.read(HEAD)
            if not is_tiff(head):
                return self._read_with_pillow(file, frame.index)
            try:
                return self._read_plane(file, frame.index)
            except UnsupportedImageError:
                with suppress(Exception):  # Pillow reads more compressions
                    return self._read_with_pillow(file, frame.index)
                raise
        except ImageError:
            raise
        except Exception as error:  # readers raise almost anything for damaged files
            raise file_error(error, file) from error

    def _read_plane(self, file: ImageFile, index: int) -> Picture | RegionImage:
        if self._tiff is None:
            self._tiff = self._open.enter_context(closing(OpenTiff(open_tiff(file))))
        page = self._tiff.frames.planes(index)[0].page
        if not self._fits(page.imagelength, page.imagewidth):  # read later, by another thread
            return TiffImage(file, self._options, index)
        check_pixels(page.imagewidth, page.imagelength)
        image = TiffImage(file, self._options, index, self._tiff)
        height, width = image.size
        return Picture(image.read((0, 0, width, height)), image.stretch, image.extent)

    def _read_with_pillow(self, file: ImageFile, index: int) -> Picture | RegionImage:
        """A frame of a GIF, WebP or PNG file, which build on those before, or a page of a TIFF."""
        if self._animation is None:
            self._animation = self._open.enter_context(open_image(file))
            check_pixels(self._animation.width, self._animation.height)
        frames = image_extent(file, self._animation).frames
        if index >= frames:
            raise UnsupportedImageError(no_frame(index, frames))
        self._animation.seek(index)
        if is_deep(self._animation):
            raise UnsupportedImageError("has more than 8 bits per channel; convert it to TIFF.")
        picture = from_pillow_frame(self._animation, self._options)
        picture = replace(picture, extent=ONE_IMAGE)
        fits = self._fits(*picture.pixels.shape[:2])
        return picture if fits else ArrayRegions(picture, str(file))


def read_frames(
    path: str | Path, frames: str = "all", options: InputOptions | None = None
) -> Iterator[Pixels]:
    """Read frames of a stack, a time series or an animation one by one.

    Args:
        path: an image file; TIFF of ImageJ and OME, multi-page TIFF, GIF, WebP or PNG.
        frames: ``all``, a number from 0, or ``A:B`` for those from A up to but without B.
        options: which values become 0 and 255, and which channels are used.

    Yields:
        ``(H, W, 3)`` uint8 RGB, for :meth:`~meinst.detector.predictor.Predictor.predict` and
        :meth:`~meinst.detector.predictor.Predictor.track`.

    Raises:
        ValueError: if ``frames`` is none of these, or a frame cannot be read or is not there.

    Examples:
        >>> model = meinst.load("nuclei")  # doctest: +SKIP
        >>> for found in model.track(meinst.read_frames("cells.tif")):  # doctest: +SKIP
        ...     print(found.track_ids.tolist())
    """
    choice = FrameChoice.from_text(frames)
    reader = PictureReader(options or InputOptions(), lambda height, width: True)  # noqa: ARG005
    with closing(reader):
        for source in expand_frames([to_source(path)], choice):
            picture = reader.read(source)
            assert isinstance(picture, Picture)
            yield picture.pixels
