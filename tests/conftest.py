"""What all tests have in common: they can be interrupted, and none fails because the machine is busy."""

from __future__ import annotations

import signal

import hypothesis
import pytest

hypothesis.settings.register_profile("mitmsec", deadline=None)  # time is measured in benchmarks
hypothesis.settings.load_profile("mitmsec")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Who started the suite in the background of a shell has SIGINT ignored, and so would all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
