"""Fixtures of all tests: devices that are present, the same random start, signals that arrive."""

from __future__ import annotations

import os
import signal

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


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal():
    """Signals that the parent ignores (nohup, a background job of a script) reach tests and the
    processes that they start."""
    handlers = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    ignored = {}
    for name, handler in handlers.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            ignored[number] = signal.signal(number, handler)
    yield
    for number, before in ignored.items():
        signal.signal(number, before)
