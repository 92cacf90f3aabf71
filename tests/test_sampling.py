"""Batches, modes and noise of `base/sampling.py`, against what one call of the network gives."""

import numpy as np
import pytest
import torch
from conftest import normal, rng
from torch import nn

from course_lib.base import sampling


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def test_each_submodule_gets_its_own_mode_back():
    module = network()
    module[1].eval()  # frozen, as in fine-tuning
    with sampling.evaluating(module):
        assert modes(module) == [False] * 5
    assert modes(module) == [True, True, False, True, True]
    with pytest.raises(KeyError), sampling.evaluating(module):
        raise KeyError
    assert modes(module) == [True, True, False, True, True]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_are_one_call_in_evaluation_mode(batch_size):
    module, x, shift = network(), normal(7, 3), normal(7, 2, seed=1)
    module[1].eval()
    asked = []

    def draw(x, shift, none, constant):
        asked.append(len(x))
        return module(x) + shift + constant

    found = sampling.in_batches(module, draw, x, shift.numpy(), None, torch.ones(1, 2), batch_size=batch_size)
    assert not found.requires_grad and max(asked) == min(batch_size, 7) and sum(asked) == 7
    assert modes(module) == [True, True, False, True, True]
    torch.testing.assert_close(found, module.eval()(x) + shift + 1)


def test_noise_is_the_callers_or_drawn(device):
    module = network().to(device)
    for n in (5, np.int64(5), torch.tensor(5)):
        drawn = sampling.starting_noise(n, (3,), module, rng(1))
        assert drawn.device.type == device.type and drawn.dtype == torch.float32
        torch.testing.assert_close(drawn.cpu(), torch.randn(5, 3, generator=rng(1)))
    for x in (normal(2, 3), normal(2, 3).numpy()):
        torch.testing.assert_close(sampling.starting_noise(x, (3,), module).cpu(), normal(2, 3))
    there = sampling.starting_noise(4, (3, 2), module, torch.Generator(device).manual_seed(0))
    assert there.shape == (4, 3, 2) and there.device.type == device.type


def test_refuses_bad_input():
    module = network()
    for none in (0, -1, torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="at least one image; got"):
            sampling.starting_noise(none, (3,), module)
    with pytest.raises(TypeError):
        sampling.starting_noise(2.0, (3,), module)
    for wrong in (torch.zeros(3), torch.tensor(1)):
        with pytest.raises(ValueError, match="for 2 images; got"):
            sampling.in_batches(module, lambda x, y: x, normal(2, 3), wrong)
