"""What `mitmsec status` says to people."""

from __future__ import annotations

from msgspec.structs import replace
from rich.console import Console

from mitmsec.core.model import LearnedBypass, OnFailure
from mitmsec.service.control import NamesStatus, ServiceStatus, StatusAnswer
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
        "names       what programs ask name servers is not heard",
        "faults      2",
        "run         r1  /usr/bin/curl; 1 live, 0 of them decrypted",
        "processes   supervisor 7 · gate 8 · 2 workers",
    ]


def test_what_was_learned_says_who_passes_where_how_long_and_why() -> None:
    bypass = LearnedBypass(
        program="/opt/app\x1b", user="joe", host="api.test", port=443, why="it refused our certificate 3 times",
        left_s=11 * 3600 + 59 * 60 + 59,
    )  # fmt: skip
    answer = StatusAnswer(supervisor=7, sessions=(), processes=(), learned=(("s1", bypass),))
    (line,) = [line for line in lines(answer) if line.startswith("passes")]
    assert line.split(maxsplit=1)[1] == (
        "/opt/app\\x1b of joe to api.test, port 443, for another 11 h 59 min: it refused our certificate 3 times"
    )


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


def test_whose_answers_give_names_is_said_and_how_many_are_not_heard() -> None:
    def said(*servers: str, beyond: int) -> str:
        service = replace(SERVICE, names=NamesStatus(servers=servers, beyond=beyond))
        answer = StatusAnswer(supervisor=7, sessions=(), processes=(), service=service)
        (line,) = [line for line in lines(answer) if line.startswith("names")]
        return line.split(maxsplit=1)[1]

    assert said(beyond=0) == "from DNS, as answered by whom programs ask"
    assert said("127.0.0.53", "::1", beyond=3) == "from DNS, as answered by 127.0.0.53, ::1; not from 3 more"
