"""Where the kernel that runs keeps which interface a socket's datagrams are to leave by, found by its own types."""

from __future__ import annotations

from mitmsec.core.model import Value
from mitmsec_redirect.btf import Btf


class LeadOffsets(Value, frozen=True):
    """Bytes from the start of each struct; a UDP socket begins with its inet_sock."""

    interface_v4: int  # IP_UNICAST_IF
    v6: int  # where its ipv6_pinfo is
    interface_v6: int  # IPV6_UNICAST_IF, in that
    sticky_v6: int  # IPV6_PKTINFO, its interface, in that too

    @classmethod
    def of(cls, types: Btf) -> LeadOffsets:
        """Raises NoSuchMember for a kernel that is built otherwise, MalformedBtf."""
        return cls(
            interface_v4=types.member("inet_sock", "uc_index").offset,
            v6=types.member("inet_sock", "pinet6").offset,
            interface_v6=types.member("ipv6_pinfo", "ucast_oif").offset,
            sticky_v6=types.member("ipv6_pinfo", "sticky_pktinfo.ipi6_ifindex").offset,
        )
