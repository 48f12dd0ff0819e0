"""A real TLS session, recorded on the way, is decrypted by tshark with nothing but the file."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from pcapng_reader import fields, flaws, needs_tshark, tshark

from mitmsec.capture.writer import CaptureWriter
from mitmsec.core.model import Endpoint, Process

T0 = 1_790_000_000_000_000_000
REQUEST = b"GET /falcon HTTP/1.1\r\nHost: origin.test\r\n\r\n"
BODY = b"the falcon flies at noon " * 2000
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


class Side:
    """One end of TLS without a socket: what it wants to send is taken from it, what it gets is given to it."""

    def __init__(self, context: ssl.SSLContext, name: str | None) -> None:
        self.incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self._outgoing, server_side=name is None, server_hostname=name)
        self.shaken = False
        self.received = b""

    def step(self) -> bytes:
        """Go on as far as possible; bytes for the other side."""
        try:
            if not self.shaken:
                self.tls.do_handshake()
                self.shaken = True
            while data := self.tls.read(65536):
                self.received += data
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()


def session(version: ssl.TLSVersion, on_bytes: Callable[[bytes, bytes], None], keys: Path) -> None:
    """One request and its response; every flight goes to `on_bytes(sent, data)` on its way."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("origin.test").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    server_context.maximum_version = client_context.maximum_version = version
    client_context.minimum_version = version
    server_context.keylog_filename = str(keys)
    client, server = Side(client_context, "origin.test"), Side(server_context, None)
    asked = answered = False
    while client.received != RESPONSE:
        if client.shaken and not asked:
            client.tls.write(REQUEST)
            asked = True
        if server.received == REQUEST and not answered:
            server.tls.write(RESPONSE)
            answered = True
        sent = client.step()
        server.incoming.write(sent)
        received = server.step()
        client.incoming.write(received)
        on_bytes(sent, received)


def captured(folder: Path, version: ssl.TLSVersion, *, late: bool) -> Path:
    """The session's capture. `late`: keys come only after the bytes of the same step."""
    path, keys = folder / "capture.pcapng", folder / "keys"
    writer = CaptureWriter(path.open("wb"))
    local, remote = Endpoint.of("192.0.2.1", 40000), Endpoint.of("203.0.113.5", 443)
    writer.open_flow("f", Process(pid=42, exe="/usr/bin/curl"), local, remote, T0)
    told = now_ns = 0

    def secrets() -> None:
        nonlocal told
        lines = keys.read_bytes() if keys.exists() else b""
        writer.secrets(lines[told:])
        told = len(lines)

    def relayed(sent: bytes, received: bytes) -> None:
        nonlocal now_ns
        now_ns += 1_000_000
        if not late:
            secrets()
        writer.data("f", True, sent, T0 + now_ns)
        writer.data("f", False, received, T0 + now_ns)
        secrets()

    session(version, relayed, keys)
    writer.end_flow("f", T0 + now_ns)
    writer.close()
    return path


@needs_tshark
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tshark_decrypts_a_session_with_the_secrets_in_the_file(
    version: ssl.TLSVersion, late: bool, tmp_path: Path
) -> None:
    path = captured(tmp_path, version, late=late)
    assert flaws(path) == []
    [[uri, host]] = fields(path, "http.request.uri", "http.host", select="http.request")
    assert (uri, host) == ("/falcon", "origin.test")
    [[status, body]] = fields(path, "http.response.code", "http.file_data", select="http.response")
    assert status == "200"
    assert body in (BODY.decode(), BODY.hex())
    assert "GET /falcon HTTP/1.1" in tshark(path, "-q", "-z", "follow,tls,ascii,0")


@needs_tshark
def test_without_the_secrets_tshark_sees_no_request(tmp_path: Path) -> None:
    """The file must be what decrypts the session, not tshark's configuration."""
    path = captured(tmp_path, ssl.TLSVersion.TLSv1_3, late=False)
    bare = tmp_path / "bare.pcapng"
    subprocess.run(["editcap", "--discard-all-secrets", path, bare], check=True, timeout=60)
    assert bare.stat().st_size < path.stat().st_size
    assert fields(bare, "http.request.uri", select="http.request") == []
