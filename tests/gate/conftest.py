"""What every test of the gate has around it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playbook import Playbook


@pytest.fixture(autouse=True)
def plays_end() -> Iterator[None]:
    """No play of the test leads to more than it says, after its last event either."""
    Playbook.plays.clear()
    yield
    Playbook.all_done()
