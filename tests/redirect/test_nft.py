"""nft itself, and whose tables are whose."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from nft_stage import as_nobody, needs_nft, ruleset

from mitmsec_redirect import nft, nft_rules
from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.nfnetlink import Table
from mitmsec_redirect.nft import RulesRefused

pytestmark = [pytest.mark.root, needs_nft, pytest.mark.usefixtures("own_netns")]


def table(name: str, remark: str) -> None:
    nft.load(f'create table inet {name} {{ comment "{remark}"; }}\n')


def ended() -> str:
    """The remark of an owner that has ended."""
    process = subprocess.Popen(["true"])
    remark = nft.owner_remark(process.pid)  # of a zombie at the latest, which still has its start time
    process.wait()
    return remark


def test_a_text_holds_whole_or_not_at_all() -> None:
    with pytest.raises(RulesRefused, match=r"rror"):
        nft.load("table inet good { }\ntable inet bad { chain x { nonsense; }; }\n")
    assert ruleset() == ""
    table("here", "x")
    with pytest.raises(FileExistsError):
        table("here", "y")


def test_where_nft_is_not_installed_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="apt-get install nftables"):
        nft.load("", folders=str(tmp_path))


def test_an_nft_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setattr(nft, "DEADLINE_S", 0.2)
    with pytest.raises(RulesRefused, match="no answer"):
        nft.load("", folders=str(tmp_path))


def test_without_privilege_that_is_said() -> None:
    def asks() -> str:
        try:
            table("mine", "x")
        except BackendUnavailable as error:
            return error.remedy
        return "done"

    assert as_nobody(asks).startswith("Run it as root")
    assert ruleset() == ""


def test_only_a_table_that_says_it_is_ours_can_be_a_dead_owners() -> None:
    assert not nft.is_dead(Table("t", nft.owner_remark()))
    assert nft.is_dead(Table("t", ended()))
    assert nft.is_dead(Table("t", f"mitmsec owner {os.getpid()} 1")), "the pid is somebody else's by now"
    assert not nft.is_dead(Table("t", "somebody's"))


def test_an_owner_that_was_killed_and_not_yet_waited_for_is_dead() -> None:
    owner = subprocess.Popen(["sleep", "60"])
    remark = nft.owner_remark(owner.pid)
    assert not nft.is_dead(Table("t", remark))
    owner.kill()
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
    assert nft.is_dead(Table("t", remark))
    owner.wait()


def test_the_dead_are_reaped_the_living_and_strangers_are_not() -> None:
    table("mitmsec-a-dead", ended())
    table("mitmsec-a-kept", ended())
    table("mitmsec-a-living", nft.owner_remark())
    table("mitmsec-a-strange", "made by hand")
    table("mitmsec-b-dead", ended())
    assert nft.reap("mitmsec-a-", keep={"mitmsec-a-kept"}) == ["mitmsec-a-dead"]
    assert nft.reap("mitmsec-a-", keep={"mitmsec-a-kept"}) == []
    names = [one.name for one in nft.leftovers("mitmsec-a-")]
    assert names == ["mitmsec-a-kept", "mitmsec-a-living", "mitmsec-a-strange"]
    assert nft.reap("mitmsec-") == ["mitmsec-a-kept", "mitmsec-b-dead"]


def test_a_table_that_does_not_go_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stood in for by a deletion that says nothing and does nothing."""
    table("mitmsec-a-dead", ended())
    monkeypatch.setattr(nft_rules, "delete", lambda name: "")
    with pytest.raises(OSError, match="still there: mitmsec-a-dead"):
        nft.reap("mitmsec-a-")


def test_another_namespace_is_reached_by_its_descriptor() -> None:
    table("mitmsec-a-dead", ended())
    inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        os.unshare(os.CLONE_NEWNET)
        assert nft.leftovers("mitmsec-") == []
        assert nft.reap("mitmsec-", inside) == ["mitmsec-a-dead"]
    finally:
        os.setns(inside, os.CLONE_NEWNET)
        os.close(inside)
    assert ruleset() == ""
