"""What works here, and why something does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from nft_stage import needs_nft

from mitmsec_redirect import bpf, cgroup, nflog, nft, probe
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.probe import Check, kernel_version


@pytest.mark.root
def test_everything_works_where_these_tests_run() -> None:
    told = {check.name: check for check in probe.checks()}
    assert [name for name, check in told.items() if not check.ok and name not in ("pid namespace", "nftables")] == []
    assert "8 programs" in told["connect hook"].detail
    assert told["nftables"].ok is (shutil.which("nft", path=nft.FOLDERS) is not None)
    assert nft.leftovers("mitmsec-probe") == []
    assert (told["backend"].ok, told["backend"].backend) == (True, "connect_hook")
    assert [left.path.name for left in cgroup.leftovers("probe") if left.path.name.endswith(f"-{os.getpid()}")] == []


@pytest.mark.root
@needs_nft
def test_rules_that_cannot_tell_of_udp_are_no_reason_against_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nflog, "GROUPS", range(0))
    (check,) = (one for one in probe.checks() if one.name == "nftables")
    assert (check.ok, "; UDP is not recorded" in check.detail) == (True, True)


@pytest.mark.root
@pytest.mark.parametrize(("helper", "less"), [(115, "where executables lie"), (158, "callers are told by their pids")])
def test_a_kernel_that_will_not_have_all_told_is_no_reason_against_the_hook(
    monkeypatch: pytest.MonkeyPatch, helper: int, less: str
) -> None:
    plain = bpf.load_program

    def load(code: bytes, attach: bpf.Attach, name: str) -> int:
        if code.find(bytes((0x85, 0, 0, 0)) + helper.to_bytes(4, "little")) >= 0:
            raise bpf.ProgramRejected(22, f"unknown func #{helper}")
        return plain(code, attach, name)

    monkeypatch.setattr(bpf, "load_program", load)
    told = {check.name: check for check in probe.checks()}
    callers = told["callers"]
    assert (callers.ok, callers.optional, told["connect hook"].ok) == (False, True, True)
    assert callers.detail.startswith(less)
    assert callers.detail.endswith(f"unknown func #{helper}")
    assert callers.remedy
    assert told["backend"].backend == HOOK


HOOK, RULES = "connect_hook", "nftables"


@pytest.mark.parametrize(
    ("missing", "backend"),
    [
        ((), HOOK),
        (("nftables",), HOOK),
        (("bpffs",), HOOK),  # which only on_failure = closed needs
        (("cgroup2",), HOOK),  # which nobody can do without
        (("bpf",), RULES),
        (("connect hook", "kernel"), RULES),
        (("bpf", "nftables"), ""),
    ],
)
def test_what_is_taken_follows_from_what_works(missing: tuple[str, ...], backend: str) -> None:
    needs = {"kernel": HOOK, "bpf": HOOK, "cgroup2": "", "connect hook": HOOK, "bpffs": HOOK, "nftables": RULES}
    found = [Check(name, ok=name not in missing, detail="", backend=needs[name]) for name in needs]
    check = probe.taken(found)
    assert (check.ok, check.backend) == (bool(backend), backend)


@pytest.mark.parametrize(
    ("release", "version"), [("6.1.0-13-amd64", (6, 1)), ("5.19", (5, 19)), ("odd", (0, 0)), ("", (0, 0))]
)
def test_releases_are_read(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


def test_an_old_kernel_is_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "kernel_release", lambda: "5.10.0-1")
    check = next(check for check in probe.checks() if check.name == "kernel")
    assert not check.ok
    assert "5.19" in check.detail
    assert check.remedy


def test_a_user_without_privilege_learns_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EbpfUnavailable("no", "do this")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(probe.Map, "create", refuse)
    told = {check.name: check for check in probe.checks()}
    assert (told["privilege"].ok, told["privilege"].remedy) == (False, "Run it as root: sudo mitmsec …")
    assert (told["bpf"].ok, told["bpf"].detail, told["bpf"].remedy) == (False, "no", "do this")


def test_capabilities_that_root_does_not_have_are_named() -> None:
    everything = 0x1FFFFFFFFFF
    assert probe.lacking(everything) == []
    assert probe.lacking(everything & ~(1 << 7) & ~(1 << 21)) == ["CAP_SETUID", "CAP_SYS_ADMIN"]
    assert probe.lacking(0) == list(probe.CAPABILITIES)


@pytest.mark.root
def test_root_without_a_capability_is_told_which() -> None:
    code = "from mitmsec_redirect.probe import checks; print([c.detail for c in checks() if c.name == 'capabilities'])"
    command = ["setpriv", "--bounding-set=-setuid", "--inh-caps=-setuid", sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "['not held: CAP_SETUID']\n"
