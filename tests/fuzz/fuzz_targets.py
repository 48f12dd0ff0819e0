"""What is fuzzed, from which inputs, and by which mutations where no coverage guides."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

import dns_writer
import fuzz_dialogue
import fuzz_divert
import fuzz_dns
import fuzz_hello
import fuzz_nat
import fuzz_opening
import fuzz_packet
import fuzz_quic
import hellos
import quic_packets

from mitmsec.core.sniff import Protocol

DATA = Path(__file__).parents[1] / "data"
CORPUS = DATA / "fuzz"  # a folder for each target; names are the SHA-1 of the content
INPUT_LIMIT_BYTES = 2048  # what a target is given; each needs a few hundred bytes to reach all of its code
_BYTES: tuple[int, ...] = (0, 1, 2, 6, 17, 20, 40, 43, 44, 51, 59, 60, 0x45, 0x60, 0x7F, 0x80, 0xFF)

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "dialogue": fuzz_dialogue.attempt,
    "divert": fuzz_divert.attempt,
    "dns": fuzz_dns.attempt,
    "hello": fuzz_hello.attempt,
    "nat": fuzz_nat.attempt,
    "opening": fuzz_opening.attempt,
    "packet": fuzz_packet.attempt,
    "quic": fuzz_quic.attempt,
}


def corpus(name: str) -> dict[str, bytes]:
    """The committed inputs of a target, by name: those that reached something new when they were found."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}


def seeds(name: str) -> list[bytes]:
    """Real inputs, to begin with."""
    match name:
        case "dialogue":
            return [*_dialogues()]
        case "opening":
            return [bytes([0, at]) + data for at, data in enumerate(OPENINGS)]
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


OPENINGS = (
    b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", b"CONNECT a.example:443 HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"EHLO me\r\n", b"a1 LOGIN joe secret\r\n", b"\x05\x02\x00\x02",
    b"\x04\x01\x01\xbb\0\0\0\x01joe\0a.test\0", b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"\x30\x0c\x02\x01\x01\x60\x07",
    b"<?xml version='1.0'?><stream:stream to='a.test'>", b"220 a FTP\r\n", b"220 a ESMTP\r\n", b"+OK\r\n",
    b"* OK a\r\n",
    b"J\0\0\0\x0a8.0.36\0",
)  # fmt: skip


def _dialogues() -> Iterator[bytes]:
    """One for each protocol: its number, and pieces of s(erver) and c(lient)."""
    played = {
        Protocol.FTP: (b"s220 FTP\r\n", b"cAUTH TLS\r\n", b"s234 go\r\n"),
        Protocol.HTTP_PROXY: (b"cCONNECT a:1 HTTP/1.1\r\n\r\n", b"sHTTP/1.1 407 x\r\n\r\n",
                              b"cCONNECT a:1 HTTP/1.1\n\n",
                              b"sHTTP/1.1 200 x\r\n\r\n"),
        Protocol.IMAP: (b"s* OK\r\n", b"ca STARTTLS\r\n", b"sa OK\r\n"),
        Protocol.LDAP: (b"c\x30\x1d\x02\x01\x07\x77\x18\x80\x161.3.6.1.4.1.1466.20037",
                        b"s\x30\x0c\x02\x01\x07\x78\x07\x0a\x01\x00\x04\x00\x04\x00"),
        Protocol.MYSQL: (b"sJ\0\0\0\x0a8", b"c\x20\0\0\x01\x05\xae\xff\x19" + bytes(28)),
        Protocol.POP3: (b"s+OK\r\n", b"cSTLS\r\n", b"s+OK\r\n"),
        Protocol.POSTGRESQL: (b"c\0\0\0\x08\x04\xd2\x16\x2f", b"sS"),
        Protocol.SMTP: (b"s220 ESMTP\r\n", b"cSTARTTLS\r\n", b"s220 go\r\n"),
        Protocol.SOCKS: (b"c\x05\x01\x02", b"s\x05\x02", b"c\x01\x01a\x01b", b"s\x01\x00",
                         b"c\x05\x01\x00\x03\x01a\0\1",
                         b"s\x05\x00\x00\x01" + bytes(6)),
        Protocol.XMPP: (b"c<stream:stream>", b"c<starttls/>", b"s<proceed/>"),
    }  # fmt: skip
    for protocol, pieces in played.items():
        number = fuzz_dialogue.PROTOCOLS.index(protocol)
        said = (bytes([piece[:1] == b"c", len(piece) - 2]) + piece[1:] for piece in pieces)
        yield bytes([number]) + b"".join(said)


def _messages() -> Iterator[bytes]:
    yield dns_writer.query("www.example.com")
    yield dns_writer.query(".".join(["long-label" * 6] * 5))  # names end at 255 bytes
    answers = dns_writer.alias("www.example.com", "example.net"), dns_writer.address("example.net", "192.0.2.7")
    yield dns_writer.response("www.example.com", *answers)
    hints = dns_writer.service("www.example.com", v4=["192.0.2.7"], v6=["2001:db8::7"])
    yield dns_writer.response("www.example.com", hints, kind=dns_writer.HTTPS)
    offers = dns_writer.Record("www.example.com", dns_writer.HTTPS, b"\0\1\0\0\1\0\3\2h3\0\5\0\4\xfe\x0d\0\0")
    yield dns_writer.response("www.example.com", offers, kind=dns_writer.HTTPS)


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
