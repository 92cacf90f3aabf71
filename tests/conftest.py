"""What every test shares: no downloads, and the devices that are present."""

import os

os.environ.setdefault("COURSE_OFFLINE", "1")

import pytest
import torch


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)
