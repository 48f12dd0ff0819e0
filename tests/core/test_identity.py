"""What is said of client certificates that are valid and yet not as they look."""

from __future__ import annotations

import pytest

from mitmsec.core.identity import DAY_S, Identity, doubts

PARTNER = Identity(name="partner", not_after_s=1000 * DAY_S)


@pytest.mark.parametrize(
    ("used", "now_s", "says"),
    [
        ({"partner"}, 0, []),
        ((), 0, ["no rule names it"]),
        ({"partner"}, 1000 * DAY_S, ["it has expired for less than a day"]),
        ({"partner"}, 1001 * DAY_S, ["it has expired for 1 day"]),
        ((), 1002 * DAY_S, ["no rule names it", "it has expired for 2 days"]),
    ],
)
def test_what_is_said(used: set[str], now_s: int, says: list[str]) -> None:
    assert doubts([PARTNER], used, now_s) == [f'[[client_certificate]] "partner": {why}' for why in says]
