"""What a recorded owner is worth when the true one is known."""

import json
from datetime import UTC, datetime

import pytest

from benchmarks.attribution.labels import Label, Sighting
from benchmarks.attribution.plan import Course, Family, Flow, Pattern
from benchmarks.attribution.score import Score, Verdict, judge, score, table, told

STARTED_S = 1_795_915_362.81
TRUTH = Label(7, "brief", 4711, STARTED_S, "/usr/bin/curl")
RIGHT = {
    "pid": 4711,
    "exe": "/usr/bin/curl",
    "started": datetime.fromtimestamp(STARTED_S, UTC).isoformat(),
    "confidence": "kernel",
}
TCP_OUT = {Course.OUTBOUND_TCP}


def label(flow: int, pattern: Pattern = Pattern.BRIEF) -> Label:
    return Label(flow, pattern, 4711, STARTED_S, "/usr/bin/curl")


def event(flow: int, family: Family = Family.V4, event_id: str = "", **process: object) -> dict[str, object]:
    address = Flow(flow, Pattern.BRIEF, family).far_end
    return {
        "kind": "connection",
        "id": event_id or f"event-{flow}",
        "process": RIGHT | process,
        "remote": {"address": address, "port": 7007},
    }


def seen(*flows: int) -> list[Sighting]:
    return [Sighting(flow, "10.213.7.1", 40_000 + flow, flow) for flow in flows]


def one(*events: dict[str, object], of: Label = TRUTH) -> Score:
    return score([of], seen(of.flow), events, TCP_OUT)


@pytest.mark.parametrize("family", Family)
def test_right_is_the_pid_and_the_executable_of_who_called(family: Family):
    scored = one(event(7, family))
    assert [each.verdict for each in scored.judged] == [Verdict.RIGHT]
    assert scored.right_share == 1.0
    assert scored.faults == []


@pytest.mark.parametrize(
    ("claim", "contradiction"),
    [
        ({"pid": 1}, "pid 1, not 4711"),
        ({"exe": "/usr/bin/bash"}, "exe /usr/bin/bash, not /usr/bin/curl"),
        ({"started": "2026-11-29T01:22:43.81Z"}, "started 2026-11-29T01:22:43.81Z, not 1795915362.81"),
        ({"exe": None, "pid": 1, "confidence": "inferred"}, "pid 1, not 4711"),
    ],
)
def test_whatever_contradicts_the_truth_is_wrong(claim: dict[str, object], contradiction: str):
    assert judge(TRUTH, RIGHT | claim) == (Verdict.WRONG, contradiction)


@pytest.mark.parametrize("claim", [{"exe": None}, {"pid": 0}, {"exe": None, "started": None, "confidence": "kernel"}])
def test_who_says_less_than_all_and_nothing_false_does_not_know(claim: dict[str, object]):
    assert judge(TRUTH, RIGHT | claim) == (Verdict.UNKNOWN, "")


def test_a_clock_tick_is_no_contradiction():
    later = datetime.fromtimestamp(STARTED_S + 0.01, UTC).isoformat()
    assert judge(TRUTH, RIGHT | {"started": later})[0] is Verdict.RIGHT


def test_one_false_claim_at_confidence_kernel_fails_a_thousand_right_ones():
    flows = range(1, 2001)
    told = [event(flow) for flow in flows]
    told[5] = event(6, exe="/usr/bin/bash")
    scored = score(map(label, flows), seen(*flows), told, TCP_OUT)
    assert scored.right_share > 0.999
    assert scored.faults == ["1 wrong at confidence kernel"]
    told[5] = event(6, exe="/usr/bin/bash", confidence="inferred")
    guessed = score(map(label, flows), seen(*flows), told, TCP_OUT)
    assert guessed.faults == []
    assert len(guessed.wrong()) == 1


def test_too_few_right_ones_fail_although_none_is_wrong():
    scored = score([label(1), label(2)], seen(1, 2), [event(1), event(2, exe=None)], TCP_OUT)
    assert scored.faults == ["50.00 % right, not 99.9 %"]


def test_a_flow_without_an_event_is_missing_only_where_the_backend_claims_to_see_it():
    labels = [label(1), label(2, Pattern.UDP_SENDTO)]
    scored = score(labels, seen(1, 2), [event(1)], TCP_OUT)
    assert [each.verdict for each in scored.judged] == [Verdict.RIGHT, Verdict.NOT_RECORDED]
    assert scored.faults == []
    wider = score(labels, seen(1, 2), [event(1)], set(Course))
    assert [each.label.flow for each in wider.missing] == [2]
    assert wider.faults == ["1 missing", "50.00 % right, not 99.9 %"]


def test_a_flow_that_nobody_saw_is_lost_and_not_judged():
    scored = score([label(1), label(2)], seen(1), [event(1), event(2, pid=1)], TCP_OUT)
    assert scored.lost == {2}
    assert scored.faults == []


def test_a_flow_that_arrives_with_the_words_of_another_was_led_astray():
    scored = score([label(1)], [Sighting(1, "10.213.7.1", 40_000, 2)], [event(1)], TCP_OUT)
    assert scored.crossed == {1}
    assert scored.faults == ["1 led astray"]


def test_a_flow_that_ended_without_a_word_was_not_led_astray():
    assert score([label(1)], [Sighting(1, "10.213.7.1", 40_000, None)], [event(1)], TCP_OUT).crossed == frozenset()


def test_of_an_event_told_twice_the_last_counts_and_of_two_events_the_worse():
    twice = one(event(7, event_id="a", exe=None), event(7, event_id="a"))
    assert [each.verdict for each in twice.judged] == [Verdict.RIGHT]
    two = one(event(7, event_id="a"), event(7, event_id="b", pid=1))
    assert [each.verdict for each in two.judged] == [Verdict.WRONG]


def test_events_of_other_kinds_and_of_other_addresses_are_nobodys():
    stranger = event(7) | {"remote": {"address": "203.0.113.1", "port": 80}}
    scored = one(stranger, event(7) | {"kind": "request"})
    assert [each.verdict for each in scored.judged] == [Verdict.MISSING]


def test_nothing_made_is_nothing_reached():
    assert score([], [], [], TCP_OUT).faults == ["0.00 % right, not 99.9 %"]


def test_the_table_counts_by_pattern_verdict_and_confidence():
    labels = [label(1), label(2), label(3, Pattern.SERVER), label(4)]
    told = [event(1), event(2, exe="/usr/bin/bash")]
    scored = score(labels, seen(1, 2, 3), told, TCP_OUT, planned=6)
    shown = table(scored)
    lines = shown.splitlines()
    cells = {line.split()[0]: line for line in lines if line}
    assert cells["brief"].split() == ["brief", "2", "1", "kernel", "–", "1", "kernel", "–", "–"]
    assert cells["server"].split() == ["server", "1", "–", "–", "–", "–", "1"]
    assert cells["all"].split()[1] == "3"
    assert "1 never reached the far end, the first: [4]" in lines
    assert "2 of the plan were not made: a pid to be used again was taken, or the caller failed" in lines
    assert "wrong (kernel): flow 2, brief: exe /usr/bin/bash, not /usr/bin/curl" in lines
    assert lines[-1].startswith("fails: 1 wrong at confidence kernel")
    assert not [line for line in table(scored, examples=0).splitlines() if line.startswith("wrong")]
    assert table(one(event(7))).splitlines()[-1] == "holds"


def test_the_score_for_json_names_what_fails_and_each_false_claim():
    scored = score([label(1), label(2)], seen(1), [event(1, exe="/usr/bin/bash")], TCP_OUT, planned=3)
    written = json.loads(json.dumps(told(scored)))
    assert written["counts"] == [{"pattern": "brief", "verdict": "wrong", "confidence": "kernel", "flows": 1}]
    assert (written["right_share"], written["lost"], written["unmade"], written["crossed"]) == (0.0, [2], 1, [])
    assert written["faults"][0] == "1 wrong at confidence kernel"
    assert written["wrong"][0]["label"]["pid"] == 4711
