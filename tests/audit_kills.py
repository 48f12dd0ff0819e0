"""A recorder killed again and again, in the middle of what real producers send, on one log that goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import msgspec
from audit_events import connection, handed, request
from recorder_child import recorder

from mitmsec.audit.checkpoint import said_by
from mitmsec.audit.criteria import Filter
from mitmsec.audit.producer import Producer
from mitmsec.audit.proving import SignedBy
from mitmsec.audit.recovery import LAST_NAME
from mitmsec.audit.review import Review, opened
from mitmsec.audit.verifying import Root, Verified
from mitmsec.core.messages import Role
from mitmsec.seal import checks


class Killed(msgspec.Struct):
    """What came of it."""

    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    wrong: list[str] = []
    """A log that is not whole, or not the one that was kept; a note that is ahead of it; an index that is not its."""


async def killed(folder: Path, kills: int, seed: int = 1) -> Killed:
    """A start that is refused raises AssertionError."""
    chance, figures, number, kept = random.Random(seed), Killed(), 0, ""
    for _ in range(kills):
        before = number
        async with recorder(folder) as child:
            gate, worker = child.producer(Role.GATE), child.producer(Role.WORKER, 0)
            recording = asyncio.create_task(_record(gate, worker, number))
            await asyncio.sleep(chance.uniform(0, 0.2))
            kept = _note(folder) or kept  # copied elsewhere
            child.process.kill()
            number = await recording
            while not (gate.gone and worker.gone):
                await asyncio.sleep(0.001)
            acknowledged = {("connection", before + index // 2) for index in range(gate.committed) if index % 2}
            acknowledged |= {("request", before + index) for index in range(worker.committed)}
            gate.close()
            worker.close()
        figures.kills += 1
        _judge(folder, kept, acknowledged, figures)
    async with recorder(folder) as child:  # one that ends by itself, and catches up with its index
        assert await child.end() == 0
    with opened(folder) as log:
        index = log.compared_index()
        if index is None or index.why or index.size != log.size():
            figures.wrong.append(f"index: {index}")
    return figures


async def _record(gate: Producer, worker: Producer, number: int) -> int:
    """Until both know that the recorder has gone; the number of the next flow."""
    while not (gate.gone or worker.gone):
        gate.record(handed(f"flow-{number}"))
        worker.record(request(f"flow-{number}"))
        gate.record(connection(f"flow-{number}"))
        number += 1
        await asyncio.sleep(0.001)
    return number


def _note(folder: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return (folder / LAST_NAME).read_text()
    return ""


def _judge(folder: Path, kept: str, acknowledged: set[tuple[str, int]], figures: Killed) -> None:
    with opened(folder) as log:
        size, behind = log.size(), max(0, log.size() - 20_000)
        recent = log.events(Filter(after=behind - 1))
        on_disk = {(event["kind"], event.get("connection")) for event in recent}
        figures.acknowledged += len(acknowledged)
        figures.lost += sum((kind, f"flow-{flow}") not in on_disk for kind, flow in acknowledged)
        if (note := _note(folder)) and said_by(note).size > size:
            figures.wrong.append(f"{LAST_NAME} is ahead of {size} events")
        if kept:
            _verify(log, kept, figures)


def _verify(log: Review, kept: str, figures: Killed) -> None:
    keys = SignedBy(tuple(key for _, key in log.proofs.signers()), checks)
    said, _ = keys.opened(kept)
    result = log.proofs.verify(Root(said.size, said.root), signed_by=keys)
    if not isinstance(result, Verified):
        figures.wrong.append(str(result))
