"""A child process finds itself in a root with nothing in it, as nobody, with one descriptor and no network."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec.channel import pair
from mitmsec.core.messages import Ready, RecorderSettings, Role, SignerReady, SignerSettings
from mitmsec.service.accounts import account_of
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.jail import Jail, code_paths, outermost
from mitmsec.service.state import State


@pytest.fixture
def state() -> Iterator[State]:
    """A state directory below a folder that only root may enter, as a checkout in a home folder would be."""
    with tempfile.TemporaryDirectory(prefix="mitmsec-jail-") as folder:
        state = State(Path(folder) / "state")
        state.make()
        yield state


def spawn(state: State, role: Role, folder: Path | None = None) -> ChildProcess:
    jail = Jail(role=role, account=account_of(role), mountpoint=str(state.jail), folder=str(folder) if folder else None)
    return ChildProcess(jail, 2, [Ready, SignerReady])


@pytest.mark.root
def test_a_jailed_signer_is_nobody_sees_nothing_and_ends_with_its_channel(state: State) -> None:
    async def story() -> None:
        signer = spawn(state, Role.SIGNER, state.ca)
        ours, theirs = pair()
        answer = await signer.start(SignerSettings(folder=str(state.ca)), theirs.fileno())
        assert isinstance(answer, SignerReady)
        status = Path(f"/proc/{signer.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        uid = account_of(Role.SIGNER).uid
        assert fields["Uid"].split() == [str(uid)] * 4
        assert fields["Groups"].strip() == ""
        assert {fields[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
        assert fields["NoNewPrivs"] == "1"
        root = Path(f"/proc/{signer.pid}/root")
        assert not (root / "proc").exists()
        assert not (root / "home").exists()
        assert not (root / "etc" / "shadow").exists()
        assert [entry.name for entry in (root / str(state.folder)[1:]).iterdir()] == ["ca"]
        assert os.readlink(f"/proc/{signer.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert "lo" in Path(f"/proc/{signer.pid}/net/dev").read_text()
        assert Path(f"/proc/{signer.pid}/net/route").read_text().count("\n") <= 1
        assert "mitmsec_certs.keystore" in await signer.modules()
        await signer.stop()
        assert signer.ended.result() == 0
        ours.close()
        theirs.close()

    asyncio.run(story())


@pytest.mark.root
def test_a_child_that_cannot_start_says_so(state: State) -> None:
    async def story() -> None:
        recorder = spawn(state, Role.RECORDER, state.log)
        with pytest.raises(ChildFailed, match="recorder"):
            await recorder.start(RecorderSettings(folder="/nowhere"))

    asyncio.run(story())


def test_nothing_is_bound_twice() -> None:
    paths = outermost(["/a/b/c", "/a/b", "/ab", "/usr/lib/x", "/a/b"], within=["/usr"])
    assert paths == ["/ab", "/a/b"]


def test_the_code_paths_hold_our_packages_and_the_interpreter() -> None:
    import mitmsec_certs

    found = code_paths()
    assert any(mitmsec_certs.__file__.startswith(path + "/") for path in found)
    assert "/" not in found
