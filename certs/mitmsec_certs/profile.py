"""What each certificate must contain, as values. Nothing here signs, reads a clock or touches a file.

    root      P-384, path length 1          its key is destroyed (automatic CA), or leaves the machine (`ca init`)
      └─ issuing   P-256, path length 0     serverAuth only, a year at most; its key stays in the signer
           └─ leaf      ≤ 90 days           exactly one name, never outlives the issuing CA or the origin's certificate

A flawed leaf mirrors an origin's own failure. None of them can ever become a valid one: an expired leaf ended in the
past, a leaf from the future begins after its issuer has ended, a leaf with the wrong name carries a name below
`.invalid` (RFC 6761), and an untrusted leaf is not signed by the CA at all. All times are Unix seconds, UTC.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from typing import assert_never

from mitmsec.core.messages import Flaw
from mitmsec.core.model import Value
from mitmsec.core.names import parse_name
from mitmsec_certs.constraints import UNCONSTRAINED, WRONG_NAME, Constraints

HOUR_S = 3600
DAY_S = 24 * HOUR_S

CA_LIFETIME_S = 365 * DAY_S
ROOT_LIFETIME_S = 3 * CA_LIFETIME_S  # of one whose key is kept: it outlives the issuing CAs that it signs
CA_BACKDATED_S = DAY_S
LEAF_LIFETIME_S = 90 * DAY_S
LEAF_BACKDATED_S = HOUR_S  # clocks of client and signer are usually one and the same; containers and VMs drift
OLDEST_EXPIRY_S = 3650 * DAY_S  # how far back an expired leaf mirrors the origin's date

COMMON_NAME_LIMIT = 64  # RFC 5280, ub-common-name
HOST_LIMIT = 24  # of the host's name within the root's subject
UNTRUSTED_ISSUER = "mitmsec: the origin's certificate is not trusted"

_HOST = re.compile(r"[^A-Za-z0-9.-]+", re.ASCII)


class Name(Value, frozen=True):
    """The one name of a leaf: a host name (ASCII, lower case) or an IP address in canonical text."""

    text: str
    is_address: bool = False

    @classmethod
    def of(cls, text: str) -> Name:
        """Parse a decided name. Raises ValueError for wildcards, U-labels, upper case, and whatever is neither."""
        may_be_address = ":" in text or text[-1:].isdecimal()  # to ask is dear, and most are none
        if may_be_address and "%" not in text:  # a scope means nothing to anybody else
            with suppress(ValueError):
                return cls(text=ipaddress.ip_address(text).compressed, is_address=True)
        if parse_name(text) != text:
            raise ValueError(f"{text[:260]!r} is neither a host name in lower case nor an IP address")
        return cls(text=text)

    @property
    def common_name(self) -> str | None:
        """For old clients that show or read it; a longer name stands in the SAN alone, which is then critical."""
        return self.text if len(self.text) <= COMMON_NAME_LIMIT else None


class Validity(Value, frozen=True):
    """Both bounds are inclusive (RFC 5280, 4.1.2.5)."""

    not_before_s: int
    not_after_s: int


class RootProfile(Value, frozen=True):
    """The trust anchor: P-384, key use certificates and CRLs only."""

    common_name: str
    validity: Validity
    path_length: int = 1
    constraints: Constraints = UNCONSTRAINED


class IssuingProfile(Value, frozen=True):
    """The CA that signs leaves: P-256, limited to TLS servers."""

    common_name: str
    validity: Validity
    path_length: int = 0
    constraints: Constraints = UNCONSTRAINED


class LeafProfile(Value, frozen=True):
    """A server certificate: digitalSignature, serverAuth, CA:FALSE. `by_ca` is False where the CA must not sign it."""

    name: Name
    validity: Validity
    flaw: Flaw | None = None

    @property
    def by_ca(self) -> bool:
        return self.flaw is not Flaw.UNTRUSTED


class Place(Value, frozen=True):
    """What tells several CAs of one organisation apart: the host, the date (text) and `tag`, short and random."""

    host: str
    tag: str
    date: str

    def common_name(self, kind: str) -> str:
        """Never over `COMMON_NAME_LIMIT`."""
        where = _HOST.sub("-", self.host)[:HOST_LIMIT].strip("-.") or "unnamed"
        return f"mitmsec {kind} {where} {self.date} {self.tag}"


def ca_profiles(host: str, tag: str, date: str, now_s: int) -> tuple[RootProfile, IssuingProfile]:
    """Root and issuing CA of an automatic CA.

    Both end together: a root whose key is gone can never sign another issuing CA, so to trust it longer gains nothing.
    """
    place = Place(host=host, tag=tag, date=date)
    validity = _validity(now_s, CA_LIFETIME_S)
    return (
        RootProfile(common_name=place.common_name("root"), validity=validity),
        IssuingProfile(common_name=place.common_name("issuing"), validity=validity),
    )


def lasting_root_profile(place: Place, now_s: int, constraints: Constraints) -> RootProfile:
    """A root whose key is kept offline."""
    validity = _validity(now_s, ROOT_LIFETIME_S)
    return RootProfile(common_name=place.common_name("root"), validity=validity, constraints=constraints)


def issuing_profile(place: Place, now_s: int, root: Validity, constraints: Constraints) -> IssuingProfile:
    """An issuing CA below a lasting root, which it does not outlive. Raises ValueError once the root has ended."""
    usual = _validity(now_s, CA_LIFETIME_S)
    if now_s >= root.not_after_s:
        raise ValueError("the root has ended: make a new one")
    validity = Validity(
        not_before_s=max(usual.not_before_s, root.not_before_s), not_after_s=min(usual.not_after_s, root.not_after_s)
    )
    return IssuingProfile(common_name=place.common_name("issuing"), validity=validity, constraints=constraints)


def _validity(now_s: int, lifetime_s: int) -> Validity:
    return Validity(not_before_s=now_s - CA_BACKDATED_S, not_after_s=now_s + lifetime_s - CA_BACKDATED_S)


def leaf_profile(
    name: Name,
    now_s: int,
    issuing: Validity,
    *,
    origin_not_after_s: int | None = None,
    flaw: Flaw | None = None,
) -> LeafProfile:
    """The leaf for `name` at `now_s`. An origin whose certificate has ended makes it an expired one, asked for or not.

    Ends are rounded down to whole days (UTC) wherever more than a day is left, so that the same question asked twice
    on a day has the same answer. Raises ValueError when `now_s` is outside `issuing`: then no leaf can be valid.
    """
    if not issuing.not_before_s <= now_s <= issuing.not_after_s:
        raise ValueError("the issuing CA is not valid at this time: once it has ended, the next start makes a new one")
    if flaw is None and origin_not_after_s is not None and origin_not_after_s <= now_s:
        flaw = Flaw.EXPIRED
    bounds = [now_s + LEAF_LIFETIME_S, issuing.not_after_s]
    if origin_not_after_s is not None and flaw is not Flaw.EXPIRED:
        bounds.append(max(origin_not_after_s, now_s - OLDEST_EXPIRY_S))
    not_after_s = _rounded(min(bounds), now_s)
    not_before_s = min(max(now_s - LEAF_BACKDATED_S, issuing.not_before_s), not_after_s - HOUR_S)
    usual = Validity(not_before_s=not_before_s, not_after_s=not_after_s)
    match flaw:
        case None | Flaw.UNTRUSTED:
            return LeafProfile(name=name, validity=usual, flaw=flaw)
        case Flaw.WRONG_NAME:
            return LeafProfile(name=Name(text=WRONG_NAME), validity=usual, flaw=flaw)
        case Flaw.EXPIRED:
            return LeafProfile(name=name, validity=_expired(origin_not_after_s, now_s), flaw=flaw)
        case Flaw.NOT_YET_VALID:
            return LeafProfile(name=name, validity=_after(issuing), flaw=flaw)
        case _:
            assert_never(flaw)


def _rounded(not_after_s: int, now_s: int) -> int:
    whole_s = not_after_s - not_after_s % DAY_S
    return whole_s if whole_s > now_s + DAY_S else not_after_s


def _expired(origin_not_after_s: int | None, now_s: int) -> Validity:
    """Ended when the origin's did, but an hour ago at least, and at most as long ago as `OLDEST_EXPIRY_S`."""
    today_s = now_s - now_s % DAY_S
    ended_s = today_s - DAY_S
    if origin_not_after_s is not None:
        ended_s = max(min(origin_not_after_s, now_s - HOUR_S), today_s - OLDEST_EXPIRY_S)
    return Validity(not_before_s=ended_s - LEAF_LIFETIME_S, not_after_s=ended_s)


def _after(issuing: Validity) -> Validity:
    """Begins when nobody believes the issuer any more."""
    begins_s = issuing.not_after_s + DAY_S
    return Validity(not_before_s=begins_s, not_after_s=begins_s + DAY_S)
