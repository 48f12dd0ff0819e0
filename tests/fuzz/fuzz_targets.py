"""What is fuzzed, from which inputs, and by which mutations where no coverage guides."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

import dns_writer
import fuzz_divert
import fuzz_dns
import fuzz_hello
import fuzz_nat
import fuzz_packet
import fuzz_quic
import hellos
import quic_packets

DATA = Path(__file__).parents[1] / "data"
CORPUS = DATA / "fuzz"  # a folder for each target; names are the SHA-1 of the content
INPUT_LIMIT_BYTES = 2048  # what a target is given; each needs a few hundred bytes to reach all of its code
_BYTES: tuple[int, ...] = (0, 1, 2, 6, 17, 20, 40, 43, 44, 51, 59, 60, 0x45, 0x60, 0x7F, 0x80, 0xFF)

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "divert": fuzz_divert.attempt,
    "dns": fuzz_dns.attempt,
    "hello": fuzz_hello.attempt,
    "nat": fuzz_nat.attempt,
    "packet": fuzz_packet.attempt,
    "quic": fuzz_quic.attempt,
}


def corpus(name: str) -> dict[str, bytes]:
    """The committed inputs of a target, by name: those that reached something new when they were found."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}


def seeds(name: str) -> list[bytes]:
    """Real inputs, to begin with."""
    match name:
        case "dns":
            return [b"\0\x50" + message for message in _messages()]
        case "hello":
            return [bytes([0, at]) + data for at, data in enumerate(hellos.REAL.values())]
        case "packet":
            return [b"\0" + packet for packet in _captured()]
        case "nat":
            return [bytes([0xE2, 0xFF, 0]) + packet for packet in _captured()] + [
                bytes([0xE2, 0xFF, 0]) + b"".join(_captured())[: INPUT_LIMIT_BYTES - 3]
            ]
        case "quic":
            return list(_flights())
        case _:
            return [bytes(range(0, 250, step)) for step in (1, 3, 7)]


def _messages() -> Iterator[bytes]:
    yield dns_writer.query("www.example.com")
    yield dns_writer.query(".".join(["long-label" * 6] * 5))  # names end at 255 bytes
    answers = dns_writer.alias("www.example.com", "example.net"), dns_writer.address("example.net", "192.0.2.7")
    yield dns_writer.response("www.example.com", *answers)
    hints = dns_writer.service("www.example.com", v4=["192.0.2.7"], v6=["2001:db8::7"])
    yield dns_writer.response("www.example.com", hints, kind=dns_writer.HTTPS)


def _flights() -> Iterator[bytes]:
    """A hello's frames, to be sealed: whole, and shuffled over two datagrams; and packets as they came."""
    message = hellos.message(hellos.body([hellos.server_name(b"www.example.com"), hellos.alpn(b"h3")]))
    yield b"\0\x01" + quic_packets.crypto(0, message)
    late, early = quic_packets.crypto(40, message[40:]), quic_packets.crypto(0, message[:40])
    yield b"\x01\x03" + bytes([-(-len(late) // 8)]) + late.ljust(-(-len(late) // 8) * 8, b"\0") + early
    for datagrams in quic_packets.REAL.values():
        yield b"\0\0" + datagrams[0]


def _captured() -> Iterator[bytes]:
    data, at = (DATA / "packets.pcap").read_bytes(), 24
    while at < len(data):
        (size,) = struct.unpack_from("<8xI4x", data, at)
        if size < INPUT_LIMIT_BYTES - 3:
            yield data[at + 16 : at + 16 + size]
        at += 16 + size


def mutated(random: Random, inputs: list[bytes]) -> bytes:
    """One of `inputs`, changed in one to four places, or joined to another one."""
    data = bytearray(random.choice(inputs))
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(data))
        match random.randrange(5):
            case 0 if at < len(data):
                data[at] = random.choice(_BYTES)
            case 1 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 2:
                data[at : at + random.randint(1, 8)] = b""
            case 3:
                data[at:at] = random.randbytes(random.randint(1, 8))
            case _:
                other = random.choice(inputs)
                data[at:] = other[random.randint(0, len(other)) :]
    return bytes(data[:INPUT_LIMIT_BYTES])
