"""Which UDP flows live, and how each ends: written as stories, and held against a kernel that forgets what it likes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Direction, Endpoint
from mitmsec_redirect.udp_records import Counts, SocketReleased, UdpFlow
from mitmsec_redirect.udp_table import Told, UdpTable

S = 1_000_000_000


def flow(cookie: int = 1, place: int = 1, at_s: float = 0, *, connected: bool = False) -> UdpFlow:
    return UdpFlow(
        socket_cookie=cookie,
        remote=Endpoint.of(f"203.0.113.{place}", 53),
        local=Endpoint.of("0.0.0.0", 4000),
        direction=Direction.OUTBOUND,
        connected=connected,
        pid=42,
        uid=0,
        comm="dig",
        at_ns=int(at_s * S),
    )


@dataclass
class Kernel:
    """The map of flows."""

    kept: dict[bytes, Counts] = field(default_factory=dict)

    def counts(self, key: bytes) -> Counts | None:
        return self.kept.get(key)

    def take(self, key: bytes) -> Counts | None:
        return self.kept.pop(key, None)

    def has(self, one: UdpFlow, sent: int = 1, received: int = 0, last_s: float = 0) -> None:
        self.kept[one.key] = Counts(sent, received, int(last_s * S), one.connected)


class Stage:
    """A table, and whose each flow is: a number that counts up."""

    def __init__(self, limit: int = 100) -> None:
        self.kernel = Kernel()
        self.asked: list[UdpFlow] = []
        self.table: UdpTable[int] = UdpTable(self.kernel, self._ask, limit=limit)

    def _ask(self, one: UdpFlow) -> int:
        self.asked.append(one)
        return len(self.asked)

    def begins(self, one: UdpFlow, sent: int = 1, received: int = 0) -> list[Told[int]]:
        self.kernel.has(one, sent, received, one.at_ns / S)
        told = self.table.heard(one)
        assert told is not None
        return told

    def closes(self, cookie: int, at_s: float) -> list[Told[int]]:
        told = self.table.heard(SocketReleased(cookie, int(at_s * S)))
        assert told is not None
        return told

    def due(self, at_s: float) -> list[Told[int]]:
        return self.table.due(int(at_s * S))


def test_a_closed_socket_ends_all_its_flows_with_their_counts() -> None:
    stage = Stage()
    first, second, other = flow(1, 1), flow(1, 2), flow(2, 1)
    assert [stage.begins(one, sent=3, received=2) for one in (first, second, other)] == [[], [], []]
    ended = stage.closes(1, 2.5)
    assert [(one.flow, one.known, one.sent, one.received, one.until_ns, one.ended) for one in ended] == [
        (first, 1, 3, 2, 2_500_000_000, True), (second, 2, 3, 2, 2_500_000_000, True)
    ]  # fmt: skip
    assert len(stage.table) == 1
    assert stage.closes(1, 3) == []
    assert list(stage.kernel.kept) == [other.key]


def test_of_a_connected_socket_nothing_is_counted_and_a_new_remote_ends_the_old() -> None:
    stage = Stage()
    stage.begins(flow(1, 1, connected=True))
    stage.kernel.kept.clear()  # the program forgets what the socket was connected to
    (ended,) = stage.begins(flow(1, 2, at_s=1, connected=True))
    assert (ended.flow.remote.address, ended.until_ns) == ("203.0.113.1", S)
    assert (ended.sent, ended.received) == (None, None)
    (ended,) = stage.closes(1, 2)
    assert (ended.flow.remote.address, ended.sent) == ("203.0.113.2", None)


def test_connecting_does_not_end_what_the_socket_sent_elsewhere_before() -> None:
    stage = Stage()
    stage.begins(flow(1, 1))
    assert stage.begins(flow(1, 2, connected=True)) == []
    assert len(stage.closes(1, 1)) == 2


def test_a_flow_that_is_connected_after_it_began_is_counted_no_more() -> None:
    stage = Stage()
    stage.begins(flow(1, 1))
    assert stage.begins(flow(1, 1, at_s=1, connected=True)) == []
    (ended,) = stage.closes(1, 2)
    assert (ended.sent, ended.number, len(stage.asked)) == (None, 1, 1)


def test_of_a_socket_that_was_only_connected_it_is_told_that_nothing_else_was_seen() -> None:
    stage = Stage()
    stage.begins(flow(1, connected=True), sent=0)
    stage.begins(flow(2, 2))
    stage.begins(flow(3, 3, connected=True), received=1, sent=0)  # it asked for who had sent what came
    stage.begins(flow(4, 4, connected=True), sent=0)
    stage.begins(flow(4, 4, at_s=1), sent=0)  # it sent, and named where to
    told = [one for cookie in range(1, 5) for one in stage.closes(cookie, at_s=2)]
    assert [one.seen for one in told] == [False, True, True, True]


def test_one_that_was_only_connected_may_have_been_forgotten_by_the_kernel() -> None:
    stage = Stage()
    stage.begins(flow(connected=True), sent=0)
    stage.kernel.kept.clear()
    (ended,) = stage.due(at_s=10)
    assert not ended.seen


def test_a_flow_on_which_nothing_moves_ends_when_it_last_did() -> None:
    stage = Stage()
    one = flow()
    stage.begins(one)
    stage.kernel.has(one, sent=4, received=4, last_s=9)
    assert stage.due(9.9) == []
    (living,) = stage.due(10)
    assert (living.ended, living.sent) == (False, 4)
    assert stage.due(38.9) == []
    (ended,) = stage.due(39)
    assert (ended.ended, ended.number, ended.sent, ended.until_ns) == (True, living.number, 4, 9 * S)
    assert len(stage.table) == 0
    assert stage.due(1000) == []


def test_what_moves_again_and_again_lives_and_is_told_once_while_it_does() -> None:
    stage = Stage()
    one = flow()
    stage.begins(one)
    told = []
    for second in range(1, 200):
        stage.kernel.has(one, sent=second, last_s=second)
        told += stage.due(second)
    assert [(living.ended, living.until_ns) for living in told] == [(False, 10 * S)]


def test_a_connected_socket_may_be_silent_for_ever() -> None:
    stage = Stage()
    stage.begins(flow(connected=True))
    told = [one for second in range(0, 400, 5) for one in stage.due(second)]
    assert [(one.ended, one.sent) for one in told] == [(False, None)]
    assert len(stage.table) == 1


def test_a_closed_socket_whose_record_was_lost_is_found_by_the_next_look() -> None:
    stage = Stage()
    stage.begins(flow(connected=True))
    stage.kernel.kept.clear()
    (ended,) = stage.due(10)
    assert (ended.ended, ended.sent) == (True, None)


def test_a_flow_that_had_to_make_room_and_goes_on_is_the_same_but_not_counted() -> None:
    stage = Stage()
    stage.begins(flow(), sent=90)
    assert stage.begins(flow(at_s=2), sent=1) == []
    (ended,) = stage.closes(1, 3)
    assert (ended.sent, ended.flow.at_ns, len(stage.asked)) == (None, 0, 1)


def test_beyond_the_limit_a_flow_is_not_told_and_later_ones_are_again() -> None:
    stage = Stage(limit=2)
    stage.begins(flow(1, 1))
    stage.begins(flow(2, 1))
    assert stage.table.heard(flow(3, 1)) is None
    assert len(stage.asked) == 2
    stage.closes(1, 1)
    assert stage.begins(flow(4, 1)) == []


def test_a_remote_that_takes_the_place_of_another_has_room() -> None:
    stage = Stage(limit=1)
    stage.begins(flow(1, 1, connected=True))
    (ended,) = stage.begins(flow(1, 2, at_s=1, connected=True))
    assert ended.flow.remote.address == "203.0.113.1"
    assert len(stage.table) == 1


def test_at_the_end_all_flows_have_ended() -> None:
    stage = Stage()
    stage.begins(flow(1, 1), sent=7)
    stage.begins(flow(2, 2, connected=True))
    ended = stage.table.finish(5 * S)
    assert [(one.ended, one.sent, one.until_ns) for one in ended] == [(True, 7, 5 * S), (True, None, 5 * S)]
    assert stage.table.finish(6 * S) == []
    assert stage.due(1000) == []


STEPS = st.lists(
    st.tuples(st.sampled_from(["flow", "connect", "close", "forget", "look"]), st.integers(1, 3), st.integers(1, 3)),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_each_flow_ends_once_and_the_table_keeps_its_bound(steps: list[tuple[str, int, int]]) -> None:
    stage = Stage(limit=4)
    ended: list[int] = []
    for second, (what, cookie, place) in enumerate(steps):
        told: list[Told[int]] = []
        match what:
            case "flow" | "connect":
                one = flow(cookie, place, second, connected=what == "connect")
                stage.kernel.has(one, last_s=second)
                told = stage.table.heard(one) or []
            case "close":
                told = stage.closes(cookie, second)
            case "forget":
                stage.kernel.kept.pop(flow(cookie, place).key, None)
            case _:
                told = stage.due(second * 7)
        assert len(stage.table) <= 4
        assert all(one.until_ns >= one.flow.at_ns or what == "look" for one in told)
        ended += [one.number for one in told if one.ended]
    ended += [one.number for one in stage.table.finish(1000 * S)]
    assert sorted(ended) == list(range(1, len(stage.asked) + 1))
    assert stage.kernel.kept.keys() <= {flow(cookie, place).key for cookie in (1, 2, 3) for place in (1, 2, 3)}
