"""Each network namespace is found once, whether it has a name or only somebody who lives in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mitmsec.service import namespaces

pytestmark = pytest.mark.root


def identities() -> list[int]:
    return [os.fstat(fd).st_ino for _, fd in namespaces.found()]


def test_our_own_comes_first_and_none_comes_twice() -> None:
    found = identities()
    assert found[0] == os.stat("/proc/self/ns/net").st_ino
    assert len(set(found)) == len(found)


def test_one_with_a_name_is_found_and_a_file_that_is_none_is_passed_over(tmp_path: Path) -> None:
    name = f"mitmsec-namespaces-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    no_namespace = namespaces.NAMED / f"{name}-file"
    no_namespace.touch()
    try:
        assert os.stat(f"/run/netns/{name}").st_ino in identities()
        assert os.stat(no_namespace).st_ino not in identities()
    finally:
        no_namespace.unlink()
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_one_that_somebody_lives_in_is_found() -> None:
    sleeper = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE)
    try:
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == b"up\n"
        assert os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino in identities()
    finally:
        sleeper.kill()
        sleeper.communicate()
