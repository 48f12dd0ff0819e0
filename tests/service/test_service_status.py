"""What `mitmsec status` says to people."""

from __future__ import annotations

from rich.console import Console

from mitmsec.core.model import OnFailure
from mitmsec.service.control import ServiceStatus, StatusAnswer
from mitmsec.service.service_status import told

SERVICE = ServiceStatus(
    session="s1", backend="connect_hook", policy_file="/etc/mitmsec/p.toml", policy_sha256="ab" * 32,
    applications=("browsers", "mail"), on_failure=OnFailure.CLOSED, started="2026-11-29T01:00:00.00Z", faults=2,
)  # fmt: skip


def lines(answer: StatusAnswer) -> list[str]:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(told(answer))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_service_says_what_it_selects_and_what_it_carries() -> None:
    answer = StatusAnswer(
        supervisor=7, sessions=(("s1", "(service)", "/sys/fs/cgroup"), ("r1", "/usr/bin/curl", "/x")),
        processes=(("gate", 8, "s1"), ("worker", 9, "s1"), ("worker", 10, "s1")),
        flows=(("s1", 12, 3), ("r1", 1, 0)), service=SERVICE,
    )  # fmt: skip
    assert lines(answer) == [
        "service     at work since 2026-11-29T01:00:00.00Z, by connect_hook",
        "policy      /etc/mitmsec/p.toml · sha256 abababababab…",
        "selects     browsers, mail",
        "on failure  closed",
        "flows       12 live, 3 of them decrypted",
        "faults      2",
        "run         r1  /usr/bin/curl; 1 live, 0 of them decrypted",
        "processes   supervisor 7 · gate 8 · 2 workers",
    ]


def test_a_run_says_what_diverts_it() -> None:
    run = ("r1", "/usr/bin/curl", "/x")
    answer = StatusAnswer(supervisor=7, sessions=(run,), processes=(), backends=(("r1", "nftables"),))
    assert lines(answer)[1] == "run        r1  /usr/bin/curl by nftables; 0 live, 0 of them decrypted"


def test_without_a_service_runs_are_told_and_the_switch_stands_first() -> None:
    answer = StatusAnswer(supervisor=7, sessions=(("r1", "a\x1b[31m", "/x"),), processes=(), left_out=3, off=True)
    assert lines(answer) == [
        "switch     off: nothing is decrypted until `mitmsec on`",
        "service    none",
        "run        r1  a\\x1b[31m; 0 live, 0 of them decrypted",
        "processes  supervisor 7",
        "           and 3 more that have no room here",
    ]
