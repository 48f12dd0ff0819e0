"""The level of a cgroup is what the kernel says. What becomes of it in namespaces is in test_nftables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import descriptors
from msgspec.structs import replace
from nft_stage import needs_nft

from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect import netns, nft_level
from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root
from mitmsec_redirect.nft_level import level_of
from mitmsec_redirect.nft_rules import Terms
from mitmsec_redirect.nftables import nft_path

pytestmark = [pytest.mark.root, needs_nft]


@pytest.fixture
def cgroup() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create("level", f"{os.getpid()}")
    yield made
    assert made.remove(), "nobody is left in it"


def terms(named: Path) -> Terms:
    return Terms(
        table="level",
        owner="a test",
        cgroup=nft_path(named),
        level=1,
        port_v4=1,
        port_v6=None,
        on_failure=OnFailure.OPEN,
        quic=Quic.BYPASS,
        log_group=None,
    )


def test_each_folder_below_is_a_level_more(cgroup: SessionCgroup) -> None:
    nested = cgroup.path / "a" / "b" / "c"
    nested.mkdir(parents=True)
    first = level_of(cgroup, terms(cgroup.path))
    assert level_of(SessionCgroup(nested), terms(nested)) == first + 3
    assert level_of(SessionCgroup(nested), terms(cgroup.path)) == first, "what is below it is in it"


def test_it_is_asked_in_a_namespace_of_its_own_that_goes(cgroup: SessionCgroup) -> None:
    here, before = netns.current_cookie(), descriptors()
    level_of(cgroup, terms(cgroup.path))
    assert netns.current_cookie() == here
    assert descriptors() == before


def test_a_cgroup_that_no_rule_finds_has_none(cgroup: SessionCgroup) -> None:
    (beside := cgroup.path / "beside").mkdir()
    (sender := cgroup.path / "sender").mkdir()
    with pytest.raises(BackendUnavailable, match=f"no rule of nftables finds what the cgroup {sender} sends"):
        level_of(SessionCgroup(sender), terms(beside))


def test_a_cgroup_that_has_gone_is_an_error(cgroup: SessionCgroup) -> None:
    gone = SessionCgroup(cgroup2_root() / "mitmsec-level-gone")
    with pytest.raises(OSError, match="nothing can be sent from the cgroup"):
        level_of(gone, terms(cgroup.path))


def test_a_sender_that_hangs_is_an_error(cgroup: SessionCgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_level, "SENDER", "import time; time.sleep(60)")
    monkeypatch.setattr(nft_level, "DEADLINE_S", 0.2)
    with pytest.raises(OSError, match="timed out"):
        level_of(cgroup, replace(terms(cgroup.path), table="hangs"))
