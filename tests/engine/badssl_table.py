"""What three clients think of the mirror of badssl.com, side by side: mitmsec's engine, curl, mitmproxy.

    make badssl        writes docs/badssl.md

Each gets the same store, the same servers on loopback, and a name to ask for. mitmproxy is asked through its proxy by a
client that verifies nothing, so what counts is whether the origin's page comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from badssl import PAGE, Category, write_store
from badssl_categories import certificate_categories
from badssl_handshakes import WentOn, handshake_categories
from engine_world import RealMint, world

from mitmsec_certs.upstream import Terms

START_S, ANSWER_S = 30.0, 20.0
ADDON = '''
import json, os
PORTS = os.environ["BADSSL_PORTS"]

def server_connect(data):
    """To the mirror, under the name that the client asked for."""
    host = data.server.address[0]
    port = json.load(open(PORTS)).get(host) or data.server.address[1]
    data.server.sni = None if host[0].isdigit() else host
    data.server.address = ("127.0.0.1", port)
'''


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accepts`: the page came. `words`: what else there is to say."""

    accepts: bool
    words: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    category: Category
    ours: Verdict
    curl: Verdict
    mitmproxy: Verdict


def categories() -> tuple[Category, ...]:
    """All that the table has."""
    return (*certificate_categories(), *handshake_categories())


# --- ours -------------------------------------------------------------------------------------------------------------
async def visit(port: int, root: Path, name: str) -> bytes | ssl.SSLError | ConnectionError:
    """A page, or what the client thinks of the certificate that it is shown. It trusts our CA and nobody else."""
    context = ssl.create_default_context(cafile=str(root))
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        writer.write(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        answer = await reader.readuntil(PAGE)
        writer.close()
        return answer
    except (ssl.SSLError, ConnectionError) as error:
        return error


async def through_the_engine(category: Category, house: Path, **more: Any) -> tuple[Any, Any]:
    """What a client sees, and how the flow ended."""
    terms = more.pop("terms", Terms(public_roots=category.public_roots))
    with category.serving() as port:
        async with world(house, port, roots_pem=category.store_pem, terms=terms, **more) as made:
            made.name = category.name
            seen = await visit(made.port, house / "root.pem", category.name)
            return seen, await made.end()


def ours(category: Category, house: Path) -> Verdict:
    """Raises WentOn."""
    seen, end = asyncio.run(through_the_engine(category, house))
    server = end.tls.server if end.tls is not None else None
    return Verdict(isinstance(seen, bytes), (server.error or server.note or "") if server is not None else end.error)


# --- curl -------------------------------------------------------------------------------------------------------------
def curl(category: Category, folder: Path) -> Verdict:
    """Raises WentOn."""
    trust = ["--cacert", str(write_store(category, folder))]
    with category.serving() as port:
        there = ["--resolve", f"{category.name}:{port}:127.0.0.1"]
        done = _curl(*trust, *there, f"https://{category.name}:{port}/")
    return Verdict(PAGE in done.stdout, f"curl {done.returncode}" if done.returncode else "")


def _curl(*words: str) -> subprocess.CompletedProcess[bytes]:
    command = ["curl", "-q", "-sS", "--max-time", str(ANSWER_S), *words]
    return subprocess.run(command, capture_output=True, env={"PATH": "/usr/bin:/bin"})


# --- mitmproxy --------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def mitmdump(store: Path, ports: Path, folder: Path) -> Iterator[int]:
    """A proxy of mitmproxy's that trusts `store`; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    addon = folder / "to_the_mirror.py"
    addon.write_text(ADDON)
    program = Path(sys.executable).with_name("mitmdump")
    options = [f"confdir={folder / 'mitmproxy'}", f"ssl_verify_upstream_trusted_ca={store}"]
    command = [str(program), "-q", "-s", str(addon), "--listen-host", "127.0.0.1", "-p", str(port)]
    command += [word for option in options for word in ("--set", option)]
    process = subprocess.Popen(command, env={"PATH": "/usr/bin:/bin", "BADSSL_PORTS": str(ports), "HOME": str(folder)})
    try:
        _await(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _await(port: int) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError("mitmdump does not listen")


def through_mitmproxy(category: Category, proxy: int, ports: Path) -> Verdict:
    """Raises WentOn."""
    with category.serving() as port:
        ports.write_text(json.dumps({category.name: port}))
        done = _curl("-k", "-x", f"http://127.0.0.1:{proxy}", "-w", "%{http_code}", f"https://{category.name}/")
    if PAGE in done.stdout:
        return Verdict(True)
    return Verdict(False, done.stdout[-3:].decode().replace("000", "") or f"curl {done.returncode}")


# --- the table --------------------------------------------------------------------------------------------------------
def measured(wanted: Sequence[Category], folder: Path) -> Iterator[Row]:
    """Every row, those with the same store together: each store is one start of mitmproxy."""
    house = folder / "house"
    house.mkdir()
    RealMint(house / "ca")
    ports = folder / "ports.json"
    ordered = sorted(wanted, key=lambda category: category.store_pem)
    for number, (store_pem, group) in enumerate(itertools.groupby(ordered, key=lambda one: one.store_pem)):
        store = folder / f"store-{number}.pem"
        store.write_bytes(store_pem)
        with mitmdump(store, ports, folder) as proxy:
            for category in group:
                yield Row(
                    category,
                    _judged(ours, category, house),
                    _judged(curl, category, folder),
                    _judged(through_mitmproxy, category, proxy, ports),
                )


def _judged(client: Callable[..., Verdict], *asked: Any) -> Verdict:
    try:
        return client(*asked)
    except WentOn:
        return Verdict(True, "agreed to")


def rendered(rows: Sequence[Row], versions: str) -> str:
    """The document."""
    right = {name: sum(_is_right(row, name) for row in rows) for name in ("ours", "curl", "mitmproxy")}
    head = [
        "# badssl.com, here",
        "",
        "Made by `make badssl`; do not edit. A mirror of badssl.com's categories, and more, on loopback",
        "(`tests/badssl.py`): each client has the same roots. ✓ accepted, ✗ refused; **bold** where it should not be.",
        "",
        "What no library here serves any more (SSL 3, export suites, Diffie-Hellman of 512 bits and less, SHA-1 over",
        "the key exchange) is spoken by hand, up to the client's turn in the key exchange: who takes it has accepted.",
        "",
        f"{versions}. mitmproxy verifies with its defaults; revocation and SCTs are in `docs/upstream.md`.",
        "",
        "| category | what it is | must be | mitmsec | curl | mitmproxy | what mitmsec records |",
        "|---|---|---|---|---|---|---|",
    ]
    body = [_line(row) for row in rows]
    total = len(rows)
    foot = ["", *(f"- {name}: {count} of {total} right" for name, count in right.items()), ""]
    return "\n".join([*head, *body, *foot])


def _line(row: Row) -> str:
    one = row.category
    must = "accepted" if one.is_good else "accepted or refused" if one.is_either else "refused"
    marks = [_mark(row, name) for name in ("ours", "curl", "mitmproxy")]
    return f"| {one.id} | {one.why} | {must} | {' | '.join(marks)} | {row.ours.words} |"


def _mark(row: Row, name: str) -> str:
    sign = "✓" if getattr(row, name).accepts else "✗"
    return sign if _is_right(row, name) else f"**{sign}**"


def _is_right(row: Row, name: str) -> bool:
    """Where a clean answer is all that is asked (10,000 names, weak but not broken), either is right."""
    return row.category.is_either or getattr(row, name).accepts == row.category.is_good


def main(path: str) -> None:
    """Measure, and write the document."""
    order = {one.id: number for number, one in enumerate(categories())}
    with tempfile.TemporaryDirectory() as folder:
        rows = sorted(measured(categories(), Path(folder)), key=lambda row: order[row.category.id])
    curl_version = " ".join(_curl("--version").stdout.decode().split()[:2])
    openssl = next(word for word in _curl("--version").stdout.decode().split() if word.startswith("OpenSSL/"))
    text = rendered(rows, f"{curl_version} ({openssl}), mitmproxy {version('mitmproxy')}")
    Path(path).write_text(text)
    wrong = [row.category.id for row in rows if not _is_right(row, "ours")]
    if wrong:
        raise SystemExit(f"mitmsec is wrong about: {', '.join(wrong)}")


if __name__ == "__main__":
    main(sys.argv[1])
