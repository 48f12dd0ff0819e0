"""What a real TLS origin can prove to the gate, how often it is asked, and what silence proves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme
from gate_house import Server, houses, on_loop
from hellos import hello, server_name
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec.audit.event import Outcome
from mitmsec.core.model import Action, Endpoint, UnprovenName
from mitmsec.core.policy import Policy, Rule
from mitmsec.gate import origin_probe as module
from mitmsec.gate.origin_probe import OriginProbe

CA, OTHER_CA = trustme.CA(), trustme.CA()
ROOTS = b"# public\n" + OTHER_CA.cert_pem.bytes().replace(b"MII", b"MIX", 1) + CA.cert_pem.bytes()


class Origin:
    """A TLS server for `names`, by `ca`."""

    def __init__(self, *names: str, ca: trustme.CA = CA) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*names).configure_cert(self.context)
        self.shown: list[str | None] = []
        self.context.sni_callback = lambda sock, name, context: self.shown.append(name)
        self.said: list[bytes] = []

    async def __aenter__(self) -> Origin:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                self.said.append(await reader.read())
            writer.close()

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self.context)
        self.address = self._server.sockets[0].getsockname()
        self.endpoint = Endpoint.of(*self.address)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()


@contextlib.asynccontextmanager
async def probe(roots: bytes = ROOTS, **options: Any) -> AsyncIterator[OriginProbe]:
    one = OriginProbe(roots, **options)
    try:
        yield one
    finally:
        one.close()


async def answer(one: OriginProbe, name: str, remote: Endpoint, bound: str | None = None) -> bool:
    told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    one.ask(name, remote, bound, told.set_result)
    return await asyncio.wait_for(told, 20)


@on_loop
async def test_an_origin_proves_the_names_that_its_certificate_is_for_and_no_others() -> None:
    async with Origin("bank.test", "*.shop.test") as origin, probe() as one:
        for name, expected in (("bank.test", True), ("a.shop.test", True), ("a.b.shop.test", False), ("x.test", False)):
            assert await answer(one, name, origin.endpoint) is expected, name
        assert origin.shown == ["bank.test", "a.shop.test", "a.b.shop.test", "x.test"]
        assert not any(origin.said), "it is told nothing"


@on_loop
async def test_a_certificate_of_a_root_that_is_not_trusted_proves_nothing() -> None:
    async with Origin("bank.test", ca=OTHER_CA) as origin:
        for roots, expected in ((ROOTS, False), (b"", False), (OTHER_CA.cert_pem.bytes(), True)):
            async with probe(roots) as one:
                assert await answer(one, "bank.test", origin.endpoint) is expected


@on_loop
async def test_who_waits_for_the_same_name_waits_for_one_handshake_and_the_answer_is_kept() -> None:
    async with Origin("bank.test") as origin, probe() as one:
        assert await asyncio.gather(*(answer(one, "bank.test", origin.endpoint) for _ in range(5))) == [True] * 5
        assert await answer(one, "bank.test", origin.endpoint, bound="127.0.0.2")
        assert origin.shown == ["bank.test"]


@on_loop
async def test_an_answer_is_not_kept_for_ever() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FAILED_S", 0.0)
        async with Origin("bank.test") as origin, probe() as one:
            assert [await answer(one, "x.test", origin.endpoint) for _ in range(2)] == [False, False]
            assert origin.shown == ["x.test", "x.test"]


@on_loop
async def test_who_is_silent_or_not_there_or_speaks_something_else_has_proved_nothing() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def talker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        await reader.read()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DEADLINE_S", 0.2)
        async with Server(silent) as mute, Server(talker) as other, probe() as one:
            gone = Endpoint(address="127.0.0.1", port=1)
            remotes = [Endpoint.of(*mute.address), Endpoint.of(*other.address), gone]
            assert [await answer(one, "bank.test", remote) for remote in remotes] == [False] * 3
            assert not one._waiting


@on_loop
async def test_an_address_where_nobody_answers_is_given_up_without_an_error_in_the_loop() -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(module, "DEADLINE_S", 0.1)
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # the kernel drops who comes after them
            before = stack.enter_context(socket.socket())
            before.setblocking(False)
            before.connect_ex(full.getsockname())
        async with probe() as one:
            for name in ("a.test", "b.test", "c.test"):
                assert await answer(one, name, Endpoint.of(*full.getsockname())) is False
    await asyncio.sleep(0.01)
    assert not errors


@on_loop
async def test_more_than_so_many_at_once_are_told_that_nothing_is_proved_and_what_is_known_is_bounded() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PROBES_LIMIT", 2)
        patch.setattr(module, "KNOWN_LIMIT", 2)
        async with Server(silent) as mute, Origin("a.test", "b.test", "c.test") as origin, probe() as one:
            told: list[bool] = []
            for name in ("a.test", "b.test", "c.test"):
                one.ask(name, Endpoint.of(*mute.address), None, told.append)
            assert told == [False], "at once"
            one.close()
            await asyncio.sleep(0)
            assert told == [False], "who is cancelled hears nothing"
        async with probe() as one:
            for name in ("a.test", "b.test", "c.test"):
                assert await answer(one, name, origin.endpoint) is False  # it has gone
            assert len(one._known) == 2


@settings(max_examples=25, deadline=None)
@given(st.from_regex(r"(xn--)?[a-z0-9_-]{0,62}(\.[a-z0-9_-]{1,63}){0,3}", fullmatch=True))
def test_whatever_the_name_is_it_is_answered(name: str) -> None:
    async def scenario() -> None:
        async with Origin("bank.test") as origin, probe() as one:
            assert await answer(one, name, origin.endpoint) is False

    asyncio.run(scenario())


# --- in the gate ------------------------------------------------------------------------------------------------------
def bypassing(word: UnprovenName) -> Policy:
    rule = Rule(name="bank", host=("bank.test",), action=Action.BYPASS)
    return Policy(action=Action.BLOCK, rules=(rule,), unproven_name=word)


@on_loop
async def test_a_client_that_claims_a_bank_elsewhere_is_blocked_and_one_at_the_bank_passes() -> None:
    async with houses() as make, Origin("bank.test") as bank, Origin("evil.test") as evil, probe() as one:
        house = make(bypassing(UnprovenName.BLOCK), probes=True, probe=one)
        context = ssl.create_default_context(cadata=CA.cert_pem.bytes().decode())
        house.divert(bank.address)
        _, writer = await asyncio.open_connection(*house.address, ssl=context, server_hostname="bank.test")
        writer.write(b"to the bank")
        writer.close()
        seen = await house.recorder.connection()
        assert (seen.action, seen.rule, seen.tls.client.name_certified) == (Action.BYPASS, "bank", True)
        assert seen.reason.endswith("; the origin's certificate confirms the name")
        assert bank.shown == ["bank.test"] * 2, "the gate's own, and the program's"
        house.divert(evil.address)
        _, writer = await asyncio.open_connection(*house.address)
        writer.write(hello(server_name(b"bank.test")))
        seen = await house.recorder.connection(1)
        writer.close()
        assert (seen.action, seen.rule, seen.outcome) == (Action.BLOCK, "bank", Outcome.BLOCKED)
        assert seen.tls.client.name_certified is False
        assert seen.reason.endswith("; the origin's certificate does not confirm the name")
        assert evil.shown == ["bank.test"], "of the program's own hello nothing arrived"
