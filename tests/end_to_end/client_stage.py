"""A program under `mitmsec run` that connects when it is told to, and what it saw."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import Mitmsec, status_of

from mitmsec.service import control

# A client that tries once for each host and path on its input and prints what came of it: whose certificate it saw, or
# the error.
CLIENT = """
import socket, ssl, sys
context = ssl.create_default_context()
print("up", flush=True)
for line in sys.stdin:
    host, path = line.split()
    try:
        with socket.create_connection(("203.0.113.10", 443), 5) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                head = f"GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n"
                secure.sendall(head.encode())
                if not secure.recv(99):
                    raise ConnectionError("ended before its answer")  # and has no certificate any more to ask for
                print(dict(x[0] for x in secure.getpeercert()["issuer"])["commonName"], flush=True)
    except OSError as error:
        print(type(error).__name__, error, flush=True)
"""


class Client:
    """A program under `mitmsec run` that connects when it is told to."""

    def __init__(self, run: subprocess.Popen[str], mitmsec: Mitmsec) -> None:
        self.run, self._mitmsec = run, mitmsec
        assert self.said() == "up"

    def said(self) -> str:
        assert self.run.stdout is not None
        return self.run.stdout.readline().strip()

    def tries(self, host: str = "origin.test", path: str = "/hello") -> str:
        self.begins(host, path)
        return self.said()

    def begins(self, host: str = "origin.test", path: str = "/hello") -> None:
        assert self.run.stdin is not None
        self.run.stdin.write(f"{host} {path}\n")
        self.run.stdin.flush()

    def status(self) -> control.StatusAnswer:
        return status_of(self._mitmsec)

    def pid_of(self, role: str) -> int:
        if role == "supervisor":
            return self.status().supervisor
        return next(pid for name, pid, _ in self.status().processes if name == role)

    def end(self) -> tuple[str, str]:
        out, err = self.run.communicate(timeout=60)
        return out, err


@contextlib.contextmanager
def client(
    mitmsec: Mitmsec, on_failure: str, *, workers: int = 1, rules: str = "", capture: Path | None = None
) -> Iterator[Client]:
    policy = mitmsec.policy(f'[defaults]\non_failure = "{on_failure}"\n{rules}')
    options = ("--workers", str(workers), "--policy", policy, *(("--capture", str(capture)) if capture else ()))
    run = mitmsec.start(*options, "--", sys.executable, "-c", CLIENT, stdin=subprocess.PIPE)
    try:
        yield Client(run, mitmsec)
    finally:
        run.kill()
        run.communicate()
