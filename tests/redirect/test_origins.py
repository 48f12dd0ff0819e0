"""The origins map as the unprivileged gate uses it; take() with real connections is in test_connect_hook."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mitmsec.core.model import Endpoint
from mitmsec_redirect import records
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.heartbeat import Heartbeat
from mitmsec_redirect.origins import OriginTable, parse_origin

pytestmark = pytest.mark.root

UNPRIVILEGED = """
import os, sys
from mitmsec_redirect.heartbeat import Heartbeat
from mitmsec_redirect.origins import OriginTable, parse_origin
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")]
table = OriginTable(int(sys.argv[1])); Heartbeat(int(sys.argv[2])).beat()
print(caps, parse_origin(table.take(7)).remote, table.take(7))
try:
    from mitmsec_redirect.bpf import Map, MapKind
    Map.create(MapKind.ARRAY, 4, 4, 1, "ms_test")
except Exception as error:
    print(type(error).__name__)
"""


def maps() -> tuple[Map, Map]:
    origins = Map.create(MapKind.LRU_HASH, records.COOKIE.size, records.ATTEMPT.size, 64, "ms_origins")
    value = bytearray(records.ATTEMPT.size)
    value[:18] = records.address_bytes("203.0.113.9") + b"\x01\xbb"
    origins.update(records.COOKIE.pack(7), bytes(value))
    return origins, Map.create(MapKind.ARRAY, 4, 8, 1, "ms_heartbeat")


def test_an_unknown_cookie_has_no_origin() -> None:
    origins, heartbeat = maps()
    table = OriginTable(origins.fd)
    assert (table.take(8), table.find(8)) == (None, None)
    found = table.find(7)
    assert table.take(7) == found
    assert found is not None
    assert parse_origin(found).remote == Endpoint(address="203.0.113.9", port=443)
    assert table.take(7) is None, "its place is free for another"
    origins.close()
    heartbeat.close()


def test_inherited_maps_work_without_privilege() -> None:
    """Taking an origin and the heartbeat by descriptor; making a map is still forbidden."""
    origins, heartbeat = maps()
    program = [sys.executable, "-c", UNPRIVILEGED, str(origins.fd), str(heartbeat.fd)]
    done = subprocess.run(program, pass_fds=(origins.fd, heartbeat.fd), capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "['0000000000000000'] 203.0.113.9:443 None"
    if Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip() != "0":
        assert lines[1] == "EbpfUnavailable"
    assert Heartbeat(heartbeat.fd).last_ns > 0
    origins.close()
    heartbeat.close()


def test_look_ups_need_no_other_part_of_the_backend() -> None:
    """The gate loads neither programs, nor routes, nor the hook; `backend` is but types."""
    code = "import mitmsec_redirect.origins, sys; print(*(m for m in sys.modules if m.startswith('mitmsec_redirect.')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert set(done.stdout.split()) == {f"mitmsec_redirect.{name}" for name in ("backend", "bpf", "origins", "records")}
