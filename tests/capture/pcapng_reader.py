"""A reader of pcapng written apart from the writer, strict about lengths and padding; and tshark, the outside judge."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed (Debian: tshark)")

SECTION, INTERFACE, NAMES, STATISTICS, PACKET, SECRETS, PROCESS = 0x0A0D0D0A, 1, 4, 5, 6, 10, 0x80000001
FIXED_BYTES = {SECTION: 16, INTERFACE: 8, STATISTICS: 12, PROCESS: 4}


@dataclass(frozen=True)
class Block:
    kind: int
    fixed: bytes
    data: bytes
    options: tuple[tuple[int, bytes], ...]

    def option(self, code: int) -> list[bytes]:
        return [value for known, value in self.options if known == code]


def blocks(file: bytes) -> list[Block]:
    """The whole blocks of `file`. Raises AssertionError or struct.error for anything that is not one."""
    found = []
    at = 0
    while at < len(file):
        kind, length = struct.unpack_from("<II", file, at)
        assert length % 4 == 0
        body = file[at + 8 : at + length - 4]
        assert at + length <= len(file), "the file ends inside a block"
        assert struct.unpack_from("<I", file, at + length - 4) == (length,)
        found.append(_parsed(kind, body))
        at += length
    return found


def _parsed(kind: int, body: bytes) -> Block:
    if kind == SECRETS:
        size = struct.unpack_from("<I", body, 4)[0]
        assert len(body) == 8 + size + -size % 4
        return Block(kind, body[:8], body[8 : 8 + size], ())
    if kind == NAMES:
        return Block(kind, b"", b"", tuple(_options(body)))
    if kind == PACKET:
        captured, original = struct.unpack_from("<II", body, 12)
        assert captured == original
        padded = 20 + captured + -captured % 4
        return Block(kind, body[:20], body[20 : 20 + captured], tuple(_options(body[padded:])))
    fixed = FIXED_BYTES[kind]
    return Block(kind, body[:fixed], b"", tuple(_options(body[fixed:])))


def _options(body: bytes) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    at = 0
    while True:
        code, length = struct.unpack_from("<HH", body, at)
        if code == 0:
            assert (length, at + 4) == (0, len(body))
            return found
        found.append((code, body[at + 4 : at + 4 + length]))
        padding = body[at + 4 + length : at + 4 + length + -length % 4]
        assert padding == bytes(-length % 4)
        at += 4 + length + len(padding)


def time_ns(packet: Block) -> int:
    high, low = struct.unpack_from("<II", packet.fixed, 4)
    return int(high << 32 | low)


def tshark(file: Path, *arguments: str) -> str:
    """What tshark prints about `file`, with its default configuration; it must find nothing wrong with the file."""
    done = subprocess.run(
        ["tshark", "-n", "-r", str(file), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(file.parent), "LC_ALL": "C.UTF-8"},
    )
    complaints = [line for line in done.stderr.splitlines() if "as user" not in line and line.strip()]
    assert (done.returncode, complaints) == (0, [])
    return done.stdout


def fields(file: Path, *names: str, select: str = "") -> list[list[str]]:
    """The named fields of each packet."""
    arguments = ["-T", "fields", *(word for name in names for word in ("-e", name)), "-E", "aggregator=|"]
    if select:
        arguments += ["-Y", select]
    arguments += ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
    return [line.split("\t") for line in tshark(file, *arguments).splitlines()]


def flaws(file: Path) -> list[list[str]]:
    """Packets that tshark finds malformed, wrongly summed or out of order."""
    order = "(tcp.analysis.flags && !tcp.analysis.reused_ports)"
    select = f"_ws.malformed || {order} || ip.checksum.status==0 || tcp.checksum.status==0"
    return fields(file, "frame.number", "_ws.col.Info", select=select)


def stream(file: Path, number: int = 0) -> tuple[bytes, bytes]:
    """Both directions of a TCP stream as tshark reassembles them: from the client, from the server."""
    sides: tuple[list[str], list[str]] = ([], [])
    body = tshark(file, "-q", "-z", f"follow,tcp,raw,{number}").split("Node 1:", 1)[1].splitlines()[1:]
    for line in body:
        if not line.startswith("="):
            sides[line.startswith("\t")].append(line.strip())
    return bytes.fromhex("".join(sides[0])), bytes.fromhex("".join(sides[1]))
