"""A script instead of a kernel: the same ladder, the same interface, and a gate that asks as it always does."""

from __future__ import annotations

import io
import socket

import pytest

from mitmsec.capture.writer import CaptureWriter
from mitmsec.core.model import Confidence, Endpoint, OnFailure, Process, Quic, Transport
from mitmsec_redirect.backend import BackendKind
from mitmsec_redirect.records import Reason
from mitmsec_redirect.replay import Attempt, CaptureUnreadable, Diverted, Passed, Replay, attempts_of, flows_of

LOCAL = Endpoint(address="127.0.0.1", port=40000)
WEB = Endpoint(address="203.0.113.9", port=443)
CURL = Process(pid=7, name="curl", exe="/usr/bin/curl", confidence=Confidence.KERNEL)


def attempt(remote: Endpoint = WEB, transport: Transport = Transport.TCP, local: Endpoint = LOCAL) -> Attempt:
    return Attempt(transport=transport, local=local, remote=remote, process=CURL, at_ns=5)


def replay(
    *attempts: Attempt,
    on_failure: OnFailure = OnFailure.OPEN,
    quic: Quic = Quic.REFUSE,
    port_v4: int = 9004,
    port_v6: int | None = 9006,
) -> Replay:
    return Replay(attempts, port_v4=port_v4, port_v6=port_v6, on_failure=on_failure, quic=quic)


def capture() -> bytes:
    class Kept(io.BytesIO):
        def close(self) -> None:
            pass

    file = Kept()
    writer = CaptureWriter(file)
    for number, host in enumerate(("a.example", "b.example")):
        local = Endpoint(address="10.0.0.1", port=40000 + number)
        writer.open_flow(host, CURL, local, WEB, 10**18 - number, host=host)
        writer.data(host, True, b"hello", 10**18 + 9)
        writer.end_flow(host, 10**18 + 10)
    writer.close()
    return file.getvalue()


def test_a_real_connection_to_the_gate_is_known_by_its_own_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        backend = replay(attempt(local=Endpoint.of(*client.getsockname())), port_v4=listener.getsockname()[1])
        played = backend.play()
        accepted, peer = listener.accept()
        accepted.close()
    assert isinstance(played, Diverted)
    found = backend.find(Endpoint.of(*peer))
    assert found is played.attempt
    assert (found.remote, found.process) == (WEB, CURL)
    assert backend.find(Endpoint.of(*peer)) is None, "once"
    assert (backend.diverted, backend.missed(), backend.play()) == (1, [], None)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_what_cannot_be_diverted_follows_on_failure(on_failure: OnFailure) -> None:
    backend = replay(
        attempt(Endpoint(address="fe80::1", port=80)),
        attempt(Endpoint(address="2001:db8::1", port=80)),
        attempt(),
        attempt(),
        on_failure=on_failure,
        port_v6=None,
    )
    backend.play()
    backend.play()
    backend.stall()
    backend.play()
    assert backend.lost() == {Reason.LINK_LOCAL: 1, Reason.NO_IPV6_LISTENER: 1, Reason.GATE_STALLED: 1}
    missed = backend.missed()
    assert [one.reason for one in missed] == [Reason.LINK_LOCAL, Reason.NO_IPV6_LISTENER, Reason.GATE_STALLED]
    assert {one.denied for one in missed} == {on_failure is OnFailure.CLOSED}
    assert (missed[0].pid, missed[0].comm, missed[0].at_ns, missed[0].confidence) == (7, "curl", 5, Confidence.KERNEL)
    assert backend.lost() == {}
    backend.beat()
    assert isinstance(backend.play(), Diverted)


def test_the_gate_itself_and_quic_are_refused_even_when_open() -> None:
    backend = replay(
        attempt(Endpoint(address="127.0.0.1", port=9004)),
        attempt(Endpoint(address="::1", port=9006)),
        attempt(transport=Transport.UDP),
    )
    for _ in range(3):
        backend.play()
    refused = [(one.reason, one.denied) for one in backend.missed()]
    assert refused == [(Reason.OWN_LISTENER, True)] * 2 + [(Reason.QUIC_REFUSED, True)]


def test_other_datagrams_and_bypassed_quic_pass() -> None:
    dns = attempt(Endpoint(address="9.9.9.9", port=53), Transport.UDP)
    assert replay(dns).play() == Passed(dns)
    quic = attempt(transport=Transport.UDP)
    assert replay(quic, quic=Quic.BYPASS).play() == Passed(quic)


def test_after_detach_all_passes_and_after_close_nothing_waits() -> None:
    backend = replay(attempt(), attempt(), attempt(transport=Transport.UDP))
    backend.play()
    backend.detach()
    assert [type(backend.play()) for _ in range(2)] == [Passed, Passed]
    assert backend.owner(LOCAL, WEB) is None
    backend.close()
    backend.close()
    assert backend.find(LOCAL) is None


def test_there_is_nothing_to_hand_over_or_to_watch() -> None:
    backend = replay()
    assert (backend.ground.kind, backend.ground.descriptors) == (BackendKind.REPLAY, ())
    assert (tuple(backend.watched), tuple(backend.troubles())) == ((), ())


def test_a_capture_becomes_a_script_in_the_order_of_time() -> None:
    data = capture()
    pieces = [data[at : at + 100] for at in range(0, len(data), 100)]
    attempts = attempts_of(flows_of(pieces))
    assert [(one.host, one.process.exe, one.remote) for one in attempts] == [
        ("b.example", "/usr/bin/curl", WEB),
        ("a.example", "/usr/bin/curl", WEB),
    ]
    backend = replay(*attempts)
    assert [type(backend.play()) for _ in attempts] == [Diverted, Diverted]


@pytest.mark.parametrize(
    ("data", "why"),
    [(capture()[:-1], "ends inside a block"), (capture() + b"x" * 12, "not pcapng from byte"), (b"", None)],
)
def test_a_capture_that_is_cut_off_gives_what_it_has_and_says_so(data: bytes, why: str | None) -> None:
    flows = flows_of([data])
    if why is None:
        assert list(flows) == []
        return
    assert [next(flows).host, next(flows).host] == ["a.example", "b.example"]
    with pytest.raises(CaptureUnreadable, match=why):
        next(flows)
