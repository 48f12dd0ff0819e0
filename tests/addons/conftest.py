from __future__ import annotations

import fcntl

import pytest

from mitmsec_addons.registry import prepare


@pytest.fixture(scope="session")
def prepared_secrets(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> bytes:
    """What `secrets` looks for, compiled once, also where several processes test."""
    shared = tmp_path_factory.getbasetemp()
    place = (shared if worker_id == "master" else shared.parent) / "secrets.prepared"
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            place.write_bytes(prepare("secrets"))
    return place.read_bytes()
