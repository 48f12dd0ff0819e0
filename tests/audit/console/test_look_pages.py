"""What there is to look at, and that filters narrow it."""

from __future__ import annotations

import re

import httpx
from console_stage import Browser, Stage

from mitmsec.audit.checkpoint import Checkpoint, parsed
from mitmsec.audit.console.look_pages import flat, story_of
from mitmsec.audit.merkle import leaf_hash, root_from
from mitmsec.audit.review import opened


def words(found: httpx.Response) -> str:
    """What stands on a page, without the markup."""
    assert found.status_code == 200
    main = re.sub(r"(?s)^.*<main|</main>.*$", "", found.text)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", main))


def test_the_overview_counts_and_each_click_narrows(the: Stage, rosa: Browser) -> None:
    whole = rosa.get("/overview")
    assert 'href="/overview?action=block&amp;since=7d"' in whole.text
    assert 'href="/overview?severity=high&amp;since=7d"' in whole.text
    assert "1 block" in whole.text
    assert "/usr/bin/python3.13" in whole.text
    narrowed = words(rosa.get("/overview?action=block&since=7d"))
    assert "paste.example" in narrowed
    assert "/usr/bin/python3.13" not in narrowed
    empty = words(rosa.get("/overview?since=1h&host=nowhere.example"))
    assert "No connection ended in this time, of those that these filters meet" in empty


def test_events_are_paged_by_number_and_filters_can_be_taken_off(the: Stage, rosa: Browser) -> None:
    found = rosa.get("/events?kind=connection&app=curl")
    assert 'href="/events?kind=connection"' in found.text
    assert 'href="/events?app=curl"' in found.text
    assert "/connection/flow-2" in found.text
    assert "/connection/flow-3" not in found.text
    assert "severity could not be read" in words(rosa.get("/events?severity=terrible"))
    assert "No event meets these filters" in words(rosa.get("/events?before=0"))
    assert 'href="/event/0"' in rosa.get("/events?before=1").text
    assert "/event/1" not in rosa.get("/events?before=1").text


def test_a_search_is_on_record_with_what_was_searched_for(the: Stage, rosa: Browser) -> None:
    assert "paste.example" in words(rosa.get("/events?text=PASTE.example&kind=connection"))
    rosa.get("/events?text=PASTE.example&before=3")
    assert [(one.operation, one.item) for one in the.reviews] == [("searched", "PASTE.example")]


def test_news_is_told_on_the_page_that_shows_the_newest(the: Stage, rosa: Browser) -> None:
    assert "hx-get=" in rosa.get("/events").text
    assert rosa.get("/events/newer?seq=999999").text == ""
    assert "newer</a>" in rosa.get("/events/newer?seq=1").text


def test_a_connections_whole_story_stands_on_one_page(the: Stage, rosa: Browser) -> None:
    story = words(rosa.get("/connection/flow-1"))
    for part in (
        "curl → api.example.com :443", "decrypt completed", "Rule defaults : no rule matched", "bash pid 4000",
        "pid 4711, alice", "TLS with the program", "120 B", "4.5 kB", "a word that must not leave",
        "https://api.example.com/v1/items", "pinned", "Certificate that the program was shown", "policy not recorded",
    ):  # fmt: skip
        assert part in story, part
    assert "192.0.2.7" in words(rosa.get("/connection/flow-3"))
    assert rosa.get("/connection/none").status_code == 404


def test_an_event_and_its_proof_hold_together(the: Stage, rosa: Browser) -> None:
    assert "In the log, as shown" in words(rosa.get("/event/1"))
    lines = rosa.get("/event/1/proof").text.split("\n")
    import base64

    path = [base64.b64decode(line) for line in lines[2 : lines.index("")]]
    said: Checkpoint = parsed("\n".join(lines[lines.index("") + 1 :]).partition("\n\n")[0] + "\n")
    with opened(the.log.folder) as review:
        from mitmsec.audit.envelope import canonical

        event = review.event("1")
    assert event is not None
    assert lines[:2] == ["c2sp.org/tlog-proof@v1", "index 1"]
    assert root_from(leaf_hash(canonical(event)), 1, said.size, path) == said.root
    assert rosa.get("/event/99999").status_code == 404
    assert rosa.get("/event/99999/proof").status_code == 404


def test_a_story_without_its_end_has_what_there_is() -> None:
    story = story_of("f", [{"kind": "fault", "process": None}, {"kind": "service", "process": {"pid": 1}}])
    assert (story.event, len(story.faults), len(story.others), story.process) == (None, 1, 1, ({"pid": 1},))


def test_fields_are_listed_by_their_paths() -> None:
    assert flat({"b": {"c": 1, "a": None}, "a": [1, "x"]}) == [("a", "1, x"), ("b.a", None), ("b.c", 1)]
