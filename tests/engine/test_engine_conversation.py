"""TLS on both legs: who fails, how, and what the other side is shown of it."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from engine_world import NAME, Pages, World, blunt_origin, connected, curl, origin, server_context, trusting, world
from msgspec.structs import replace

from mitmsec.audit.event import BytesSeen, Outcome, SecretsSeen
from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import Flaw
from mitmsec.core.model import TlsVersion, Upstream

PAST = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)


async def rejected(made: World, tmp_path: Path) -> ssl.SSLCertVerificationError:
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        await connected(made, trusting(tmp_path))
    return caught.value


def test_a_client_sees_the_decided_name_and_both_legs_are_described(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            shown = writer.get_extra_info("peercert")
            assert shown["subjectAltName"] == (("DNS", NAME),)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            writer.close()
            end = await made.end()
            assert end.outcome == Outcome.COMPLETED
            assert end.tls is not None
            assert end.tls.client is not None
            assert (end.tls.client.version, end.tls.client.sni, end.tls.client.alpn) == ("TLSv1.3", NAME, "http/1.1")
            assert end.tls.client.ja4 is not None
            assert end.tls.server is not None
            assert end.tls.server.verified is True
            assert end.tls.server.error is None
            assert len(end.tls.server.certificate_sha256 or "") == 64
            assert await reader.read() == b""

    asyncio.run(main())


def test_the_leaf_ends_no_later_than_the_origins_certificate(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2, hours=5)
        context = server_context(ca, not_after=soon)
        async with origin(Pages(), context) as port, world(tmp_path, port, [ca]) as made:
            _, writer = await connected(made, trusting(tmp_path))
            ends_s = ssl.cert_time_to_seconds(writer.get_extra_info("peercert")["notAfter"])
            assert ends_s <= soon.timestamp()
            writer.close()
            await made.end()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("flaw", "names", "issue", "trusted", "code"),
    [
        (Flaw.UNTRUSTED, (), {}, False, 20),
        (Flaw.WRONG_NAME, ("other.test",), {}, True, 62),
        (Flaw.EXPIRED, (), {"not_after": PAST}, True, 10),
    ],
)
def test_a_bad_certificate_is_mirrored(
    tmp_path: Path, flaw: Flaw, names: tuple[str, ...], issue: dict[str, Any], trusted: bool, code: int
) -> None:
    """The client's own verification fails with the code that the origin's certificate would have given it."""

    async def main() -> None:
        ca = trustme.CA()
        context = server_context(ca, *names, **issue)
        pages = Pages()
        async with origin(pages, context) as port, world(tmp_path, port, [ca] if trusted else []) as made:
            assert (await rejected(made, tmp_path)).verify_code == code
            end = await made.end()
            assert end.outcome == Outcome.ORIGIN_CERTIFICATE
            assert end.tls is not None
            assert end.tls.server is not None
            assert end.tls.server.verified is False
            assert end.tls.server.error
            assert made.mint.questions[0].flaw is flaw
            # a client that does not mind gets through, as it would without us
            status, out, err = await curl(made, tmp_path, "-k")
            assert (status, out, err) == (0, "you asked for /", "")

    asyncio.run(main())


def test_several_defects_are_shown_as_the_gravest(tmp_path: Path) -> None:
    async def main() -> None:
        context = server_context(trustme.CA(), "other.test", not_after=PAST)
        async with origin(Pages(), context) as port, world(tmp_path, port) as made:
            assert (await rejected(made, tmp_path)).verify_code == 20
            assert made.mint.questions[0].flaw is Flaw.UNTRUSTED

    asyncio.run(main())


def test_upstream_block_resets_before_the_client_sees_a_certificate(tmp_path: Path) -> None:
    async def main() -> None:
        context = server_context(trustme.CA())
        async with origin(Pages(), context) as port, world(tmp_path, port, upstream=Upstream.BLOCK) as made:
            with pytest.raises(ConnectionResetError):
                await connected(made, trusting(tmp_path))
            end = await made.end()
            assert (end.outcome, end.reset) == (Outcome.ORIGIN_CERTIFICATE, True)
            assert made.mint.questions == []

    asyncio.run(main())


def test_upstream_accept_gives_a_good_leaf_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        context = server_context(trustme.CA(), not_after=PAST)
        async with origin(Pages(), context) as port, world(tmp_path, port, upstream=Upstream.ACCEPT) as made:
            assert (await curl(made, tmp_path))[:2] == (0, "you asked for /")
            end = await made.end()
            assert end.outcome == Outcome.COMPLETED
            assert end.tls is not None
            assert end.tls.server is not None
            assert end.tls.server.verified is False

    asyncio.run(main())


def test_an_address_is_verified_as_an_address_when_nobody_was_named(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca, "127.0.0.1")) as port, world(tmp_path, port, [ca]) as made:
            made.name = "127.0.0.1"
            _, writer = await connected(made, trusting(tmp_path), "127.0.0.1")
            assert writer.get_extra_info("peercert")["subjectAltName"] == (("IP Address", "127.0.0.1"),)
            writer.close()
            end = await made.end()
            assert end.tls is not None
            assert end.tls.server is not None
            assert end.tls.server.verified is True

    asyncio.run(main())


def test_a_client_that_pins_is_told_apart(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            ca.cert_pem.write_to_path(tmp_path / "pinned.pem")
            status, _, _ = await curl(made, tmp_path, "--cacert", str(tmp_path / "pinned.pem"))
            assert status == 60
            end = await made.end()
            assert end.outcome == Outcome.CLIENT_REJECTED
            assert "unknown ca" in end.error

    asyncio.run(main())


def reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


@pytest.mark.parametrize("greeting", [b"", b"220 here\r\n"])
def test_a_client_that_looks_at_the_certificate_after_the_handshake_is_told_apart(
    tmp_path: Path, greeting: bytes
) -> None:
    """It resets without a word, unless it was greeted first: then it has seen more than a certificate."""

    async def main() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            await reader.read()

        ca = trustme.CA()
        async with origin(greet, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            assert await reader.read(len(greeting)) == greeting
            reset(writer)
            end = await made.end()
            assert end.outcome == (Outcome.COMPLETED if greeting else Outcome.CLIENT_REJECTED)

    asyncio.run(main())


@pytest.mark.checklist("U27", "U28")
@pytest.mark.parametrize("strict", [True, False])
def test_tls12_is_used_only_where_the_client_offers_it(tmp_path: Path, strict: bool) -> None:
    """An origin of TLS 1.2 is reached by a client that would reach it, and by no other."""

    async def main() -> None:
        ca = trustme.CA()
        old = server_context(ca)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        async with blunt_origin(old) as port, world(tmp_path, port, [ca]) as made:
            context = trusting(tmp_path)
            if strict:
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                with pytest.raises(ssl.SSLError, match=r"(?i)alert.*protocol.version"):
                    await connected(made, context)
                end = await made.end()
                assert end.outcome == Outcome.ORIGIN_REFUSED
                return
            _, writer = await connected(made, context)
            writer.close()
            end = await made.end()
            assert end.tls is not None
            assert end.tls.server is not None
            assert end.tls.server.version == "TLSv1.2"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("client_version", "origin_version", "outcome"),
    [
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, Outcome.COMPLETED),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3, Outcome.BLOCKED),
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2, Outcome.ORIGIN_REFUSED),
    ],
)
def test_a_rule_that_wants_tls13_gets_it_on_both_legs_or_there_is_no_connection(
    tmp_path: Path, client_version: ssl.TLSVersion, origin_version: ssl.TLSVersion, outcome: Outcome
) -> None:
    async def main() -> None:
        ca = trustme.CA()
        theirs = server_context(ca)
        theirs.maximum_version = origin_version
        async with blunt_origin(theirs) as port, world(tmp_path, port, [ca]) as made:
            made.decision = replace(made.decision, min_tls=TlsVersion.TLS13)
            client = trusting(tmp_path)
            client.maximum_version = client_version
            if outcome is Outcome.COMPLETED:
                _, writer = await connected(made, client)
                assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
                writer.close()
                end = await made.end()
                assert end.tls is not None
                assert end.tls.server is not None
                assert end.tls.server.version == "TLSv1.3"
                return
            with pytest.raises(ssl.SSLError, match=r"(?i)alert.*protocol.version"):
                await connected(made, client)
            end = await made.end()
            assert end.outcome == outcome
            if outcome is Outcome.BLOCKED:
                assert (end.error, end.tls and end.tls.server) == ("it has no TLS 1.3, the rule's min_tls", None)

    asyncio.run(main())


@pytest.mark.parametrize("origin_version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_can_do_with_rsa_only_is_shown_an_rsa_leaf(
    tmp_path: Path, origin_version: ssl.TLSVersion
) -> None:
    """Whether the hello says so, or only the version that its origin speaks makes it so."""

    async def main() -> None:
        ca = trustme.CA()
        origin_context = server_context(ca)
        origin_context.maximum_version = origin_version
        async with blunt_origin(origin_context) as port, world(tmp_path, port, [ca]) as made:
            client = trusting(tmp_path)
            client.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
            if origin_version is ssl.TLSVersion.TLSv1_3:
                client.maximum_version = ssl.TLSVersion.TLSv1_2
            _, writer = await connected(made, client)
            assert writer.get_extra_info("cipher")[0] == "ECDHE-RSA-AES128-GCM-SHA256"
            writer.close()
            assert [question.key for question in made.mint.questions] == [LeafKeyKind.RSA2048]

    asyncio.run(main())


def test_the_origins_alert_reaches_the_client(tmp_path: Path) -> None:
    """Never a page inside valid TLS for a handshake that the origin refuses."""

    async def main() -> None:
        ca = trustme.CA()
        context = server_context(ca)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+AES:!AESGCM")  # which we do not offer
        async with blunt_origin(context) as port, world(tmp_path, port, [ca]) as made:
            with pytest.raises(ssl.SSLError, match=r"(?i)alert handshake failure"):
                await connected(made, trusting(tmp_path))
            end = await made.end()
            assert end.outcome == Outcome.ORIGIN_REFUSED
            assert "handshake failure" in end.error

    asyncio.run(main())


def test_an_origin_that_speaks_no_tls_is_a_failed_handshake(tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.origin.test ESMTP ready when you are\r\n")
        await reader.read()

    async def main() -> None:
        async with origin(greet, None) as port, world(tmp_path, port) as made:
            with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
                await connected(made, trusting(tmp_path))
            assert (await made.end()).outcome == Outcome.MALFORMED

    asyncio.run(main())


@pytest.mark.parametrize("resets", [True, False])
def test_an_origin_that_hangs_up_in_the_handshake(tmp_path: Path, resets: bool) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if resets:
            writer.transport.abort()

    async def main() -> None:
        async with origin(hang_up, None) as port, world(tmp_path, port) as made:
            with pytest.raises((ConnectionResetError, ssl.SSLError, ConnectionError)) as caught:
                await connected(made, trusting(tmp_path))
            end = await made.end()
            assert end.outcome == Outcome.ORIGIN_RESET
            if end.reset:
                assert isinstance(caught.value, ConnectionResetError)

    asyncio.run(main())


def test_an_origin_that_says_nothing_runs_out_of_time(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await reader.read()

    async def main() -> None:
        async with origin(silent, None) as port, world(tmp_path, port, deadline_s=0.2) as made:
            with pytest.raises(ConnectionResetError):
                await connected(made, trusting(tmp_path))
            assert (await made.end()).outcome == Outcome.ORIGIN_TIMEOUT

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        (b"\x16\x03\x01\x00\x05hello", Outcome.MALFORMED),
        (b"\x16\x03\x01", Outcome.CLIENT_CLOSED),
        (b"", Outcome.CLIENT_CLOSED),
    ],
)
def test_half_a_hello_and_no_hello(tmp_path: Path, sent: bytes, outcome: Outcome) -> None:
    async def main() -> None:
        async with origin(Pages(), None) as port, world(tmp_path, port) as made:
            _, writer = await connected(made, None)
            writer.write(sent)
            writer.write_eof()
            assert (await made.end()).outcome == outcome

    asyncio.run(main())


@pytest.mark.checklist("U15")
def test_a_hello_for_another_name_than_the_decided_one_goes_nowhere(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            with pytest.raises(ConnectionResetError):
                await connected(made, trusting(tmp_path), "other.test")
            assert (await made.end()).outcome == Outcome.FAULT
            assert made.mint.questions == []

    asyncio.run(main())


def test_no_certificate_no_connection(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            made.mint.refuses = True
            with pytest.raises(ConnectionResetError):
                await connected(made, trusting(tmp_path))
            assert (await made.end()).outcome == Outcome.FAULT
            assert [fault.what for fault in made.recorder.faults] == ["no_certificate"]

    asyncio.run(main())


def test_bytes_are_counted_as_the_network_saw_them_and_captured_with_keys(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca], capture=True) as made:
            status, out, _ = await curl(made, tmp_path, path="/bytes/300000")
            assert (status, len(out)) == (0, 300000)
            end = await made.end()
            wire = made.recorder.of(BytesSeen)
            assert sum(len(seen.data) for seen in wire if seen.sent) == end.bytes_sent
            assert sum(len(seen.data) for seen in wire if not seen.sent) == end.bytes_received > 300000
            assert all(len(seen.data) <= 1 << 16 for seen in wire)
            assert wire[0].data[:1] == b"\x16"
            lines = b"".join(seen.lines for seen in made.recorder.of(SecretsSeen)).splitlines()
            assert {line.split()[0] for line in lines} >= {b"CLIENT_TRAFFIC_SECRET_0", b"SERVER_TRAFFIC_SECRET_0"}
            assert {seen.flow for seen in made.recorder.of(SecretsSeen)} == {end.flow}

    asyncio.run(main())


def test_a_congested_recorder_slows_a_capture_down_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca], capture=True) as made:
            made.recorder.congested = True
            fetch = asyncio.create_task(curl(made, tmp_path, path="/bytes/20000000"))
            while not made.recorder.of(BytesSeen):
                await asyncio.sleep(0)
            done, _ = await asyncio.wait([fetch], timeout=0.3)
            assert not done
            made.recorder.congested = False
            made.recorder.relief.set()
            status, out, _ = await fetch
            assert (status, len(out)) == (0, 20000000)

    asyncio.run(main())


def test_a_worker_that_is_stopped_resets_what_lives(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port:
            async with world(tmp_path, port, [ca]) as made:
                reader, _ = await connected(made, trusting(tmp_path))
            end = await made.end()
            assert (end.outcome, end.reset) == (Outcome.CUT, True)
            with pytest.raises(ConnectionResetError):
                await reader.read()

    asyncio.run(main())


def test_the_clients_reset_is_no_fault_of_ours(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert await reader.read(1)
            reset(writer)
            assert (await made.end()).outcome == Outcome.COMPLETED
            assert made.recorder.faults == []

    asyncio.run(main())
