"""Which service a connection that came in is for."""

from __future__ import annotations

import policies
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.known_service import DAY_S, KnownService, doubts, service_for

SHOP = KnownService(name="shop", names=("shop.example", "*.shop.example", "192.0.2.1"))


@pytest.mark.parametrize(
    ("name", "is_for"),
    [
        ("shop.example", True),
        ("www.shop.example", True),
        ("a.www.shop.example", False),  # a certificate's wildcard is one label (RFC 9525 §6.3)
        ("example", False),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("", False),
    ],
)
def test_without_hosts_it_is_for_whom_the_certificate_is(name: str, is_for: bool) -> None:
    assert SHOP.is_for(443, name) is is_for


@pytest.mark.parametrize(
    ("name", "is_for"),
    [("a.www.other.example", True), ("other.example", False), ("shop.example", False), ("in.a.list", True)],
)
def test_hosts_that_are_written_take_the_place_of_the_certificates_names(name: str, is_for: bool) -> None:
    written = KnownService(name="w", host=("*.other.example", "in.a.list"), names=SHOP.names)
    assert written.is_for(443, name) is is_for


def test_the_first_entry_for_port_and_name_has_it() -> None:
    services = (
        KnownService(name="one", names=("a.test",), port=((443, 443), (444, 450))),
        KnownService(name="two", names=("a.test", "b.test")),
    )

    def of(port: int, name: str) -> str | None:
        service = service_for(services, port, name)
        return None if service is None else service.name

    assert [of(443, "a.test"), of(447, "a.test"), of(8443, "a.test")] == ["one", "one", "two"]
    assert [of(443, "b.test"), of(443, "c.test")] == ["two", None]


ranges = policies.some(policies.ranges)


@given(ranges, ranges, st.sampled_from(policies.PORTS))
def test_it_may_be_for_ports_of_which_one_is_its_own(
    mine: tuple[tuple[int, int], ...], asked: tuple[tuple[int, int], ...], port: int
) -> None:
    service = KnownService(name="s", names=("a.test",), port=mine)
    is_asked = not asked or any(low <= port <= high for low, high in asked)
    if service.is_for(port, "a.test") and is_asked:
        assert service.may_be_for(asked)


@pytest.mark.parametrize(("asked", "may"), [(((1, 442),), False), (((444, 500),), False), (((1, 443),), True)])
def test_it_is_for_no_port_but_its_own(asked: tuple[tuple[int, int], ...], may: bool) -> None:
    assert KnownService(name="s", port=((443, 443),)).may_be_for(asked) is may


def test_what_is_expired_or_not_used_is_doubted() -> None:
    now_s = 100 * DAY_S
    services = [
        KnownService(name="good", not_after_s=now_s + 1),
        KnownService(name="today", not_after_s=now_s),
        KnownService(name="yesterday", not_after_s=now_s - DAY_S),
        KnownService(name="old", not_after_s=now_s - 9 * DAY_S),
        KnownService(name="unread"),
    ]
    assert doubts(services, now_s, are_used=True) == [
        '[[inbound]] "today": its certificate has expired for less than a day',
        '[[inbound]] "yesterday": its certificate has expired for 1 day',
        '[[inbound]] "old": its certificate has expired for 9 days',
    ]
    (unused,) = doubts(services[:1], now_s, are_used=False)
    assert unused == '[[inbound]] "good": nothing that comes in is decrypted, so it is not used'
