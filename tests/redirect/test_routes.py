"""The mirror of the routes, as far as the hook's own tests do not show it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redirect_sandbox import ip

from mitmsec_redirect import bpf, netns, records, routes
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.records import NamespaceFlag
from mitmsec_redirect.routes import RouteMirror

pytestmark = pytest.mark.root


def maps() -> tuple[Map, Map]:
    namespaces = Map.create(MapKind.HASH, 8, 4, 4, "namespaces")
    size = (records.ROUTE_KEY.size, records.ROUTE.size)
    return namespaces, Map.create(MapKind.LPM_TRIE, *size, 64, "routes", flags=bpf.MAP_FLAG_NO_PREALLOC)


@pytest.fixture
def mirror(own_netns: None) -> Iterator[RouteMirror]:
    namespaces, table = maps()
    namespaces.update(records.COOKIE.pack(netns.current_cookie()), bytes(4))
    made = RouteMirror(netns.current_cookie(), namespaces, table)
    made.refresh()
    yield made
    made.close()
    namespaces.close()
    table.close()


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("link set lo up", NamespaceFlag.EXACT_V4 | NamespaceFlag.EXACT_V6),
        ("rule add uidrange 1-2 lookup 77", NamespaceFlag.EXACT_V6),
        ("rule add ipproto tcp dport 80 lookup 77", NamespaceFlag.EXACT_V6),
        ("rule add tos 0x10 lookup 77", NamespaceFlag.EXACT_V6),
        ("route add 10.9.0.0/16 tos 0x10 dev va", NamespaceFlag.EXACT_V6),
        ("-6 rule add uidrange 1-2 lookup 77", NamespaceFlag.EXACT_V4),
        (
            "rule add from 10.77.0.9 lookup 77",
            NamespaceFlag.EXACT_V4 | NamespaceFlag.EXACT_V6 | NamespaceFlag.SOURCE_MATTERS,
        ),
        ("rule add fwmark 5 lookup 77", NamespaceFlag.EXACT_V4 | NamespaceFlag.EXACT_V6),
    ],
)
def test_the_mirror_says_what_it_cannot_judge(mirror: RouteMirror, command: str, flags: NamespaceFlag) -> None:
    ip(command)
    mirror.refresh()
    assert mirror.flags == flags
    told = mirror._namespaces.lookup(records.COOKIE.pack(netns.current_cookie()))
    assert told == records.NAMESPACE_FLAGS.pack(flags)


def test_a_mirror_does_not_allow_its_namespace(own_netns: None) -> None:
    namespaces, table = maps()
    made = RouteMirror(netns.current_cookie(), namespaces, table)
    made.refresh()
    assert list(namespaces.keys()) == []
    for one in (made, namespaces, table):
        one.close()


def test_too_many_routes_make_it_partial(mirror: RouteMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "PREFIX_LIMIT", 3)
    mirror.refresh()
    assert mirror.flags == NamespaceFlag(0)
    assert mirror.partial


def test_a_full_map_makes_it_partial_and_room_makes_it_exact_again(mirror: RouteMirror) -> None:
    for third in range(60):
        ip(f"route add 10.9.{third}.0/24 dev va")
    mirror.refresh()
    assert mirror.flags == NamespaceFlag(0)
    ip("route flush root 10.9.0.0/16")
    ip("route add 10.8.0.0/16 dev va")  # needs the room that the others had
    mirror.refresh()
    assert not mirror.partial


def test_the_map_holds_what_the_tables_hold_and_no_more(mirror: RouteMirror) -> None:
    before = set(mirror._routes.keys())
    ip("route add 10.9.0.0/16 dev va")
    mirror.refresh()
    assert len(set(mirror._routes.keys()) - before) == 1
    ip("route del 10.9.0.0/16 dev va")
    mirror.refresh()
    assert set(mirror._routes.keys()) == before
