"""What the client of a blocked flow is told."""

from __future__ import annotations

from mitmsec.core.block_page import block_text


def test_it_names_the_rule_the_reason_and_the_flow_to_ask_about() -> None:
    said = block_text("no <b>games", "works council § 4", "flow-1")
    assert said == "Blocked by mitmsec.\n\nrule:   no <b>games\nreason: works council § 4\nid:     flow-1\n"
