"""A detector works with any codec: losses, training, detections, model files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SyntheticData, make_tiny_model
from synthetic_masks import SmallAutoencoder
from torch import Tensor

from meinst.cli.main import main
from meinst.codecs import AutoencoderCodec, Codec, DCTCodec, GridCodec, PCACodec
from meinst.codecs.registry import CODECS
from meinst.data.coco import CocoData, read_coco
from meinst.detections import Detections
from meinst.detector.losses import LossOptions, compute_losses
from meinst.detector.meinst import MEInst
from meinst.models.checkpoint import load_model, save_model
from meinst.models.model_file import ModelFileError
from meinst.models.recipe import load_recipe
from meinst.training.options import TrainOptions
from meinst.types import Target

NAMES = ("disc", "box", "star")
SIDE = 14
ALL = LossOptions(pixel_weight=1.0, dice_weight=1.0)

KINDS: dict[str, Callable[[], Codec]] = {
    "pca": lambda: PCACodec(4, SIDE),
    "classes": lambda: PCACodec(4, SIDE, class_names=NAMES, shrinkage=20),
    "classes, zeros and ones": lambda: PCACodec(
        4, SIDE, sigmoid=False, whiten=False, class_names=NAMES, shrinkage=20
    ),
    "dct": lambda: DCTCodec(4, SIDE),
    "dct, whitened": lambda: DCTCodec(4, SIDE, whiten=True),
    "grid": lambda: GridCodec(4, SIDE),
    "autoencoder": lambda: AutoencoderCodec(4, SIDE, hidden=6, iterations=5),
}


def synthetic_masks(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ellipses, wide ones of class 0, tall ones of class 1, and a few round ones of class 2."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=(0.5, 0.4, 0.1))
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    masks = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    for mask, label in zip(masks, labels, strict=True):
        cx, cy = rng.uniform(5, 9, 2)
        rx, ry = rng.uniform(3, 6, 2) * ((1.2, 0.5), (0.5, 1.2), (0.8, 0.8))[label]
        mask[:] = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    return torch.from_numpy(masks), torch.from_numpy(labels)


def fitted(kind: str) -> Codec:
    codec = KINDS[kind]()
    return codec.fit(*synthetic_masks())


def detector(codec: Codec) -> MEInst:
    """The tiny random model with another codec and three classes."""
    plain = make_tiny_model(NAMES)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = MEInst(NAMES, codec, plain.options, plain.resize_options, plain.selection)
    torch.set_rng_state(state)
    weights = plain.state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith(("codec.", "head.codes.")):
            tensor.copy_(weights[name])
    with torch.no_grad():
        model.head.codes.weight.mul_(40)
    return model.eval()


def image_and_target() -> tuple[Tensor, Target]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 96, 96), generator=generator, dtype=torch.uint8)
    masks, labels = synthetic_masks(3, seed=5)
    boxes = torch.tensor([[4.0, 4, 40, 44], [50, 10, 90, 30], [20, 50, 70, 90]])
    return image, Target(boxes, labels, masks)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_train_the_detector_but_not_the_codec(kind: str) -> None:
    model = detector(fitted(kind)).train()
    before = {name: tensor.clone() for name, tensor in model.codec.state_dict().items()}
    image, target = image_and_target()
    outputs = model([image, image])
    losses = compute_losses(
        outputs, [target, target], model.codec, model.options.distance_limits, ALL
    )
    assert set(losses) == {"class", "box", "centerness", "code", "pixel", "dice"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    for name in ("code", "pixel", "dice"):
        weight = model.head.codes.weight
        (gradient,) = torch.autograd.grad(losses[name], [weight], retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.any(), name
    sum(losses.values()).backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None, name
    for name, tensor in model.codec.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_the_targets_have_no_loss(kind: str) -> None:
    # Every positive point predicts exactly the code of its instance.
    from meinst.detector.assign import assign_points
    from meinst.detector.losses import level_ranges

    codec, (image, target) = fitted(kind), image_and_target()
    model = detector(codec)
    outputs = model([image])
    limits = model.options.distance_limits
    ranges = level_ranges(outputs.strides, outputs.level_sizes, limits)
    index = assign_points(outputs.points, outputs.strides, ranges, target.boxes, ALL.center_radius)
    assert set(index[index >= 0].tolist()) == {0, 1, 2}
    codes = codec.transform(target.masks, labels=target.labels)
    perfect = replace(outputs, codes=torch.where((index >= 0)[:, None], codes[index], 0.0)[None])

    def losses(labels: Tensor) -> dict[str, Tensor]:
        return compute_losses(perfect, [replace(target, labels=labels)], codec, limits, ALL)

    assert losses(target.labels)["code"] < 1e-6
    other = losses((target.labels + 1) % 3)
    if codec.class_names is None:
        assert other["code"] < 1e-6
    else:
        assert other["code"] > 1e-3
        assert other["pixel"] > losses(target.labels)["pixel"]


@pytest.mark.parametrize("kind", KINDS)
def test_model_file_contains_the_codec(kind: str, tmp_path: Path) -> None:
    model = detector(fitted(kind))
    path = save_model(model, tmp_path / "model.safetensors", half=True)
    loaded = load_model(path)
    assert type(loaded.codec) is type(model.codec)
    assert loaded.codec.fitted
    assert loaded.codec.class_names == model.codec.class_names
    assert loaded.codec.get_config() == model.codec.get_config()
    for name, tensor in model.codec.state_dict().items():
        assert torch.equal(loaded.codec.state_dict()[name], tensor)
    # The codec stays in float32: codes in half precision would differ.
    masks, labels = synthetic_masks(9, seed=2)
    codes = model.codec.transform(masks, labels=labels)
    assert torch.equal(loaded.codec.transform(masks, labels=labels), codes)
    whole = load_model(save_model(model, tmp_path / "whole.safetensors"))
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    outputs, reference = model.predict(image), whole.predict(image)
    assert len(outputs) > 5
    assert outputs.to_coco(1) == reference.to_coco(1)
    assert outputs.polygons() == reference.polygons()


def test_rejects_model_files_of_impossible_codecs(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = save_model(detector(fitted("pca")), tmp_path / "model.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for config, message in (
        ('{"kind": "wavelet"}', "got 'wavelet'"),
        ('{"kind": "pca"}', "'pca'"),
    ):
        save_file(tensors, path, metadata | {"codec": config})
        with pytest.raises(ModelFileError, match=message) as caught:
            load_model(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_detections_decode_by_their_labels(kind: str) -> None:
    codec, (masks, labels) = fitted(kind), synthetic_masks(12, seed=3)
    codes = codec.transform(masks, labels=labels)
    corners = torch.arange(12.0)[:, None] * torch.tensor([[20.0, 0]])
    found = Detections(
        boxes=torch.cat((corners, corners + SIDE), dim=1),
        scores=torch.linspace(1, 0.5, 12),
        labels=labels,
        codes=codes,
        image_size=(30, 260),
        codec=codec,
        class_names=NAMES,
    )
    expected = codec.inverse_transform(codes, labels)
    assert torch.equal(found.soft_masks(), expected)
    # The boxes have the size of the mask, so that each pixel is one value.
    whole = found.masks()
    for n in range(12):
        crop = whole[n, :SIDE, 20 * n : 20 * n + SIDE]
        assert torch.equal(crop, expected[n] >= 0.5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert found[order].rle() == [found.rle()[n] for n in order.tolist()]
    assert len(found[:0].polygons()) == 0


def test_rejects_detections_of_other_classes_than_the_codec() -> None:
    with pytest.raises(ValueError, match=r"use codec\.for_classes\(class_names\)"):
        Detections(
            boxes=torch.zeros(0, 4),
            scores=torch.zeros(0),
            labels=torch.zeros(0, dtype=torch.int64),
            codes=torch.zeros(0, 4),
            image_size=(30, 30),
            codec=fitted("classes"),
            class_names=NAMES[::-1],
        )


# Training

RECIPE = """\
model:
  backbone: test_efficientnet
  strides: [8, 16, 32]
  distance_limits: [32, 64]
  channels: 16
  head: {{num_convs: 1, norm_groups: 4}}
codec: {{mask_size: 14, {codec}}}
resize: {{shorter_side: 64, longer_side: 96}}
loss: {{pixel_weight: 1.0, dice_weight: 1.0}}
optimizer: {{lr: 0.01, frozen_stages: 1, ema_decay: 0.9}}
schedule: {{iterations: 8, warmup_iterations: 2, validate_every: 8}}
batch_size: 2
"""

WARNINGS = [
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*treespec, LeafSpec",
    "ignore:.*GPU available but not used",
]


def trained(
    data: SyntheticData, output: Path, codec: str, file: Path | None = None
) -> tuple[MEInst, CocoData]:
    pytest.importorskip("lightning")
    from meinst.training.train import train

    output.mkdir()
    recipe = output.parent / f"{output.name}.yaml"
    recipe.write_text(RECIPE.format(codec=codec))
    options = TrainOptions(
        train_images=data.images,
        train_annotations=data.annotations,
        val_images=data.images,
        val_annotations=data.annotations,
        output=output,
        recipe=load_recipe(str(recipe)),
        codec=file,
        random_backbone=True,
        accelerator="cpu",
        precision="32-true",
        workers=0,
        report=False,
    )
    return load_model(train(options)), read_coco(data.annotations, data.images)


@pytest.mark.filterwarnings(*WARNINGS)
@pytest.mark.filterwarnings("ignore:1 of 3 classes have no masks")
@pytest.mark.parametrize(
    "codec",
    [
        "kind: pca, n_components: 2, per_class: true, shrinkage: 5",
        "kind: dct, n_components: 9",
        "kind: dct, n_components: 9, whiten: false, sigmoid: false",
        "kind: grid, n_components: 9",
        "kind: autoencoder, n_components: 2",
    ],
)
def test_training_with_any_codec(
    codec: str, synthetic_data: SyntheticData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODECS, "autoencoder", SmallAutoencoder)
    model, data = trained(synthetic_data, tmp_path / "run", codec)
    config = model.codec.get_config()
    assert config["kind"] == codec.split(",")[0].removeprefix("kind: ")
    assert model.codec.class_names == (NAMES if "per_class" in codec else None)
    found = model.predict(data.images[4].path, score_threshold=0.0)
    assert len(found) > 0
    assert found.soft_masks().isfinite().all()
    assert len(found.rle()) == len(found)


@pytest.mark.filterwarnings(*WARNINGS)
def test_training_with_a_codec_file_of_classes_in_another_order(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    masks, labels = synthetic_masks()
    file = tmp_path / "classes.npz"
    reordered = PCACodec(4, SIDE, class_names=("star", "extra", "box", "disc"))
    with pytest.warns(UserWarning, match="1 of 4 classes"):
        reordered.fit(masks, torch.tensor([3, 2, 0])[labels]).save(file)
    model, _ = trained(synthetic_data, tmp_path / "run", "n_components: 4", file)
    assert model.codec.class_names == model.class_names == NAMES
    expected = reordered.transform(masks, labels=torch.tensor([3, 2, 0])[labels])
    assert torch.equal(model.codec.transform(masks, labels=labels), expected)


def test_training_with_a_codec_file_that_lacks_a_class(
    synthetic_data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    masks, labels = synthetic_masks()
    file = tmp_path / "classes.npz"
    PCACodec(4, SIDE, class_names=("disc", "box", "moon")).fit(masks, labels).save(file)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(codec="n_components: 4"))
    options = [
        *(
            "--train-images",
            synthetic_data.images,
            "--train-annotations",
            synthetic_data.annotations,
        ),
        *("--val-images", synthetic_data.images, "--val-annotations", synthetic_data.annotations),
        *("--output", tmp_path / "run", "--recipe", recipe, "--codec", file),
        *("--random-backbone", "--accelerator", "cpu", "--workers", 0),
    ]
    assert main(["train", *map(str, options)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "star" in error
