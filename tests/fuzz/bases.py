"""Write the valid files that the strategies damage: ``python -m fuzz.bases FOLDER``."""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)
"""Height and width of the pictures."""

_FORMATS = ("png", "jpg", "tif", "gif", "webp", "bmp", "ppm", "jp2", "tga", "ico")


def write_bases(folder: Path) -> None:
    """Fill a folder with a valid file of each kind; a format without an encoder is left out."""
    from conftest import make_synthetic_data

    (folder / "pictures").mkdir(parents=True)
    make_synthetic_data(folder / "data")
    _write_pictures(folder / "pictures")
    _write_codecs(folder)
    _write_models(folder)
    _write_weights(folder)
    _write_layouts(folder / "layouts")
    _write_videos(folder / "videos")
    _write_parquet(folder / "detections.parquet")


def _write_layouts(folder: Path) -> None:
    from layouts import ONE_CLASS, TWO_CLASSES

    for name, (_, write) in (TWO_CLASSES | ONE_CLASS).items():
        write(folder / name)


def _write_videos(folder: Path) -> None:
    try:
        from videos import write_video

        folder.mkdir()
        for suffix in ("mp4", "mkv", "avi", "mov"):
            write_video(folder / f"a.{suffix}", 6, sound=suffix != "avi")
    except ImportError as error:
        print("no videos:", error)


def _write_parquet(path: Path) -> None:
    import torch

    from meinst import Detections
    from meinst.codecs import DCTCodec
    from meinst.parquet import make_batch, make_schema, write_parquet

    codec, random = DCTCodec(4, 8), np.random.default_rng(3)
    corners = torch.tensor(random.uniform(0, 40, (3, 2)), dtype=torch.float32)
    found = Detections(
        boxes=torch.cat((corners, corners + 9), dim=1),
        scores=torch.tensor([0.9, 0.5, 0.25]),
        labels=torch.tensor([0, 1, 0]),
        codes=torch.tensor(random.normal(size=(3, 4)), dtype=torch.float32),
        image_size=(48, 64),
        codec=codec,
        class_names=("a", "b"),
    )
    try:
        schema = make_schema(codec, ("a", "b"))
    except ImportError as error:
        print("no Parquet files:", error)
        return
    batches = [make_batch(schema, part, n, f"{n}.png") for n, part in enumerate((found, found[:0]))]
    write_parquet(path, schema, batches)


def _write_pictures(folder: Path) -> None:
    import imagecodecs
    import tifffile

    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    deep = rng.integers(0, 65536, (*SIZE, 3)).astype(np.uint16)
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[274] = 6
    for suffix in _FORMATS:
        image.save(folder / f"rgb.{suffix}", **({"exif": exif} if suffix == "jpg" else {}))
    image.save(folder / "progressive.jpg", progressive=True)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("L").save(folder / "grey.png", pnginfo=None)
    image.convert("1").save(folder / "bits.tif", compression="group4")
    image.convert("L").save(folder / "frames.gif", save_all=True, append_images=[image] * 2)
    (folder / "deep.png").write_bytes(imagecodecs.png_encode(deep))
    (folder / "deep.jp2").write_bytes(imagecodecs.jpeg2k_encode(deep, level=0))
    (folder / "deep.ppm").write_bytes(b"P6 32 24 65535\n" + deep.astype(">u2").tobytes())
    (folder / "grey.pgm").write_bytes(b"P5 32 24 65535\n" + deep[..., 0].astype(">u2").tobytes())
    for name, options in {
        "deep": {"photometric": "rgb"},
        "zip": {"photometric": "rgb", "compression": "zlib", "predictor": True},
        "lzw": {"photometric": "rgb", "compression": "lzw", "tile": (16, 16)},
        "big": {"photometric": "rgb", "bigtiff": True},
        "planes": {"photometric": "rgb", "planarconfig": "separate"},
    }.items():
        values = deep.transpose(2, 0, 1) if name == "planes" else deep
        tifffile.imwrite(folder / f"{name}.tif", values, **options)
    tifffile.imwrite(folder / "float.tif", deep[..., 0].astype(np.float32))
    planes = {"imagej": "TZCYX", "ome": "CTZYX"}
    for name, axes in planes.items():
        stack = deep[..., :2].transpose(2, 0, 1).reshape(1, 1, 2, *SIZE).repeat(3, axis=1)
        tifffile.imwrite(
            folder / f"{name}.tif",
            stack if name == "imagej" else np.moveaxis(stack, 2, 0),
            metadata={"axes": axes},
            photometric="minisblack",
            **{name: True},
        )
    tifffile.imwrite(folder / "pages.tif", deep[..., 0][None].repeat(3, axis=0), byteorder=">")
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        image.resize((64, 64)).save(folder / "rgb.heic")
    except Exception as error:  # no encoder: any error, depending on the build
        print("no HEIC pictures:", error)


def _write_codecs(folder: Path) -> None:
    import torch
    from conftest import draw_mask

    from meinst.codecs import AutoencoderCodec, DCTCodec, GridCodec, PCACodec
    from meinst.codecs.moments import ClassMoments, Moments

    rng = np.random.default_rng(1)
    discs = [draw_mask("disc", tuple(rng.uniform(2, 6, 3)), 8, 8) for _ in range(60)]
    masks, labels = torch.from_numpy(np.stack(discs)), torch.arange(60) % 2
    PCACodec(6, 8).fit(masks).save(folder / "pca.npz")
    PCACodec(6, 8, class_names=("a", "b")).fit(masks, labels).save(folder / "classes.npz")
    DCTCodec(6, 8).fit(masks).save(folder / "dct.npz")
    GridCodec(9, 8).save(folder / "grid.npz")
    small = AutoencoderCodec(4, 8, hidden=8, iterations=2, batch_size=8)
    small.fit(masks).save(folder / "autoencoder.npz")
    Moments(8).add(masks).save(folder / "moments.npz")
    ClassMoments(8, ("a", "b")).add(masks, labels).save(folder / "moments_by_class.npz")
    with np.load(folder / "pca.npz") as content:
        arrays = {k: content[k] for k in content.files if k not in ("kind", "version", "config")}
    np.savez_compressed(folder / "published.npz", **arrays)


def _write_models(folder: Path) -> None:
    from conftest import make_tiny_model

    from meinst.models.backbone_file import save_backbone
    from meinst.models.checkpoint import save_model
    from meinst.models.recipe import load_recipe
    from meinst.options import options_to_dict

    model = make_tiny_model(refine_channels=8)
    save_model(model, folder / "model.safetensors", half=True, metrics={"segm_AP": 0.5})
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.backbone.net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_backbone(tensors, "test_efficientnet", folder / "backbone.safetensors", "here")
    recipe = options_to_dict(load_recipe("default"))
    (folder / "recipe.json").write_text(json.dumps(recipe))
    for engine, package in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        try:
            __import__(package)
            from meinst.export.export import export_model
        except ImportError:
            continue
        export_model(model, folder / "exports" / engine, engine)  # type: ignore[arg-type]


def _write_weights(folder: Path) -> None:
    import torch

    from meinst.compat.adelaidet import _HEAD

    values = {
        f"{_HEAD}cls_logits.bias": torch.zeros(80),
        f"{_HEAD}mask_pred.weight": torch.zeros(4, 3, 3, 3),
        "stem.conv1.weight": torch.zeros(8, 3, 7, 7, dtype=torch.float16),
    }
    content = {"model": values, "iteration": 7, "__author__": "somebody"}
    torch.save(content, folder / "zip.pth")
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    legacy = (folder / "legacy.pth").read_bytes()
    for number, address in enumerate(sorted(set(re.findall(rb"\d{14,15}", legacy)))):
        legacy = legacy.replace(address, b"%0*d" % (len(address), number))  # the same in every run
    (folder / "legacy.pth").write_bytes(legacy)
    arrays = {"conv1_w": np.zeros((8, 3, 7, 7), np.float32), "res2_0_branch2a_w": np.ones(4, ">f4")}
    for protocol in (0, 2, 4, 5):
        text = pickle.dumps({"blobs": arrays, "__author__": "somebody"}, protocol)
        (folder / f"protocol{protocol}.pkl").write_bytes(text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write_bases(Path(sys.argv[1]))
