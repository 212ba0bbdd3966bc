import pytest
import torch

from meinst.detector.efficientnet_lite import EfficientNetLite0
from meinst.detector.layers import use_depthwise_convs


@pytest.mark.parametrize("levels", [(1, 2, 3, 4), (0, 2)])
@torch.no_grad()
def test_equals_timm_bit_for_bit(levels: tuple[int, ...]) -> None:
    import timm

    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=levels)
    use_depthwise_convs(theirs)
    ours = EfficientNetLite0(levels)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for norm in theirs.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    info = theirs.feature_info
    assert ours.channels == tuple(info.channels())
    assert ours.strides == tuple(info.reduction())
    assert list(ours.stages) == [stage["module"] for stage in info.info]
    pixels = torch.randn(2, 3, 97, 130)  # odd and even sides, padded differently
    for found, expected in zip(ours.eval()(pixels), theirs.eval()(pixels), strict=True):
        assert torch.equal(found, expected)


def test_weights_are_drawn_as_by_timm() -> None:
    import timm

    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True).state_dict()
    for name, tensor in EfficientNetLite0((0, 1, 2, 3, 4)).state_dict().items():
        if "conv" in name and tensor.numel() > 3000:
            torch.testing.assert_close(tensor.std(), theirs[name].std(), rtol=0.1, atol=0)
        elif "conv" not in name:
            assert torch.equal(tensor, theirs[name])


@pytest.mark.parametrize("levels", [(), (2, 1), (1, 1), (3, 5), (-1,)])
def test_levels_are_checked(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ascending numbers between 0 and 4, got \("):
        EfficientNetLite0(levels)
