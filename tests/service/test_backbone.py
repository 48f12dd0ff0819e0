"""What all runs stand on: the worker that waits for one, and the CA that a command has changed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from softhsm import PIN, SoftHsm, needs_softhsm

from mitmsec.audit import review
from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import CaSeen, Kind
from mitmsec.channel import Channel
from mitmsec.core.messages import MintAnswer, MintDecision, MintQuestion, Role
from mitmsec.service import ca_journal, ca_work
from mitmsec.service.backbone import Backbone
from mitmsec.service.children import ChildFailed
from mitmsec.service.state import State
from mitmsec.service.token_options import TokenOrder
from mitmsec_certs.constraints import written
from mitmsec_certs.token_reference import TokenReference

pytestmark = pytest.mark.root
NOW_S = int(time.time())
SEEN = CaSeen(operation="rotated", subject="CN=root", sha256="ab", not_after="2027-01-01T00:00:00Z", user="alice")


def begun(tmp_path: Path) -> Backbone:
    state = State(tmp_path / "state")
    state.make()
    return Backbone(state, print)


def ours() -> set[int]:
    """Our child processes."""
    return {int(pid) for line in Path("/proc/self/task").glob("*/children") for pid in line.read_text().split()}


async def until(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_worker_is_there_before_anybody_asks_and_only_one_gets_it(tmp_path: Path) -> None:
    async def story() -> None:
        backbone, before = begun(tmp_path), ours()
        await backbone.start(worker=True)
        waiting = {child.pid for child in backbone.children if child.role is Role.WORKER}
        first, second = backbone.begun_worker(), backbone.begun_worker()
        assert waiting == {first.pid}
        assert second.pid not in waiting
        assert first.role is second.role is Role.WORKER
        await asyncio.gather(first.stop(), second.stop())
        await backbone.stop()
        assert ours() - before == set()

    asyncio.run(story())


def test_one_that_has_died_meanwhile_is_given_to_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        backbone = begun(tmp_path)
        await backbone.start(worker=True)
        (waiting,) = [child.pid for child in backbone.children if child.role is Role.WORKER]
        os.kill(waiting, signal.SIGKILL)
        await until(lambda: waiting not in ours())
        worker = backbone.begun_worker()
        assert worker.pid != waiting
        assert worker.pid in ours()
        await worker.stop()
        await backbone.stop()

    asyncio.run(story())


def test_what_nobody_asked_for_ends_with_the_rest(tmp_path: Path) -> None:
    async def story() -> None:
        backbone, before = begun(tmp_path), ours()
        await backbone.start(worker=True)
        assert len(ours() - before) == 3
        await backbone.stop()
        assert ours() - before == set()

    asyncio.run(story())


def test_a_ca_that_a_command_has_made_is_taken_up_and_goes_on_record(tmp_path: Path) -> None:
    """Beside everything that runs; and what nobody was alive to record is recorded by the next."""
    limit = written(["corp.example"], [])

    async def story() -> None:
        backbone = begun(tmp_path)
        await backbone.start(worker=False)
        before = backbone.root_pem
        ca_work.make_own(backbone.state, limit, "correct horse battery", tmp_path / "root.p12", "alice", NOW_S)
        await backbone.adopt_ca()
        new = (backbone.state.ca / "root.pem").read_text()
        assert backbone.root_pem == new + before
        assert new in backbone.own_pem
        (backbone.state.ca / "issuing.key").chmod(0o644)
        with pytest.raises(ChildFailed, match="mode 0644"):
            await backbone.adopt_ca()
        (backbone.state.ca / "issuing.key").chmod(0o600)
        assert ca_journal.left(backbone.state) == []
        with ca_journal.noted(backbone.state, SEEN):
            pass
        await backbone.record_ca_operations()
        await backbone.stop()
        with review.opened(backbone.state.log) as log:
            events = [event["operation"] for event in log.events(Filter(kind=Kind.CA))]
        assert events == ["created", "initialised", "rotated"]

    asyncio.run(story())


def minted(backbone: Backbone, flow: str, name: str) -> tuple[bytes, ...] | None:
    """The chain of a leaf that the signer was asked for as by a run's gate and worker; None where it ended instead."""
    with contextlib.ExitStack() as stack:
        gate, worker = (
            Channel(backbone.signer_channel(role, "run", 0), [MintAnswer]) for role in (Role.GATE, Role.WORKER)
        )
        stack.callback(gate.close)
        stack.callback(worker.close)
        gate.send(MintDecision(flow=flow, name=name))
        answer = worker.exchange(MintQuestion(number=1, flow=flow), timeout_s=30)
        return None if answer is None else answer[0].chain


@needs_softhsm
def test_a_key_in_a_token_signs_from_the_jail_until_the_token_goes_and_again_when_it_is_back(
    tmp_path: Path, softhsm: SoftHsm, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else signs meanwhile, and what happened is on record, once."""
    order = TokenOrder(reference=TokenReference(uri=softhsm.uri("issuing"), pin=PIN), module=softhsm.module)
    limit, gone = written(["corp.example"], []), softhsm.folder / "gone"

    def signers(backbone: Backbone) -> set[int]:
        return {child.pid for child in backbone.children if child.role is Role.SIGNER and not child.ended.done()}

    async def story() -> None:
        backbone = begun(tmp_path)
        await backbone.start(worker=False)
        first = signers(backbone)
        word, target = "correct horse battery", tmp_path / "root.p12"
        ca_work.make_own(backbone.state, limit, word, target, "alice", NOW_S, token=order)
        await backbone.adopt_ca()
        second = signers(backbone)
        assert second
        assert second != first
        mounts = Path(f"/proc/{min(second)}/mountinfo").read_text().splitlines()
        assert [line.split()[5].split(",")[0] for line in mounts if line.split()[4] == str(softhsm.tokens)] == ["ro"]
        issuing = x509.load_pem_x509_certificate((backbone.state.ca / "issuing.pem").read_bytes())
        chain = minted(backbone, "f1", "www.corp.example")
        assert chain is not None
        x509.load_der_x509_certificate(chain[0]).verify_directly_issued_by(issuing)
        softhsm.tokens.rename(gone)  # what is there stays bound; its files go
        files = {path: path.read_bytes() for path in gone.rglob("*") if path.is_file()}
        for path in files:
            path.unlink()
        assert minted(backbone, "f2", "mail.corp.example") is None
        said = ""
        async with asyncio.timeout(30):
            while "could not be replaced" not in said:
                await asyncio.sleep(0.05)
                said += capsys.readouterr().err
        assert signers(backbone) != second
        gone.rename(softhsm.tokens)
        for path, content in files.items():
            back = softhsm.tokens / path.relative_to(gone)
            back.write_bytes(content)
            os.chown(back, softhsm.tokens.stat().st_uid, softhsm.tokens.stat().st_gid)
        await backbone.mended()
        reasons = [line for line in f"{said}{capsys.readouterr().err}".splitlines() if "could not be replaced" in line]
        assert len(reasons) == len(set(reasons))
        assert minted(backbone, "f3", "mail.corp.example")
        await backbone.stop()
        with review.opened(backbone.state.log) as log:
            faults = list(log.events(Filter(kind=Kind.FAULT)))
            names = [event["names"] for event in log.events(Filter(kind=Kind.CERTIFICATE))]
        assert names == [["www.corp.example"], ["mail.corp.example"]]
        assert "token_lost" in [fault["what"] for fault in faults]

    asyncio.run(story())


@pytest.mark.skipif(shutil.which("systemd-creds") is None, reason="systemd-creds is not installed (Debian: systemd)")
def test_a_sealed_ca_is_opened_at_each_start_and_where_it_cannot_be_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the jail, by a descriptor; sealed beside what runs."""
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "machine.secret"))

    async def started() -> str:
        backbone = begun(tmp_path)
        try:
            await backbone.start(worker=False)
            root = backbone.root_pem
            if not (backbone.state.ca / "seal.cred").exists():
                ca_work.seal(backbone.state, "alice", NOW_S)
                await backbone.adopt_ca()
                assert backbone.root_pem == root
            return root
        finally:
            await backbone.stop()

    root = asyncio.run(started())
    assert b"ENCRYPTED" in (tmp_path / "state" / "ca" / "issuing.key").read_bytes()
    assert asyncio.run(started()) == root
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "another.secret"))
    with pytest.raises(ChildFailed, match="ca_refused: systemd-creds decrypt"):
        asyncio.run(started())
