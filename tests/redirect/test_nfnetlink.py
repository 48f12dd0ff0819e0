"""Sets, counters, tables and conntrack of a namespace of the test's own; answers that make no sense."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nft_stage import as_nobody, needs_nft

from mitmsec.core.model import Endpoint
from mitmsec_redirect import nfnetlink, nft
from mitmsec_redirect.netlink import NetlinkBroken
from mitmsec_redirect.nfnetlink import Nfnetlink, attribute, comment_of, nested

pytestmark = [pytest.mark.root, needs_nft]
RULES = """
table inet first {
  comment "a remark"
  counter seen { }
  set alive { type inet_proto; flags timeout; timeout 1s; }
  set counted { type ipv4_addr . inet_service; flags dynamic,timeout; timeout 1h; size 8; }
  set known { type ipv4_addr . inet_service; flags dynamic; size 8; }
  chain out {
    type filter hook output priority 0
    udp dport 10 update @counted { ip daddr . udp dport counter } add @known { ip daddr . udp dport }
    ip daddr 127.0.0.1 meta l4proto @alive counter name seen
  }
}
table inet second {
  counter other {
    packets 7 bytes 8
  }
}
table ip third { }
"""


@pytest.fixture
def link(own_netns: None) -> Iterator[Nfnetlink]:
    nft.load(RULES)
    with contextlib.closing(Nfnetlink()) as one:
        yield one


def send() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", 9))


def test_an_element_lives_as_long_as_its_set_says_unless_it_is_renewed(link: Nfnetlink) -> None:
    def seen() -> bool:
        before = link.counters("first")["seen"]
        send()
        return link.counters("first")["seen"] > before

    udp = (bytes([socket.IPPROTO_UDP]),)
    assert not seen()
    link.renew("first", "alive", udp)
    renewed = time.monotonic()
    while time.monotonic() - renewed < 1.2:
        link.renew("first", "alive", udp)
        assert seen()
        time.sleep(0.05)
    time.sleep(1.1)
    assert not seen()
    link.renew("first", "alive", udp)
    link.renew("first", "alive", (bytes([socket.IPPROTO_TCP]),))
    assert not seen(), "exactly these, not these as well"
    link.renew("first", "alive", udp)
    link.empty("first", "alive")
    link.empty("first", "alive")
    assert not seen()


def test_what_is_not_there_is_told(link: Nfnetlink) -> None:
    for order in (lambda: link.renew("gone", "alive", (b"\6",)), lambda: link.empty("first", "gone")):
        with pytest.raises(FileNotFoundError):
            order()
    assert link.counters("gone") == {}


def test_what_an_element_has_counted_is_told_until_it_is_removed(link: Nfnetlink) -> None:
    key = bytes([127, 0, 0, 1, 0, 10, 0, 0])
    assert link.element("first", "counted", key) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(2):
            sock.sendto(b"x", ("127.0.0.1", 10))
    found = link.element("first", "counted", key)
    assert found is not None
    assert (found.packets, 3_500_000 < found.left_ms <= 3_600_000) == (2, True)
    with pytest.raises(FileNotFoundError):
        link.remove("first", ["known", "gone"], key)
    assert link.element("first", "counted", key) is not None
    link.remove("first", ["known", "counted"], key)
    assert link.element("first", "counted", key) is None
    with pytest.raises(FileNotFoundError):
        link.remove("first", ["known"], key)


def test_counters_are_those_of_one_table(link: Nfnetlink) -> None:
    assert link.counters("first") == {"seen": 0}
    assert link.counters("second") == {"other": 7}


def test_tables_are_told_with_their_remarks(link: Nfnetlink) -> None:
    assert [(table.name, table.comment) for table in link.tables()] == [("first", "a remark"), ("second", "")]


@pytest.mark.parametrize(("host", "any_"), [("127.0.0.1", "127.0.0.9"), ("::1", "fd77::1")])
def test_conntrack_knows_what_a_redirected_connection_was(link: Nfnetlink, host: str, any_: str) -> None:
    v6 = ":" in host
    family, word = (socket.AF_INET6, "ip6") if v6 else (socket.AF_INET, "ip")
    with socket.create_server((host, 0), family=family) as server, socket.socket(family) as client:
        port = server.getsockname()[1]
        nft.load(
            "table inet nat { chain out { type nat hook output priority -100;"
            f"{word} daddr {any_} tcp dport 80 redirect to :{port}; }}; }}\n"
        )
        client.settimeout(5)
        client.connect((any_, 80))
        peer = Endpoint.of(*server.accept()[0].getpeername()[:2])
        gate = Endpoint(address=host, port=port)
        assert link.original(gate, peer) == (Endpoint.of(*client.getsockname()[:2]), Endpoint(address=any_, port=80))
        assert link.original(gate, Endpoint(address=host, port=1)) is None


def test_without_privilege_nothing_is_told(own_netns: None) -> None:
    def asks() -> str:
        try:
            return f"{len(Nfnetlink().tables())} tables"
        except PermissionError:
            return "refused"

    assert as_nobody(asks) == "refused"


# --- answers that make no sense ---------------------------------------------------------------------------------------
@given(st.binary(max_size=40))
def test_user_data_never_raises(data: bytes) -> None:
    assert isinstance(comment_of(data), str)


def test_a_remark_is_found_among_other_data() -> None:
    assert comment_of(b"\x05\x02xx\x00\x06hello\x00") == "hello"


@given(st.binary(max_size=60))
def test_a_broken_element_is_told_as_such(data: bytes) -> None:
    with pytest.raises(NetlinkBroken):
        nfnetlink.element_in(data)


@given(st.binary(max_size=60))
def test_a_broken_tuple_is_told_as_such(data: bytes) -> None:
    with pytest.raises(NetlinkBroken):
        nfnetlink._endpoints(data)


def test_attributes_nest() -> None:
    data = attribute(1 | nfnetlink.NESTED, attribute(2, b"abc"), attribute(3, b"d"))
    assert nested(nested(data)[1]) == {2: b"abc", 3: b"d"}


def test_an_acknowledgement_that_is_cut_off_is_told() -> None:
    with pytest.raises(NetlinkBroken):
        nfnetlink._check(b"\0\0")
    with pytest.raises(PermissionError):
        nfnetlink._check(struct.pack("=i", -1))
    nfnetlink._check(struct.pack("=i", 0))
