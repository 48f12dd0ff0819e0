"""The sockets that a service's DNS is led to: in its network, for this machine only, and kept from everybody else."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import descriptors

from mitmsec.channel import FDS_LIMIT
from mitmsec.service import name_relays
from mitmsec.service.control import NamesStatus
from mitmsec.service.name_relays import RELAYS_V4, RELAYS_V6, NameRelays, relay_sockets
from mitmsec_redirect import netns
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.dns_lead import RESERVED, LedServers
from mitmsec_redirect.sockdiag import CookieLookup

pytestmark = pytest.mark.root


@pytest.fixture
def network() -> Iterator[int]:
    """Two namespaces that are joined: we are in one, whose address is 10.78.0.1; the other's is told."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = netns.fresh()
    os.unshare(os.CLONE_NEWNET)
    try:
        for words in (
            "link set lo up",
            f"link add na type veth peer name nb netns /proc/{os.getpid()}/fd/{other}",
            "addr add 10.78.0.1/24 dev na",
            "link set na up",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        there = [f"--net=/proc/{os.getpid()}/fd/{other}"]
        for words in ("addr add 10.78.0.2/24 dev nb", "link set nb up"):
            subprocess.run(["nsenter", *there, "ip", *words.split()], check=True)
        yield other
    finally:
        os.setns(before, os.CLONE_NEWNET)
        os.close(before)
        os.close(other)


def test_each_has_a_port_that_only_root_can_have_and_that_no_service_has(network: int) -> None:
    sockets = relay_sockets()
    with contextlib.ExitStack() as held:
        for one in sockets:
            held.enter_context(one)
        ports = [one.getsockname()[1] for one in sockets]
        assert len(set(ports)) == len(sockets) == RELAYS_V4 + RELAYS_V6 <= FDS_LIMIT - 3
        assert all(512 <= port < 1024 for port in ports)
        with pytest.raises(OSError):
            socket.getservbyport(ports[0], "udp")
        assert sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= name_relays.ROOM_BYTES
        more = relay_sockets()
        had = {(one.family, port) for one, port in zip(sockets, ports, strict=True)}
        assert not had & {(one.family, one.getsockname()[1]) for one in more}, "whoever has a port keeps it"
        for one in more:
            one.close()


def test_where_anybody_may_have_the_ports_there_are_none(network: int) -> None:
    """`sysctl net.ipv4.ip_unprivileged_port_start`, as containers set it."""
    name_relays.ANYBODYS.write_text("0")
    assert relay_sockets() == []
    name_relays.ANYBODYS.write_text("950")
    found = relay_sockets()
    assert max(one.getsockname()[1] for one in found) < 950
    found += netns.inside(network, relay_sockets)
    assert max(one.getsockname()[1] for one in found) >= 950, "the other namespace has a rule of its own"
    for one in found:
        one.close()


def test_where_there_are_no_relays_nothing_is_to_be_led(network: int) -> None:
    hook = ConnectHook.__new__(ConnectHook)
    with contextlib.closing(NameRelays.open(network)) as relays:
        assert relays.beside(hook) == (relays.lead, hook)
    netns.inside(network, lambda: name_relays.ANYBODYS.write_text("0"))
    with contextlib.closing(NameRelays.open(network)) as relays:
        assert relays.beside(hook) is None


def test_where_nobody_can_tell_whose_a_udp_socket_is_there_are_none(
    network: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without sock_diag for UDP: the gate would take everybody for a stranger."""
    before = len(descriptors())
    monkeypatch.setattr(CookieLookup, "find", lambda *_: None)
    assert relay_sockets() == []
    assert len(descriptors()) == before


def test_it_hears_this_machine_at_all_its_addresses_and_nobody_else(network: int) -> None:
    relay = relay_sockets()[0]
    port = relay.getsockname()[1]
    relay.setblocking(True)
    relay.settimeout(20)

    def there() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    with relay, there() as here, netns.inside(network, there) as elsewhere:
        here.bind(("10.78.0.1", 0))
        here.settimeout(20)
        elsewhere.sendto(b"from outside", ("10.78.0.1", port))
        elsewhere.sendto(b"after it", here.getsockname())
        assert here.recv(99) == b"after it"
        for address in ("127.0.0.1", "10.78.0.1"):
            here.sendto(b"from here", (address, port))
            said, ((_, kind, info),), _, _ = relay.recvmsg(99, 99)
            assert (said, kind, socket.inet_ntoa(info[8:12])) == (b"from here", name_relays.IP_PKTINFO, address)


def test_a_command_has_name_servers_of_its_own(network: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have another /etc/resolv.conf than whoever watches over it, in a network of its own, say."""
    monkeypatch.setattr(name_relays, "RESOLV_CONF", tmp_path / "resolv.conf")
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    for named in (("198.51.100.53",), ()):
        with contextlib.closing(NameRelays.open(network, named)) as relays:
            relays.look()
            assert relays.status.servers == named


def test_the_servers_of_resolv_conf_are_led_at_once_and_a_gate_is_told_of_all(
    network: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_relays, "RESOLV_CONF", tmp_path / "resolv.conf")
    with contextlib.closing(NameRelays.open(network)) as relays:
        assert relays.status == NamesStatus(servers=(), beyond=0)
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\nnameserver 2001:db8::53\n")
    before = len(descriptors())
    with contextlib.closing(NameRelays.open(network)) as relays:
        assert relays.status.servers == ("192.0.2.53", "2001:db8::53")
        opened = [os.dup(fd) for fd in relays.descriptors()]
        maps, (first, *others) = opened[:3], opened[3:]
        with contextlib.closing(LedServers(*maps)) as servers, socket.socket(fileno=first) as sock:
            server = servers.behind(sock.getsockname()[1])
            assert server is not None
            assert server.address == "192.0.2.53"
            servers.withdraw(server)
            assert len(list(servers._servers.keys())) == 1
            relays.descriptors()
            assert len(list(servers._servers.keys())) == 2, "the next gate finds it led again"
        for fd in others:
            os.close(fd)
    relays.close()
    assert len(descriptors()) == before


def test_a_machine_that_moves_to_another_network_has_relays_for_its_servers_whomever_programs_have_asked(
    network: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(name_relays, "RESOLV_CONF", file)
    file.write_text("nameserver 192.0.2.53\n")
    with contextlib.closing(NameRelays.open(network)) as relays:
        for number in range(300):  # somebody looks for open resolvers
            relays.lead.meet(f"198.51.100.{number % 250}")
        relays.look()
        before = relays.status
        assert (len(before.servers), before.servers[0]) == (RELAYS_V4 - RESERVED, "192.0.2.53")
        assert before.beyond == 250 - (RELAYS_V4 - RESERVED - 1)
        file.unlink()
        relays.look()
        file.write_text("nameserver 198.51.100.249\nnameserver 203.0.113.53\n")
        relays.look()
        assert relays.status.servers == (*before.servers, "198.51.100.249", "203.0.113.53")
        assert relays.status.beyond == before.beyond - 1
        file.write_text("nameserver 203.0.113.153\n")
        relays.look()
        assert (len(relays.status.servers), relays.status.beyond) == (RELAYS_V4, before.beyond), "all are given"


def test_a_network_without_a_family_has_relays_of_the_other(network: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_v6(family: int, *more: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "no such family")
        return real(family, *more)

    monkeypatch.setattr(socket, "socket", without_v6)
    monkeypatch.setattr(name_relays, "PORTS", range(952, 946, -1))
    found = relay_sockets()
    assert 0 < len(found) <= 6
    assert {one.family for one in found} == {socket.AF_INET}
    for one in found:
        one.close()
