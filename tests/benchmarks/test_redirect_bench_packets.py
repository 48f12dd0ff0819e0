"""What the count of packets is read from."""

import os
from pathlib import Path

import pytest

from benchmarks.outputs import Unreadable
from benchmarks.redirect.packets import cpu_ticks, diverters_in, sent_on_loopback
from mitmsec.service.left_diverters import WORDS

TABLE = """Inter-|   Receive                            |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:    1000      10    0    0    0     0          0         0     2000      20    0    0    0     0       0     0
apart-c: 7 70 0 0 0 0 0 0 8 80 0 0 0 0 0 0
"""


def test_what_is_put_back_is_what_loopback_sent():
    assert sent_on_loopback(TABLE) == 20
    assert sent_on_loopback(Path("/proc/self/net/dev").read_text()) >= 0


@pytest.mark.parametrize("table", ["", "Inter-| Receive", TABLE.replace("lo:", "low:")])
def test_a_namespace_without_loopback_is_unreadable(table):
    with pytest.raises(Unreadable):
        sent_on_loopback(table)


def test_a_process_is_charged_whatever_its_name():
    assert cpu_ticks("12 (a) b) (c) S 1 1 1 0 -1 4194560 900 0 0 0 70 7 1 1 20 0 5 0 99") == 77
    assert cpu_ticks(Path("/proc/self/stat").read_text()) == pytest.approx(sum(os.times()[:2]) * 100, abs=2)


def test_of_a_rows_processes_only_the_diverter_takes_packets():
    words = {
        7: [b"python", b"-m", *WORDS, b"3", b""],
        8: [b"python", b"-m", b"mitmsec.service", b"gate", b""],
        9: [b""],
    }
    assert diverters_in([7, 8, 9], words.__getitem__) == [7]
