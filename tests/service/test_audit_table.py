"""How events look to people, hostile ones included."""

from __future__ import annotations

import io
import time

import pytest
from audit_events import connection, draft, finding, request
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from mitmsec.audit.envelope import Fields, sealed
from mitmsec.audit.event import CaSeen, CertificateSeen, FaultSeen, Outcome, PolicySeen, ReviewSeen, Seen, ServiceSeen
from mitmsec.core.model import Process
from mitmsec.service.audit_table import FIRST_KEYS, size, table_of, tree_of


def rendered(*events: Fields, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table_of(events, width))
    return out.getvalue()


def event(seen: Seen) -> Fields:
    return sealed(draft(seen), 0)[0]


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (1234, "1.2k"),
        (9_960, "10k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (2_500_000_000, "2.5G"),
        (5 * 10**16, "50000T"),
    ],
)
def test_sizes_are_short(count_bytes: int, text: str) -> None:
    assert size(count_bytes) == text


def test_a_peer_can_neither_move_the_cursor_nor_write_markup_nor_reverse_the_line() -> None:
    hostile = "https://a.example/\x1b[2J\n[red]x[/red]\u202e"
    text = rendered(event(request(url=hostile)))
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J\\n[red]x[/red]\\u202e" in text
    out = io.StringIO()
    Console(file=out, width=200).print(tree_of(event(request(url=hostile))))
    assert "\\x1b[2J\\n[red]x[/red]\\u202e" in out.getvalue()


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (
            PolicySeen(session="s", path="p.toml", sha256="0", policy="1", rules=3, on_failure="open"),
            "p.toml: 3 rules, fails open",
        ),
        (CaSeen(operation="created", subject="CN=x", sha256="0", not_after="2036"), "created: CN=x"),
        (ServiceSeen(operation="run_ended", command=("curl", "x"), status=0), "run_ended · curl x · status 0"),
        (
            ReviewSeen(
                operation="quarantine_released", item="f-1", user="joe", people=("alice", "bob"), keys=("k", "l")
            ),
            "quarantine_released · f-1 · by joe · keys of alice, bob",
        ),
        (replace(request(), modified_by=("a.py",)), "modified by a.py"),
        (FaultSeen(what="events_lost", count=7, failed="open"), "events_lost · failed open × 7"),
        (
            CertificateSeen(flow="f", serial="1", names=("a.example",), not_after="2026-12-01", flaw="expired"),
            "a.example until 2026-12-01, deliberately expired",
        ),
    ],
)
def test_events_that_are_not_traffic_are_sentences(seen: Seen, words: str) -> None:
    assert words in rendered(event(seen))


def test_an_address_without_a_name_is_shown_and_an_ipv6_one_in_brackets() -> None:
    assert "192.0.2.7:443" in rendered(event(connection(host=None)))
    six = event(connection(host=None))
    six["remote"]["address"] = "2001:db8::1"
    assert "[2001:db8::1]:443" in rendered(six)


def test_a_process_without_a_path_is_shown_by_its_name_or_not_at_all() -> None:
    assert "gone" in rendered(event(connection(process=Process(pid=9, name="gone"))))
    assert "9" in rendered(event(connection(process=Process(pid=9))))


def test_an_event_that_misses_everything_is_shown_all_the_same() -> None:
    for kind in ("connection", "request", "finding", "certificate", "policy", "ca", "service", "fault", "review"):
        assert rendered({"kind": kind, "seq": 1, "time": "no time"}).strip()


def test_a_review_says_about_what_by_whom_and_why() -> None:
    told = {"kind": "review", "operation": "evidence_unmasked", "event": "e1", "user": "alice", "reason": "ticket 7"}
    assert "evidence_unmasked · e1 · by alice · ticket 7" in rendered({**told, "seq": 1, "time": "no time"})
    told = {"kind": "review", "operation": "evidence_erased", "count": 3, "user": "alice", "reason": ""}
    assert "evidence_erased · 3 erased · by alice" in rendered({**told, "seq": 1, "time": "no time"})


def test_a_request_that_was_not_answered_says_so() -> None:
    fields = event(request()) | {"status": None}
    assert "no answer" in rendered(fields)


def test_an_answer_of_ours_is_told_apart_from_an_origins() -> None:
    assert "403 by mitmsec" in rendered(event(request()) | {"status": 403, "answered_by": "mitmsec"})
    assert "by mitmsec" not in rendered(event(request()) | {"status": 403})


def test_the_tree_has_the_words_of_json() -> None:
    out = io.StringIO()
    told = {"kind": "connection", "verified": True, "resumed": False, "list": [True, "x"], "none": None}
    Console(file=out, width=100).print(tree_of(told))
    lines = [line.strip("│├└─ ") for line in out.getvalue().splitlines()]
    assert {"verified: true", "resumed: false", "true", "none: –"} <= set(lines)


def test_the_tree_shows_lists_and_what_is_not_known() -> None:
    out = io.StringIO()
    leaf = CertificateSeen(flow="f", serial="1", names=("a.example", "b.example"), not_after="2026-12-01")
    Console(file=out, width=100).print(tree_of(event(leaf) | {"user": None, "local": {"port": 1}}))
    assert "b.example" in out.getvalue()
    assert "user: –" in out.getvalue()
    assert "port: 1" in out.getvalue()


@pytest.mark.parametrize("width", [80, 120, 160, 300])
def test_one_long_command_costs_no_other_column_its_room(width: int) -> None:
    """What gives way is what has no cap; sequence, action and outcome stand whole in every row."""
    command = {"seq": 7, "time": "2026-11-03T10:00:00.000000Z", "kind": "service", "operation": "run_started",
               "command": ["curl", *["--resolve"] * 40]}  # fmt: skip
    other = {"seq": 8, "time": "2026-11-03T10:00:00.000000Z", "kind": "connection", "action": "decrypt",
             "outcome": "completed", "remote": {"address": "192.0.2.1", "port": 443, "host": "a.example"},
             "protocol": "tls", "rule": "defaults", "bytes": {"sent": 1, "received": 2}}  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=width).print(table_of([command, other], width))
    row = " ".join(out.getvalue().splitlines()[-(1 if width >= 140 else 2) :])
    assert all(word in row for word in ("8", "decrypt", "a.example", "completed", "tls", "defaults"))
    assert all(len(line) <= width for line in out.getvalue().splitlines())


@pytest.mark.parametrize("width", [60, 80, 100, 120, 139, 140, 160, 200])
def test_rule_pid_and_bytes_of_a_connection_are_shown_at_every_width(width: int) -> None:
    seen = event(connection()) | {"rule": "banks stay private"}
    text = rendered(seen, width=width)
    assert all(word in text for word in ("4711", "banks stay private", "120", "4.5k", "completed", "2026-11-03"))
    lines = text.splitlines()
    assert [line for line in lines if line != line.rstrip() or len(line) > width] == []
    assert len(lines) == (2 if width >= 140 else 4 if width >= 80 else 6)  # header; one line, or the day and more


LONG = "https://files.eu-central-1.storage.example/v1/items"


@pytest.mark.parametrize("width", [40, 60, 79])
def test_where_lines_are_very_short_the_host_is_still_read(width: int) -> None:
    """What happened goes on in the next line; who did it and how it ended stand below."""
    refused = event(connection(host="a-rather-long-name.shop.example", outcome=Outcome.ORIGIN_CERTIFICATE))
    text = rendered(refused, event(request(url=LONG)), width=width)
    head, *lines = text.splitlines()
    rows = [line[head.index("what") :] for line in lines]
    assert "a-rather-long-name.shop.example:443" in "".join(rows)
    assert "origin_certificate · curl" in text
    assert "200 · curl · pid 4711" in text
    assert "GET https://files.eu-central-1.storage.example/" in "".join(rows)
    assert all(cell_len(line) <= width and line == line.rstrip() for line in text.splitlines())


def test_what_is_endless_has_three_short_lines() -> None:
    lines = rendered(event(request(url="https://a.example/" + "漢x" * 400)), width=60).splitlines()
    assert [cell_len(line) <= 60 for line in lines] == [True] * len(lines)
    assert sum("漢" in line for line in lines) == 3
    assert lines[4].endswith("…")


@pytest.mark.parametrize("width", [140, 160, 200])
def test_a_wide_tables_cells_are_what_their_headers_say(width: int) -> None:
    text = rendered(event(connection()), event(request()), event(finding()), width=width)
    head, *rows = text.splitlines()
    assert "rule" not in head
    where, until = head.index("detail"), head.index("outcome")
    assert [row[where:until].strip()[:15] for row in rows] == ['rule "defaults"', "application/jso", "high · request."]
    where, until = head.index("protocol"), head.index("detail")
    assert [row[where:until].strip() for row in rows] == ["tls", "HTTP/2", ""]


def test_what_one_column_does_not_need_is_the_others() -> None:
    text = rendered(event(connection()), event(request(url=LONG + "/" + "x" * 60)), width=160)
    assert 'rule "defaults" ' in text
    assert f"GET {LONG}" in text


def test_where_lines_are_short_each_new_day_says_its_date_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    days = ["2026-11-03T23:59:59.000000Z", "2026-11-03T23:59:59.500000Z", "2026-11-04T00:00:01.000000Z"]
    lines = rendered(*(event(connection()) | {"time": day} for day in days), width=80).splitlines()
    assert [line.strip() for line in lines if line.strip().startswith("2026")] == ["2026-11-03 UTC", "2026-11-04 UTC"]


def test_what_has_nothing_behind_it_has_the_rest_of_the_line() -> None:
    text = rendered(event(CaSeen(operation="created", subject="x" * 40, sha256="0", not_after="2036")), width=80)
    assert "created: " + "x" * 40 in text
    assert "…" in rendered(event(CaSeen(operation="created", subject="x" * 80, sha256="0", not_after="2036")), width=80)


def test_wide_characters_take_two_cells() -> None:
    text = rendered(event(connection(process=Process(pid=1, exe="/opt/" + "漢" * 12))), width=80)
    assert all(cell_len(line) <= 80 for line in text.splitlines())


def test_an_event_is_shown_in_an_order_that_makes_sense() -> None:
    """What and when, who, to where, what was decided and why, how it ended; the same whatever order the log has."""
    out = io.StringIO()
    fields = event(connection())
    Console(file=out, width=100).print(tree_of(fields))
    keys = [line.lstrip("│├└─ ").partition(":")[0] for line in out.getvalue().splitlines() if line[0] in "├└"]
    assert keys == [
        *("seq", "id", "time", "kind", "producer", "session", "connection", "process", "direction", "protocol"),
        *("local", "remote", "action", "rule", "reason", "outcome", "bytes", "duration_ms", "tls"),
    ]
    again = io.StringIO()
    Console(file=again, width=100).print(tree_of(dict(reversed(fields.items()))))
    assert again.getvalue() == out.getvalue()
    assert len(set(FIRST_KEYS)) == len(FIRST_KEYS)
