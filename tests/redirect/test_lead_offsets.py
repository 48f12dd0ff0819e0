"""Where a kernel keeps the interface of a socket, as its types say."""

from __future__ import annotations

import pytest
from btf_writer import BtfWriter

from mitmsec_redirect.btf import Btf, NoSuchMember
from mitmsec_redirect.lead_offsets import LeadOffsets


def kernel(*, with_v6: bool) -> Btf:
    writer = BtfWriter()
    four, pointer = writer.integer(4), writer.pointer()
    writer.struct("inet_sock", 999, ("sk", pointer, 0), ("pinet6", pointer, 8 * 760), ("uc_index", four, 8 * 912))
    if with_v6:
        sticky = writer.struct("in6_pktinfo", 20, ("ipi6_addr", pointer, 0), ("ipi6_ifindex", four, 8 * 16))
        writer.struct("ipv6_pinfo", 99, ("sticky_pktinfo", sticky, 8 * 16), ("ucast_oif", four, 8 * 48))
    return Btf(writer.bytes())


def test_the_places_are_those_that_the_types_say() -> None:
    assert LeadOffsets.of(kernel(with_v6=True)) == LeadOffsets(interface_v4=912, v6=760, interface_v6=48, sticky_v6=32)


def test_a_kernel_without_one_of_them_is_told() -> None:
    with pytest.raises(NoSuchMember, match="ipv6_pinfo"):
        LeadOffsets.of(kernel(with_v6=False))
