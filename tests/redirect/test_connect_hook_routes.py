"""Destinations without a route, and the source that a diverted socket says it has."""

from __future__ import annotations

import contextlib
import select

import pytest
from redirect_sandbox import V4, V6, Sandbox, ip

pytestmark = pytest.mark.root


DESTINATIONS = (
    "203.0.113.9",
    "198.51.100.9",
    "198.51.100.130",
    "192.0.2.9",
    "192.0.2.200",
    "10.77.0.1",
    "10.77.0.9",
    "10.77.0.255",
    "127.0.0.5",
    "10.88.3.4",
    "224.0.0.9",
    "255.255.255.255",
    "0.0.0.9",
    "240.0.0.1",
    "2001:db8::9",
    "2001:db8:1::9",
    "2001:db8:2::9",
    "2001:db8:3::9",
    "fd77::9",
    "fd99::1",
    "2002::1",
    "::1",
    "ff0e::1",
    "::ffff:203.0.113.9",
    "::ffff:192.0.2.9",
)
ROUTES = """
route add unreachable 198.51.100.0/25
route add prohibit 198.51.100.128/25
route add blackhole 192.0.2.0/25
route add local 10.88.0.0/16 dev lo
-6 route add unreachable 2001:db8:1::/48
-6 route add prohibit 2001:db8:2::/48
-6 route add blackhole 2001:db8:3::/48
"""
ATTEMPT = """
answer = []
for address in {addresses!r}:
    s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET); s.setblocking(False)
    code = s.connect_ex((address, 4)); going = code in (0, errno.EINPROGRESS, errno.ECONNREFUSED)
    answer.append([address, 'routed' if going else errno.errorcode[code], s.getsockname()[0] if going else ''])
"""
PLANS = {
    "no default route": "",
    "default routes": "route add default via 10.77.0.2\n-6 route add default via fd77::2",
    "two IPv6 addresses": "-6 route add default via fd77::2\naddr add 2001:db8:77::1/64 dev va nodad",
    "own table": "rule add to 203.0.113.0/24 lookup 77\nroute add 203.0.113.0/24 via 10.77.0.3 table 77",
    "a mark": "rule add fwmark 7 lookup 77\nroute add default via 10.77.0.2 table 77",
    "a chosen source": "addr add 10.77.0.4/24 dev va\nroute add default via 10.77.0.2 src 10.77.0.4",
}


@pytest.mark.parametrize("plan", PLANS)
def test_connect_fails_as_it_would_undiverted_and_comes_from_the_same_address(own_netns: None, plan: str) -> None:
    """The same destinations by a program outside the cgroup and by one inside: same errno, same source."""
    ip(ROUTES + PLANS[plan])
    with contextlib.ExitStack() as held:
        box = Sandbox(held)
        hook, code = box.hook(), ATTEMPT.format(addresses=DESTINATIONS)
        expected = box.agent(inside=False)(code)
        seen = box.agent()(code)
        assert [(a, b) for a, b in zip(seen["answer"], expected["answer"], strict=True) if a != b] == []
        assert not hook.routes_partial
        assert hook.missed() == []
        assert hook.diverted == sum(one[1] == "routed" for one in expected["answer"])


def test_a_route_that_comes_and_goes_is_followed(own_netns: None) -> None:
    with contextlib.ExitStack() as held:
        box = Sandbox(held)
        hook, agent = box.hook(), box.agent()
        for command, expected in (("add", {"answer": None}), ("del", {"error": "ENETUNREACH"})):
            ip(f"route {command} 203.0.113.0/24 via 10.77.0.2")
            assert select.select([hook.routes_fd], [], [], 5)[0]
            hook.refresh_routes()
            assert agent(f"s = connected({V4})") == expected


def test_a_partial_mirror_diverts_instead_of_refusing(own_netns: None) -> None:
    ip("rule add uidrange 1-2 lookup 77")
    with contextlib.ExitStack() as held:
        box = Sandbox(held)
        hook, agent = box.hook(), box.agent()
        assert hook.routes_partial
        assert agent(f"s = connected({V4}); answer = s.getpeername()") == {"answer": ["203.0.113.9", 443]}
        assert agent(f"s = connected({V6})") == {"error": "ENETUNREACH"}, "only IPv4 has a rule that cannot be judged"
