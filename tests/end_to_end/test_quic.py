"""QUIC of a real client and a real origin."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import V4, Mitmsec, Network
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

pytestmark = [pytest.mark.root, pytest.mark.joined]

ORIGIN = """
import asyncio, sys
from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated

class Origin(QuicConnectionProtocol):
    http = None

    def quic_event_received(self, event):
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        for seen in self.http.handle_event(event) if self.http else ():
            if isinstance(seen, HeadersReceived):
                self.http.send_headers(seen.stream_id, [(b":status", b"200")])
                self.http.send_data(seen.stream_id, b"over HTTP/3 " * 10000, True)
                self.transmit()

async def main():
    settings = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    settings.load_cert_chain(sys.argv[2], sys.argv[3])
    await serve(sys.argv[1], 443, configuration=settings, create_protocol=Origin)
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
CLIENT = """
import asyncio, json, ssl, sys, time
from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived
from aioquic.quic.configuration import QuicConfiguration

class Client(QuicConnectionProtocol):
    def begin(self):
        self.http, self.body, self.whole = H3Connection(self._quic), b"", asyncio.Event()
        asked = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"origin.test"), (b":path", b"/")]
        self.http.send_headers(self._quic.get_next_available_stream_id(), asked, True)
        self.transmit()

    def quic_event_received(self, event):
        for seen in self.http.handle_event(event) if hasattr(self, "http") else ():
            if isinstance(seen, DataReceived):
                self.body += seen.data
                if seen.stream_ended:
                    self.whole.set()

async def main():
    settings = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="origin.test")
    settings.load_verify_locations(sys.argv[2])
    async with connect(sys.argv[1], 443, configuration=settings, create_protocol=Client) as client:
        client.begin()
        await asyncio.wait_for(client.whole.wait(), 20)
        print(json.dumps({"body": len(client.body)}))

asyncio.run(main())
"""


def certificate(folder: Path) -> tuple[Path, Path]:
    """Of origin.test, and trusted by whoever is told to."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "origin.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("origin.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "origin.pem", folder / "origin.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret


def test_http3_of_a_real_client_passes_unread_and_is_recorded(
    network: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    """Its client verifies the origin's own certificate; nothing of ours has been in between."""
    tmp_path.chmod(0o755)
    chain, secret = certificate(tmp_path)
    origin = network.start(
        sys.executable, "-I", "-c", ORIGIN, V4, str(chain), str(secret), stdout=subprocess.PIPE, text=True
    )
    assert origin.stdout is not None
    assert origin.stdout.readline() == "up\n"
    policy = mitmsec.policy('[defaults]\nquic = "bypass"\n')
    done = mitmsec.run("--policy", policy, "--", sys.executable, "-I", "-c", CLIENT, V4, str(chain))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"body": 120_000}
    (flow,) = mitmsec.of_kind("connection")
    assert (flow["protocol"], flow["action"], flow["outcome"]) == ("quic", "bypass", "completed")
    assert (flow["remote"]["address"], flow["remote"]["port"]) == (V4, 443)
    origin.terminate()
    assert flow["datagrams"]["received"] > 80  # 120,000 bytes, in datagrams of 1,200 to 1,500
    assert mitmsec.of_kind("request") == []
