"""The feature pyramid against torchvision's blocks and a slow way up."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from course_lib.base.pyramid import FeaturePyramid, Residual, SmallBackbone


def stirred(module: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and weights of BatchNorm that are not those of its beginning; float64."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.running_var, part.weight.data, part.bias.data):
                tensor.uniform_(0.5, 1.5)
    return module.double().eval()


@pytest.mark.parametrize(("channels", "out", "stride"), [(8, 8, 1), (8, 16, 2), (8, 16, 1), (8, 8, 2)])
def test_a_residual_block_is_resnet_s(channels, out, stride):
    ours = stirred(Residual(channels, out, stride))
    plain = channels == out and stride == 1
    shortcut = None if plain else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    theirs = BasicBlock(channels, out, stride, shortcut).double().eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, channels, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_way_up_adds_what_is_coarser():
    pyramid = stirred(FeaturePyramid(SmallBackbone((8, 8, 16, 24)), width=8))
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    levels = pyramid.backbone(pyramid.prepared(images))
    assert [tuple(level.shape) for level in levels] == [(2, 8, 8, 12), (2, 16, 4, 6), (2, 24, 2, 3)]
    x = pyramid.smooth[2](pyramid.lateral[2](levels[2]).relu())
    for i in (1, 0):
        four = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = pyramid.smooth[i]((pyramid.lateral[i](levels[i]) + four).relu())
    torch.testing.assert_close(pyramid.up(levels), x)


def test_sides_must_fit():
    pyramid = FeaturePyramid(SmallBackbone((8, 8, 16, 24)), width=8)
    assert pyramid.divisor == 16
    for shape in ((1, 3, 32, 40), (3, 32, 32), (1, 1, 32, 32)):
        with pytest.raises(ValueError, match="multiples of 16, got"):
            pyramid.prepared(torch.rand(shape))
