"""The demo's origins, a process of their own: HTTPS servers that know nothing of mitmsec, and one without TLS.

Arguments: folder with <name>.pem and <name>.key, then name=address pairs. Each contact is one line on stdout, so
what an origin never saw can be shown.
"""

from __future__ import annotations

import http.server
import socketserver
import ssl
import sys
import threading
from pathlib import Path

TELEMETRY_PORT = 7000


class Page(http.server.BaseHTTPRequestHandler):
    """Answers everything with a small page."""

    protocol_version = "HTTP/1.1"
    server_version = "origin"

    def do_GET(self) -> None:
        self._answer(f"hello from {self.headers.get('Host', '?')}\n".encode())

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        print(f"upload {len(self.rfile.read(length))}", flush=True)
        self._answer(b"stored\n")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        return


class Secure(socketserver.ThreadingTCPServer):
    """One origin on its own address. The TLS handshake runs in the connection's thread."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name = name
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        super().__init__((address, 443), Page)

    def process_request_thread(self, request: object, client_address: object) -> None:
        print(f"contact {self.name}", flush=True)
        try:
            secure = self._tls.wrap_socket(request, server_side=True)  # type: ignore[arg-type]
        except OSError:
            return
        super().process_request_thread(secure, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        return


class Telemetry(socketserver.StreamRequestHandler):
    """A line protocol of its own: what is not TLS is captured, not decrypted."""

    def handle(self) -> None:
        self.wfile.write(b"TELEMETRY 1 READY\n")
        while line := self.rfile.readline():
            self.wfile.write(b"ACK " + line)


def main() -> None:
    """Serve until the process is ended."""
    folder = Path(sys.argv[1])
    servers: list[socketserver.ThreadingTCPServer] = []
    for pair in sys.argv[2:]:
        name, _, address = pair.partition("=")
        if (folder / f"{name}.pem").exists():
            servers.append(Secure(name, address, folder))
        else:
            socketserver.ThreadingTCPServer.daemon_threads = True
            servers.append(socketserver.ThreadingTCPServer((address, TELEMETRY_PORT), Telemetry))
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
