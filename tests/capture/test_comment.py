from __future__ import annotations

from mitmsec.capture.comment import full, one_line, short
from mitmsec.core.model import Confidence, ParentProcess, Process

CURL = Process(
    pid=42,
    started="2026-01-01T00:00:00Z",
    exe="/usr/bin/curl",
    name="curl",
    sha256="ab" * 32,
    user="alice",
    parent=ParentProcess(pid=7, exe="/bin/bash"),
    confidence=Confidence.KERNEL,
)


def test_the_first_packet_tells_everything_that_is_known_and_what_the_caller_says() -> None:
    assert full(CURL, "action: decrypt\nrule: defaults").splitlines() == [
        "process: /usr/bin/curl",
        "pid: 42",
        "started: 2026-01-01T00:00:00Z",
        "user: alice",
        f"sha256: {'ab' * 32}",
        "parent: /bin/bash pid 7",
        "owner found by: connect_hook (kernel)",
        "action: decrypt",
        "rule: defaults",
    ]


def test_what_is_not_known_is_left_out_or_said_to_be_unknown() -> None:
    nobody = Process(pid=0, parent=ParentProcess(pid=1))
    assert full(nobody).splitlines() == [
        "process: unknown",
        "pid: 0",
        "parent: unknown pid 1",
        "owner found by: connect_hook (unknown)",
    ]
    assert short(Process(pid=3, name="x")) == "x pid 3"
    assert short(CURL) == "/usr/bin/curl pid 42"


def test_what_windows_knows_is_told_too() -> None:
    host = Process(pid=4, exe="C:\\x.exe", services=("a", "b"), package="P_1.0_x64__id", signer="CN=A")
    assert full(host).splitlines()[2:5] == ["services: a, b", "package: P_1.0_x64__id", "signer: CN=A"]


def test_a_path_cannot_forge_a_line() -> None:
    forger = Process(pid=1, exe="/tmp/x\nrule: trusted\r\x1b[2J")
    assert full(forger).splitlines()[0] == "process: /tmp/x\\nrule: trusted\\r\\x1b[2J"
    assert "\n" not in short(forger)


def test_printable_text_stays_as_it_is() -> None:
    assert one_line("Öffnen – 秘密") == "Öffnen – 秘密"
