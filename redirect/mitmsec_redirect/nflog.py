"""The heads of packets that a rule has logged, as `Missed` connections: NFLOG (nfnetlink_log.h).

A group belongs to one reader in a network namespace, so each session takes a free one. The kernel's queue is the
socket's buffer; what does not fit is dropped by the kernel, while the rules' counters go on counting.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from mitmsec_redirect import netlink, nft_rules
from mitmsec_redirect.headings import Heading, read
from mitmsec_redirect.netlink import NLMSG_ERROR, NetlinkBroken
from mitmsec_redirect.nfnetlink import ANSWER_BYTES, ANSWER_DEADLINE_S, NETLINK_NETFILTER, NLM_F_ACK, attribute
from mitmsec_redirect.records import Reason

ULOG = 4  # subsystem
PACKET, CONFIG = 0, 1
HEADER, INTERFACE_IN, INTERFACE_OUT, PAYLOAD, PREFIX, UID = 1, 4, 5, 9, 10, 11
BIND, COPY_PACKET = 1, 2
SO_RCVBUFFORCE = 33  # whatever net.core.rmem_max says
GROUPS: Final = range(0x6D00, 0x6E00)  # rarely anybody else's
BUFFER_BYTES = 1 << 20
MESSAGE_BYTES = 1 << 14  # one packet's
UNKNOWN_UID = 0xFFFFFFFF

_HEADER: Final = struct.Struct("=IHHII")
_MESSAGE: Final = struct.Struct("!BBH")  # family, version, group


class Logged:
    """One packet: why it was logged, what became of it, whose it is and where it was going."""

    __slots__ = ("denied", "heading", "reason", "uid")

    def __init__(self, reason: Reason, heading: Heading, uid: int | None, *, denied: bool) -> None:
        self.reason, self.heading, self.uid, self.denied = reason, heading, uid, denied


class PacketLog:
    """A free group of the network namespace that it was made in, for rules that log no more than `snaplen_bytes`.

    Needs CAP_NET_ADMIN; raises OSError without NFLOG.
    """

    def __init__(self, snaplen_bytes: int = nft_rules.SNAPLEN_BYTES) -> None:
        self.overruns = 0
        """How often the kernel had to drop something."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        try:
            self._sock.settimeout(ANSWER_DEADLINE_S)
            self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
            self._sock.bind((0, 0))
            self.group = self._bind(snaplen_bytes)
            self._sock.setblocking(False)
        except BaseException:
            self._sock.close()
            raise

    def _bind(self, snaplen_bytes: int) -> int:
        for group in GROUPS:
            with contextlib.suppress(FileExistsError, PermissionError):
                self._configure(group, attribute(1, bytes([BIND])))
                self._configure(group, attribute(2, struct.pack("!IBx", snaplen_bytes, COPY_PACKET)))
                self._configure(group, attribute(5, struct.pack("!I", 1)))  # each packet is told at once
                return group
        raise OSError(errno.EBUSY, "no NFLOG group is free, or this is not root")

    def _configure(self, group: int, order: bytes) -> None:
        payload = _MESSAGE.pack(socket.AF_UNSPEC, 0, group) + order
        flags = netlink.NLM_F_REQUEST | NLM_F_ACK
        self._sock.send(_HEADER.pack(_HEADER.size + len(payload), ULOG << 8 | CONFIG, flags, 1, 0) + payload)
        for kind, _, _, answer in netlink.messages(self._sock.recv(ANSWER_BYTES)):
            code = -struct.unpack_from("=i", answer)[0] if kind == NLMSG_ERROR else 0
            if code:
                raise OSError(code, f"nflog: {errno.errorcode.get(code, code)}")

    def drain(self, limit: int) -> list[Logged]:
        """What has been logged since, oldest first, `limit` at most (a few more where they came together)."""
        found: list[Logged] = []
        while len(found) < limit and (message := self.receive()) is not None:
            found += parse(message)
        return found

    def receive(self) -> bytes | None:
        """The kernel's next message; None: there is none now."""
        while True:
            try:
                return self._sock.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # which only says that some were dropped
                    raise
                self.overruns += 1

    def fileno(self) -> int:
        """Readable when there is something to receive."""
        return self._sock.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()


def parse(datagram: bytes) -> Iterator[Logged]:
    """The packets in one message of the kernel; what is none of ours, or cut off, does not count."""
    for attributes in packets(datagram):
        logged = _logged(attributes)
        if logged is not None:
            yield logged


def packets(datagram: bytes) -> Iterator[Mapping[int, bytes]]:
    """What one message of the kernel says of each packet in it, by attribute, up to where it is cut off."""
    with contextlib.suppress(NetlinkBroken):
        for kind, _, _, payload in netlink.messages(datagram):
            if kind == ULOG << 8 | PACKET:
                yield netlink.parse(payload, _MESSAGE).attributes


def _logged(attributes: Mapping[int, bytes]) -> Logged | None:
    word, _, became = attributes.get(PREFIX, b"").rstrip(b"\0").decode(errors="replace").partition(" ")
    heading = read(attributes.get(PAYLOAD, b""))
    if word not in set(Reason) or not isinstance(heading, Heading):
        return None
    return Logged(Reason(word), heading, uid_of(attributes), denied=became == nft_rules.DENIED)


def uid_of(attributes: Mapping[int, bytes]) -> int | None:
    """Of who made the socket that sent the packet; None: the kernel does not say."""
    uid = int.from_bytes(attributes.get(UID, b"\xff" * 4))
    return None if uid == UNKNOWN_UID else uid
