"""What TLS 1.3 lets a peer do early or late: data before the handshake is over, a wish for a certificate after it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import trustme
from engine_world import NAME, Pages, World, connected, origin, server_context, trusting, world

from mitmsec.audit.event import Outcome

GET = f"GET /%s HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"


async def s_client(port: int, *words: str, stdin: bytes, after: Path | None = None) -> str:
    """What it prints. It is told `stdin` once the file `after` is there."""
    process = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NAME, "-tls1_3", *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(20):
        while after is not None and not (after.exists() and after.stat().st_size):
            await asyncio.sleep(0.01)
        out, _ = await process.communicate(stdin)
    return out.decode("latin-1")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def eager_server(ca: trustme.CA, folder: Path) -> AsyncIterator[int]:
    """A real server that takes early data and answers with a page about it."""
    leaf, port = ca.issue_cert(NAME), free_port()
    leaf.private_key_and_cert_chain_pem.write_to_path(str(folder / "eager.pem"))
    process = await asyncio.create_subprocess_exec(
        "openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(folder / "eager.pem"), "-tls1_3",
        "-early_data", "-no_anti_replay", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        await asyncio.wait_for(process.stdout.readuntil(b"ACCEPT\n"), 20)
        yield port
    finally:
        process.kill()
        await process.communicate()


def test_early_data_of_a_client_is_refused_and_never_reaches_the_origin(tmp_path: Path) -> None:
    """The session is one that it has from a server which takes early data: it was begun before it was diverted."""
    data, first, second = (tmp_path / name for name in ("early", "first", "second"))
    data.write_text(GET % "early")

    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with eager_server(ca, tmp_path) as port:
            for session in (first, second):
                await s_client(port, "-sess_out", str(session), stdin=b"Q\n", after=session)
            early = ("-early_data", str(data), "-sess_in")
            assert "Early data was accepted" in await s_client(port, *early, str(first), stdin=b"Q\n")
        async with origin(pages, server_context(ca, alpn=())) as port, world(tmp_path, port, [ca]) as made:
            said = await s_client(made.port, *early, str(second), "-ign_eof", stdin=(GET % "late").encode())
            assert "Early data was rejected" in said
            assert "you asked for /late" in said
            assert [line for line, _, _ in pages.requests] == ["GET /late HTTP/1.1"]
            assert (await made.end()).outcome == Outcome.COMPLETED

    asyncio.run(main())


def _ask_later(listener: socket.socket, context: ssl.SSLContext) -> str:
    """A server that wants a certificate for its one page; why it did not get to ask for it."""
    sock, _ = listener.accept()
    with sock, context.wrap_socket(sock, server_side=True) as tls:
        tls.recv(1000)
        why = ""
        try:
            tls.verify_client_post_handshake()
        except ssl.SSLError as error:
            why = error.reason or ""
        tls.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
        return why


def test_an_origin_that_would_ask_for_a_certificate_after_the_handshake_is_not_offered_that(tmp_path: Path) -> None:
    """Though the client would have: it is refused what it wanted, at once, and not taken for somebody without one."""

    async def refused(made: World) -> bytes:
        context = trusting(tmp_path)
        context.post_handshake_auth = True
        reader, writer = await connected(made, context)
        writer.write((GET % "private").encode())
        status = await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        return status

    async def main() -> None:
        ca = trustme.CA()
        context = server_context(ca)
        context.post_handshake_auth, context.verify_mode = True, ssl.CERT_REQUIRED
        ca.configure_trust(context)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            asking = asyncio.create_task(asyncio.to_thread(_ask_later, listener, context))
            async with world(tmp_path, listener.getsockname()[1], [ca]) as made:
                assert await refused(made) == b"HTTP/1.1 403 Forbidden\r\n"
                assert "EXTENSION_NOT_RECEIVED" in await asking
                assert (await made.end()).outcome == Outcome.COMPLETED

    asyncio.run(main())
