"""An origin that speaks HTTP/3 beside nginx, and programs that ask it: Chromium, curl, aioquic."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import V4, Network

ORIGIN = """
import asyncio, json, os, sys
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
                asked = {name.decode(): value.decode() for name, value in seen.headers}
                print(json.dumps({"host": asked[":authority"], "path": asked[":path"]}), flush=True)
                body = os.urandom(1 << 20) if "megabyte" in asked[":path"] else b"hello over HTTP/3\\n"
                self.http.send_headers(seen.stream_id, [(b":status", b"200"), (b"content-type", b"text/plain")])
                self.http.send_data(seen.stream_id, body, True)
                self.transmit()

async def main():
    settings = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    settings.load_cert_chain(sys.argv[2], sys.argv[3])
    await serve(sys.argv[1], int(sys.argv[4]), configuration=settings, create_protocol=Origin)
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
# Chromium reads its user's database, into which go the roots that a run tells its command.
CHROMIUM = """
set -e
database="sql:$HOME/.pki/nssdb"
[ -d "$HOME/.pki/nssdb" ] || { mkdir -p "$HOME/.pki/nssdb" && certutil -d "$database" -N --empty-password; }
csplit -s -z -f "$HOME/root-" "$SSL_CERT_FILE" '/BEGIN CERTIFICATE/' '{*}'
for root in "$HOME"/root-*; do
  openssl x509 -in "$root" -noout 2>/dev/null || continue
  certutil -d "$database" -A -n "$root" -t C,, -i "$root"
done
exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$HOME/chromium" \
  --disable-background-networking --disable-component-update "$@"
"""
# argv: how (a member of CurlHttpVersion), URLs; how it goes on, further URLs; ….
CURL = """
import json, os, sys, time
from curl_cffi import Curl, CurlError, CurlHttpVersion, CurlInfo, CurlOpt

def ask(url):
    began, body, curl = time.monotonic(), bytearray(), Curl(cacert=os.environ["SSL_CERT_FILE"])
    curl.setopt(CurlOpt.URL, url.encode())
    curl.setopt(CurlOpt.HTTP_VERSION, how)
    curl.setopt(CurlOpt.CAINFO, os.environ["SSL_CERT_FILE"].encode())
    curl.setopt(CurlOpt.TIMEOUT_MS, 20000)
    curl.setopt(CurlOpt.WRITEFUNCTION, lambda data: body.extend(data) or len(data))
    told = {}
    try:
        curl.perform()
        told["version"] = CurlHttpVersion(curl.getinfo(CurlInfo.HTTP_VERSION)).name
        told["size"] = len(body)
        told["body"] = body.decode() if len(body) < 999 else ""
    except CurlError as error:
        told["error"] = str(error)
    curl.close()
    return told | {"took_s": time.monotonic() - began}

for word in sys.argv[1:]:
    if word in CurlHttpVersion.__members__:
        how = CurlHttpVersion[word]
    else:
        print(json.dumps(ask(word)), flush=True)
"""
# argv: address, hosts. Its sockets are not connected.
AIOQUIC = """
import asyncio, json, os, sys, time
from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration

class Client(QuicConnectionProtocol):
    http = None

    def quic_event_received(self, event):
        for seen in self.http.handle_event(event) if self.http else ():
            if isinstance(seen, HeadersReceived) and not self.answer.done():
                self.answer.set_result(dict(seen.headers)[b":status"].decode())

async def ask(host):
    settings = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=host)
    settings.load_verify_locations(os.environ["SSL_CERT_FILE"])
    async with connect(sys.argv[1], 443, configuration=settings, create_protocol=Client) as client:
        client.answer, client.http = asyncio.get_running_loop().create_future(), H3Connection(client._quic)
        asked = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", b"/")]
        client.http.send_headers(client._quic.get_next_available_stream_id(), asked, True)
        client.transmit()
        return {"status": await asyncio.wait_for(client.answer, 20)}

for host in sys.argv[2:]:
    began = time.monotonic()
    try:
        told = asyncio.run(ask(host))
    except ConnectionError as error:
        told = {"error": type(error).__name__}
    print(json.dumps(told | {"took_s": time.monotonic() - began}), flush=True)
"""


# Another HTTP/3 than aioquic's: quic-go's.
CADDY = """
{{
  admin off
  auto_https off
  servers {{
    protocols h3
  }}
}}
https://origin.test:443, https://bank.test:443 {{
  bind {address}
  tls {folder}/origin.pem {folder}/origin.key
  handle /megabyte {{
    root * {folder}/www
    rewrite * /megabytes
    file_server
  }}
  handle {{
    respond "caddy: {{method}} {{uri}} over {{http.request.proto}}"
  }}
}}
"""


class H3:
    """An origin that speaks HTTP/3."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def asked(self) -> list[dict[str, Any]]:
        """What it was asked for, over QUIC. It ends with that."""
        self._process.terminate()
        out, _ = self._process.communicate()
        return [json.loads(line) for line in out.splitlines()]


@contextlib.contextmanager
def caddy_origin(network: Network) -> Iterator[None]:
    """With the certificate of the HTTPS origin."""
    folder = network.folder
    (folder / "Caddyfile.h3").write_text(CADDY.format(address=V4, folder=folder))
    caddy = [str(Path(sys.executable).with_name("caddy")), "run", "--adapter", "caddyfile", "--config"]
    with (folder / "caddy-h3.log").open("wb") as said:
        command = ("env", f"HOME={folder}", *caddy, str(folder / "Caddyfile.h3"))
        server = network.start(*command, stdout=said, stderr=said)
        deadline = time.monotonic() + 30
        while b"serving initial configuration" not in (told := (folder / "caddy-h3.log").read_bytes()):
            assert server.poll() is None, told.decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        try:
            yield
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def h3_origin(network: Network, address: str = V4, certificate: str = "origin") -> Iterator[H3]:
    """With the certificate of the HTTPS origin, or another in its folder."""
    chain, key = network.folder / f"{certificate}.pem", network.folder / f"{certificate}.key"
    command = (sys.executable, "-I", "-c", ORIGIN, address, str(chain), str(key), "443")
    process = network.start(*command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    try:
        yield H3(process)
    finally:
        process.kill()
        process.wait()


# argv: address, host. Asks for each path on its input, by one connection until it ends, or until "new".
TALKER = (
    AIOQUIC[: AIOQUIC.index("async def ask")]
    .replace(
        "        for seen in",
        """        if type(event).__name__ == "ConnectionTerminated" and not self.answer.done():
            self.answer.set_exception(ConnectionError())
        self.is_over = self.is_over or type(event).__name__ == "ConnectionTerminated"
        for seen in""",
    )
    .replace("    http = None", "    http, is_over = None, False")
    + """
async def main():
    address, host = sys.argv[1:]
    settings = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=host)
    settings.load_verify_locations(os.environ["SSL_CERT_FILE"])
    print("up", flush=True)
    held = client = None
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        try:
            if line == "new" or client is None or client.is_over:
                held = connect(address, 443, configuration=settings, create_protocol=Client)
                client = await held.__aenter__()
                client.http = H3Connection(client._quic)
            client.answer = asyncio.get_running_loop().create_future()
            asked = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", b"/")]
            client.http.send_headers(client._quic.get_next_available_stream_id(), asked, True)
            client.transmit()
            print(await asyncio.wait_for(client.answer, 20), flush=True)
        except (ConnectionError, TimeoutError) as error:
            print(type(error).__name__, flush=True)

asyncio.run(main())
"""
)
