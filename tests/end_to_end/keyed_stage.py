"""An nginx of TLS, with a policy that knows its key."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from conftest import Mitmsec, Network
from incoming_stage import until_listens

from mitmsec_certs.origin_pki import origin_pki

NAME, PORT = "shop.example", 9443  # no other server of these tests listens there
POLICY = """
[defaults]
action = "bypass"
inbound = "decrypt"
inspect = ["keywords"]
[inspector.keywords]
words = ["Project Eagle"]
[[inbound]]
name = "shop"
certificate = "shop.pem"
key = "shop.key"
"""
NGINX = """\
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; keepalive_timeout 1s; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen {address}:{port} ssl http2; ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {folder}/shop.pem; ssl_certificate_key {folder}/shop.key;
    location / {{ return 200 "$remote_addr $server_protocol"; }}
  }}
}}
"""


class Shop:
    """An nginx of TLS, and whatever a caller has to know of it; somebody else starts it."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        pki = origin_pki("Shop", (NAME,), int(time.time()))
        chain, self.key_pem = pki.servers[NAME]
        for name, content in (("root.pem", pki.root), ("shop.pem", chain), ("shop.key", self.key_pem)):
            (folder / name).write_bytes(content)
        (folder / "shop.key").chmod(0o600)
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, address=address, port=PORT))

    def command(self, nginx: Path | str | None = None) -> list[str]:
        return [str(nginx or shutil.which("nginx") or "nginx"), "-c", str(self.folder / "nginx.conf")]

    @property
    def root(self) -> Path:
        return self.folder / "root.pem"

    def fetch(self, where: list[str], *words: str, name: str = NAME) -> str:
        """By a curl that trusts nobody but the CA of the service."""
        to = ["--connect-to", f"{name}:{PORT}:{self.address}:{PORT}", f"https://{name}:{PORT}/a?key=value"]
        command = [*where, "curl", "-sS", "--max-time", "20", "--cacert", str(self.root), *words, *to]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Keyed(Shop):
    """One that runs under `mitmsec run`."""

    def __init__(self, mitmsec: Mitmsec, network: Network, address: str, *options: str) -> None:
        super().__init__(mitmsec.state.parent, address)
        self.run = mitmsec.start("--policy", mitmsec.policy(POLICY), *options, "--", *self.command())
        until_listens(network, PORT)

    def end(self) -> None:
        try:
            os.kill(int((self.folder / "pid").read_text()), signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError):
            self.run.terminate()  # it passes that on to a server that has not come up yet
        self.run.communicate(timeout=30)


@contextlib.contextmanager
def keyed(mitmsec: Mitmsec, network: Network, address: str, *options: str) -> Iterator[Keyed]:
    served = Keyed(mitmsec, network, address, *options)
    try:
        yield served
    finally:
        served.end()
