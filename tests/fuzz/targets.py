"""What reads the files of a fuzzing target; runs in the worker."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzz.edits import apply_bytes
from fuzz.specs import damaged_safetensors


def run_annotations(path: Path, bases: Path) -> None:
    """Read annotations, fit and evaluate a codec on them, and compute AP of their own masks."""
    from meinst import coco_metrics, fit_codec, read_coco
    from meinst.codec_tools.evaluate import evaluate_codec
    from meinst.codecs import load_codec
    from meinst.codecs.options import CodecOptions
    from meinst.data.ground_truth import ground_truth

    data = read_coco(path)
    str(data.report)
    read_coco(path, bases / "data" / "images", crowd_as_instances=True)
    fit_codec(path, CodecOptions("dct", n_components=4, mask_size=8))
    evaluate_codec(load_codec(bases / "dct.npz"), data)
    coco_metrics(ground_truth(data), [])


def run_pictures(path: Path, bases: Path) -> None:
    """Read a picture and its header, and predict on it."""
    from meinst.data.images import check_header, read_image

    if path.stat().st_size % 3 == 0:
        _read_frames(path)
    picture = read_image(path)
    pixels = picture.pixels
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    check_header(path, (pixels.shape[1], pixels.shape[0]))
    if pixels.size < 10_000_000 and max(pixels.shape) < 4000:  # few windows
        _use_model(_model(bases / "model.safetensors"), pixels)


def _read_frames(path: Path) -> None:
    """Read a channel and the first frames of a picture."""
    from meinst import InputOptions
    from meinst.data.channels import read_channels
    from meinst.data.frames import PictureReader
    from meinst.data.images import ImageError
    from meinst.images.frames import FrameChoice, expand_frames

    with closing(PictureReader(InputOptions(channels=(0,)), lambda *_: True)) as reader:
        for source in islice(expand_frames([path], FrameChoice()), 3):
            reader.read(source)
            with suppress(ImageError):  # of kinds that only Pillow reads
                read_channels(source)


def run_videos(path: Path, bases: Path) -> None:  # noqa: ARG001
    """Decode the first frames of a video."""
    from meinst.images.video import FrameRange, VideoReader

    with VideoReader(path) as video:
        for frame in islice(video.read(FrameRange(every=2)), 20):
            assert frame.pixels.dtype == np.uint8
            assert frame.pixels.shape[2] == 3


def run_parquet(path: Path, bases: Path) -> None:  # noqa: ARG001
    """Read stored detections and convert them."""
    from meinst import Detections

    with Detections.from_parquet(path) as stored:
        for number in islice(stored, 20):
            stored.file(number)
            stored[number].to_coco(number)


def run_models(path: Path, bases: Path) -> None:
    """Load a model file and predict with it, or a recipe and build its network."""
    import meinst
    from meinst.models.checkpoint import build_model, read_info
    from meinst.models.recipe import load_recipe

    if path.suffix == ".yaml":
        recipe = load_recipe(path)
        from meinst.codecs.registry import codec_from_options

        try:
            with torch.device("meta"):
                build_model(("a", "b"), recipe, codec_from_options(recipe.codec, ("a", "b")))
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        return
    _apply_spec(path, bases)
    read_info(path)
    _use_model(meinst.load(path), np.zeros((40, 56, 3), np.uint8))


def run_codecs(path: Path, bases: Path) -> None:  # noqa: ARG001
    """Load a codec and use it, or moments."""
    from meinst.codec_tools.report.sheet import describe
    from meinst.codecs import load_codec, load_moments

    if path.name.startswith("moments"):
        moments = load_moments(path)
        moments.pooled()
        return
    codec = load_codec(path)
    masks = torch.zeros(2, codec.mask_size, codec.mask_size)
    labels = torch.zeros(2, dtype=torch.int64)
    codec.inverse_transform(codec.transform(masks, labels=labels), labels)
    describe(codec)
    codec.get_config()


def run_weights(path: Path, bases: Path) -> None:
    """Convert foreign weights, or load a file of backbone weights."""
    from meinst.compat.convert import convert
    from meinst.compat.errors import ForeignFileError
    from meinst.compat.sources import read_weights
    from meinst.detector.backbone import Backbone
    from meinst.models.backbone_file import load_backbone

    if path.name.startswith("backbone"):
        _apply_spec(path, bases)
        load_backbone(Backbone("test_efficientnet", (2, 3, 4)), "test_efficientnet", path)
        return
    read_weights(path)
    try:
        convert(str(path), path.with_name("converted.safetensors"))
    except ForeignFileError as error:  # no base is large enough to be a whole network
        if path.name not in str(error) or not str(error).isprintable():
            raise


def run_exports(path: Path, bases: Path) -> None:
    """Load an export of which one file is damaged."""
    import meinst

    spec = json.loads(path.read_text())
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        export = Path(folder) / path.name
        shutil.copytree(bases / "exports" / spec["engine"], export)
        damaged = export / spec["file"]
        if spec["file"].endswith(".safetensors"):
            damaged.write_bytes(damaged_safetensors(damaged.read_bytes(), spec))
        else:
            damaged.write_bytes(apply_bytes(damaged.read_bytes(), spec["bytes"]))
        _use_model(meinst.load(export), np.zeros((40, 56, 3), np.uint8))


def run_detections(path: Path, bases: Path) -> None:  # noqa: ARG001
    """Build detections by hand and call every method."""
    import pickle

    from meinst import Detections, PCACodec

    spec = json.loads(path.read_text())
    count = spec["components"]
    codec = PCACodec(count, 8)
    for name, buffer in codec.named_buffers():
        buffer.copy_(torch.linspace(-1, 1, buffer.numel()).reshape(buffer.shape))
        if name.startswith("explained"):
            buffer.abs_().add_(0.1)
    codec.load_state_dict(codec.state_dict())
    tensor: dict[str, Any] = {
        key: torch.tensor(spec[key], dtype=getattr(torch, spec["dtypes"].get(key, kind)))
        for key, kind in (("scores", "float32"), ("labels", "int64"))
    }
    for key, columns in (("boxes", 4), ("codes", count)):
        kind = getattr(torch, spec["dtypes"].get(key, "float32"))
        tensor[key] = torch.tensor(spec[key], dtype=kind).reshape(-1, spec["columns"] or columns)
    names, size = tuple(spec["class_names"]), tuple(spec["image_size"])
    found = Detections(**tensor, image_size=size, codec=codec, class_names=names)
    repr(found)
    found.rle()
    found.polygons()
    found.to_coco(1)
    json.dumps(found.to_coco(2, soft_masks=found.soft_masks()))
    pixels = size[0] * size[1]
    if pixels * (len(found) + 3) < 2**26:
        found.masks()
        canvas = np.zeros((*size, 3), np.uint8)
        for alpha in (0, 0.4):
            found.draw(canvas, alpha=alpha, boxes=True, captions=True)
        found.to_supervision()
    for part in (found[::-1], found[:0], found[[]], *found):
        assert repr(part) == repr(pickle.loads(pickle.dumps(part)))


def run_datasets(path: Path, bases: Path) -> None:
    """Open, read and check a data set of which one file is damaged."""
    from meinst import open_dataset
    from meinst.data_tools.inspect import inspect_dataset

    spec = json.loads(path.read_text())
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        root = Path(folder) / path.name
        shutil.copytree(bases / "layouts" / spec["layout"], root)
        damaged = root / spec["file"]
        if "name" in spec:
            damaged.rename(damaged.with_name(spec["name"]))
        elif spec["content"] is None:
            damaged.unlink()
        else:
            damaged.write_bytes(bytes.fromhex(spec["content"]))
        dataset = open_dataset(root)
        parts = {name: dataset.read(name) for name in dataset.parts}
        str([part.report for part in parts.values()])
        inspect_dataset(parts)


def run_self_test(path: Path, bases: Path) -> None:  # noqa: ARG001
    """Run Python code, to test the worker itself."""
    exec(path.read_text(), {"path": path})  # the tests' own code


RUN: dict[str, Callable[[Path, Path], None]] = {
    "annotations": run_annotations,
    "pictures": run_pictures,
    "models": run_models,
    "codecs": run_codecs,
    "weights": run_weights,
    "exports": run_exports,
    "detections": run_detections,
    "datasets": run_datasets,
    "videos": run_videos,
    "parquet": run_parquet,
    "self_test": run_self_test,
}

_models: dict[Path, Any] = {}


def _model(path: Path) -> Any:
    import meinst

    if path not in _models:
        _models[path] = meinst.load(path)
    return _models[path]


def _use_model(model: Any, pixels: Any) -> None:
    found = model.predict(pixels)
    repr(found)
    found[:5].to_coco(1)
    if found.image_size == pixels.shape[:2]:
        found[:5].draw(pixels)


def _apply_spec(path: Path, bases: Path) -> None:
    """Replace a description of edits by the file that they give."""
    spec = json.loads(path.read_text())
    path.write_bytes(damaged_safetensors((bases / spec["base"]).read_bytes(), spec))


def warm_up(target: str, bases: Path) -> None:
    """Import, compile and allocate whatever a target needs, before memory is limited."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for of, name, content in valid_cases(bases):
            if of == target:
                path = Path(folder) / name
                path.write_bytes(content)
                RUN[target](path, bases)


def valid_cases(bases: Path) -> list[tuple[str, str, bytes]]:
    """A case of each kind that must be accepted: target, name and content."""
    cases = [("annotations", "a.json", (bases / "data/annotations.json").read_bytes())]
    cases += [("pictures", p.name, p.read_bytes()) for p in sorted((bases / "pictures").iterdir())]
    cases += [("videos", p.name, p.read_bytes()) for p in sorted((bases / "videos").glob("*"))]
    cases += [("parquet", p.name, p.read_bytes()) for p in bases.glob("*.parquet")]
    cases += [("codecs", p.name, p.read_bytes()) for p in sorted(bases.glob("*.npz"))]
    for pattern in ("*.pth", "*.pkl"):
        cases += [("weights", p.name, p.read_bytes()) for p in sorted(bases.glob(pattern))]
    empty = {"metadata": {}, "tensors": [], "bytes": []}
    for target, name in (("models", "model.safetensors"), ("weights", "backbone.safetensors")):
        cases.append((target, name, json.dumps({"base": name} | empty).encode()))
    cases.append(("models", "recipe.yaml", (bases / "recipe.json").read_bytes()))
    for path in sorted((bases / "exports").glob("*/meinst.safetensors")):
        spec = {"engine": path.parent.name, "file": path.name} | empty
        cases.append(("exports", "export.json", json.dumps(spec).encode()))
    for layout in sorted((bases / "layouts").iterdir()):
        file = next(path for path in sorted(layout.rglob("*")) if path.is_file())
        spec = {"layout": layout.name, "file": str(file.relative_to(layout))}
        spec["content"] = file.read_bytes().hex()
        cases.append(("datasets", f"{layout.name}.json", json.dumps(spec).encode()))
    spec = {"scores": [0.5], "labels": [0], "boxes": [[1, 2, 9, 12]], "codes": [[0.1, -2, 3]]}
    spec |= {"components": 3, "class_names": ["a"], "image_size": [20, 30], "dtypes": {}}
    cases.append(("detections", "d.json", json.dumps(spec | {"columns": None}).encode()))
    return cases
