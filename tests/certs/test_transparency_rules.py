"""Public certificates that were not logged."""

from __future__ import annotations

import pytest

from mitmsec.core.model import Transparency
from mitmsec_certs.chain_rules import Link
from mitmsec_certs.transparency_rules import by_logs


def leaf(logs: int) -> Link:
    return Link(common_name="", sha256="", key_sha256="", key="EC", logs=logs)


@pytest.mark.parametrize("mode", Transparency)
def test_two_logs_are_enough_and_private_roots_need_none(mode: Transparency) -> None:
    assert by_logs(leaf(2), mode, is_public=True) == by_logs(leaf(0), mode, is_public=False) == (None, None)


@pytest.mark.parametrize("logs", [0, 1])
def test_fewer_are_reported_refused_or_nobodys_business(logs: int) -> None:
    defect, note = by_logs(leaf(logs), Transparency.REPORT, is_public=True)
    assert defect is None
    assert note is not None
    assert f"of {logs} logs" in note
    defect, nothing = by_logs(leaf(logs), Transparency.REFUSE, is_public=True)
    assert (defect and defect.text, nothing) == (note, None)
    assert by_logs(leaf(logs), Transparency.OFF, is_public=True) == (None, None)
