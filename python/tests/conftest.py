"""What the tests share: arrays in both frameworks, and the model that is always at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kvquant
import numpy as np
import pytest
import torch

Convert = Callable[[Any], Any]


@pytest.fixture(params=["numpy", "torch"])
def convert(request: pytest.FixtureRequest) -> Convert:
    """Turns a numpy array into one of the framework under test."""
    return torch.from_numpy if request.param == "torch" else np.asarray


@pytest.fixture(scope="session")
def model() -> kvquant.Model:
    return kvquant.Model.load("embedded", num_threads=2)


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
