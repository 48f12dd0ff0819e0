"""The console's orders about evidence, carried out by who began it: as root, in the people's names.

console ── EvidenceOrder ──► this ── request, agreement, Unmask + a pipe's end ──► supervisor ──► recorder
        ◄── EvidenceSaid + the pipe's other end ──┘                               what is shown goes into the pipe
"""

from __future__ import annotations

import os
from typing import Any

from mitmsec.channel import Channel, ChannelBroken
from mitmsec.core.content_orders import (
    ApproveUnmasking,
    ContentOrder,
    EvidenceAnswer,
    EvidenceQuestion,
    RequestUnmasking,
    Unmask,
    Unmasked,
    UnmaskingApproved,
    UnmaskingRequested,
)
from mitmsec.core.unmasking import Person
from mitmsec.service.console_messages import EvidenceHeld, EvidenceOrder, EvidenceSaid
from mitmsec.service.joining import join
from mitmsec.service.refusals import CannotRun
from mitmsec.service.state import State

ANSWERED_S = 50.0


def evidence(state: State, order: EvidenceHeld | EvidenceOrder) -> tuple[EvidenceSaid, list[int]]:
    """The answer, and the descriptors that go with it, which the caller closes. Blocks; raises nothing."""
    nothing = EvidenceSaid(number=order.number, is_there=False)
    try:
        channel = join(state, worker=False)
    except CannotRun:
        return nothing, []
    try:
        match order:
            case EvidenceHeld():
                answer = _asked(channel, EvidenceQuestion(event=order.event))
                is_there = isinstance(answer, EvidenceAnswer) and answer.kept_s is not None and answer.erased_s is None
                return EvidenceSaid(number=order.number, is_there=is_there), []
            case EvidenceOrder():
                pipe = _shown(channel, order)
                return (nothing, []) if pipe is None else (EvidenceSaid(number=order.number, is_there=True), [pipe])
    except (OSError, ChannelBroken):
        return nothing, []
    finally:
        channel.close()


def _shown(channel: Channel, order: EvidenceOrder) -> int | None:
    """What the value can be read from; None: it is not shown."""
    by, approver = Person(name=order.asked_by), Person(name=order.approved_by)
    asked = _asked(channel, RequestUnmasking(by=by, event=order.event, reason=order.reason))
    if not isinstance(asked, UnmaskingRequested):
        return None
    agreed = _asked(channel, ApproveUnmasking(by=approver, request=asked.request))
    if not isinstance(agreed, UnmaskingApproved):
        return None
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        shown = _asked(channel, Unmask(by=by, event=order.event), writing)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    if isinstance(shown, Unmasked):
        return reading
    os.close(reading)
    return None


def _asked(channel: Channel, order: ContentOrder, *fds: int) -> Any:
    received = channel.exchange(order, *fds, timeout_s=ANSWERED_S)
    return None if received is None else received[0]
