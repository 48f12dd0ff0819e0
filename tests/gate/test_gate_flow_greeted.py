"""Plays in which what the first bytes are decides: the client's, or the greeting of a server that speaks first."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from gate_house import CURL as AT_HOUSE
from gate_house import Server, houses, on_loop
from gate_stage import CLIENT, CURL, GATE, HTTP, NEVER, ORIGIN, REMOTE, SSH, TLS, Stage
from playbook import Playbook

from mitmsec.audit.event import ConnectionSeen, Outcome
from mitmsec.config import parse_policy, zone_data
from mitmsec.core.explain import explain
from mitmsec.core.model import Action, Endpoint, OnFailure
from mitmsec.core.policy import Policy, Rule
from mitmsec.core.policytest import run_tests
from mitmsec.core.sniff import GREETING_LIMIT_BYTES, Protocol, Sniffed, first_bytes
from mitmsec.gate.signals import (
    Accepted,
    Ask,
    ClientGone,
    Close,
    Deadline,
    Dial,
    DialFailed,
    DialFailure,
    Dialled,
    Ending,
    FirstBytes,
    OwnerKnown,
    Page,
    Peek,
    Record,
    Relay,
    RelayEnded,
    Report,
    Reset,
    ServerSpoke,
    SetDeadline,
    Staff,
    WatchServer,
)


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        pass
    writer.close()


BANNER = b"220 mail.test ESMTP\r\n"
PART = b"220 mail.test"


def rule(action: Action, *protocols: Protocol) -> Rule:
    return Rule(name="asks", action=action, protocol=protocols)


def ended(play: Playbook) -> ConnectionSeen:
    play << NEVER << Reset() << Record
    seen = play.last.seen
    assert isinstance(seen, ConnectionSeen)
    return seen


def greeted(stage: Stage) -> Playbook:
    """Connected, while both sides are silent."""
    return stage.waiting() >> Deadline() << Dial((REMOTE,)) >> Dialled(REMOTE) << WatchServer()


@pytest.mark.parametrize(
    ("data", "protocol", "is_taken"),
    [(TLS, Protocol.TLS, True), (TLS, Protocol.HTTP, False), (HTTP, Protocol.HTTP, True), (SSH, Protocol.SSH, True)],
)
def test_what_the_client_speaks_decides(data: bytes, protocol: Protocol, is_taken: bool) -> None:
    stage = Stage(Action.BYPASS, more=(rule(Action.CAPTURE, protocol),))
    play = stage.waiting() >> FirstBytes(data) << NEVER << Dial((REMOTE,)) >> Dialled(REMOTE)
    assert play << Relay(is_taken)


@pytest.mark.parametrize(
    ("conditions", "is_taken"),
    [
        ({"alpn": ("h2",)}, True),
        ({"alpn": ("http/1.1",)}, False),
        ({"ja4": ("t1?d*",)}, True),
        ({"ja4": ("q*",)}, False),
    ],
)
def test_what_a_hello_offers_decides(conditions: dict[str, tuple[str, ...]], is_taken: bool) -> None:
    stage = Stage(Action.BYPASS, more=(Rule(name="asks", action=Action.BLOCK, **conditions),))  # type: ignore[arg-type]
    play = stage.waiting() >> FirstBytes(TLS)
    if is_taken:
        assert ended(play).rule == "asks"
    else:
        assert play << NEVER << Dial((REMOTE,))


def test_a_greeting_is_let_pass_though_all_else_is_blocked() -> None:
    stage = Stage(Action.BLOCK, more=(rule(Action.CAPTURE, Protocol.SMTP),))
    play = greeted(stage) >> ServerSpoke(BANNER) << NEVER << Relay(True)
    play >> RelayEnded(Ending.ORDERLY, 0, 9) << NEVER << Close() << Record
    assert (play.last.seen.rule, play.last.seen.protocol) == ("asks", "smtp")


@pytest.mark.parametrize("spoken", [ServerSpoke(b"SSH-2.0-x\r\n"), FirstBytes(TLS)])
def test_what_is_no_greeting_of_that_kind_is_blocked_as_the_rest(spoken: ServerSpoke | FirstBytes) -> None:
    stage = Stage(Action.BLOCK, more=(rule(Action.BYPASS, Protocol.SMTP),))
    seen = ended(greeted(stage) >> spoken)
    assert (seen.outcome, seen.rule, seen.action) == (Outcome.BLOCKED, "defaults", Action.BLOCK)


def test_a_greeting_is_blocked_though_all_else_passes_and_not_a_byte_of_it_is_relayed() -> None:
    stage = Stage(Action.BYPASS, more=(rule(Action.BLOCK, Protocol.SMTP),))
    seen = ended(greeted(stage) >> ServerSpoke(BANNER))
    assert (seen.outcome, seen.rule, seen.protocol, seen.bytes_received) == (Outcome.BLOCKED, "asks", "smtp", 0)


def test_nobody_is_contacted_where_every_greeting_would_be_blocked() -> None:
    stage = Stage(Action.BLOCK, more=(rule(Action.BLOCK, Protocol.SMTP), rule(Action.BYPASS, Protocol.TLS)))
    assert ended(stage.waiting() >> Deadline()).outcome is Outcome.BLOCKED


def test_plain_http_that_a_rule_for_its_protocol_blocks_gets_the_page() -> None:
    stage = Stage(more=(rule(Action.BLOCK, Protocol.HTTP),))
    page = Page("asks", 'rule "asks" takes connections, protocol http')
    assert stage.waiting() >> FirstBytes(HTTP) << NEVER << page << Record


def test_a_greeting_in_pieces_is_waited_for_once() -> None:
    stage = Stage(Action.BYPASS, more=(rule(Action.BLOCK, Protocol.SMTP),))
    play = greeted(stage) >> ServerSpoke(PART) << SetDeadline(0.3) << WatchServer(len(PART) + 1)
    play >> ServerSpoke(PART + b" ESM") << WatchServer(len(PART) + 5)
    assert ended(play >> ServerSpoke(BANNER)).rule == "asks"


@pytest.mark.parametrize("event", [Deadline(), ServerSpoke(PART)])
def test_a_greeting_that_does_not_end_is_tcp(event: Deadline | ServerSpoke) -> None:
    stage = Stage(Action.BYPASS, more=(rule(Action.BLOCK, Protocol.SMTP),))
    play = greeted(stage) >> ServerSpoke(PART) << SetDeadline(0.3) << WatchServer
    assert play >> event << NEVER << Relay(False)


@pytest.mark.checklist("C9")
def test_an_endless_greeting_is_heard_out_no_further_than_a_line_may_be_long() -> None:
    stage = Stage(Action.BYPASS, more=(rule(Action.BLOCK, Protocol.SMTP),))
    play = greeted(stage) >> ServerSpoke(PART) << SetDeadline(0.3) << WatchServer
    for size_bytes in range(len(PART) + 1, GREETING_LIMIT_BYTES, 100):
        play >> ServerSpoke(PART.ljust(size_bytes, b"x")) << WatchServer
    assert play >> ServerSpoke(PART.ljust(GREETING_LIMIT_BYTES + 1, b"x")) << NEVER << Relay(False)


def test_a_greeting_that_can_change_nothing_is_not_waited_for() -> None:
    stage = Stage(Action.BYPASS, more=(rule(Action.BLOCK, Protocol.TLS),))
    assert greeted(stage) >> ServerSpoke(PART) << NEVER << Relay(False)


def test_a_client_that_is_done_without_a_word_is_let_wait_for_the_greeting_not_for_ever() -> None:
    stage = Stage(Action.BYPASS, more=(rule(Action.BLOCK, Protocol.SMTP),))
    play = greeted(stage) >> FirstBytes(b"", eof=True) << SetDeadline(0.3)
    assert play >> Deadline() << NEVER << Relay(False)


def test_who_cannot_be_reached_is_recorded_under_what_held_so_far() -> None:
    stage = Stage(Action.BLOCK, more=(rule(Action.BYPASS, Protocol.SMTP),))
    play = stage.waiting() >> Deadline() << Dial((REMOTE,)) >> DialFailed(DialFailure.REFUSED) << SetDeadline(0.3)
    seen = ended(play >> Deadline())
    assert (seen.outcome, seen.rule) == (Outcome.ORIGIN_REFUSED, "asks")
    gone = ended(Stage(Action.BLOCK, more=(rule(Action.BYPASS, Protocol.SMTP),)).waiting() >> ClientGone())
    assert (gone.outcome, gone.rule) == (Outcome.CLIENT_CLOSED, "defaults")


def test_a_decision_to_decrypt_waits_for_what_it_is() -> None:
    stage = Stage(Action.BYPASS, more=(rule(Action.DECRYPT, Protocol.TLS),))
    assert greeted(stage) >> FirstBytes(TLS) << NEVER << Staff()
    other = Stage(Action.DECRYPT, more=(rule(Action.BYPASS, Protocol.SMTP),))
    assert greeted(other) >> ServerSpoke(BANNER) << NEVER << Relay(False)


@pytest.mark.parametrize(("at_s", "is_taken"), [(9.9, True), (10.0, False)])
def test_a_connection_is_decided_as_of_the_moment_at_which_it_began(at_s: float, is_taken: bool) -> None:
    timed = Rule(name="old", action=Action.BLOCK, host=("a.test",), expires_s=10)
    stage = Stage(Action.BYPASS, more=(timed,))
    play = stage.play >> Accepted(CLIENT, GATE, ORIGIN, at_s) << SetDeadline(2.0) << Ask(ORIGIN) >> OwnerKnown(CURL)
    if is_taken:
        play << SetDeadline(0.3) << Peek(1)
        assert ended(play.later(100.0) >> FirstBytes(TLS)).rule == "old"
    else:
        assert play << NEVER << Dial((REMOTE,)) << Peek(1)


def test_a_rule_that_asks_for_the_user_is_not_judged_by_the_kernels_number_alone() -> None:
    stage = Stage(Action.BYPASS, on_failure=OnFailure.OPEN, more=(Rule(name="r", action=Action.BLOCK, user=("joe",)),))
    stage.play >> Accepted(CLIENT, GATE, ORIGIN, 0.0) << SetDeadline(2.0) << Ask(ORIGIN)
    stage.play >> Deadline() << Report << NEVER << Dial((REMOTE,))
    assert stage.flow.about.decision is not None
    assert stage.flow.about.decision.rule == "on_failure"


@on_loop
async def test_a_greeting_in_two_segments_is_read_whole_before_it_is_decided() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BANNER[:9])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(BANNER[9:])
        await reader.read()
        writer.write_eof()

    async with houses() as make, Server(serve) as origin:
        for action in (Action.BLOCK, Action.BYPASS):
            house = make(Policy(action=Action.BYPASS, rules=(rule(action, Protocol.SMTP),)))
            house.divert(origin.address)
            reader, writer = await house.client()
            if action is Action.BYPASS:
                assert await reader.readline() == BANNER
                writer.write_eof()
                assert await reader.read() == b""
            else:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            writer.close()
            seen = await house.recorder.connection()
            assert (seen.rule, seen.protocol, seen.action) == ("asks", "smtp", action)


WRITTEN = """version = 1
[defaults]
action = "bypass"
[[rule]]
name = "over"
protocol = ["tls"]
expires = 2000-01-01
action = "block"
[[rule]]
name = "never on this day"
time = ["Mon-Sun 00:00-00:01 UTC", "Mon-Sun 00:01-24:00 UTC"]
protocol = ["ssh"]
action = "block"
[[rule]]
name = "others"
application = ["/usr/bin/ssh"]
user = ["nobody"]
action = "block"
[[rule]]
name = "by its hello"
alpn = ["h?"]
ja4 = ["t1*"]
protocol = ["tls", "ssh"]
action = "capture"
owner = "security"
[[test]]
application = "/usr/bin/curl"
alpn = ["h2"]
ja4 = "t13d"
expect = "capture"
rule = "by its hello"
[[test]]
application = "/usr/bin/ssh"
protocol = "ssh"
expect = "block"
"""


@on_loop
async def test_what_is_written_is_tested_explained_done_and_recorded_alike() -> None:
    policy = parse_policy(WRITTEN, file="p.toml", read_list=lambda name: "", zone=zone_data)
    assert [outcome.passed for outcome in run_tests(policy, time.time())] == [True, True]
    async with houses() as make, Server(swallow) as origin:
        for data, rule_name, action in (
            (TLS, "by its hello", Action.CAPTURE),
            (SSH, "never on this day", Action.BLOCK),
            (HTTP, "defaults", Action.BYPASS),
        ):
            house = make(policy)
            house.divert(origin.address)
            shown = first_bytes(data)
            assert isinstance(shown, Sniffed)
            told = explain(policy, AT_HOUSE, Endpoint.of(*origin.address), time.time(), shown.shown)
            with house.dial() as client:
                client.send(data)
                client.shutdown(socket.SHUT_WR)
                seen = await house.recorder.connection()
            assert (seen.rule, seen.action) == (told.decision.rule, told.decision.action) == (rule_name, action)
            assert [tried.owner for tried in told.tried] == ["", "", "", "security"]
