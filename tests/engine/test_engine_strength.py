"""What a client's hello asks of the connection that is made in its place."""

from __future__ import annotations

import pytest
from hellos import REAL, body, message, numbers, records, vector
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core import clienthello
from mitmsec.core.clienthello import ClientHello
from mitmsec.engine import strength
from mitmsec.engine.strength import (
    GROUPS,
    LOWEST,
    OFFERED_LIMIT,
    Floor,
    Strength,
    classical_of,
    excess,
    floor_of,
    groups_from,
    has_hybrid,
    takes_either,
)

GREASE = 0x4A4A
WEAK = st.sampled_from([0xC02B, 0x1301, 0xC013, 0x0005, 0x0000, 0xEEEE])
STRONG = st.sampled_from([0xC02C, 0x1302, 0x1303, 0xCCA8, 0x009D])
NO_SUITES = st.sampled_from([GREASE, 0x00FF, 0x5600])


def hello(
    ciphers: tuple[int, ...] = (0x1301,), groups: tuple[int, ...] = (), versions: tuple[int, ...] = ()
) -> ClientHello:
    extensions = [(0x000A, vector(numbers(*groups)))] if groups else []
    extensions += [(0x002B, vector(numbers(*versions), 1))] if versions else []
    made = clienthello.parse(records(message(body(extensions, ciphers=numbers(*ciphers)))))
    assert isinstance(made, ClientHello)
    return made


@pytest.mark.checklist("U28")
@pytest.mark.parametrize(
    ("versions", "tls12"),
    [((), True), ((0x0304,), False), ((GREASE, 0x0304), False), ((0x0304, 0x0303), True), ((0x0304, 0x0301), False)],
)
def test_who_offers_tls_1_3_alone_gets_nothing_older(versions: tuple[int, ...], tls12: bool) -> None:
    assert floor_of(hello(versions=versions)).tls12 is tls12


@given(st.lists(STRONG, min_size=1), st.lists(WEAK), st.lists(NO_SUITES))
def test_the_weakest_suite_is_the_floor_and_what_is_no_suite_does_not_count(
    strong: list[int], weak: list[int], others: list[int]
) -> None:
    assert floor_of(hello((*others, *strong, *weak, *others))).cipher_bits == (128 if weak else 256)


@pytest.mark.parametrize(
    ("groups", "bits", "is_hybrid"),
    [
        ((), 128, False),
        ((GREASE, 0x11EC, 0x001D), 128, False),
        ((0x0018,), 192, False),
        ((0x0019, 0x0018), 192, False),
        ((0x0019,), 256, False),
        ((0x11EC,), 192, True),
        ((GREASE, 0x11ED), 256, True),
        ((0x11EC, 0x6399), 128, True),
        ((0x0100,), 128, False),
    ],
)
def test_the_weakest_group_is_the_floor(groups: tuple[int, ...], bits: int, is_hybrid: bool) -> None:
    floor = floor_of(hello(groups=groups))
    assert (floor.group_bits, floor.is_hybrid) == (bits, is_hybrid)


@given(st.sampled_from([128, 192, 256]), st.booleans())
def test_no_group_below_the_floor_is_offered_and_some_always_is(bits: int, is_hybrid: bool) -> None:
    offered = groups_from(Floor(group_bits=bits, is_hybrid=is_hybrid)).split(":")
    known = {name: (strength, hybrid) for name, strength, hybrid in GROUPS}
    assert all(known[name][0] >= bits and (known[name][1] or not is_hybrid) for name in offered)
    assert offered != [""]


def test_without_a_share_the_same_groups_are_offered_and_the_hybrid_ones_only_by_name() -> None:
    every, without = (groups_from(LOWEST, with_share=share).split(":") for share in (True, False))
    assert [name.strip("*") for name in every] == [name.strip("*") for name in without]
    assert [name for name in every if name.startswith("*")] == ["*X25519MLKEM768", "*X25519"]
    assert [name for name in without if name.startswith("*")] == ["*X25519"]


@pytest.mark.parametrize(("groups", "expected"), [((0x11EC, 0x001D), True), ((0x001D,), False), ((), False)])
def test_whether_a_client_offers_a_hybrid_group(groups: tuple[int, ...], expected: bool) -> None:
    assert has_hybrid(hello(groups=groups)) is expected


def test_an_older_openssl_is_offered_what_it_knows() -> None:
    assert classical_of(groups_from(LOWEST)) == "X25519:P-256:P-384:P-521"
    assert classical_of(groups_from(Floor(is_hybrid=True))) == ""


@pytest.mark.parametrize(
    ("groups", "expected"),
    [((0x11EC, 0x001D), True), ((0x11EC, 0x001E), False), ((0x001D,), False), ((0x11EC,), False), ((), False)],
)
def test_a_client_leaves_the_choice_if_it_offers_hybrid_and_classical_groups(
    groups: tuple[int, ...], expected: bool
) -> None:
    assert takes_either(hello(groups=groups)) is expected


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_clients_set_no_floor_of_their_own_above_the_lowest(name: str) -> None:
    """Those that are here offer 128-bit suites and groups: for them everything of ours is offered."""
    made = clienthello.parse(REAL[name])
    assert isinstance(made, ClientHello)
    assert floor_of(made) in (LOWEST, Floor(tls12=False))


@pytest.mark.checklist("C1")
@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        (("TLSv1.3", 256, "X25519MLKEM768"), ("TLSv1.3", 256, "X25519MLKEM768"), None),
        (("TLSv1.3", 256, "x25519"), ("TLSv1.3", 256, "X25519MLKEM768"), None),
        (("TLSv1.2", 128, "x25519"), ("TLSv1.3", 256, "x25519"), None),
        (("TLSv1.3", 256, "x25519"), ("TLSv1.3", 128, "x25519"), "cipher"),
        (("TLSv1.3", 256, "X25519MLKEM768"), ("TLSv1.2", 128, None), "version, cipher, group"),
        (("TLSv1.3", 128, "SecP256r1MLKEM768"), ("TLSv1.3", 128, "x25519"), "group"),
    ],
)
def test_what_the_client_is_told_too_much_has_a_name(
    client: tuple[str, int, str | None], server: tuple[str, int, str | None], expected: str | None
) -> None:
    def strength(version: str, bits: int, group: str | None) -> Strength:
        return Strength(version=version, cipher_bits=bits, group=group)

    assert excess(strength(*client), strength(*server)) == expected


def test_hellos_of_thousands_of_suites_are_judged_and_not_kept() -> None:
    strength._floor.cache_clear()
    for last in range(200):
        assert floor_of(hello(ciphers=(*range(0x2000, 0x2000 + OFFERED_LIMIT), 0x3000 + last))).cipher_bits == 128
    assert strength._floor.cache_info().currsize == 0
    assert floor_of(hello(ciphers=(0x1302,))).cipher_bits == 256
    assert strength._floor.cache_info().currsize == 1
