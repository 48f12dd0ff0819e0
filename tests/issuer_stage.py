"""An issuer that answers on loopback: OCSP and lists by HTTP, and how often it was asked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from badssl_certificates import Certified
from cryptography import x509
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID


class Responder:
    """`answers`: by path, what it says (called at each question), or a status to refuse with."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: dict[str, Callable[[], bytes] | int] = {}
        self.asked: list[str] = []
        self.questions: list[ocsp.OCSPRequest] = []
        self.delay_s = 0.0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def names(self, *, responder: str | None = None, crl: str | None = None) -> list[tuple[x509.ExtensionType, bool]]:
        """Extensions of a certificate that name it."""
        return naming(responder and self.url(responder), crl and self.url(crl))


def naming(responder: str | None = None, crl: str | None = None) -> list[tuple[x509.ExtensionType, bool]]:
    made: list[tuple[x509.ExtensionType, bool]] = []
    if responder:
        place = x509.UniformResourceIdentifier(responder)
        described = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, place)
        made.append((x509.AuthorityInformationAccess([described]), False))
    if crl:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl)], None, None, None)
        made.append((x509.CRLDistributionPoints([point]), False))
    return made


@contextlib.contextmanager
def responding() -> Iterator[Responder]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            time.sleep(made.delay_s)
            answer = made.answers.get(self.path, 404)
            if isinstance(answer, int):
                return self.send_error(answer)
            body = answer()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/ocsp-request"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.questions.append(ocsp.load_der_ocsp_request(body))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Responder(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chain_of(*certified: Certified) -> tuple[bytes, ...]:
    return tuple(one.der for one in certified)
