"""Uploads that rules of YARA are asked about: by a scanner of its own, jailed, which may be killed at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from client_stage import Client
from conftest import Mitmsec, Network, asked, status_of
from test_file_inspection import zipped
from yara_stage import ENDLESS, EVIL

from mitmsec.core.messages import Role
from mitmsec.service import control
from mitmsec.service.accounts import account_of

pytestmark = [pytest.mark.root, pytest.mark.joined]
POLICY = """
[defaults]
on_failure = "{}"
[inspector.yara]
rules = ["@{}"]
[[rule]]
name = "files"
action = "decrypt"
inspect = ["yara", "archives"]
on_finding = "block"
"""
# Uploads each file on its input, and says what the origin, or who answers for it, says.
UPLOADS = """
echo up
while read file; do
  curl -s --max-time 40 -o /dev/null -w '%{http_code}\\n' https://origin.test/hello --data-binary "@$file"
done
"""
TAKEN = "200"  # by the origin
ELSEWHERE = (
    "mitmproxy",
    "OpenSSL",
    "cryptography",
    "sqlite3",
    "mitmsec.gate",
    "mitmsec.engine",
    "mitmsec_certs",
    "mitmsec_redirect",
)


class Uploads(Client):
    """A shell under `mitmsec run` that uploads what it is told to."""

    def __init__(self, run: subprocess.Popen[str], mitmsec: Mitmsec, folder: Path) -> None:
        super().__init__(run, mitmsec)
        self._folder = folder

    def send(self, content: bytes) -> None:
        file = self._folder / f"upload-{time.monotonic_ns()}"
        file.write_bytes(content)
        file.chmod(0o644)
        assert self.run.stdin is not None
        self.run.stdin.write(f"{file}\n")
        self.run.stdin.flush()

    def answer_to(self, content: bytes) -> str:
        self.send(content)
        return self.said()


def computed_ticks(pid: int) -> int:
    """In user mode, as the kernel counts: mostly hundredths of a second."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


@pytest.mark.parametrize("on_failure", ["open", "closed"])
def test_what_a_rule_matches_is_blocked_and_where_the_scanner_is_killed_the_policy_decides(
    origin: Network, mitmsec: Mitmsec, tmp_path: Path, on_failure: str
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "own.yar").write_text(EVIL + ENDLESS)
    policy = mitmsec.policy(POLICY.format(on_failure, tmp_path / "own.yar"))
    run = mitmsec.start("--policy", policy, "--", "sh", "-c", UPLOADS, stdin=subprocess.PIPE)
    try:
        uploads = Uploads(run, mitmsec, tmp_path)
        assert "scanner" not in {role for role, _, _ in uploads.status().processes}
        assert uploads.answer_to(b"nothing to see") == TAKEN
        assert uploads.answer_to(b"some evil-bytes") == "403"
        assert uploads.answer_to(zipped(b"evil-bytes" + bytes(300_000))) == "403"
        scanner = uploads.pid_of("scanner")
        is_jailed(mitmsec, scanner)
        before = computed_ticks(scanner)
        uploads.send(b"endless")
        deadline_s = time.monotonic() + 20
        while computed_ticks(scanner) < before + 20:  # nothing else takes it so long
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        os.kill(scanner, signal.SIGKILL)
        assert uploads.said() == {"open": TAKEN, "closed": "403"}[on_failure]
        assert uploads.answer_to(b"evil-bytes again") == "403"
        assert uploads.pid_of("scanner") != scanner
        uploads.end()
    finally:
        run.kill()
        run.communicate()
    found = [
        (one["detector"], one["summary"], one["severity"], one["evidence"], one["location"])
        for one in mitmsec.of_kind("finding")
    ]
    evil = ("yara", "YARA rule Evil: bytes that are evil", "high", "$evil, 10 bytes")
    assert found == [(*evil, "request.body+5"), (*evil, "request.body!inside+0"), (*evil, "request.body+0")]
    faults = {(one["what"], one["detail"], one["failed"]) for one in mitmsec.of_kind("fault")}
    assert faults == {
        ("scanner_died", "status -9", on_failure),
        ("inspector_failed", "yara: error, ScannerDied", on_failure),
    }


def is_jailed(mitmsec: Mitmsec, pid: int) -> None:
    """As a worker is, with the engine of YARA, and without all that belongs to others."""
    modules = asked(mitmsec, control.ModulesOf(pid)).modules
    assert "yara_x" in modules
    theirs = tuple(f"{one}." for one in ELSEWHERE)
    assert [name for name in modules if name in ELSEWHERE or name.startswith(theirs)] == []
    worker = next(pid for role, pid, _ in status_of(mitmsec).processes if role == "worker")
    assert "yara_x" not in asked(mitmsec, control.ModulesOf(worker)).modules
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == [str(account_of(Role.SCANNER).uid)] * 4
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["Seccomp"], status["NoNewPrivs"], status["Threads"]) == ("2", "1", "2")  # one counts seconds
    assert Path(f"/proc/{pid}/net/route").read_text().count("\n") <= 1
    limits = {line[:26].strip(): line[26:].split()[0] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
    wanted = {
        "Max address space": str(2 << 30),
        "Max open files": "256",
        "Max file size": "0",
        "Max core file size": "0",
    }
    assert {name: limits[name] for name in wanted} == wanted
    assert not (Path(f"/proc/{pid}/root") / str(mitmsec.state)[1:]).exists()
