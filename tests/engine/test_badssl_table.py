"""The table of the mirror: every category once, and right."""

from __future__ import annotations

from pathlib import Path

from badssl import Category
from badssl_table import Row, Verdict, categories, rendered

from mitmsec.core.messages import Flaw

DOCUMENT = Path(__file__).parents[2] / "docs/badssl.md"
BAD = Category(id="bad", why="it is bad", name="bad.test", flaw=Flaw.UNTRUSTED)
GOOD = Category(id="good", why="it is good", name="good.test")
EITHER = Category(id="either", why="a clean answer will do", name="either.test", breaks=True, is_either=True)


def test_the_document_has_every_category_once() -> None:
    lines = DOCUMENT.read_text().splitlines()
    shown = [line.split(" | ")[0][2:] for line in lines if line.startswith("| ") and " | " in line]
    assert shown[1:] == [one.id for one in categories()]
    assert f"- ours: {len(categories())} of {len(categories())} right" in lines


def test_what_is_wrong_is_bold_and_not_counted() -> None:
    yes, no = Verdict(True), Verdict(False, "because")
    text = rendered([Row(BAD, no, yes, no), Row(GOOD, yes, yes, no), Row(EITHER, yes, no, no)], "versions")
    assert "| bad | it is bad | refused | ✗ | **✓** | ✗ | because |" in text
    assert "| good | it is good | accepted | ✓ | ✓ | **✗** |  |" in text
    assert "| either | a clean answer will do | accepted or refused | ✓ | ✗ | ✗ |  |" in text
    assert "- ours: 3 of 3 right\n- curl: 2 of 3 right\n- mitmproxy: 2 of 3 right" in text
