"""Leaves: asked for once, kept for a while, and never good for another name."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from pathlib import Path

import pytest
from engine_world import RealMint

from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import Flaw
from mitmsec.engine import contexts
from mitmsec.engine.contexts import Leaves, client_session
from mitmsec.engine.openssl import TlsSession
from mitmsec.engine.seams import Leaf, LeafQuestion, Refused
from mitmsec_certs.leaf_keys import LeafKeys


class Clock:
    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s


def shaken(session: TlsSession, context: ssl.SSLContext, name: str, old: ssl.SSLSession | None = None) -> ssl.SSLObject:
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(into, out, server_hostname=name, session=old)
    for _ in range(6):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        if data := out.read():
            session.feed(data)
        session.handshake()
        into.write(session.outgoing())
    session.write(b"hello")
    into.write(session.outgoing())
    assert client.read(5) == b"hello"
    return client


def test_one_question_serves_many_connections(tmp_path: Path) -> None:
    async def main() -> None:
        mint, clock = RealMint(tmp_path / "ca"), Clock()
        leaves = Leaves(mint, clock_s=clock)
        first = await leaves.context("flow-1", "a.test", not_after_s=None, flaw=None)
        assert await leaves.context("flow-2", "a.test", not_after_s=None, flaw=None) is first
        assert len(mint.questions) == 1
        clock.now_s += contexts.LEAF_USE_S + 1
        assert await leaves.context("flow-3", "a.test", not_after_s=None, flaw=None) is not first
        assert len(mint.questions) == 2

    asyncio.run(main())


def test_name_end_flaw_and_kind_of_key_have_leaves_of_their_own(tmp_path: Path) -> None:
    async def main() -> None:
        mint = RealMint(tmp_path / "ca")
        leaves = Leaves(mint)
        soon = int(time.time()) + 86400 * 5
        made = [
            await leaves.context("1", "a.test", not_after_s=None, flaw=None),
            await leaves.context("2", "b.test", not_after_s=None, flaw=None),
            await leaves.context("3", "a.test", not_after_s=soon, flaw=None),
            await leaves.context("4", "a.test", not_after_s=None, flaw=Flaw.EXPIRED),
            await leaves.context("5", "a.test", not_after_s=None, flaw=None, key=LeafKeyKind.RSA2048),
        ]
        assert len({id(context) for context in made}) == 5

    asyncio.run(main())


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "LEAVES_LIMIT", 3)

    async def main() -> None:
        leaves = Leaves(RealMint(tmp_path / "ca"))
        for number in range(6):
            await leaves.context(str(number), f"{number}.test", not_after_s=None, flaw=None)
        assert len(leaves) == 3

    asyncio.run(main())


@pytest.mark.checklist("U31")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_under_its_own_name_and_under_no_other(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        mint = RealMint(tmp_path / "ca")
        leaves = Leaves(mint)
        client = ssl.create_default_context(cadata=mint.root_pem)
        client.check_hostname = False
        client.minimum_version = client.maximum_version = version
        one = await leaves.context("1", "a.test", not_after_s=None, flaw=None)
        two = await leaves.context("2", "b.test", not_after_s=None, flaw=None)
        ticket = shaken(client_session(one, b""), client, "a.test").session
        assert ticket is not None
        same = shaken(client_session(one, b""), client, "a.test", ticket)
        assert same.session_reused
        other = shaken(client_session(two, b""), client, "b.test", ticket)
        assert not other.session_reused

    asyncio.run(main())


def test_a_chain_that_does_not_fit_its_key_is_refused(tmp_path: Path) -> None:
    class Other(RealMint):
        async def leaf(self, question: LeafQuestion) -> Leaf:
            made = await super().leaf(question)
            return Leaf(chain=made.chain, key=LeafKeys().of(question.key, 0).private_key)

    class Nonsense:
        def __init__(self, leaf: Leaf) -> None:
            self._leaf = leaf

        async def leaf(self, question: LeafQuestion) -> Leaf:
            return self._leaf

    async def main() -> None:
        good = await RealMint(tmp_path / "ca").leaf(LeafQuestion(flow="1", name="a.test"))
        bad = [Leaf(chain=(b"nonsense",), key=good.key), Leaf(chain=good.chain, key=b"nonsense")]
        for certifier in (Other(tmp_path / "ca"), *map(Nonsense, bad)):
            with pytest.raises(Refused):
                await Leaves(certifier).context("1", "a.test", not_after_s=None, flaw=None)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "suite"),
    [(LeafKeyKind.P256, "ECDHE-ECDSA-AES128-GCM-SHA256"), (LeafKeyKind.RSA2048, "ECDHE-RSA-AES128-GCM-SHA256")],
)
def test_a_client_is_shown_the_kind_of_key_that_it_was_asked_for(tmp_path: Path, kind: LeafKeyKind, suite: str) -> None:
    async def main() -> None:
        mint = RealMint(tmp_path / "ca")
        client = ssl.create_default_context(cadata=mint.root_pem)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(suite)
        context = await Leaves(mint).context("1", "a.test", not_after_s=None, flaw=None, key=kind)
        cipher = shaken(client_session(context, b""), client, "a.test").cipher()
        assert cipher is not None
        assert cipher[0] == suite

    asyncio.run(main())
