"""What `mitmsec audit console` and its child process say to each other.

command ── ConsoleSettings + listening socket, channel to the recorder ──► console
        ◄── Ready | Fault
        ── ConsoleNotice ──►               the policy was loaded anew
        ── SupervisorLost ──►              whose recorder ends once nobody has a channel to it any more
        ◄── RecorderLost   ── ConsoleRecorder + channel to the recorder ──►
        ◄── EvidenceHeld, EvidenceOrder   ── EvidenceSaid (+ what is read from, where it is shown) ──►
"""

from __future__ import annotations

from mitmsec.core.messages import Message
from mitmsec.core.notice import Notice


class ConsoleSettings(Message, frozen=True):
    """fds: the socket that listens, the channel to the recorder. Paths are as the child sees them."""

    log: str  # folders
    review: str
    hosts: tuple[str, ...]  # what browsers may call it, with its port
    two_people: tuple[str, ...]  # severities of findings that two must sign off
    notice: Notice
    certificate: str = ""  # files; with them it speaks TLS
    key: str = ""


class ConsoleNotice(Message, frozen=True):
    """What the public page says from now on."""

    notice: Notice


class ConsoleRecorder(Message, frozen=True):
    """fds: the channel to the recorder, in place of the one that ended."""


class SupervisorLost(Message, frozen=True):
    """The channel to its recorder is to be closed; there will be another one."""


class RecorderLost(Message, frozen=True):
    """Nothing can be recorded, so nothing is shown, until another channel comes."""


class EvidenceHeld(Message, frozen=True):
    """Does anything lie beside this event that could be shown?"""

    number: int
    event: str


class EvidenceOrder(Message, frozen=True):
    """One person has asked to see it, another one has agreed: now it is to be shown."""

    number: int
    event: str
    reason: str
    asked_by: str
    approved_by: str


class EvidenceSaid(Message, frozen=True):
    """fds: for an order that was carried out, what the value is read from, to its end."""

    number: int
    is_there: bool
