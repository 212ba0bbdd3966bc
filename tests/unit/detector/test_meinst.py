import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from PIL import Image

from meinst.detector.backbone import Backbone
from meinst.detector.head import HeadOptions
from meinst.detector.meinst import MEInst
from meinst.detector.predictor import ModelOptions


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_no_images_give_no_results(tiny_model: MEInst) -> None:
    assert tiny_model.predict([]) == []


def test_batch_of_mixed_sizes_equals_single_images(tiny_model: MEInst) -> None:
    images = [picture(60, 90), picture(64, 64, 1), picture(90, 60, 2), picture(66, 95, 3)]
    together = tiny_model.predict(images)
    assert len(together) == 4
    for image, found in zip(images, together, strict=True):
        alone = tiny_model.predict(image)
        assert len(alone) > 0
        assert found.image_size == image.shape[:2]
        torch.testing.assert_close(found.boxes, alone.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=0)
        assert torch.equal(found.labels, alone.labels)


def test_paths_pil_images_and_arrays_give_the_same(tiny_model: MEInst, tmp_path) -> None:
    array = picture(70, 80)
    path = tmp_path / "picture.png"
    Image.fromarray(array).save(path)
    expected = tiny_model.predict(array).boxes
    for given in (path, str(path), Image.fromarray(array)):
        assert torch.equal(tiny_model.predict(given).boxes, expected)


def test_predict_overrides_threshold_and_limit(tiny_model: MEInst) -> None:
    found = tiny_model.predict(picture(80, 80), score_threshold=0.0)
    limit = found.scores[len(found) // 2].item()
    above = tiny_model.predict(picture(80, 80), score_threshold=limit)
    assert len(above) == (found.scores >= limit).sum()
    assert len(tiny_model.predict(picture(80, 80), score_threshold=0.0, max_detections=3)) == 3
    with pytest.raises(ValueError, match=r"score_threshold .+got 2"):
        tiny_model.predict(picture(80, 80), score_threshold=2)


def test_prepare_normalises_and_pads_right_and_bottom(tiny_model: MEInst) -> None:
    image = torch.full((3, 33, 20), 255, dtype=torch.uint8)
    pixels = tiny_model.prepare([image, image[:, :10]])
    assert pixels.shape == (2, 3, 64, 32)
    assert pixels[0, 0, 32, 19].item() == 1.0  # (255 - 127) / 128
    assert pixels[0, :, 33:].abs().sum() == 0
    assert pixels[0, :, :, 20:].abs().sum() == 0
    assert pixels[1, :, 10:].abs().sum() == 0


def test_bgr_networks_get_reversed_channels(tiny_model: MEInst) -> None:
    options = ModelOptions(
        backbone="test_efficientnet",
        strides=(8, 16, 32),
        distance_limits=(32, 64),
        channels=16,
        head=HeadOptions(num_convs=1, norm_groups=4),
        channel_order="bgr",
        pixel_mean=(1.0, 2.0, 3.0),
        pixel_std=(1.0, 1.0, 1.0),
    )
    model = MEInst(("a",), tiny_model.codec, options)
    image = torch.tensor([11, 22, 33], dtype=torch.uint8).view(3, 1, 1)
    assert model.prepare([image])[0, :, 0, 0].tolist() == [30, 20, 10]


def test_results_can_be_changed_in_place(tiny_model: MEInst) -> None:
    found = tiny_model.predict(picture(80, 80))
    before = found.boxes.clone()
    found.boxes.mul_(2)
    assert torch.equal(found.boxes, before * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distance_limits": (64,)}, "distance_limits must .+ got 1 for 5 strides"),
        ({"strides": (8, 16, 32, 48, 100)}, "strides must double"),
        ({"distance_limits": (64, 32, 256, 512)}, "distance_limits must be positive"),
        ({"channels": 100}, "channels = 100 .+norm_groups = 32"),
    ],
)
def test_rejects_sizes_that_do_not_fit_together(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelOptions(**changes)


def test_strides_must_match_the_backbone(tiny_model: MEInst) -> None:
    options = ModelOptions(backbone="test_efficientnet", strides=(4, 8, 16, 32, 64))
    with pytest.raises(ValueError, match=r"strides .* got \(4, 8, 16, 32, 64\)"):
        MEInst(("a",), tiny_model.codec, options)
    with pytest.raises(ValueError, match="class_names must contain"):
        MEInst((), tiny_model.codec)


def test_strides_move_to_the_first_conv_of_a_stage() -> None:
    backbone = Backbone("resnet50", (2, 3, 4), stride_in_1x1=True, frozen_norm=True)
    block = backbone.net.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert backbone.net.layer2[1].conv1.stride == (1, 1)
    assert not backbone.net.layer4[2].bn3.weight.requires_grad
    with pytest.raises(ValueError, match=r"stride_in_1x1 .+resnet18"):
        Backbone("resnet18", (2, 3, 4), stride_in_1x1=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"deformable": "last"},
        {"deformable": "all", "modulated": True},
        {"num_shared_convs": 1, "norm_groups": 0},
    ],
)
def test_variants_of_the_head_predict_and_train(tiny_model: MEInst, changes: dict) -> None:
    torch.manual_seed(0)
    options = ModelOptions(
        backbone="test_efficientnet",
        strides=(8, 16, 32),
        distance_limits=(32, 64),
        channels=16,
        head=HeadOptions(**{"num_convs": 2, "norm_groups": 4, **changes}),
    )
    model = MEInst(("a", "b"), tiny_model.codec, options)
    outputs = model([torch.from_numpy(picture(64, 64)).permute(2, 0, 1)])
    point = torch.arange(64 + 16 + 4)
    codes = outputs.codes[torch.zeros_like(point), point]
    assert codes.shape == (84, 8)
    total = outputs.logits.sum() + outputs.boxes.sum() + codes.square().sum()
    (total + outputs.centerness.sum()).backward()
    missing = [n for n, p in model.head.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prediction_in_another_precision_is_refused(dtype: torch.dtype) -> None:
    model = make_tiny_model().to(dtype)
    with pytest.raises(ValueError, match=rf"float32, got {dtype}"):
        model.predict(np.zeros((40, 50, 3), dtype=np.uint8))
    assert len(model.float().predict(np.zeros((40, 50, 3), dtype=np.uint8))) > 0
