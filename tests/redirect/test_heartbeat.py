"""The gate's sign of life; what the programs make of it is in test_connect_hook."""

from __future__ import annotations

import time

import pytest

from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.heartbeat import Heartbeat


@pytest.mark.root
def test_a_beat_is_the_monotonic_clock_of_now() -> None:
    made = Map.create(MapKind.ARRAY, 4, 8, 1, "ms_heartbeat")
    heartbeat = Heartbeat(made.fd)
    assert heartbeat.last_ns == 0
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    heartbeat.beat()
    assert before <= heartbeat.last_ns <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    made.close()
