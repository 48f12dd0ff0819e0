"""A hundred SIGHUPs in a second, while the policy file is written: what is valid at last counts, and nobody notices."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import status_of
from test_service import Service, decided_over_tls, service, until

pytestmark = pytest.mark.root

__all__ = ["service"]  # the fixture

SIGNALS = 100


def test_a_storm_of_hangups_ends_with_the_last_valid_policy_and_drops_no_live_flow(service: Service) -> None:
    policy = Path(service.policy())
    good = policy.read_text()
    blocking, wrong = good.replace("bypass", "block"), good.replace("bypass", "teleport")
    service.call("start", "--workers", "1", "--policy", str(policy))
    served = {role: pid for role, pid, _ in status_of(service.mitmsec).processes if role != "worker"}
    supervisor = status_of(service.mitmsec).supervisor
    command = service.mitmsec.network.inside(
        str(service.curl), "-sS", "--limit-rate", "500K", "-o", "/dev/null", "-w", "%{size_download}",
        "https://origin.test/megabytes",
    )  # fmt: skip
    environment = service.mitmsec.environment()
    slow = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert until(lambda: service.status()["flows"][0][1])
    began = time.monotonic()
    for number in range(SIGNALS):
        policy.write_text((wrong, good, blocking)[number % 3])
        os.kill(supervisor, signal.SIGHUP)
        time.sleep(max(0.0, began + number / SIGNALS - time.monotonic()))
    policy.write_text(blocking)
    os.kill(supervisor, signal.SIGHUP)
    assert until(lambda: service.fetch().returncode == 35, within_s=30)
    before = len(service.mitmsec.of_kind("fault"))
    policy.write_text(wrong)
    os.kill(supervisor, signal.SIGHUP)
    assert until(lambda: len(service.mitmsec.of_kind("fault")) > before, within_s=30)
    assert service.fetch().returncode == 35
    assert slow.communicate(timeout=60)[0] == str(8 << 20)
    assert until(lambda: ("bypass", "completed") in decided_over_tls(service), within_s=30)
    assert {event["what"] for event in service.mitmsec.of_kind("fault")} == {"reload_failed"}
    assert status_of(service.mitmsec).supervisor == supervisor
    assert {role: pid for role, pid, _ in status_of(service.mitmsec).processes if role != "worker"} == served
