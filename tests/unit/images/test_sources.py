from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meinst.data.images import read_image
from meinst.images.search import find_images, read_list, search_images
from meinst.images.sources import (
    Address,
    AddressError,
    MemoryFile,
    expand_address,
    is_address,
    to_source,
)

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory() -> Iterator[str]:
    """An address of images, with a hidden one, a video, and a folder below."""
    system = fsspec.filesystem("memory")
    for name in ("b.png", "a.tif", ".hidden.png", "clip.mp4", "notes.txt", "deep/c.png"):
        system.pipe(f"/pictures/{name}", b"content of " + name.encode())
    yield "memory://pictures"
    system.rm("/pictures", recursive=True)


def urls(sources: list[Path | Address]) -> list[str]:
    return [str(source) for source in sources]


def test_addresses_are_told_from_paths() -> None:
    for text in ("s3://bucket/a.png", "https://host/a.png?x=1", "zip://a.png::/b.zip"):
        assert is_address(text)
        assert isinstance(to_source(text), Address)
    for other in ("a.png", "/a/b", "C:\\a.png", Path("s3://a"), b"s3://a"):
        assert not is_address(other)
    assert to_source("a.png") == Path("a.png")


def test_names() -> None:
    for url, name, stem, suffix in (
        ("s3://bucket/x/cells.1.png", "cells.1.png", "cells.1", ".png"),
        ("https://host/a/b.jpg?size=3/4", "b.jpg", "b", ".jpg"),
        ("zip://in/c.tif::s3://bucket/all.zip", "c.tif", "c", ".tif"),
        ("https://host/?id=3", "host", "host", ""),
    ):
        address = Address(url)
        assert (address.name, address.stem, address.suffix) == (name, stem, suffix)
        assert str(address) == url


def test_fetch(memory: str) -> None:
    assert Address(f"{memory}/b.png").fetch() == MemoryFile(b"content of b.png", f"{memory}/b.png")
    with pytest.raises(AddressError, match=r"memory://pictures/no\.png does not exist; check"):
        Address(f"{memory}/no.png").fetch()
    with pytest.raises(AddressError, match="Protocol not known: nosuch"):
        Address("nosuch://a/b.png").fetch()


def test_folders_and_patterns(memory: str) -> None:
    here = [f"{memory}/a.tif", f"{memory}/b.png"]
    found = search_images([memory, f"{memory}/*.png"])
    assert urls(found.images) == here
    assert found.left_out == {".mp4": 1}
    everything = [*here, f"{memory}/deep/c.png"]
    assert urls(search_images([memory], recursive=True).images) == everything
    assert urls(find_images([f"{memory}/**/*.png"])) == [here[1], everything[2]]
    assert urls(find_images([f"{memory}/notes.txt"])) == [f"{memory}/notes.txt"]
    with pytest.raises(FileNotFoundError, match=r"no\*\.png contains no images"):
        find_images([f"{memory}/no*.png"])


def test_zip(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (9, 8, 7)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("in/a.png", "in/b.png", "notes.txt"):
            archive.write(tmp_path / "a.png", name)
    chained = f"::{tmp_path}/all.zip"
    expected = [f"zip://in/a.png{chained}", f"zip://in/b.png{chained}"]
    assert urls(find_images([f"zip://in/*.png{chained}"])) == expected
    assert urls(find_images([f"zip://in{chained}"])) == expected
    assert urls(find_images([expected[1]])) == expected[1:]
    assert expand_address(expected[0])[0].fetch().content == (tmp_path / "a.png").read_bytes()


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(AddressError, match=r"Install s3fs.*pip install 'meinst\[remote\]'"):
        find_images(["s3://bucket/folder"])
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(AddressError, match=r"needs the package fsspec: pip install"):
        find_images(["s3://bucket/folder"])


def test_folders_are_walked_on_request(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.png", "a/z/d.tif", ".hidden/e.png", "a/.f.png", "a/clip.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert find_images([tmp_path]) == [tmp_path / "b.png"]
    found = search_images([tmp_path], recursive=True)
    assert found.images == [tmp_path / name for name in ("a/c.png", "a/z/d.tif", "b.png")]
    assert found.left_out == {".mp4": 1}
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"contains no images.*; to include subfolders"):
        find_images([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match=r"contains no images \([^)]*\)\.$"):
        find_images([tmp_path / "empty"], recursive=True)


def test_lists() -> None:
    lines = ["a.png\n", "\r\n", "# no\n", " b c.png \r\n", "s3://x/y.png"]
    assert read_list(lines) == ["a.png", " b c.png ", "s3://x/y.png"]


def test_images_in_memory_are_those_of_files(tmp_path: Path) -> None:
    """All readers: Pillow, tifffile (also big-endian BigTIFF), imagecodecs and PPM of 16 bits."""
    import tifffile

    random = np.random.default_rng(0)
    rgb = random.integers(0, 255, (30, 40, 3), np.uint8)
    deep = random.integers(0, 4000, (30, 40, 3), np.uint16)
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=_turned())
    Image.fromarray(rgb).save(tmp_path / "b.png")
    tifffile.imwrite(tmp_path / "c.tif", deep)
    tifffile.imwrite(tmp_path / "d.tif", deep[..., 0], bigtiff=True, byteorder=">")
    Image.fromarray(deep[..., 0]).save(tmp_path / "e.png")
    (tmp_path / "f.ppm").write_bytes(b"P6 40 30 65535\n" + deep.astype(">u2").tobytes())
    tifffile.imwrite(tmp_path / "g.tif", np.stack([rgb] * 3), photometric="rgb")
    from imagecodecs import jpeg2k_encode, png_encode

    (tmp_path / "h.png").write_bytes(png_encode(deep))
    (tmp_path / "i.jp2").write_bytes(jpeg2k_encode(deep, codecformat="jp2", level=0))
    for path in sorted(tmp_path.iterdir()):
        file, content = read_image(path), MemoryFile(path.read_bytes(), path.name)
        other = read_image(content)
        assert np.array_equal(file.pixels, other.pixels), path
        assert (file.stretch, file.extent) == (other.stretch, other.extent)
        for size in (0, 40, len(content.content) // 2):  # cut files, with the same errors
            path.write_bytes(content.content[:size])
            cut = MemoryFile(path.read_bytes(), str(path))
            assert outcome(path) == outcome(cut), path


def outcome(image: Path | MemoryFile) -> bytes | str:
    """The pixels of an image, or why it cannot be read."""
    try:
        return read_image(image).pixels.tobytes()
    except ValueError as error:
        return str(error)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif
