"""What an origin hears from us: the hellos are those that the engine really sends, for whoever the client is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import trustme
from cipher_grades import GRADES, grade_of
from crafted_servers import (
    MODERN,
    Crafted,
    bare_server,
    client_hello,
    parsed,
    parts,
    shaken,
)
from engine_world import NAME, Pages, World, connected, origin, server_context, trusting, world
from hellos import REAL, numbers
from OpenSSL import SSL

from mitmsec.engine.contexts import OriginContext
from mitmsec.engine.openssl import TlsFailed, TlsSession, restrict_groups
from mitmsec.engine.strength import Floor, floor_of

UNDERSTOOD = {
    0x0000: "server_name", 0x000A: "supported_groups", 0x000B: "ec_point_formats", 0x000D: "signature_algorithms",
    0x0005: "status_request", 0x0010: "alpn", 0x0016: "encrypt_then_mac", 0x0017: "extended_master_secret",
    0x0023: "session_ticket", 0x0029: "pre_shared_key", 0x002B: "supported_versions", 0x002D: "psk_key_exchange_modes",
    0x0033: "key_share", 0xFF01: "renegotiation_info",
}  # fmt: skip
EARLY_DATA = 0x002A


async def heard(made: World, crafted: Crafted, hello: bytes) -> bytes:
    """What the origin hears after a client has said `hello`."""
    made.name = parsed(hello).sni or made.name
    before = len(crafted.hellos)
    _, writer = await connected(made, None)
    writer.write(hello)
    while len(crafted.hellos) == before:
        await asyncio.sleep(0.001)
    writer.close()
    await made.end()
    return crafted.hellos[-1]


def what_is_heard(tmp_path: Path, *hellos: bytes) -> list[bytes]:
    async def main() -> list[bytes]:
        crafted = Crafted()
        async with origin(crafted, None) as port, world(tmp_path, port) as made:
            return [await heard(made, crafted, hello) for hello in hellos]

    return asyncio.run(main())


# -- the hello ---------------------------------------------------------------------------------------------------------
def test_the_table_grades_as_the_study_did() -> None:
    """Static RSA first is B, RC4 anywhere C, export anywhere F; a signal in front does not count."""
    assert len(GRADES) == 356
    assert grade_of([0x00FF, 0xC02B, 0xC02F, 0xC00A, 0x002F]) == "A"
    assert grade_of([0x009C, 0xC02B]) == "B"
    assert grade_of([0xC02B, 0x0005]) == "C"
    assert grade_of([0xC02B, 0x0005, 0x0003]) == "F"
    assert grade_of([0xEEEE]) == grade_of([]) == "?"


@pytest.mark.checklist("U20")
def test_our_hello_is_graded_a_and_no_suite_of_it_is_graded_less(tmp_path: Path) -> None:
    """Whoever the client is: those that are here offer suites of grade B, and of grade C."""
    sent = [client_hello(), client_hello(ciphers=(0x0005, 0x002F, 0x000A)), *REAL.values()]
    for raw in what_is_heard(tmp_path, *sent):
        ciphers = parsed(raw).ciphers
        assert grade_of(ciphers) == "A"
        assert {GRADES.get(cipher) for cipher in ciphers} == {"A"}


@pytest.mark.checklist("U24")
def test_tls_1_3_is_preferred_and_the_hybrid_group_and_x25519_are_offered_with_shares(tmp_path: Path) -> None:
    (raw,) = what_is_heard(tmp_path, client_hello())
    hello = parsed(raw)
    assert hello.versions == (0x0304, 0x0303)
    assert hello.groups[:2] == (0x11EC, 0x001D)
    shares = parts(raw)[2][0x0033]
    assert shares[2:4] == numbers(0x11EC)
    assert numbers(0x001D) + numbers(32) in shares[2 + 4 + 1216 :]


@pytest.mark.checklist("U24")
def test_an_origin_that_gets_no_hybrid_share_gets_the_group_all_the_same_if_it_wants_it() -> None:
    ca = trustme.CA()
    origins, wants_hybrid, takes_any = OriginContext(ca.cert_pem.bytes()), bare_server(ca), bare_server(ca)
    restrict_groups(wants_hybrid, "X25519MLKEM768")
    restrict_groups(takes_any, "X25519:P-256")
    ours = origins.session("a.test", sni=True, alpn=(), tls12=True, share=False)
    assert not ours.handshake()
    raw = ours.outgoing()
    shares = parts(raw)[2][0x0033]
    assert parsed(raw).groups[:2] == (0x11EC, 0x001D)
    assert shares == numbers(36) + numbers(0x001D) + numbers(32) + shares[-32:]
    for server, is_hybrid in ((wants_hybrid, True), (takes_any, False)):
        ours = origins.session("a.test", sni=True, alpn=(), tls12=True, share=False)
        shaken(ours, server)
        assert ours.strength.is_hybrid is is_hybrid


@pytest.mark.checklist("U24", "U31")
def test_a_hybrid_share_is_made_again_for_who_offers_one_and_never_left_out_for_another_program(tmp_path: Path) -> None:
    """And left out where the program offers none and its origin, which had the choice, has lately taken none."""

    async def main() -> list[bool]:
        ca, made_with = trustme.CA(), []
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            session = made.engine.origins.session

            def noted(*words: Any, share: bool, **more: Any) -> TlsSession:
                made_with.append(share)
                return session(*words, share=share, **more)

            made.engine.origins.session = noted  # type: ignore[method-assign]
            for owner in ("one", "one", "another", ""):
                made.owner = owner
                reader, writer = await connected(made, trusting(tmp_path))
                writer.write(b"GET / HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % NAME.encode())
                assert b"you asked for /" in await reader.read()
                writer.close()
                await made.end()
            made.owner = "one"
            _, writer = await connected(made, None)
            writer.write(client_hello(NAME, groups=(0x11EC, 0x001D)))
            while len(made_with) < 5:
                await asyncio.sleep(0.001)
            writer.close()
        return made_with

    assert asyncio.run(main()) == [True, False, True, True, True]


@pytest.mark.checklist("U23", "U26")
def test_no_finite_field_group_and_no_compression_is_offered(tmp_path: Path) -> None:
    (raw,) = what_is_heard(tmp_path, client_hello(groups=(0x0100, 0x0104)))
    assert all(group < 0x0100 or group in {0x11EC, 0x11ED} for group in parsed(raw).groups)
    assert parts(raw)[1] == b"\x00"


@pytest.mark.checklist("U30")
def test_the_random_is_our_own_and_so_is_every_extension(tmp_path: Path) -> None:
    """Nothing is copied: not the client's random, nor extensions and values that mean nothing to us."""
    strange = client_hello(NAME, MODERN, (0x001D, 0x4A4A), (0x0304,), (), (0xFE0D, b"x" * 99), (0x1234, b"who knows"))
    first, second = what_is_heard(tmp_path, strange, strange)
    assert parts(first)[0] != parts(second)[0]
    assert bytes(32) not in (parts(first)[0], parts(second)[0])
    for raw in (first, second):
        extensions = parts(raw)[2]
        assert set(extensions) <= set(UNDERSTOOD)
        assert b"who knows" not in raw
        assert 0x4A4A not in parsed(raw).groups


@pytest.mark.checklist("U27", "U28")
@pytest.mark.parametrize(
    "hello",
    [
        *REAL.values(),
        client_hello(versions=(0x0304,)),
        client_hello(ciphers=(0x1302, 0xC02C)),
        client_hello(ciphers=(0x1302,), groups=(0x0018, 0x0019), versions=(0x0304,)),
        client_hello(groups=(0x11EC,), versions=(0x0304,)),
        client_hello(ciphers=(0x1303,), groups=(0x11ED,), versions=(0x0304,)),
        client_hello(ciphers=(0x000A, 0x0005), groups=(), versions=(0x0301, 0x0302, 0x0303)),
    ],
    ids=lambda raw: parsed(raw).ja4,
)
def test_both_hellos_compared_ours_takes_nothing_that_the_clients_would_not(tmp_path: Path, hello: bytes) -> None:
    client, ours = parsed(hello), parsed(what_is_heard(tmp_path, hello)[0])
    assert min(ours.versions) >= min(version for version in client.versions if version & 0x0F0F != 0x0A0A)
    least, mine = floor_of(client), floor_of(ours)
    assert mine.cipher_bits >= least.cipher_bits
    assert mine.group_bits >= least.group_bits
    assert mine.is_hybrid or not least.is_hybrid
    assert mine.tls12 <= least.tls12


@pytest.mark.checklist("U29")
@pytest.mark.parametrize("protocols", [(), (b"h2", b"http/1.1"), (b"http/1.1",), (b"x-own", b"h2")])
def test_the_protocols_are_the_clients_own_in_its_order(tmp_path: Path, protocols: tuple[bytes, ...]) -> None:
    (raw,) = what_is_heard(tmp_path, client_hello(protocols=protocols))
    assert parsed(raw).alpn == tuple(name.decode() for name in protocols)


@pytest.mark.checklist("U29")
@pytest.mark.parametrize("spoken", [("h2",), ("http/1.1",), ()])
def test_the_client_gets_the_protocol_that_the_origin_chose_and_no_other(
    tmp_path: Path, spoken: tuple[str, ...]
) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca, alpn=spoken)) as port, world(tmp_path, port, [ca]) as made:
            _, writer = await connected(made, trusting(tmp_path, ["h2", "http/1.1"]))
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == next(iter(spoken), None)
            writer.close()
            await made.end()

    asyncio.run(main())


@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("is_hybrid", [True, False])
@pytest.mark.parametrize("tls12", [True, False])
@pytest.mark.parametrize("cipher_bits", [128, 256])
@pytest.mark.checklist("U27")
def test_openssl_offers_what_the_floor_asks(bits: int, is_hybrid: bool, tls12: bool, cipher_bits: int) -> None:
    floor = Floor(tls12=tls12, cipher_bits=cipher_bits, group_bits=bits, is_hybrid=is_hybrid)
    session = ORIGINS.session("a.test", sni=True, alpn=(), tls12=tls12, floor=floor)
    session.handshake()
    mine = floor_of(parsed(session.outgoing()))
    assert (mine.tls12, mine.cipher_bits, mine.is_hybrid) == (tls12, cipher_bits, is_hybrid)
    assert mine.group_bits >= bits


ORIGINS = OriginContext(b"")
lib: Any = SSL._lib  # type: ignore[attr-defined]


def test_an_openssl_without_any_group_that_is_strong_enough_is_not_asked_to_take_others() -> None:
    with pytest.raises(TlsFailed, match="none of the groups") as caught:
        restrict_groups(SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None), "*TOO-NEW:MLKEM-TOO")
    assert caught.value.alert == 71


# -- 0-RTT -------------------------------------------------------------------------------------------------------------
@pytest.mark.checklist("U32")
def test_no_early_data_is_sent_even_where_the_origin_would_take_it() -> None:
    ca = trustme.CA()
    context: Any = bare_server(ca)
    assert lib.SSL_CTX_set_max_early_data(context._context, 16384) == 1
    origins = OriginContext(ca.cert_pem.bytes())
    first = origins.session("a.test", sni=True, alpn=(), tls12=True)
    shaken(first, context)
    first.expect_ticket()
    first.read()
    second = origins.session("a.test", sni=True, alpn=(), tls12=True)
    ticket = first._connection.get_session()
    assert ticket is not None
    second.offer(ticket)
    second.handshake()
    extensions = parts(second.outgoing())[2]
    assert 0x0029 in extensions, "the session is offered"
    assert EARLY_DATA not in extensions
