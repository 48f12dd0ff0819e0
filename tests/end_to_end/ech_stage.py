"""For tests of encrypted hellos: a name server that offers them, an origin that takes them, and a browser in small."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import BARE, RESOLVER, Network

from mitmsec_certs.origin_pki import origin_pki

PYTHON = (sys.executable, "-I", "-c")
PORT = "9443"
HIDDEN, PUBLIC = "hidden.zone", "public.zone"
# Answers what the lines of a zone say, over UDP and TCP: dnspython.
NAME_SERVER = """
import socket, socketserver, struct, sys, threading
import dns.message, dns.rrset
records = {}
for line in sys.argv[2].splitlines():
    owner, kind, data = line.split(" ", 2)
    records.setdefault((owner, kind), []).append(data)
def answered(data):
    asked = dns.message.from_wire(data)
    (question,) = asked.question
    answer = dns.message.make_response(asked, recursion_available=True)
    if asked.edns >= 0:
        answer.use_edns(0, asked.ednsflags, 1232)  # RFC 3225: who verifies signatures is told so
    key = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
    if key in records:
        answer.answer.append(dns.rrset.from_text(key[0], 60, "IN", key[1], *records[key]))
    return answer.to_wire()
class OverTcp(socketserver.StreamRequestHandler):
    def handle(self):
        while length := self.rfile.read(2):
            message = answered(self.rfile.read(int.from_bytes(length, "big")))
            self.wfile.write(struct.pack("!H", len(message)) + message)
class OverUdp(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(answered(self.request[0]), self.client_address)
at = (sys.argv[1], 53)
threading.Thread(target=socketserver.ThreadingTCPServer(at, OverTcp).serve_forever, daemon=True).start()
server = socketserver.ThreadingUDPServer(at, OverUdp)
print("up", flush=True)
server.serve_forever()
"""
# What is offered: the alpn and the other keys of the first HTTPS record, asked for with dnspython.
ASK = """
import sys, dns.message, dns.query
def record(resolver, name, over, **options):
    asked = dns.message.make_query(name, "HTTPS", **options)
    answer = getattr(dns.query, over)(asked, resolver, timeout=5)
    return answer.answer[0][0]
"""
OFFERED = ASK + "print(record(*sys.argv[1:4], want_dnssec=sys.argv[4:] == ['do']).to_text())"
# Takes what is offered: BoringSSL, by curl. A server that has no ECH, and proves that it is who is public, is believed.
BROWSER = (
    ASK
    + """
import base64, os
from curl_cffi import Curl, CurlError, CurlOpt
resolver, name, port, address, over = sys.argv[1:6]
def fetched(ech):
    curl, said = Curl(), []
    curl.setopt(CurlOpt.URL, f"https://{name}:{port}/".encode())
    curl.setopt(CurlOpt.CAINFO, os.environ["SSL_CERT_FILE"].encode())
    curl.setopt(CurlOpt.RESOLVE, [f"{name}:{port}:{address}"])
    curl.setopt(CurlOpt.ECH, ech.encode())
    curl.setopt(CurlOpt.TIMEOUT, 20)
    curl.setopt(CurlOpt.WRITEFUNCTION, said.append)
    curl.perform()
    return b"".join(said).decode()
if over == "grease":
    tries = ["grease"]
else:
    signed = {"want_dnssec": True} if over == "signed" else {}
    ech = record(resolver, name, over.replace("signed", "udp"), **signed).params.get(5)
    tries = ["false"] if ech is None else ["ecl:" + base64.b64encode(ech.ech).decode(), "false"]
for ech in tries:
    try:
        print("offered" if ech.startswith("ecl") else ech, fetched(ech))
        break
    except CurlError as error:
        print("failed", int(error.code))
        if error.code != 101:  # CURLE_ECH_REQUIRED
            break
"""
)
CADDY = """
{{
    admin off
    auto_https disable_redirects
    skip_install_trust
    ech {public}
    storage file_system {folder}/data
    https_port {port}
    servers {{
        protocols h1 h2
    }}
}}
"""
SITE = """
https://{name}:{port} {{
    bind {address}
    tls {folder}/{name}.pem {folder}/{name}.key
    respond "{name} ech={{http.request.tls.ech}}"
}}
"""


@contextmanager
def name_server(network: Network, zone: str) -> Iterator[None]:
    """At RESOLVER, for these lines: `owner. TYPE data`."""
    server = network.start(*PYTHON, NAME_SERVER, RESOLVER, zone, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        yield
    finally:
        server.kill()
        server.wait()


@contextmanager
def hidden_origin(network: Network, folder: Path) -> Iterator[bytes]:
    """Caddy, at BARE and PORT, as HIDDEN behind PUBLIC; gives its list of configurations (RFC 9849 §4).

    What proves it is in `folder`/root.pem.
    """
    pki = origin_pki("Hidden Origins", (HIDDEN, PUBLIC), int(time.time()))
    (folder / "root.pem").write_bytes(pki.root)
    words = {"folder": folder, "port": PORT, "address": BARE, "public": PUBLIC}
    sites = "".join(SITE.format(name=name, **words) for name in (HIDDEN, PUBLIC))
    for name, (chain, key) in pki.servers.items():
        (folder / f"{name}.pem").write_bytes(chain)
        (folder / f"{name}.key").write_bytes(key)
    (folder / "Caddyfile").write_text(CADDY.format(**words) + sites)
    caddy = [str(Path(sys.executable).with_name("caddy")), "run", "--adapter", "caddyfile", "--config"]
    said = (folder / "caddy.log").open("wb")
    server = network.start("env", f"HOME={folder}", *caddy, str(folder / "Caddyfile"), stdout=said, stderr=said)
    try:
        yield _configurations(folder, server)
    finally:
        server.terminate()
        server.wait()
        said.close()


def _configurations(folder: Path, server: subprocess.Popen[bytes]) -> bytes:
    """What Caddy has made, once it serves."""
    deadline = time.monotonic() + 30
    while b"serving initial configuration" not in (folder / "caddy.log").read_bytes():
        assert server.poll() is None, (folder / "caddy.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (config,) = (folder / "data" / "ech" / "configs").glob("*/config.bin")
    data = config.read_bytes()
    return len(data).to_bytes(2, "big") + data
