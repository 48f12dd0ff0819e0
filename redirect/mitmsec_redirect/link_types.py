"""Where the IP packet begins in what was captured on a link (https://www.tcpdump.org/linktypes.html).

    Ethernet │ VLAN tags │ IP      raw: IP at once      Linux "cooked", as `-i any` has it: two kinds      BSD loopback

What carries no IP, or lies on a link that is not known, is no packet: nothing is returned.
"""

from __future__ import annotations

from typing import Final

NULL, ETHERNET, RAW, LOOP, COOKED, IPV4, IPV6, COOKED_2 = 0, 1, 101, 108, 113, 228, 229, 276
VLAN_TAGS: Final = frozenset({b"\x81\x00", b"\x88\xa8"})
VLAN_TAG_BYTES, VLAN_TAGS_LIMIT = 4, 4
IP_TYPES: Final = frozenset({b"\x08\x00", b"\x86\xdd"})
FAMILY_BYTES = 4  # of the loopback headers
COOKED_TYPE_AT, COOKED_BYTES = 14, 16
COOKED_2_TYPE_AT, COOKED_2_BYTES = 0, 20
ETHERNET_TYPE_AT = 12


def network(link_type: int, data: bytes) -> bytes:
    """The packet from its IP header on; empty where there is none."""
    match link_type:
        case 101 | 228 | 229:
            return data
        case 1:
            return _ethernet(data)
        case 113:
            return data[COOKED_BYTES:] if data[COOKED_TYPE_AT:COOKED_BYTES] in IP_TYPES else b""
        case 276:
            return data[COOKED_2_BYTES:] if data[COOKED_2_TYPE_AT:2] in IP_TYPES else b""
        case 0 | 108:
            return data[FAMILY_BYTES:]  # the family is the sender's own number; the IP header says its version itself
        case _:
            return b""


def _ethernet(data: bytes) -> bytes:
    at = ETHERNET_TYPE_AT
    for _ in range(VLAN_TAGS_LIMIT):
        if data[at : at + 2] not in VLAN_TAGS:
            break
        at += VLAN_TAG_BYTES
    return data[at + 2 :] if data[at : at + 2] in IP_TYPES else b""
