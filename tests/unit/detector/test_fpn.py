import pytest
import torch

from meinst.detector.fpn import FPN
from meinst.detector.layers import GroupNorm


@pytest.mark.parametrize(("levels", "groups"), [(5, 0), (5, 4), (3, 4)])
def test_equals_torchvision_bit_for_bit(levels: int, groups: int) -> None:
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork(
        [8, 12, 20],
        16,
        extra_blocks=LastLevelP6P7(16, 16) if levels == 5 else None,
        norm_layer=(lambda c: GroupNorm(groups, c)) if groups else None,
    )
    torch.manual_seed(0)
    ours = FPN([8, 12, 20], 16, levels, groups)
    expected, found = theirs.state_dict(), ours.net.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    sizes = (8, 21, 31), (12, 11, 16), (20, 6, 8)
    features = [torch.randn(2, *size) for size in sizes]
    named = {str(i): feature for i, feature in enumerate(features)}
    with torch.no_grad():
        for ours_level, level in zip(ours(features), theirs(named).values(), strict=True):
            assert torch.equal(ours_level, level)
