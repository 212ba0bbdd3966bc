"""Find the images among files, folders and patterns, and count what is left out."""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from meinst.files import is_file, is_folder
from meinst.images.sources import Address, ImageFile, ImageSource, expand_address, is_address

_IMAGES = (
    "apng avif bmp btf dds dib gif heic heif hif j2c j2k jfif jp2 jpe jpeg jpf jpg jpx pbm pcx pgm "
    "png pnm ppm sgi svs tf8 tga tif tiff webp"
)
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _IMAGES.split())
"""Suffixes of images in folders; files that are given by name may have any suffix."""


_VIDEOS = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv webm wmv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _VIDEOS.split())
"""Suffixes of videos in folders."""


@dataclass(frozen=True)
class UnreadableKind:
    """A kind of picture or video that cannot be read.

    Attributes:
        noun: what such a file is.
        suffixes: its suffixes, without the dot.
        remedy: what to do with it.
    """

    noun: str
    suffixes: str
    remedy: str


UNREADABLE_KINDS = (
    UnreadableKind(
        "a video",
        _VIDEOS,
        "give its name to `meinst predict`, or to the `track` method of a model",
    ),
    UnreadableKind(
        "a slide or microscope image",
        "bif czi dcm dicom ims lif lsm mha mhd mrxs nd2 ndpi nii nrrd oib oif qptiff scn stk "
        "vms vsi zvi",
        "save the image, or tiles of it, as TIFF or PNG files, for example with Fiji or QuPath",
    ),
    UnreadableKind(
        "a raw photograph",
        "arw cr2 cr3 dng nef orf raf raw rw2",
        "save it as a TIFF or PNG file, for example with darktable",
    ),
    UnreadableKind(
        "an image in an unsupported format",
        "ai eps exr hdr jls jxl jxr psb psd svg xcf",
        "save it as a TIFF or PNG file",
    ),
)
_UNREADABLE = {f".{suffix}": kind for kind in UNREADABLE_KINDS for suffix in kind.suffixes.split()}
NO_SUFFIX = "without a suffix"
# First bytes of images, to recognise files without a suffix: JPEG, PNG, GIF, TIFF, BMP, WebP.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class FoundImages:
    """Result of :func:`search_images`.

    Attributes:
        images: the images, without duplicates, in order.
        left_out: number of pictures and videos that are not read, by suffix.
    """

    images: list[ImageSource]
    left_out: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """What was left out and the remedy, in one line; empty if nothing was."""
        if not self.left_out:
            return ""
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.left_out.items()))
        total = self.left_out.total()
        remedies = dict.fromkeys(
            _UNREADABLE[name].remedy if name in _UNREADABLE else "give them a suffix such as .png"
            for name in sorted(self.left_out)
        )
        files, were = ("file", "was") if total == 1 else ("files", "were")
        remedy = "; ".join(remedies)
        return f"{total} {files} that cannot be read {were} left out ({counts}): {remedy}."


def find_images(sources: Iterable[str | Path], *, recursive: bool = False) -> list[Path | Address]:
    """Find the image files of files, folders and glob patterns, without duplicates, in order.

    Folders yield the images directly in them, by suffix and sorted, without hidden files; patterns
    yield the images that match, sorted (``**`` matches subfolders). The same holds for addresses of
    fsspec, such as ``s3://bucket/folder``. Warns if pictures or videos of kinds that cannot be read
    were left out.

    Args:
        sources: files, folders, patterns and addresses.
        recursive: include the folders below a folder, except for hidden ones.

    Raises:
        FileNotFoundError: if a source does not exist, does not match or contains no images.
        ValueError: if a source is empty, or an address cannot be read.
    """
    found = search_images(sources, recursive=recursive)
    if found.left_out:
        warnings.warn(str(found), stacklevel=2)
    return found.images


def search_images(sources: Iterable[str | Path], *, recursive: bool = False) -> FoundImages:
    """Find images as :func:`find_images` does, and count what is left out.

    Raises:
        FileNotFoundError: if a source does not exist, does not match or contains no images.
        ValueError: if a source is empty, or an address cannot be read.
    """
    found: dict[ImageSource, ImageSource] = {}  # paths as given, by resolved path
    others: dict[ImageSource, str] = {}  # why paths were left out, by resolved path
    for source in sources:
        if not str(source).strip():
            raise ValueError(
                "a source is empty; give a file, a folder (. is the current one) or a pattern."
            )
        if isinstance(source, str) and is_address(source):
            addresses = _addresses(source, others, recursive)
            found |= {each: each for each in addresses if each not in found}
            continue
        for match in _matches(source, others, recursive):
            found.setdefault(match.resolve(), match)
    left_out = Counter(reason for path, reason in others.items() if path not in found)
    return FoundImages(list(found.values()), left_out)


def unreadable_kind(path: ImageFile) -> UnreadableKind | None:
    """The kind of a picture or video that cannot be read, by suffix; None for other files."""
    return _UNREADABLE.get(path.suffix.lower())


def read_list(file: Iterable[str]) -> list[str]:
    """The sources in a list: one a line; empty lines and lines that begin with # do not count.

    Args:
        file: the lines.
    """
    lines = (line.rstrip("\r\n") for line in file)
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _matches(source: str | Path, others: dict[ImageSource, str], recursive: bool) -> list[Path]:
    """The images of one source; pictures of other kinds are added to ``others``."""
    path = Path(source)
    if is_file(path):
        return [path]
    in_folder = is_folder(path)
    if in_folder:
        folders = _folders_below(path) if recursive else [path]
        entries = sorted(entry for folder in folders for entry in folder.iterdir())
    else:
        entries = sorted(set(_expand(path)))
    matches, here = [], FoundImages([])
    for entry in entries:
        if entry.name.startswith(".") or not entry.is_file():
            continue
        if entry.suffix.lower() in IMAGE_SUFFIXES:
            matches.append(entry)
        elif reason := _reason_left_out(entry):
            others[entry.resolve()] = reason
            here.left_out[reason] += 1
    if matches:
        return matches
    more = f" {here}" if here.left_out else ""
    if in_folder:
        below = "" if recursive else f"; to include subfolders, use the pattern '{path}/**/*'"
        raise FileNotFoundError(
            f"The folder {path} contains no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
            f"{below}.{more}"
        )
    raise FileNotFoundError(
        f"{source} is neither a file or folder nor a pattern that matches an image.{more}"
    )


def _addresses(source: str, others: dict[ImageSource, str], recursive: bool) -> list[Address]:
    """The images of an address; pictures of other kinds are added to ``others``."""
    found = expand_address(source, recursive=recursive)
    if found == [Address(source)]:  # a file, which may have any suffix
        return found
    for entry in found:
        if entry.suffix.lower() in _UNREADABLE:
            others[entry] = entry.suffix.lower()
    matches = [entry for entry in found if entry.suffix.lower() in IMAGE_SUFFIXES]
    if not matches:
        raise FileNotFoundError(f"{source} contains no images; check the address.")
    return matches


def _reason_left_out(path: Path) -> str | None:
    """What a picture or video of another kind is counted as; None for other files."""
    suffix = path.suffix.lower()
    if suffix:
        return suffix if suffix in _UNREADABLE else None
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return None
    is_picture = head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")
    return NO_SUFFIX if is_picture else None


def _expand(pattern: Path) -> list[Path]:
    """Paths that match a pattern, as :func:`glob.glob` finds them, but each folder once.

    ``**`` follows symbolic links to folders; glob would follow links in circles.
    """
    parts = list(pattern.parts)
    found = [Path(parts.pop(0))] if pattern.is_absolute() else [Path()]
    for place, part in enumerate(parts):
        if part == "**":
            found = [folder for root in found for folder in _folders_below(root)]
            if place == len(parts) - 1:  # a last ** matches files, too
                found = [folder / name for folder in found for name in _names(folder, "*")]
        elif glob.has_magic(part):
            found = [folder / name for folder in found for name in _names(folder, part)]
        else:
            found = [path for folder in found if (path := folder / part).exists()]
    return found


def _names(folder: Path, pattern: str) -> list[str]:
    # pathlib's glob also matches hidden files.
    return glob.glob(pattern, root_dir=folder) if folder.is_dir() else []  # noqa: PTH207


def _folders_below(root: Path) -> Iterator[Path]:
    """A folder and all below that are not hidden, each once, also behind symbolic links."""
    visited = set[tuple[int, int]]()
    for folder, names, _ in os.walk(root, followlinks=True):
        try:
            status = Path(folder).stat()
        except OSError:  # removed meanwhile, or links that lead nowhere
            names.clear()
            continue
        identity = status.st_dev, status.st_ino
        if identity in visited:
            names.clear()
            continue
        visited.add(identity)
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield Path(folder)
