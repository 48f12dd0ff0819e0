"""What interrupted tests leave goes at the end of the session, and nobody else's goes with it."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator

import pytest
from conftest import end_all

from mitmsec_redirect.cgroup import SessionCgroup

pytestmark = pytest.mark.root


@pytest.fixture
def cgroups() -> Iterator[dict[str, SessionCgroup]]:
    """Of two sessions of one state, and of one of another."""
    state, other = (f"test{secrets.token_hex(4)}" for _ in range(2))
    made = {name: SessionCgroup.create(of, name) for of, name in ((state, "left"), (state, "lived"), (other, "theirs"))}
    made["left"].path.joinpath("its", "own").mkdir(parents=True)
    yield made
    for cgroup in made.values():
        cgroup.remove()


def test_empty_cgroups_of_our_states_go_and_no_others(cgroups: dict[str, SessionCgroup]) -> None:
    state = cgroups["left"].path.name.split("-")[1]
    with subprocess.Popen(["sleep", "60"]) as somebody:
        cgroups["lived"].put(somebody.pid)
        end_all("mitmsec-no-such-namespace", {state})
        assert {name: cgroup.path.exists() for name, cgroup in cgroups.items()} == {
            "left": False, "lived": True, "theirs": True,
        }  # fmt: skip
        somebody.kill()
    end_all("mitmsec-no-such-namespace", {state})
    assert not cgroups["lived"].path.exists()
