"""What is told of the owner of a connection."""

from __future__ import annotations

import os
import pwd
from concurrent.futures import Future

from mitmsec.core.model import ParentProcess, Process
from mitmsec_redirect.owner import SURENESS, Owner, chained, displayed, rfc3339, settled, unhashed, user_name, weaker
from mitmsec_redirect.proc_files import ExePath


def test_a_hash_is_part_of_the_process_once_it_has_come() -> None:
    pending: Future[str | None] = Future()
    owner = Owner(Process(pid=7), pending)
    assert settled(owner) is owner
    pending.set_result("f" * 64)
    assert settled(owner) == Owner(Process(pid=7, sha256="f" * 64))
    assert Owner(Process(pid=7)).hashed() == Process(pid=7)


def test_a_hash_that_came_in_vain_is_not_forgotten() -> None:
    owner = Owner(Process(pid=7), unhashed())
    assert settled(owner) is owner
    assert owner.hashed() == Process(pid=7)


def test_something_is_awaited_as_long_as_hash_or_signature_are_on_their_way() -> None:
    sha256: Future[str | None] = Future()
    signature: Future[str] = Future()
    owner = Owner(Process(pid=7), sha256, signature)
    assert owner.awaited == (sha256, signature)
    sha256.set_result("f" * 64)
    assert settled(owner) == Owner(Process(pid=7, sha256="f" * 64), signature=signature)
    assert owner.awaited == (signature,)
    signature.set_result("CN=A")
    assert not owner.awaited
    assert not Owner(Process(pid=7)).awaited


def test_of_two_that_have_to_hold_the_weaker_one_counts() -> None:
    for at, one in enumerate(SURENESS):
        for other in SURENESS[at:]:
            assert weaker(one, other) is weaker(other, one) is one


def test_parents_are_a_chain_of_which_the_first_is_the_nearest() -> None:
    chain = chained([(3, ExePath(path="/a")), (2, ExePath(claimed="/b\udcff")), (1, ExePath())])
    outer = ParentProcess(pid=2, claimed_exe="/b\\xff", parent=ParentProcess(pid=1))
    assert chain == ParentProcess(pid=3, exe="/a", parent=outer)
    assert chained([]) is None


def test_texts_are_for_people_whatever_they_are_made_of() -> None:
    assert displayed(None) is None
    assert displayed("/caf\u00e9/\udcff") == "/caf\u00e9/\\xff"
    assert user_name(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name
    assert user_name(4_000_000) == "4000000"
    assert rfc3339(0.129) == "1970-01-01T00:00:00.12Z"
