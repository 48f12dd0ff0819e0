"""What an issuer's word does to a proof."""

from __future__ import annotations

import pytest

from mitmsec.core.messages import Flaw
from mitmsec.core.model import Revocation
from mitmsec.core.origin_proof import Standing, Status
from mitmsec_certs.revocation_rules import by_answers, by_staple

GOOD, REVOKED, UNKNOWN, UNASKED = (Status(standing=standing, text="the text") for standing in Standing)


@pytest.mark.parametrize("must", [True, False])
def test_a_staple_that_says_revoked_ends_it(must: bool) -> None:
    defect = by_staple(REVOKED, must_staple=must)
    assert defect is not None
    assert (defect.flaw, defect.text) == (Flaw.UNTRUSTED, "the certificate was revoked (the text)")


@pytest.mark.parametrize("must", [True, False])
def test_a_good_staple_is_enough(must: bool) -> None:
    assert by_staple(GOOD, must_staple=must) is None


@pytest.mark.checklist("U7")
@pytest.mark.parametrize("staple", [None, UNKNOWN])
def test_what_must_be_stapled_and_is_not_does_not_hold(staple: Status | None) -> None:
    assert by_staple(staple, must_staple=False) is None
    defect = by_staple(staple, must_staple=True)
    assert defect is not None
    assert ("none came" if staple is None else "the text") in defect.text


@pytest.mark.parametrize("mode", [Revocation.SOFT, Revocation.HARD])
@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ((REVOKED, GOOD), "the certificate was revoked (the text)"),
        ((UNKNOWN, REVOKED), "an issuer's certificate was revoked (the text)"),
    ],
)
def test_revoked_is_revoked_wherever_it_is(answers: tuple[Status, ...], text: str, mode: Revocation) -> None:
    defect, note = by_answers(answers, mode)
    assert (defect and defect.text, note) == (text, None)


@pytest.mark.parametrize("mode", [Revocation.SOFT, Revocation.HARD])
def test_good_and_what_nobody_can_be_asked_about_hold(mode: Revocation) -> None:
    assert by_answers((GOOD, UNASKED), mode) == by_answers((), mode) == (None, None)


@pytest.mark.checklist("U7")
def test_what_is_not_known_is_noted_or_refused_as_the_policy_says() -> None:
    defect, note = by_answers((GOOD, UNKNOWN), Revocation.SOFT)
    assert (defect, note) == (None, "it is not known whether the certificate was revoked: the text")
    defect, nothing = by_answers((GOOD, UNKNOWN), Revocation.HARD)
    assert (defect and defect.text, nothing) == (note, None)
