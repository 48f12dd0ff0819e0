"""Exports that are killed, over and over: every event arrives at least once, in order, on a line of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from audit_events import connection, draft, log_of, request, store_in
from syslog_stage import House, Manner

from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind
from mitmsec.audit.export import Format
from mitmsec.service import exporting
from mitmsec.service.exporting import Wanted, at_least_once, once

EVENTS = 2_000


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    (folder / "log").mkdir()
    store = store_in(folder / "log")
    store.append([draft(request(f"flow-{number}", url=f"https://h.example/{number}")) for number in range(EVENTS)])
    store.close()
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("collector"))


def wanted(state: Path, **others: object) -> Wanted:
    plain: dict[str, object] = {
        "form": Format.JSONL, "filter": Filter(), "output": None, "replaces": False, "to": None, "ca": None,
        "certificate": None, "key": None, "trusts_tcp": False, "cursor": None, "follows": False, "state_folder": state,
    }  # fmt: skip
    return Wanted(**(plain | others))  # type: ignore[arg-type]


def killed_after(span_s: float, job: Wanted) -> bool:
    """Whether a process of its own was killed in the middle of an export; False: it had ended."""
    child = os.fork()
    if not child:
        try:
            at_least_once(job)
        finally:
            os._exit(0)
    time.sleep(span_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def assert_each_at_least_once_and_in_order(seqs: Sequence[int], count: int = EVENTS) -> None:
    """After a kill one goes back, never ahead."""
    assert all(after <= before + 1 for before, after in zip([-1, *seqs], seqs, strict=False))
    assert set(seqs) == set(range(count))


def test_killed_over_and_over_a_file_has_every_event_in_order_and_no_torn_line(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "BATCH_EVENTS", 16)
    out, chance = tmp_path / "out.jsonl", random.Random(7)
    job = wanted(state, output=out, cursor=tmp_path / "cursor")
    kills = 0
    while kills < 12 and killed_after(chance.uniform(0.005, 0.06), job):
        kills += 1
        if out.exists() and chance.random() < 0.5:  # as a power cut could have left it
            with out.open("ab") as file:
                file.write(b'{"torn')
    at_least_once(job)
    with out.open("ab") as file:
        file.write(b'{"torn')
    at_least_once(job)
    assert kills >= 5
    data = out.read_bytes()
    assert data.endswith(b"\n")
    assert_each_at_least_once_and_in_order([json.loads(line)["seq"] for line in data.splitlines()])


def test_a_collector_that_breaks_off_has_every_event_in_the_end(
    state: Path, house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Impatient(exporting.Clock):
        """For whom time flies; when all is well again, Ctrl-C is pressed."""

        skipped_s = 0.0

        def now_s(self) -> float:
            return self.skipped_s

        def pause(self, span_s: float) -> None:
            self.skipped_s += span_s
            said.append(capsys.readouterr().err)
            if "delivered again" in said[-1]:
                raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "Clock", Impatient)
    manners = (Manner.RESETS, Manner.SILENT, Manner.GOES_AWAY)
    with house.collector(*manners, after_bytes=300_000) as collector:
        to = f"syslog+tls://127.0.0.1:{collector.port}"
        job = wanted(state, form=Format.SYSLOG, to=to, ca=house.roots, cursor=tmp_path / "cursor", follows=True)
        with pytest.raises(KeyboardInterrupt):
            at_least_once(job)
    seqs = [json.loads(message.partition(b"] ")[2])["seq"] for message in collector.messages]
    assert seqs == [*range(EVENTS), *range(EVENTS)]  # once for the one that did not say that it has them
    assert "".join(said).count("trying again") == 3


def test_killed_while_it_follows_a_log_that_grows_it_goes_on_after_what_was_settled(
    house: House, tmp_path: Path
) -> None:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", [connection(f"flow-{number}") for number in range(10)])
    cursor = tmp_path / "cursor"
    with house.collector() as collector:
        to = f"syslog+tls://127.0.0.1:{collector.port}"
        words = ["--to", to, "--ca", house.roots, "--cursor", cursor, "--state", tmp_path]
        command = [sys.executable, "-m", "mitmsec", "audit", "export", *map(str, words)]
        following = subprocess.Popen([*command, "--follow"], stderr=subprocess.PIPE)
        try:
            until(lambda: collector.connections == 1)
            log_of(tmp_path / "log", [connection(f"later-{number}") for number in range(5)])
        finally:
            following.kill()
            _, said = following.communicate()
        assert said == b""
        assert subprocess.run(command, check=True, capture_output=True).stderr == b""
    seqs = [json.loads(message.partition(b"] ")[2])["seq"] for message in collector.messages]
    assert_each_at_least_once_and_in_order(seqs, 15)
    assert json.loads(cursor.read_text())["at"]["seq"] == 14


def test_stdout_can_follow_a_log_that_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    class Growing(exporting.Clock):
        """Whenever nothing is left something comes, twice; then Ctrl-C is pressed."""

        pauses = 0

        def pause(self, span_s: float) -> None:
            super().pause(0)
            self.pauses += 1
            if self.pauses == 3:
                raise KeyboardInterrupt
            log_of(tmp_path / "log", [connection(f"flow-{self.pauses}")])

    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", [request(), connection("flow-0")])
    monkeypatch.setattr(exporting, "Clock", Growing)
    with pytest.raises(KeyboardInterrupt):
        at_least_once(wanted(tmp_path, filter=Filter(kind=Kind.CONNECTION), follows=True))
    assert [json.loads(line)["seq"] for line in capsysbinary.readouterr().out.splitlines()] == [1, 2, 3]


def until(happens: object) -> None:
    deadline = time.monotonic() + 20
    while not happens():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_on_a_terminal_a_bar_is_shown_after_a_second_and_taken_away(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    once(wanted(state, output=tmp_path / "quick"))
    assert "exporting" not in capsys.readouterr().err
    monkeypatch.setattr(exporting, "BAR_AFTER_S", 0.0)
    once(wanted(state, output=tmp_path / "slow"))
    shown = capsys.readouterr().err
    assert "exporting" in shown
    assert shown.rstrip("\r\n").endswith(("\x1b[2K", "\x1b[?25h"))
    once(wanted(state))
    assert capsys.readouterr().out.count("\n") == EVENTS
