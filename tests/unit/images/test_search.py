"""Folders and patterns: what is found, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meinst.data.images import ImageError, load_image
from meinst.images.search import IMAGE_SUFFIXES, UNREADABLE_KINDS, find_images, search_images


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def test_nothing_left_out(tmp_path: Path) -> None:
    images = touch(tmp_path, "a.png", "b.heic", "c.J2K")
    touch(tmp_path, "notes.txt", "README", ".hidden.mp4")
    (tmp_path / "sub.mp4").mkdir()
    found = search_images([tmp_path])
    assert found.images == images
    assert not found.left_out
    assert str(found) == ""
    assert find_images([tmp_path]) == images


def test_pictures_and_videos_of_other_kinds_are_counted(tmp_path: Path) -> None:
    images = touch(tmp_path, "a.png")
    touch(tmp_path, "b.MP4", "c.mp4", "d.czi", "e.nef", "f.exr", "empty")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "scan", format="PNG")
    for sources in ([tmp_path], [tmp_path / "*"], [tmp_path, tmp_path / "*.*"]):
        found = search_images([*sources, tmp_path])
        assert found.images == images
        expected = {".mp4": 2, ".czi": 1, ".nef": 1, ".exr": 1, "without a suffix": 1}
        assert dict(found.left_out) == expected
    text = str(found)
    assert text.startswith("6 files that cannot be read were left out (")
    assert "2 .mp4" in text
    assert "track` method" in text
    assert "\n" not in text
    with pytest.warns(UserWarning, match="6 files .* left out"):
        assert find_images([tmp_path]) == images


def test_file_that_is_given_by_name_is_not_left_out(tmp_path: Path) -> None:
    (image,) = touch(tmp_path, "a.png")
    (movie,) = touch(tmp_path, "b.mp4")
    found = search_images([tmp_path, movie])
    assert found.images == [image, movie]
    assert not found.left_out
    movie.write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 90)
    with pytest.raises(
        ImageError, match=r"b\.mp4 is a video, which cannot be read as an image; give its name"
    ):
        load_image(movie)


def test_folder_of_other_kinds_only(tmp_path: Path) -> None:
    touch(tmp_path, "a.czi")
    for source in (tmp_path, tmp_path / "*.czi"):
        with pytest.raises(FileNotFoundError, match=r"1 file .*left out .*1 \.czi.*as TIFF"):
            search_images([source])


def test_no_suffix_is_readable_and_unreadable() -> None:
    names = [name for kind in UNREADABLE_KINDS for name in kind.suffixes.split()]
    assert len(set(names)) == len(names)
    assert not IMAGE_SUFFIXES & {f".{name}" for name in names}


@pytest.mark.parametrize("source", ["", " "])
def test_empty_source_is_not_the_current_folder(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a source is empty"):
        find_images([source])
    assert find_images(["."]) == [Path("a.png")]


def test_patterns_end_on_circles_of_links(tmp_path: Path) -> None:
    first, second = touch(tmp_path / "a", "1.png") + touch(tmp_path / "a" / "b", "2.png")
    for name in ("x", "y", "z"):  # glob would follow each combination of them, 40 deep
        (tmp_path / "a" / "b" / name).symlink_to(tmp_path, target_is_directory=True)
    assert find_images([tmp_path / "**" / "*.png"]) == [first, second]
    assert find_images([tmp_path / "**"]) == [first, second]
    assert find_images([tmp_path / "a" / "**" / "2.png"]) == [second]
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    assert find_images([tmp_path / "**" / "*"]) == [first, second]


def test_patterns_follow_links_and_skip_hidden_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "elsewhere" / "deep", "1.png")
    touch(tmp_path / "here" / ".hidden", "2.png")
    touch(tmp_path / "here" / "[3]", "3.png")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    expected = [Path("here/[3]/3.png"), Path("here/link/deep/1.png")]
    assert find_images(["here/**/*"]) == expected
    assert find_images(["he?e/*/*.png"]) == expected[:1]
    assert find_images(["here/[[]3]/../link/*/1.png"]) == [Path("here/[3]/../link/deep/1.png")]
