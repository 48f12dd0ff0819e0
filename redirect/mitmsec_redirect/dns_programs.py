"""The programs that copy what a command asks name servers, and what they answer. They let everything pass.

    egress   a packet of the cgroup's sockets ─► UDP, to port 53?   ─┐
    ingress  a packet for them                ─► UDP, from port 53? ─┴─► short enough? ─► a copy in the ring

Every packet of the cgroup comes by, so all but DNS leave after some ten instructions. IPv4 with options, IPv6 with
extension headers, and what is longer is not copied; nor is what does not fit into the ring: a name is then not known.
"""

from __future__ import annotations

from mitmsec_redirect import dns_records
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.records import PROTOCOL_UDP, port_field
from mitmsec_redirect.steps import R0, R1, R2, R3, R4, R6, R7, R8

SKB_LENGTH, SKB_DATA, SKB_DATA_END = 0, 76, 80  # struct __sk_buff; data begins with the IP header
V4_PROTOCOL, V6_NEXT_HEADER = 9, 6
V4_PLAIN, V6_VERSION, VERSION_BITS = 0x45, 0x60, 0xF0
SMALLEST_BYTES = dns_records.V4_HEADER_BYTES + dns_records.UDP_HEADER_BYTES


def copies(ring: int, *, sent: bool) -> bytes:
    """The program of egress (`sent`) or ingress; `ring` is the descriptor of the map."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(R2, R6, SKB_DATA)
    asm.load(R3, R6, SKB_DATA_END)
    _unless_dns(asm, sent=sent)
    asm.load(R7, R6, SKB_LENGTH)
    asm.jump_if(R7, Condition.ABOVE, dns_records.PACKET_LIMIT_BYTES, "pass")
    asm.jump_if(R7, Condition.ABOVE, SMALLEST_BYTES - 1, "fits")
    asm.jump("pass")
    asm.label("fits")
    asm.map(R1, ring)
    asm.move(R2, dns_records.RECORD_BYTES)
    asm.move(R3, 0)
    asm.call(Helper.RINGBUF_RESERVE)
    asm.jump_if(R0, Condition.EQUAL, 0, "pass")
    asm.move(R8, R0)
    asm.store(R8, dns_records.LENGTH, R7)
    asm.store(R8, dns_records.SENT, int(sent))
    asm.move(R1, R6)
    asm.move(R2, 0)
    asm.move(R3, R8)
    asm.add(R3, dns_records.PACKET)
    asm.move(R4, R7)
    asm.call(Helper.SKB_LOAD_BYTES)
    asm.move(R1, R8)
    asm.move(R2, 0)
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "unreadable")
    asm.call(Helper.RINGBUF_SUBMIT)
    asm.jump("pass")
    asm.label("unreadable")
    asm.call(Helper.RINGBUF_DISCARD)
    asm.label("pass")
    asm.exit(1)
    return asm.code()


def _unless_dns(asm: Assembler, *, sent: bool) -> None:
    """R2, R3: where the packet's first piece begins and ends. On to "pass" for all but UDP to or from port 53."""
    port = 2 if sent else 0
    asm.move(R4, R2)
    asm.add(R4, SMALLEST_BYTES)
    asm.jump_if(R4, Condition.ABOVE, R3, "pass")
    asm.load(R4, R2, 0, Size.BYTE)
    asm.jump_if(R4, Condition.NOT_EQUAL, V4_PLAIN, "not_v4")
    asm.load(R4, R2, V4_PROTOCOL, Size.BYTE)
    asm.jump_if(R4, Condition.NOT_EQUAL, PROTOCOL_UDP, "pass")
    asm.load(R4, R2, dns_records.V4_HEADER_BYTES + port, Size.HALF)
    asm.jump("port")
    asm.label("not_v4")
    asm.mask(R4, VERSION_BITS)
    asm.jump_if(R4, Condition.NOT_EQUAL, V6_VERSION, "pass")
    asm.load(R4, R2, V6_NEXT_HEADER, Size.BYTE)
    asm.jump_if(R4, Condition.NOT_EQUAL, PROTOCOL_UDP, "pass")
    asm.move(R4, R2)
    asm.add(R4, dns_records.V6_HEADER_BYTES + dns_records.UDP_HEADER_BYTES)
    asm.jump_if(R4, Condition.ABOVE, R3, "pass")
    asm.load(R4, R2, dns_records.V6_HEADER_BYTES + port, Size.HALF)
    asm.label("port")
    asm.jump_if(R4, Condition.NOT_EQUAL, port_field(dns_records.DNS_PORT), "pass")
