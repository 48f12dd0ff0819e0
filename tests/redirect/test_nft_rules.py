"""The text of the rules. What they do is in test_nftables; here is what must stand in them."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace

from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect import nft_rules
from mitmsec_redirect.nft_rules import Terms
from mitmsec_redirect.nft_udp_rules import UdpGroups
from mitmsec_redirect.records import Reason


def terms(
    on_failure: OnFailure = OnFailure.OPEN,
    quic: Quic = Quic.REFUSE,
    port_v6: int | None = 9006,
    log_group: int | None = 5,
    *,
    table: str = "mitmsec-a-1",
    owner: str = "mitmsec owner 1 2",
    cgroup: str = "unified/mitmsec-a-1",
) -> Terms:
    return Terms(
        table=table,
        owner=owner,
        cgroup=cgroup,
        level=1,
        port_v4=9004,
        port_v6=port_v6,
        on_failure=on_failure,
        quic=quic,
        log_group=log_group,
    )


def chains(text: str) -> dict[str, list[str]]:
    found = re.findall(r"^chain (\w+) \{\n(.*?)\}$", text, re.M | re.S)
    return {name: body.splitlines() for name, body in found}


def test_only_first_segments_and_udp_of_the_cgroup_are_looked_at() -> None:
    """Everybody else's packets are compared with a protocol or two, and go."""
    for on_failure in OnFailure:
        text = chains(nft_rules.create(replace(terms(on_failure), udp=UdpGroups(6, 7))))
        hooked = [rule for rules in text.values() if "hook" in rules[0] for rule in rules[1:]]
        assert hooked
        assert all('socket cgroupv2 level 1 "unified/mitmsec-a-1" jump' in rule for rule in hooked)
        assert all(rule.startswith(("tcp flags &", "udp dport 443", "meta l4proto udp")) for rule in hooked)


def test_open_lets_pass_and_closed_refuses_what_cannot_be_diverted() -> None:
    open_, closed = (chains(nft_rules.create(terms(one, port_v6=None))) for one in (OnFailure.OPEN, OnFailure.CLOSED))
    failures = {Reason.LINK_LOCAL, Reason.GATE_STALLED, Reason.NO_IPV6_LISTENER}

    def reasons(rules: list[str], verdict: str) -> set[str]:
        return {match[1] for rule in rules if rule.endswith(verdict) and (match := re.search(r"name (\w+)", rule))}

    assert reasons(open_["diverting"], "accept") == failures
    assert reasons(open_["attempts"], "reset") == {Reason.OWN_LISTENER}
    assert reasons(closed["attempts"], "reset") == failures | {Reason.OWN_LISTENER}
    assert closed["diverting"] == ["meta nfproto ipv4 meta l4proto tcp counter name diverted redirect to :9004"]
    assert "guard" in closed
    assert "guard" not in open_


def test_a_dead_owner_does_not_refuse_quic_for_ever_unless_closed() -> None:
    (refused, passed) = chains(nft_rules.create(terms(OnFailure.OPEN)))["quic"]
    assert refused.startswith("meta l4proto @alive counter name quic_refused")
    assert passed.endswith("accept")
    (refused,) = chains(nft_rules.create(terms(OnFailure.CLOSED)))["quic"]
    assert "@alive" not in refused


def test_quic_that_is_bypassed_is_not_looked_at() -> None:
    assert "udp" not in "\n".join(chains(nft_rules.create(terms(quic=Quic.BYPASS)))["judge"])


def test_quic_that_is_to_be_decrypted_is_refused_for_it_is_not_led_here() -> None:
    assert nft_rules.create(terms(quic=Quic.DECRYPT)) == nft_rules.create(terms(quic=Quic.REFUSE))


def test_without_a_log_everything_is_still_counted() -> None:
    text = nft_rules.create(terms(log_group=None))
    assert " log " not in text
    assert set(re.findall(r"^counter (\w+)", text, re.M)) == {"diverted", *nft_rules.REASONS}
    assert 'log prefix "own_listener denied" group 5 snaplen 128 reject with tcp reset' in nft_rules.create(terms())


def test_new_terms_leave_the_counters_and_the_heartbeat_alone() -> None:
    text = nft_rules.replace(terms())
    assert text.startswith("flush table inet mitmsec-a-1\ntable inet mitmsec-a-1 {\nchain attempts")
    assert not re.search(r"^(create|counter|set) ", text, re.M)


def test_detaching_keeps_what_needs_conntrack() -> None:
    open_, closed = (nft_rules.detach(terms(one)) for one in (OnFailure.OPEN, OnFailure.CLOSED))
    assert open_ == "flush chain inet mitmsec-a-1 judge\nflush chain inet mitmsec-a-1 divert\n"
    assert closed == open_ + "flush chain inet mitmsec-a-1 guard\n"
    seen = nft_rules.detach(replace(terms(), udp=UdpGroups(6, 7)))
    assert seen == open_ + "flush chain inet mitmsec-a-1 udp_out\nflush chain inet mitmsec-a-1 udp_in\n"


def test_udp_is_seen_where_there_is_a_log_for_it() -> None:
    assert "udp_new" not in nft_rules.create(terms())
    seen = replace(terms(), udp=UdpGroups(6, 7))
    assert "set flows_6" in nft_rules.create(seen)
    assert {"udp_out", "udp_in"} < chains(nft_rules.replace(seen)).keys()
    assert not re.search(r"^(counter \w+ \{|set )", nft_rules.replace(seen), re.M), "what is counted stays"


def test_the_end_is_no_error_when_it_has_come_already() -> None:
    assert nft_rules.delete("t") == "table inet t\ndelete table inet t\n"


@pytest.mark.parametrize("wrong", [{"table": 't"; delete'}, {"table": ""}, {"cgroup": 'a"b'}, {"owner": "a\nb"}])
def test_what_would_be_another_rule_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot"):
        terms(**wrong)  # type: ignore[arg-type]


def test_each_level_has_a_counter_of_its_own() -> None:
    text = nft_rules.levels(terms())
    rules = chains(text)["sent"][1:]
    assert rules[1] == 'socket cgroupv2 level 2 "unified/mitmsec-a-1" counter name level_2'
    counted = [rule.rpartition(" ")[2] for rule in rules]
    assert counted == re.findall(r"^counter (\w+)", text, re.M) == [f"level_{one}" for one in nft_rules.LEVELS]
