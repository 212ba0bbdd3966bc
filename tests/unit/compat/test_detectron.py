from pathlib import Path

import pytest
import torch
from torch import Tensor

from meinst.compat.detectron import detectron_name, from_detectron, is_backbone
from meinst.compat.errors import ForeignFileError

FILE = Path("R-50.pkl")
BRANCHES = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3), groups: int = 1) -> dict[str, Tensor]:
    """A ResNet by Detectron2's names, built by hand; each tensor repeats its own number."""
    state: dict[str, Tensor] = {}

    def add(layer: str, outputs: int, inputs: int, kernel: int) -> None:
        shapes = {"weight": (outputs, inputs, kernel, kernel)}
        shapes |= dict.fromkeys(
            [f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")],
            (outputs,),
        )
        for part, shape in shapes.items():
            state[f"{layer}.{part}"] = torch.tensor(float(len(state))).expand(shape)

    add("stem.conv1", 64, 3, 7)
    inputs = 64
    for stage, count in enumerate(blocks):
        width, outputs = 64 * 2**stage * (4 if groups > 1 else 1), 256 * 2**stage
        for block in range(count):
            layer = f"res{stage + 2}.{block}"
            if block == 0:
                add(f"{layer}.shortcut", outputs, inputs, 1)
            add(f"{layer}.conv1", width, inputs, 1)
            add(f"{layer}.conv2", width, width // groups, 3)
            add(f"{layer}.conv3", outputs, width, 1)
            inputs = outputs
    return state


def as_caffe2(state: dict[str, Tensor], *, fused: bool) -> dict[str, Tensor]:
    """The same tensors by Caffe2's names, with or without the norms' statistics."""
    parts = {"weight": "s", "bias": "b"} if fused else {"weight": "gamma", "bias": "beta"}
    renamed = {}
    for key, tensor in state.items():
        if fused and "running" in key:
            continue
        layer, _, part = key.partition(".norm.")
        if not part:
            layer = layer.removesuffix(".weight")
        if layer == "stem.conv1":
            name = "res_conv1" if part else "conv1"
        else:
            stage, block, conv = layer.split(".")
            name = f"{stage}_{block}_branch{BRANCHES[conv]}"
        renamed[f"{name}_bn_{parts.get(part, part)}" if part else f"{name}_w"] = tensor
    return renamed


def test_translates_names() -> None:
    expected = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer1.0.downsample.1.bias": "res2.0.shortcut.norm.bias",
        "layer3.22.conv2.weight": "res4.22.conv2.weight",
        "layer4.2.bn3.running_mean": "res5.2.conv3.norm.running_mean",
        "fc.weight": None,
        "layer1.0.conv1.bias": None,
    }
    assert {name: detectron_name(name) for name in expected} == expected


def test_every_tensor_gets_its_name() -> None:
    state = resnet()
    assert len(state) == 265
    network, tensors = from_detectron(state, FILE)
    assert network == "resnet50"
    assert len(tensors) == 265
    assert torch.equal(tensors["layer2.3.conv2.weight"], state["res3.3.conv2.weight"])
    assert torch.equal(tensors["layer1.0.downsample.1.bias"], state["res2.0.shortcut.norm.bias"])
    assert len({float(tensor.flatten()[0]) for tensor in tensors.values()}) == 265
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def test_both_naming_schemes_give_the_same_tensors() -> None:
    state = resnet()
    renamed = as_caffe2(state, fused=False)
    assert {"conv1_w", "res_conv1_bn_gamma", "res2_0_branch1_w", "res5_2_branch2c_bn_beta"} <= set(
        renamed
    )
    assert is_backbone(state)
    assert is_backbone(renamed)
    for extra in (
        # Further content of the published R-50.pkl, of Detectron's and of torchvision's files.
        {"fc1000_w": torch.zeros(1), "fc1000_b": torch.zeros(1), "conv1_b": torch.zeros(64)},
        {"res2_0_branch2a_b": torch.zeros(64), "res2_0_branch2a_w_momentum": torch.zeros(1)},
        {"stem.fc.weight": torch.zeros(1), "stem.conv1.norm.num_batches_tracked": torch.zeros(1)},
    ):
        network, tensors = from_detectron({**renamed, **extra}, FILE)
        assert network == "resnet50"
        for name, tensor in from_detectron(state, FILE)[1].items():
            assert torch.equal(tensors[name], tensor), name


def test_fused_norms_only_scale_and_shift() -> None:
    state = resnet()
    _, tensors = from_detectron(as_caffe2(state, fused=True), FILE)
    norm = torch.nn.BatchNorm2d(64).eval()
    norm.load_state_dict(
        {part: tensors[f"layer1.1.bn2.{part}"] for part in ("weight", "bias")}
        | {part: tensors[f"layer1.1.bn2.{part}"] for part in ("running_mean", "running_var")},
        strict=False,
    )
    x = torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    scale, shift = (state[f"res2.1.conv2.norm.{part}"][0] for part in ("weight", "bias"))
    torch.testing.assert_close(norm(x), x * scale + shift, rtol=1e-6, atol=1e-5)


def test_recognises_other_networks() -> None:
    assert from_detectron(resnet((3, 4, 23, 3)), FILE)[0] == "resnet101"
    assert from_detectron(resnet((3, 4, 23, 3), groups=32), FILE)[0] == "resnext101_32x8d"
    with pytest.raises(ForeignFileError, match=r"R-50\.pkl: .+2, 2, 2, 2 blocks"):
        from_detectron(resnet((2, 2, 2, 2)), FILE)


def test_mismatches_are_named() -> None:
    state = resnet()
    del state["res4.5.conv1.weight"]
    state["res3.0.conv1.norm.bias"] = torch.zeros(7)
    state["res3.0.conv1.wings"] = torch.zeros(1)
    state["res2.0.conv1.norm.weight"] = torch.zeros(64, dtype=torch.int64)
    with pytest.raises(ForeignFileError, match=r"R-50\.pkl: 4 tensors .+resnet50") as caught:
        from_detectron(state, FILE)
    for part in (
        "res4.5.conv1.weight is missing",
        "res3.0.conv1.norm.bias has the shape (7,) instead of (128,)",
        "res3.0.conv1.wings is unknown",
        "res2.0.conv1.norm.weight has the type torch.int64",
    ):
        assert part in str(caught.value)


def test_rejects_incomplete_statistics() -> None:
    state = resnet()
    del state["res2.1.conv1.norm.running_var"]
    with pytest.raises(ForeignFileError, match=r"1 tensors .+conv1\.norm\.running_var is missing"):
        from_detectron(state, FILE)


def test_input_is_not_changed() -> None:
    state = as_caffe2(resnet(), fused=True)
    keys = list(state)
    from_detectron(state, FILE)
    assert list(state) == keys
