"""Takes the hellos of real clients: `python tests/take_hellos.py [NAME…]`, which writes tests/data/hellos/NAME.bin.

Each client connects to a listener on loopback, by a name or as its protocol has it, which keeps what comes first and
hangs up. A client that is not on this machine is passed over. Where a word is a `python:` one, PYTHON (a variable of
the environment; this one without) has to have the package: aiohttp, curl_cffi, httpx, primp, requests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "hellos"
PYTHON = os.environ.get("PYTHON", sys.executable)
NAME, SIZE_LIMIT_BYTES, WAIT_S = "www.origin.example", 1 << 16, 20
RESOLVED = f"{NAME}:{{port}}:127.0.0.1"
IMPERSONATED = ("chrome136", "safari260", "firefox133", "edge101")
CLIENTS: dict[str, list[str]] = {
    "wget": ["wget", "-q", "-O-", "--tries=1", "https://localhost:{port}/"],
    "git": ["git", "-c", "http.curloptResolve=" + RESOLVED, "ls-remote", f"https://{NAME}:{{port}}/x"],
    "gnutls-cli": ["gnutls-cli", "--sni-hostname", NAME, "-p", "{port}", "127.0.0.1"],
    "nss-tstclnt": ["tstclnt", "-h", "127.0.0.1", "-p", "{port}", "-a", NAME, "-o", "-D"],
    "psql": ["psql", f"host={NAME} hostaddr=127.0.0.1 port={{port}} sslmode=require connect_timeout=5 user=joe"],
    "ldapsearch": ["ldapsearch", "-x", "-H", "ldaps://localhost:{port}", "-o", "nettimeout=5"],
    "chromium": ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir={folder}",
                 f"--host-resolver-rules=MAP {NAME} 127.0.0.1", f"https://{NAME}:{{port}}/"],
    "firefox": ["firefox-esr", "--headless", "--no-remote", "--profile", "{folder}", "https://localhost:{port}/"],
    "python-requests": [PYTHON, "-c", "import requests; requests.get('https://localhost:{port}/', timeout=5)"],
    "python-httpx": [PYTHON, "-c", "import httpx; httpx.Client(http2=False).get('https://localhost:{port}/')"],
    "python-aiohttp": [PYTHON, "-c", ("import aiohttp, asyncio\nasync def main():\n"
                       " async with aiohttp.ClientSession() as s: await s.get('https://localhost:{port}/')\n"
                       "asyncio.run(main())")],
    "rust-primp": [PYTHON, "-c", "import primp; primp.Client(timeout=5).get('https://localhost:{port}/')"],
    **{
        f"boringssl-{one}": [PYTHON, "-c", ("from curl_cffi import requests\n"
                             f"requests.get('https://{NAME}:{{port}}/', impersonate='{one}', timeout=5, "
                             f"curl_options={{{{10203: ['{RESOLVED}']}}}})")]
        for one in IMPERSONATED
    },
}  # fmt: skip
SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"


def taken(words: list[str]) -> bytes:
    """The first flight of the client that `words` start; empty where none came."""
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory() as folder:
        listener.settimeout(WAIT_S)
        port = listener.getsockname()[1]
        command = [word.format(port=port, folder=folder) for word in words]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, **quiet) as process:  # type: ignore[call-overload]
            try:
                return _first(listener)
            except TimeoutError:
                return b""
            finally:
                process.kill()


def _first(listener: socket.socket) -> bytes:
    """The first hello that comes whole; browsers may open connections that say nothing."""
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(2)
            data = b""
            try:
                while not _is_whole(data):
                    piece = sock.recv(SIZE_LIMIT_BYTES)
                    if piece == SSL_REQUEST:
                        sock.send(b"S")
                        continue
                    if not piece:
                        break
                    data += piece
            except (TimeoutError, ConnectionError):
                continue
            if _is_whole(data):
                return data


def _is_whole(data: bytes) -> bool:
    return len(data) > 5 and data[0] == 0x16 and len(data) >= 5 + int.from_bytes(data[3:5])


def main(names: list[str]) -> int:
    for name in names or CLIENTS:
        try:
            data = taken(CLIENTS[name])
        except FileNotFoundError:
            data = b""
        sys.stderr.write(f"{name}: {len(data)} bytes\n")
        if data:
            (FOLDER / f"{name}.bin").write_bytes(data[: 5 + int.from_bytes(data[3:5])])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
