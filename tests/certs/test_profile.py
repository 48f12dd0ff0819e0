"""Dates, names and flaws of certificates, as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.messages import Flaw
from mitmsec_certs.profile import (
    DAY_S,
    HOUR_S,
    LEAF_LIFETIME_S,
    OLDEST_EXPIRY_S,
    WRONG_NAME,
    LeafProfile,
    Name,
    Validity,
    ca_profiles,
    leaf_profile,
)

NOW_S = 1_800_000_000
NAME = Name.of("www.example")
ISSUING = ca_profiles("host", "0a1b", "2027-01-15", NOW_S - 100 * DAY_S)[1].validity

times = st.integers(ISSUING.not_before_s, ISSUING.not_after_s)
ends = st.none() | st.integers(-(2**63), 2**63) | st.integers(NOW_S - 400 * DAY_S, NOW_S + 400 * DAY_S)


@pytest.mark.checklist("C3")
@given(times, ends)
def test_a_leaf_without_a_flaw_is_valid_now_and_outlives_nobody(now_s: int, end_s: int | None) -> None:
    """At most 90 days, not beyond the issuing CA, not beyond the origin's certificate."""
    profile = leaf_profile(NAME, now_s, ISSUING, origin_not_after_s=end_s)
    if end_s is not None and end_s <= now_s:
        assert profile.flaw is Flaw.EXPIRED
        return
    assert profile.flaw is None
    assert profile.name == NAME
    assert profile.by_ca
    validity = profile.validity
    assert validity.not_before_s <= now_s <= validity.not_after_s
    assert validity.not_before_s < validity.not_after_s
    assert validity.not_after_s <= min(now_s + LEAF_LIFETIME_S, ISSUING.not_after_s)
    assert end_s is None or validity.not_after_s <= end_s


@given(times, ends, st.sampled_from(Flaw))
def test_a_flawed_leaf_that_the_ca_signs_is_never_valid_for_the_name(now_s: int, end_s: int | None, flaw: Flaw) -> None:
    """Neither now nor at any later time at which its issuer is still believed."""
    profile = leaf_profile(NAME, now_s, ISSUING, origin_not_after_s=end_s, flaw=flaw)
    assert profile.flaw is flaw
    assert profile.validity.not_before_s < profile.validity.not_after_s
    if not profile.by_ca:
        assert flaw is Flaw.UNTRUSTED
        return
    ended = profile.validity.not_after_s < now_s
    never = profile.validity.not_before_s > ISSUING.not_after_s
    assert ended or never or profile.name.text == WRONG_NAME


@given(times, st.none() | st.integers(-(2**63), 2**63))
def test_an_expired_leaf_mirrors_the_origins_date_within_reason(now_s: int, end_s: int | None) -> None:
    validity = leaf_profile(NAME, now_s, ISSUING, origin_not_after_s=end_s, flaw=Flaw.EXPIRED).validity
    assert validity.not_after_s <= now_s - HOUR_S
    assert validity.not_after_s >= now_s - OLDEST_EXPIRY_S - DAY_S
    if end_s is not None and now_s - OLDEST_EXPIRY_S < end_s < now_s - HOUR_S:
        assert validity.not_after_s == end_s


@given(times, st.integers(0, DAY_S - 1))
def test_the_same_question_on_the_same_day_has_the_same_end(now_s: int, later_s: int) -> None:
    """So that a kept certificate can be given again."""
    day_s = now_s - now_s % DAY_S
    when = [moment for moment in (day_s, day_s + later_s) if ISSUING.not_before_s <= moment <= ISSUING.not_after_s]
    profiles = [leaf_profile(NAME, moment, ISSUING) for moment in when]
    far = [profile for profile in profiles if profile.validity.not_after_s < ISSUING.not_after_s - DAY_S]
    assert len({profile.validity.not_after_s for profile in far}) <= 1


@pytest.mark.parametrize("now_s", [ISSUING.not_before_s - 1, ISSUING.not_after_s + 1])
def test_no_leaf_outside_the_issuing_cas_own_validity(now_s: int) -> None:
    with pytest.raises(ValueError, match="not valid at this time"):
        leaf_profile(NAME, now_s, ISSUING)


def test_a_wrong_name_is_one_that_nobody_can_own() -> None:
    assert leaf_profile(NAME, NOW_S, ISSUING, flaw=Flaw.WRONG_NAME).name.text.endswith(".invalid")


@pytest.mark.parametrize(
    ("text", "canonical", "is_address"),
    [
        ("example.com", "example.com", False),
        ("localhost", "localhost", False),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", False),
        ("_dmarc.a_b.example", "_dmarc.a_b.example", False),
        ("r3---sn-.example", "r3---sn-.example", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("2001:DB8:0::1", "2001:db8::1", True),
        ("a" * 63 + ".example", "a" * 63 + ".example", False),
    ],
)
def test_names_that_a_leaf_may_carry(text: str, canonical: str, is_address: bool) -> None:
    assert Name.of(text) == Name(text=canonical, is_address=is_address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "example.com.",
        ".example.com",
        "a..b",
        "*.example.com",
        "Example.com",
        "bücher.example",
        "a b",
        "a\0.example",
        "example.com\n",
        "1.2.3",
        "1.2.3.256",
        "fe80::1%eth0",
        "[::1]",
        "https://a",
        "a" * 64 + ".example",
        "a." * 127 + "example",
    ],
)
def test_names_that_no_leaf_carries(text: str) -> None:
    with pytest.raises(ValueError, match="neither a host name"):
        Name.of(text)


@given(st.text(max_size=300))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    """Never another exception, and an accepted name is already in the form in which it is used."""
    try:
        name = Name.of(text)
    except ValueError:
        return
    assert Name.of(name.text) == name
    assert name.text.isascii()


def test_a_name_that_does_not_fit_has_no_common_name() -> None:
    assert Name.of("a" * 60 + ".net").common_name == "a" * 60 + ".net"
    assert Name.of("a" * 61 + ".net").common_name is None


@pytest.mark.parametrize(
    ("host", "shown"), [("build-7.corp", "build-7.corp"), ("köln box", "k-ln-box"), ("", "unnamed"), ("-.", "unnamed")]
)
def test_cas_are_named_after_host_and_date(host: str, shown: str) -> None:
    root, issuing = ca_profiles(host, "0a1b2c3d", "2027-01-15", NOW_S)
    assert root.common_name == f"mitmsec root {shown} 2027-01-15 0a1b2c3d"
    assert issuing.common_name == f"mitmsec issuing {shown} 2027-01-15 0a1b2c3d"


@given(st.text())
def test_a_cas_name_fits_into_a_certificate(host: str) -> None:
    assert all(len(profile.common_name) <= 64 for profile in ca_profiles(host, "0a1b2c3d", "2027-01-15", NOW_S))


def test_cas_live_a_year_at_most_and_end_together() -> None:
    root, issuing = ca_profiles("host", "00", "2027-01-15", NOW_S)
    assert root.validity == issuing.validity
    assert issuing.validity.not_before_s <= NOW_S <= issuing.validity.not_after_s
    assert issuing.validity.not_after_s - issuing.validity.not_before_s <= 365 * DAY_S
    assert (root.path_length, issuing.path_length) == (1, 0)


def test_values_cannot_be_changed() -> None:
    profile = LeafProfile(name=NAME, validity=Validity(not_before_s=1, not_after_s=2))
    with pytest.raises(AttributeError):
        profile.flaw = Flaw.EXPIRED  # type: ignore[misc]
