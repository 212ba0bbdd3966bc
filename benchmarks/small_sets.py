"""Small public data sets for fine-tuning, cut from public repositories at fixed commits.

    python benchmarks/small_sets.py CLONES OUTPUT [NAME ...]

CLONES contains the repositories as ``owner+name/repo`` or ``owner+name`` (git clones; only the
objects of the listed folders are needed). Each set becomes OUTPUT/NAME in COCO layout, with the
parts of its source, sampled by ``meinst data sample``. Images that a source lists but lacks are
left out. Neither pictures nor annotations belong into this repository.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ANNOTATIONS = "_annotations.coco.json"


@dataclass(frozen=True)
class SmallSet:
    """A data set in a public repository.

    Attributes:
        content: what it shows.
        repository: owner and name on GitHub.
        commit: the commit that is used.
        folders: the folders with images and annotations, one for each part.
        licence: as stated by the annotation files.
        images: number of images to sample.
    """

    content: str
    repository: str
    commit: str
    folders: tuple[str, ...]
    licence: str
    images: int


PARTS = ("train", "valid", "test")
SETS = {
    "mushrooms": SmallSet(
        "mushrooms in growing beds, up to 400 in a picture",
        "tomsains/SegMush",
        "78bc16d",
        ("data/train", "data/valid", "data/test"),
        "CC BY 4.0",
        87,
    ),
    "facades": SmallSet(
        "windows, fences, plants, cars and more of house fronts",
        "a-hwang/building-facade-segmentation",
        "fdf5324",
        PARTS,
        "CC BY 4.0",
        300,
    ),
    "traffic": SmallSet(
        "vehicles, people and roads from a car",
        "Tuestag/COAD",
        "34733a3",
        PARTS[:2],
        "CC BY 4.0",
        403,
    ),
    "signs": SmallSet(
        "signs and markings of a model road",
        "luxunecteknoloji/OtonomDataset",
        "e113c8e",
        PARTS,
        "CC BY 4.0",
        400,
    ),
    "damage": SmallSet(
        "scratches, dents and broken parts of cars",
        "Batikanyilmaz1/CarDamageDetection",
        "831454c",
        PARTS,
        "CC BY 4.0",
        400,
    ),
    "boards": SmallSet(
        "single-board computers of 33 kinds, one or two in a picture",
        "DoNguyenAnhTuan/IoTKITs-dataset",
        "00c3faf",
        PARTS[:2],
        "CC BY 4.0",
        400,
    ),
    "solar": SmallSet(
        "solar panels on roofs in aerial pictures",
        "tarunmangla/rooftop-solar-pv",
        "c97c906",
        PARTS,
        "none stated",
        300,
    ),
}


def extract(source: SmallSet, clones: Path, target: Path) -> None:
    """Write the folders of a set's commit."""
    clone = clones / source.repository.replace("/", "+")
    clone = clone / "repo" if (clone / "repo").is_dir() else clone
    command = ["git", "-C", str(clone), "archive", source.commit, *source.folders]
    packed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(target, filter="data")


def leave_out_missing(folder: Path) -> int:
    """Remove images without a file from a folder's annotations; returns their number."""
    path = folder / ANNOTATIONS
    document = json.loads(path.read_text())
    missing = {
        entry["id"] for entry in document["images"] if not (folder / entry["file_name"]).is_file()
    }
    for name, key in (("images", "id"), ("annotations", "image_id")):
        document[name] = [entry for entry in document[name] if entry[key] not in missing]
    path.write_text(json.dumps(document))
    return len(missing)


def main() -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("clones", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="sets to write (all)")
    options = parser.parse_args()
    for name in options.names or SETS:
        source = SETS[name]
        if (options.output / name).exists():
            continue
        with tempfile.TemporaryDirectory() as temporary:
            extract(source, options.clones, Path(temporary))
            folders = [Path(temporary) / folder for folder in source.folders]
            left_out = sum(map(leave_out_missing, folders))
            command = ["meinst", "data", "sample", str(folders[0].parent)]
            command += [str(options.output / name), "--images", str(source.images)]
            subprocess.run(command, check=True)
        if left_out:
            print(f"{name}: {left_out} images have no file")


if __name__ == "__main__":
    main()
