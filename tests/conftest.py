"""Fixtures of all tests: devices that are present, and the same random start for each test."""

from __future__ import annotations

import os

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the processors
    os.environ.pop("COLUMNS", None)  # the width of the terminal of another process

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)
