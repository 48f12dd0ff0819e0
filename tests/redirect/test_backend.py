"""What all backends have in common."""

from __future__ import annotations

from mitmsec_redirect.backend import Backend, BackendKind, BackendUnavailable, GateGround
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.nftables import Nftables
from mitmsec_redirect.replay import Replay


def test_the_gate_gets_the_descriptors_that_there_are_origins_first() -> None:
    assert GateGround(kind=BackendKind.CONNECT_HOOK, heartbeat_fd=5, origins_fd=4).descriptors == (4, 5)
    assert GateGround(kind=BackendKind.NFTABLES, heartbeat_fd=5).descriptors == (5,)
    assert GateGround(kind=BackendKind.REPLAY).descriptors == ()


def test_whatever_is_unavailable_says_why_and_what_to_do() -> None:
    error = EbpfUnavailable("no bpf here", "Use another kernel.")
    assert isinstance(error, BackendUnavailable)
    assert (error.reason, error.remedy, str(error)) == (
        "no bpf here",
        "Use another kernel.",
        "no bpf here. Use another kernel.",
    )


def test_each_backend_has_all_that_a_session_asks_for() -> None:
    """Their signatures are mypy's business: they inherit from the protocol."""
    asked = {name for name in vars(Backend) if not name.startswith("_")}
    assert {"owner", "missed", "stall", "detach", "close"} <= asked
    for backend in (Nftables, Replay):
        assert asked <= set(vars(backend)), "its own, not the protocol's empty one"
    assert [backend.kind for backend in (Nftables, Replay)] == [BackendKind.NFTABLES, BackendKind.REPLAY]
