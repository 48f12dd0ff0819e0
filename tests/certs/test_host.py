"""Tools and files of the machine: with the owner's rights, with nothing of our environment, and for a while only."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trust_stage import some_root

from mitmsec_certs.truststore import host as host_module
from mitmsec_certs.truststore.host import Host, ToolFailed, rights_of
from mitmsec_certs.truststore.journal import Journal
from mitmsec_certs.truststore.nss_stores import nss
from mitmsec_certs.truststore.plan import Drop, PemFile, PemOutput, Plan, Put, Run, StoreName, certificate_entry
from mitmsec_certs.truststore.system_stores import debian

OURS = debian()
NOBODY = pwd.getpwnam("nobody")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def shell(script: str, *, tolerated: bool = False) -> Run:
    return Run(argv=("sh", "-c", script), tolerated=tolerated)


def plan(*looks: PemFile | PemOutput) -> Plan:
    return Plan(looks=looks, own=frozenset(), watched=(), adding=(), removing=())


def test_a_file_is_put_and_dropped(tmp_path: Path) -> None:
    path = tmp_path / "new/file"
    Host().perform(OURS, Put(path=str(path), content="x", mode=0o640))
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("x", 0o640)
    for _ in range(2):  # a second time there is nothing to drop
        Host().perform(OURS, Drop(path=str(path)))
        assert not path.exists()


def test_a_tool_gets_its_input_and_nothing_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dsomething")
    out = tmp_path / "out"
    Host().perform(OURS, Run(argv=("sh", "-c", f"cat > {out}; env >> {out}; pwd >> {out}"), stdin="given\n"))
    lines = out.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("given", "/")
    assert {line.partition("=")[0] for line in lines[1:-1]} <= {"PATH", "LC_ALL", "HOME", "PWD", "OLDPWD", "SHLVL", "_"}


def test_a_tool_that_fails_is_told_with_its_words() -> None:
    with pytest.raises(ToolFailed, match="sh ended with status 3: this is wrong"):
        Host().perform(OURS, shell("echo nothing; echo this is >&2; echo wrong >&2; exit 3"))
    Host().perform(OURS, shell("exit 3", tolerated=True))


@needs_root
def test_a_tool_that_another_user_could_have_exchanged_is_not_run(tmp_path: Path) -> None:
    """It was root's when it was noted, perhaps."""
    tool = tmp_path / "keytool"
    tool.write_text("#!/bin/sh\ntrue\n")
    tool.chmod(0o755)
    Host().perform(OURS, Run(argv=(str(tool),)))
    os.chown(tool, NOBODY.pw_uid, -1)
    with pytest.raises(ToolFailed, match="others than its user and root could exchange it"):
        Host().perform(OURS, Run(argv=(str(tool),)))


def test_a_tool_that_is_missing_is_named() -> None:
    with pytest.raises(ToolFailed, match="no-such-tool is not installed"):
        Host().perform(OURS, Run(argv=("no-such-tool",)))


def test_a_tool_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "TOOL_DEADLINE_S", 0.3)
    pids = tmp_path / "pids"
    with pytest.raises(ToolFailed, match="did not end within"):
        Host().perform(OURS, shell(f"sleep 60 & echo $! > {pids}; wait"))
    assert _has_ended(int(pids.read_text()))


@needs_root
def test_a_tool_that_runs_for_a_user_has_nothing_of_ours_to_hold(tmp_path: Path) -> None:
    """Its code may be that user's own: with the journal's lock it could keep everybody from changing stores."""
    theirs = nss(StoreName.FIREFOX, str(tmp_path), uid=NOBODY.pw_uid, user="nobody")
    with Journal(tmp_path / "trust").held():
        for store, holds in ((OURS, True), (theirs, False)):
            listing = PemOutput(argv=("sh", "-c", "ls -l /proc/self/fd >&2; exit 1"))
            with pytest.raises(ToolFailed) as told:
                Host().entries(store, plan(listing))
            assert (str(tmp_path / "trust/lock") in str(told.value)) == holds


def test_who_never_stops_talking_is_not_listened_to() -> None:
    """A user's own tool, say, in whose store root looks."""
    for talks in ("yes", "yes >&2"):
        with pytest.raises(ToolFailed, match="sh says more than 16 MiB"):
            Host().perform(OURS, shell(talks))


def test_who_escapes_and_keeps_our_pipes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "TOOL_DEADLINE_S", 0.3)
    began = time.monotonic()
    with pytest.raises(ToolFailed, match="did not end within"):
        Host().perform(OURS, shell("setsid sleep 30 & sleep 60"))
    assert time.monotonic() - began < 25


def _has_ended(pid: int) -> bool:
    for _ in range(300):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_certificates_of_a_file_and_of_what_a_tool_prints(tmp_path: Path) -> None:
    file = tmp_path / "bundle.pem"
    file.write_text(f"text\n{some_root().pem}")
    root = certificate_entry(some_root().sha256)
    assert Host().entries(OURS, plan(PemFile(path=str(file)))) == {root}
    assert Host().entries(OURS, plan(PemFile(path=str(tmp_path / "none")))) == frozenset()
    printed = PemOutput(argv=("cat", str(file)), part="java")
    assert Host().entries(OURS, plan(printed)) == {certificate_entry(some_root().sha256, "java")}
    assert Host().entries(OURS, plan(PemOutput(argv=("false",), tolerated=True))) == frozenset()
    with pytest.raises(ToolFailed):
        Host().entries(OURS, plan(PemOutput(argv=("false",))))


def test_a_file_that_a_process_has_open_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "cert9.db"
    path.write_bytes(b"")
    assert not Host().is_open([str(path)])
    assert not Host().is_open([])
    code = f"import sys; file = open({str(path)!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        assert Host().is_open([str(path), str(tmp_path / "none")])


@needs_root
def test_everything_in_a_home_is_done_with_its_owners_rights(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for folder in (home, *(parent for parent in home.parents if parent != Path("/"))):
        folder.chmod(folder.stat().st_mode | 0o055)
    os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
    (tmp_path / "roots").write_text("secret")
    (tmp_path / "roots").chmod(0o600)
    theirs = nss(StoreName.FIREFOX, str(home), uid=NOBODY.pw_uid, user="nobody")
    Host().perform(theirs, Put(path=str(home / "file"), content="x"))
    assert (home / "file").stat().st_uid == NOBODY.pw_uid
    Host().perform(theirs, shell(f"id -u > {home}/ids; id -ru >> {home}/ids; id -G >> {home}/ids"))
    ids = (home / "ids").read_text().split()
    assert ids[:2] == [str(NOBODY.pw_uid)] * 2
    assert "0" not in ids
    (home / "link").symlink_to(tmp_path / "roots")
    with pytest.raises(PermissionError):
        Host().entries(theirs, plan(PemFile(path=str(home / "link"))))
    with pytest.raises(PermissionError):
        Host().perform(theirs, Put(path=str(tmp_path / "not theirs"), content="x"))
    assert os.geteuid() == 0


@needs_root
def test_rights_of_somebody_who_has_no_account_any_more() -> None:
    groups = os.getgroups()
    with rights_of(4_000_123):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (4_000_123, 4_000_123, [4_000_123])
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, groups)
