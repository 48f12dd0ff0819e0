"""Which roots origins may prove themselves by."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from badssl_certificates import root

from mitmsec.core.model import Action, UpstreamTrust
from mitmsec.core.policy import Policy, Rule
from mitmsec.service import origin_roots as module
from mitmsec.service.origin_roots import doubt, origin_roots
from mitmsec.service.refusals import CannotRun
from mitmsec_certs import public_roots
from mitmsec_certs.bundle import Bundle, certificates_in
from mitmsec_certs.public_roots import marks_in, named_in

PUBLIC, INSTALLED, NAMED = root("public"), root("installed"), root("named by the policy")
BUNDLE = Bundle(roots=(INSTALLED.der, PUBLIC.der), sources=("a file",))
ALL, ONLY_PUBLIC = Policy(), Policy(upstream_trust=UpstreamTrust.PUBLIC)


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the vendor's, with one root."""
    (tmp_path / "public.crt").write_bytes(PUBLIC.pem)
    monkeypatch.setattr(public_roots, "FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(public_roots, "FILES", ())
    return tmp_path


def test_all_that_the_system_has_and_the_policy_names(vendor: Path) -> None:
    pem = origin_roots(BUNDLE, ALL, [NAMED.der])
    assert certificates_in(pem) == (INSTALLED.der, PUBLIC.der, NAMED.der)
    assert marks_in(pem) == {hashlib.sha256(PUBLIC.der).hexdigest()}


@pytest.mark.checklist("U6")
def test_public_ones_only_and_what_the_policy_names(vendor: Path) -> None:
    assert certificates_in(origin_roots(BUNDLE, ONLY_PUBLIC, [NAMED.der])) == (PUBLIC.der, NAMED.der)
    assert doubt(ONLY_PUBLIC) == []


@pytest.mark.checklist("U16")
def test_what_the_vendor_and_the_machine_have_is_read_anew_each_time(vendor: Path) -> None:
    (vendor / "installed.crt").write_bytes(INSTALLED.pem)
    assert certificates_in(origin_roots(BUNDLE, ONLY_PUBLIC, [])) == (INSTALLED.der, PUBLIC.der)


def test_a_machine_that_cannot_tell_refuses_to_guess(vendor: Path) -> None:
    (vendor / "public.crt").unlink()
    with pytest.raises(CannotRun) as refused:
        origin_roots(BUNDLE, ONLY_PUBLIC, [])
    assert (refused.value.error, refused.value.status) == (module.NO_LIST, 3)
    assert doubt(ONLY_PUBLIC) == [module.NO_LIST]
    assert doubt(ALL) == []
    assert certificates_in(origin_roots(BUNDLE, ALL, [])) == (INSTALLED.der, PUBLIC.der)


def test_rules_that_differ_in_it_have_a_worker_know_which_root_is_whose(vendor: Path) -> None:
    strict = Rule(name="r", action=Action.DECRYPT, upstream_trust=UpstreamTrust.PUBLIC)
    lax = Rule(name="r", action=Action.DECRYPT, upstream_trust=UpstreamTrust.SYSTEM)
    for policy in (Policy(rules=(strict,)), Policy(rules=(lax,), upstream_trust=UpstreamTrust.PUBLIC)):
        pem = origin_roots(BUNDLE, policy, [NAMED.der])
        assert certificates_in(pem) == (INSTALLED.der, PUBLIC.der, NAMED.der)
        assert marks_in(pem) == {hashlib.sha256(PUBLIC.der).hexdigest()}
        assert named_in(pem) == {hashlib.sha256(NAMED.der).hexdigest()}
    (vendor / "public.crt").unlink()
    assert doubt(Policy(rules=(strict,))) == [module.NO_LIST]
    with pytest.raises(CannotRun):
        origin_roots(BUNDLE, Policy(rules=(strict,)), [])
