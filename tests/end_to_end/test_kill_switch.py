"""The kill switch, under load: within a second nothing is decrypted, and what is bypassed goes on as if nothing was."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import here
from test_service import Service, service, until

pytestmark = pytest.mark.root

__all__ = ["service"]  # the fixture

# Connections to both hosts without a pause to speak of, and one to the bypassed host that stays. A line for each: the
# host, when it began and when it was answered, and the certificate's SHA-256 or what went wrong.
LOAD = """
import hashlib, http.client, socket, ssl, threading, time
context = ssl._create_unverified_context()
def connected(host):
    return context.wrap_socket(socket.create_connection((host, 443), 10), server_hostname=host)
def answered(tls, host, kept):
    tls.sendall(f"GET /hello HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: {kept}\\r\\n\\r\\n".encode())
    answer = http.client.HTTPResponse(tls)
    answer.begin()
    assert answer.read().startswith(b"hello")
def told(host, tried):
    began = time.monotonic()
    try: said = tried()
    except (OSError, http.client.HTTPException) as error: said = repr(error)
    print(f"{host} {began} {time.monotonic()} {said}\\n", end="", flush=True)  # at once: others write, too
def once(host):
    with connected(host) as tls:
        answered(tls, host, "close")
        return hashlib.sha256(tls.getpeercert(True)).hexdigest()
def again_and_again(host):
    while True:
        told(host, lambda: once(host))
        time.sleep(0.02)
def stays(host):
    with connected(host) as tls:
        while True:
            told("stays", lambda: answered(tls, host, "keep-alive"))
            time.sleep(0.02)
for host in ("origin.test", "bank.test"):
    threading.Thread(target=again_and_again, args=(host,)).start()
stays("bank.test")
"""
SPARED = """
[[rule]]
name = "spared"
action = "bypass"
host = ["bank.test"]
"""


class Load:
    """LOAD at work, by a Python of its own."""

    def __init__(self, service: Service, python: Path) -> None:
        self._log = service.folder / "load"
        shutil.copy(os.path.realpath(sys.executable), python)
        command = service.mitmsec.network.inside(str(python), "-S", "-c", LOAD)
        home = os.environ | {"PYTHONHOME": sys.base_prefix}
        with open(self._log, "wb") as log:
            self.running = subprocess.Popen(command, stdout=log, env=home)
        pem = (service.mitmsec.network.folder / "origin.pem").read_text()
        self.origins_own = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()

    def seen(self, host: str) -> list[tuple[float, float, str]]:
        """Of each connection, or answer on the one that stays: its beginning, its end, what was seen."""
        whole = self._log.read_text().rpartition("\n")[0]
        lines = [line.split(" ", 3) for line in whole.splitlines()]
        return [(float(began), float(ended), said) for name, began, ended, said in lines if name == host]

    def first(self, *, undecrypted: bool, since_s: float) -> float:
        """When the first connection that is so, of those begun since then, was answered; 0: none yet."""
        for began, ended, said in self.seen("origin.test"):
            if began >= since_s and len(said) == 64 and (said == self.origins_own) is undecrypted:
                return ended
        return 0.0


def after_order_s(service: Service, load: Load, order: str) -> float:
    """How long it took; every connection that begins after the order has been answered follows it."""
    undecrypted, began = order == "off", time.monotonic()
    here(order, "--state", str(service.mitmsec.state))
    done = time.monotonic()
    assert until(lambda: load.first(undecrypted=undecrypted, since_s=began))
    time.sleep(0.3)
    after = {said for since, _, said in load.seen("origin.test") if since >= done}
    assert ((load.origins_own in after) is undecrypted, len(after)) == (True, 1), after
    return load.first(undecrypted=undecrypted, since_s=began) - began


def requests_of_curl(service: Service) -> list[dict[str, Any]]:
    return [one for one in service.mitmsec.of_kind("request") if one["process"]["exe"] == str(service.curl)]


def test_the_kill_switch_stops_decrypting_within_a_second(service: Service) -> None:
    """Under load, and nobody who is bypassed notices. The command runs in this process."""
    python = service.folder / "selected-python"
    service.start(action="decrypt", path=f'{service.curl}", "{python}', more=SPARED)
    assert service.fetch("", "-k").returncode == 0
    load = Load(service, python)
    service.status()  # has the commands imported: Python's start is no part
    try:
        assert until(lambda: load.first(undecrypted=False, since_s=0.0))
        switched = [after_order_s(service, load, "off"), after_order_s(service, load, "on")]
    finally:
        load.running.kill()
        load.running.wait()
    print("seconds from the order to the first connection that follows it:", switched)
    assert max(switched) < 1.0, switched
    assert {said for _, _, said in load.seen("bank.test")} == {load.origins_own}
    assert {said for _, _, said in load.seen("stays")} == {"None"}

    requests = len(requests_of_curl(service))
    assert requests == 1
    assert "nothing is decrypted any more" in service.call("off").stderr
    assert service.fetch().stdout.startswith("hello")  # the origin's own certificate, which it trusts
    assert len(requests_of_curl(service)) == requests
    assert "off: nothing is decrypted" in service.call("status").stdout
    assert "decrypting goes on" in service.call("on").stderr
    assert service.fetch().returncode == 60  # our certificate, which nobody has told it of
    assert until(lambda: len(service.mitmsec.of_kind("service")) > 4)
    operations = [event["operation"] for event in service.mitmsec.of_kind("service")]
    assert operations == ["service_started", *2 * ["switched_off", "switched_on"]]
