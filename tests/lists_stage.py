"""A network in which the place of our revocation lists is its own, and who answers there and over HTTPS."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mitmsec.core.crl_place import CRL_PLACE

FIRST_PORT = 8443
# Serves, at the place where only a gate is otherwise, lists by path, at once or once somebody asks for the page /lists;
# and https on 127.0.0.1, a port for each leaf.
SERVER = """
import http.server, pathlib, ssl, sys, threading
from mitmsec.gate.crl_origin import response

place, begin, lists, port, *leaves = sys.argv[1:]
found = {"/" + path.name: path.read_bytes() for path in pathlib.Path(lists).iterdir()}

class Lists(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, flush=True)
        self.wfile.write(response(self.raw_requestline, found))

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/lists":
            open_lists()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

def serve(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()

def open_lists():
    serve(http.server.ThreadingHTTPServer((place, 80), Lists))

for number, leaf in enumerate(leaves, int(port)):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", number), Page)
    pages.socket = context.wrap_socket(pages.socket, server_side=True)
    serve(pages)
if begin == "at once":
    open_lists()
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def lists_network() -> Iterator[list[str]]:
    """The words that begin a command in there."""
    name = f"mitmsec-crl-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        inside = ["ip", "-n", name]
        subprocess.run([*inside, "link", "set", "lo", "up"], check=True)
        subprocess.run([*inside, "address", "add", f"{CRL_PLACE.address}/32", "dev", "lo"], check=True)
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextlib.contextmanager
def serving_lists(inside: list[str], lists: Path, *leaves: Path, begin: str = "at once") -> Iterator[list[str]]:
    """Serves until the end of the block; after it, what is yielded holds the paths that were asked for."""
    asked: list[str] = []
    words = [CRL_PLACE.address, begin, str(lists), str(FIRST_PORT), *map(str, leaves)]
    command = [*inside, sys.executable, "-c", SERVER, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield asked
        finally:
            asked += server.communicate()[0].split()
