"""The origin: nginx with TLS 1.3 and a P-256 certificate, in its own network namespace."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from benchmarks.host import ORIGIN_ADDRESS, ORIGIN_NAME, Failed, end_with_us, in_namespace, origin_namespace, run

ORIGIN_ISSUER = "Bench origin CA"
SMALL, BULK, HUGE = "1k", "100m", "1g"
SIZES_BYTES = {SMALL: 1_024, BULK: 100_000_000, HUGE: 1_000_000_000}
_READY_DEADLINE_S = 10

_CONFIGURATION = """
daemon off; worker_processes auto; pid {folder}/nginx.pid; error_log {folder}/nginx.log error;
worker_rlimit_nofile 8192;
user root;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; open_file_cache max=16; default_type application/octet-stream;
  keepalive_requests 100000000; keepalive_timeout 120s;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen {address}:443 ssl http2 reuseport backlog=4096;
    listen {address}:80 reuseport backlog=4096;
    server_name {name}; root {folder}/www;
    ssl_certificate {folder}/origin.pem; ssl_certificate_key {folder}/origin.key; ssl_protocols TLSv1.3;
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """A serving origin: the file of the authority that signed its certificate."""

    ca_file: Path

    @staticmethod
    def url(what: str) -> str:
        """Where one of the objects is."""
        return f"https://{ORIGIN_NAME}/{what}"


@contextmanager
def serving(folder: Path, namespace_fd: int, *, is_near: bool = True) -> Iterator[Origin]:
    """The origin, answering; it ends with the context. Raises `Failed` where nginx does not come up.

    One that is not near cannot be reached from where we are, and is not waited for.
    """
    ca_file = _write_identity(folder)
    _write_objects(folder / "www")
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, address=ORIGIN_ADDRESS, name=ORIGIN_NAME))
    argv = in_namespace(
        origin_namespace(namespace_fd), end_with_us(["nginx", "-e", "stderr", "-c", str(configuration)])
    )
    with (
        (folder / "nginx.out").open("wb") as log,
        subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True) as nginx,
    ):
        try:
            if is_near:
                _await_answer(ca_file, nginx)
            yield Origin(ca_file)
        finally:
            nginx.terminate()


def version() -> str:
    """nginx's version as it prints it."""
    return run(["sh", "-c", "nginx -v 2>&1"]).strip().removeprefix("nginx version: ")


def _write_identity(folder: Path) -> Path:
    authority = trustme.CA(organization_name=ORIGIN_ISSUER)
    leaf = authority.issue_cert(ORIGIN_NAME, common_name=ORIGIN_NAME)
    (folder / "origin.pem").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    (folder / "origin.key").write_bytes(leaf.private_key_pem.bytes())
    ca_file = folder / "origin-ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return ca_file


def _write_objects(root: Path) -> None:
    root.mkdir()
    for name, size_bytes in SIZES_BYTES.items():
        with (root / name).open("wb") as file:
            file.truncate(size_bytes)
    (root / BULK).read_bytes()  # into the page cache: the first variant must not pay for that


def _await_answer(ca_file: Path, nginx: subprocess.Popen[bytes]) -> None:
    """Handshake from the client's namespace, where we are, until one succeeds."""
    context = ssl.create_default_context(cafile=str(ca_file))
    until = time.monotonic() + _READY_DEADLINE_S
    while nginx.poll() is None and time.monotonic() < until:
        try:
            with (
                socket.create_connection((ORIGIN_ADDRESS, 443), timeout=1) as plain,
                context.wrap_socket(plain, server_hostname=ORIGIN_NAME),
            ):
                return
        except (ConnectionRefusedError, TimeoutError):
            time.sleep(0.05)
    raise Failed(f"nginx did not answer: status {nginx.poll()}")
