"""Which programs a policy selects at all."""

from __future__ import annotations

from typing import Any

import pytest

from mitmsec.core.model import Confidence, ParentProcess, Process
from mitmsec.core.rules import Application
from mitmsec.core.selection import Selection

CURL = Process(pid=1, exe="/usr/bin/curl", name="curl", user="joe", confidence=Confidence.KERNEL)
UNREAD = Process(pid=1, name="curl", user="joe", confidence=Confidence.INFERRED)


def application(**criteria: tuple[str, ...]) -> Application:
    return Application(name="a", **criteria)


def test_no_application_selects_nobody() -> None:
    nothing = Selection(())
    assert nothing.is_empty
    assert nothing.holds(CURL) is False
    assert nothing.holds(UNREAD) is False


@pytest.mark.parametrize("path", ["*", "/*"])
def test_every_path_is_everything_whoever_it_is(path: str) -> None:
    everything = Selection((application(path=("/opt/x", path)),))
    assert everything.is_everything
    assert everything.holds(UNREAD) is True


@pytest.mark.parametrize(
    "narrowed",
    [
        {"user": ("joe",)},
        {"sha256": ("0" * 64,)},
        {"process_name": ("curl",)},
        {"service": ("*",)},
        {"container": ("*",)},
        {"signer": ("*",)},
        {"pid": (1,)},
    ],
)
def test_every_path_of_some_is_not_everything_and_not_only_by_path(narrowed: dict[str, Any]) -> None:
    some = Selection((Application(name="a", path=("*",), **narrowed),))
    assert not some.is_everything
    assert not some.is_by_path


def test_a_process_is_selected_by_its_pid_and_passes_that_on() -> None:
    some = Selection((Application(name="a", pid=(1,), children=True), Application(name="b", pid=(3,))))
    assert [some.holds(one) for one in (CURL, UNREAD)] == [True, True]
    assert some.passes_on(CURL)
    assert some.passes_on(Process(pid=9, parent=ParentProcess(pid=8, parent=ParentProcess(pid=1))))
    third = Process(pid=3, confidence=Confidence.KERNEL)
    assert some.holds(third) is True
    assert not some.passes_on(third)


def test_who_has_no_unit_is_not_selected_by_one_and_of_who_was_not_read_it_is_open() -> None:
    some = Selection((Application(name="a", service=("*.service",)),))
    assert some.holds(CURL) is False
    assert some.holds(UNREAD) is None


def test_any_application_is_enough() -> None:
    some = Selection((application(path=("/opt/*",)), application(user=("joe",))))
    assert not some.is_empty
    assert some.holds(CURL) is True
    assert some.holds(UNREAD) is True


def test_who_fulfils_none_is_not_selected() -> None:
    assert Selection((application(path=("/opt/*",)), application(user=("ann",)))).holds(CURL) is False


def test_what_could_not_be_read_leaves_it_open() -> None:
    some = Selection((application(path=("/opt/*",)), application(user=("ann",))))
    assert some.holds(UNREAD) is None
    assert Selection((application(path=("/opt/*",), user=("ann",)),)).holds(UNREAD) is False


def test_children_are_passed_on_by_who_is_selected_for_itself() -> None:
    some = Selection((Application(name="a", path=("/usr/bin/curl",), children=True), application(path=("/opt/*",))))
    child = Process(pid=2, exe="/bin/sh", parent=ParentProcess(pid=1, exe="/usr/bin/curl"))
    assert some.passes_on(CURL)
    assert not some.passes_on(child)  # it has inherited, which is the kernel's to know
    assert not some.passes_on(Process(pid=3, exe="/opt/x"))


def test_by_pid_and_path_only_who_fulfils_both_for_itself_passes_it_on() -> None:
    some = Selection((Application(name="a", pid=(1,), path=("/usr/bin/curl",), children=True),))
    child = Process(pid=2, exe="/bin/sh", parent=ParentProcess(pid=1, exe="/usr/bin/curl"))
    assert some.holds(child) is True
    assert [some.passes_on(one) for one in (CURL, child)] == [True, False]


def test_what_only_a_path_decides() -> None:
    assert Selection((application(path=("/opt/*",)),)).is_by_path
    assert not Selection((application(path=("/opt/*",)), application(user=("joe",)))).is_by_path
