from __future__ import annotations

from container_stage import events

from mitmsec_addons.containers import Unreadable
from mitmsec_addons.unread_reader import UnreadReader


def test_it_says_once_that_it_is_not_read() -> None:
    assert events(UnreadReader("why"), bytes(99), 9) == [Unreadable("why")]
