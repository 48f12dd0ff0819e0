"""A child process finds itself in a root with nothing in it, as nobody, with one descriptor and no network."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from badssl_certificates import root
from badssl_revocation import revocation_list
from issuer_stage import chain_of, naming, responding

from mitmsec.channel import Channel, pair
from mitmsec.core.messages import (
    Drain,
    Fault,
    Message,
    ProducerUp,
    Ready,
    RecorderSettings,
    Role,
    SignerReady,
    SignerSettings,
)
from mitmsec.core.origin_proof import Standing
from mitmsec.service import jail as jails
from mitmsec.service import jail as module
from mitmsec.service.accounts import account_of
from mitmsec.service.broker_messages import BrokerSettings, RevocationAnswer, RevocationQuestion
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.jail import Jail, code_paths, outermost
from mitmsec.service.state import State

CA = root()


@pytest.fixture
def state() -> Iterator[State]:
    """A state directory below a folder that only root may enter, as a checkout in a home folder would be."""
    with tempfile.TemporaryDirectory(prefix="mitmsec-jail-") as folder:
        state = State(Path(folder) / "state")
        state.make()
        yield state


def spawn(state: State, role: Role, folder: Path | None = None) -> ChildProcess:
    jail = Jail(role=role, account=account_of(role), mountpoint=str(state.jail), folder=str(folder) if folder else None)
    return ChildProcess(jail.role, partial(module.spawn, jail), print, [Ready, SignerReady])


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


# Stands in for the recorder: tries what one child may do to another, and answers with what came of it.
ASSAILANT = """
import ctypes, errno, os, resource, signal, sys
from mitmsec.service import child
from mitmsec.core.messages import Fault, SignerSettings
class Assailant:
    def __init__(self, control): pass
    async def start(self, settings, fds):
        victim, said = int(settings.folder), []
        for name, attempt in (
            ("kill", lambda: os.kill(victim, signal.SIGKILL)),
            ("all", lambda: os.kill(-1, signal.SIGKILL)),
            ("limit", lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (1, 1))),
            ("nice", lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19)),
            ("open", lambda: os.pidfd_open(victim)),
        ):
            try: attempt(); said.append(name + " done")
            except OSError as error: said.append(name + " " + errno.errorcode[error.errno])
        said.append(f"pid {os.getpid()}")
        return Fault(what="tried", detail=", ".join(said))
    def told(self, message, fds): pass
    async def stop(self): pass
"""


@pytest.mark.root
def test_a_child_cannot_signal_or_limit_another_one_of_its_own_user(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of one role, as two runs' workers are: neither has a name for the other."""

    async def story() -> None:
        accepts: list[type[Message]] = [Ready, SignerReady, Fault]
        account = account_of(Role.SIGNER)
        jail = Jail(role=Role.SIGNER, account=account, mountpoint=str(state.jail), folder=str(state.ca))
        victim = ChildProcess(jail.role, partial(module.spawn, jail), print, accepts)
        ours, theirs = pair()
        with ours, theirs:
            await victim.start(SignerSettings(folder=str(state.ca)), theirs.fileno())
            code = ASSAILANT + "child.main([SignerSettings], Assailant)"
            monkeypatch.setattr(jails, "_program", lambda role: ["-c", code])
            assailant = ChildProcess(jail.role, partial(module.spawn, jail), print, accepts)
            said = await assailant.start(SignerSettings(folder=str(victim.pid)))
            assert isinstance(said, Fault)
            assert said.detail == "kill ESRCH, all ESRCH, limit ESRCH, nice done, open EPERM, pid 1"
            assert os.getpriority(os.PRIO_PROCESS, victim.pid) == os.getpriority(os.PRIO_PROCESS, 0)
            assert len(await victim.modules()) > 50
            await asyncio.gather(victim.stop(), assailant.stop())

    asyncio.run(story())


# Stands in for a worker that serves, and takes all that it can get.
GLUTTON = """
import mmap, os, threading
from mitmsec.service import child
from mitmsec.core.messages import Drain, Fault, Ready, SignerSettings
class Glutton:
    def __init__(self, control): self.control = control
    async def start(self, settings, fds): return Ready()
    def told(self, message, fds):
        self.control.send(Fault(what="tried", detail=", ".join(f"{name} {self.tries(attempt)}" for name, attempt in (
            ("ample", lambda: mmap.mmap(-1, 3 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)),
            ("heap", lambda: bytearray(5 << 30)),
            ("shared", lambda: mmap.mmap(-1, 5 << 30)),
            ("file", lambda: os.memfd_create("x")),
            ("thread", lambda: threading.Thread(target=int).start()),
        ))))
    def tries(self, attempt):
        try: attempt(); return "ok"
        except Exception as error: return type(error).__name__
    async def stop(self): pass
"""


@pytest.mark.root
def test_a_worker_has_ample_memory_but_not_without_end_and_no_thread(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        jails, "_program", lambda role: ["-c", GLUTTON + "child.main([SignerSettings, Drain], Glutton)"]
    )

    async def story() -> None:
        jail = Jail(role=Role.WORKER, account=account_of(Role.WORKER), mountpoint=str(state.jail))
        glutton = ChildProcess(jail.role, partial(module.spawn, jail), print, [Ready, Fault])
        said: asyncio.Future[Fault] = asyncio.get_running_loop().create_future()
        await glutton.start(SignerSettings(folder=""))
        glutton.on_message = lambda message, fds: said.set_result(message)
        glutton.channel.send(Drain(grace_s=0))
        tried = (await asyncio.wait_for(said, 30)).detail
        assert tried == "ample ok, heap MemoryError, shared OSError, file PermissionError, thread RuntimeError"
        await glutton.stop()

    asyncio.run(story())


@pytest.mark.root
def test_a_childs_descriptors_are_its_channel_and_a_pipe(state: State) -> None:
    """It holds no descriptor of the log, so it can neither fill nor change it."""

    async def story() -> None:
        signer = spawn(state, Role.SIGNER, state.ca)
        ours, theirs = pair()
        with ours, theirs:
            await signer.start(SignerSettings(folder=str(state.ca)), theirs.fileno())
            links = {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{signer.pid}/fd").iterdir()}
            assert links[0] == "/dev/null"
            assert links[1] == links[2]
            assert links[1].startswith("pipe:")
            assert not [link for link in links.values() if str(state.folder) in link]
            await signer.stop()

    asyncio.run(story())


@pytest.mark.root
def test_no_namespace_is_left_changed_in_who_spawns(state: State) -> None:
    async def story() -> None:
        before = os.stat("/proc/self/ns/pid_for_children")
        signer = spawn(state, Role.SIGNER, state.ca)
        after = os.stat("/proc/self/ns/pid_for_children")
        assert (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)
        assert os.stat(f"/proc/{signer.pid}/ns/pid").st_ino != before.st_ino
        signer.kill()
        await signer.ended

    asyncio.run(story())


@pytest.mark.root
def test_a_child_that_cannot_start_says_so(state: State) -> None:
    async def story() -> None:
        recorder = spawn(state, Role.RECORDER, state.log)
        with pytest.raises(ChildFailed, match="recorder"):
            await recorder.start(RecorderSettings(folder="/nowhere"))

    asyncio.run(story())


@pytest.mark.root
def test_an_interpreter_called_by_a_roundabout_path_is_found(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(Path(sys.executable).parent)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "link" / Path(sys.executable).name))

    async def story() -> None:
        signer = spawn(state, Role.SIGNER, state.ca)
        ours, theirs = pair()
        with ours, theirs:
            assert isinstance(await signer.start(SignerSettings(folder=str(state.ca)), theirs.fileno()), SignerReady)
            await signer.stop()

    asyncio.run(story())


@pytest.mark.root
def test_a_child_without_an_interpreter_says_so(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its descriptors are closed by then, but for those that it speaks through."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    async def story() -> None:
        signer = spawn(state, Role.SIGNER, state.ca)
        with pytest.raises(ChildFailed, match="120"):
            await signer.start(SignerSettings(folder=str(state.ca)))

    asyncio.run(story())
    assert "could not start: FileNotFoundError" in capfd.readouterr().out


NESTED = """
import ctypes, os, sys
from mitmsec.service import jail
outside, root = sys.argv[1:]
os.unshare(os.CLONE_NEWNS)
jail._mount(None, "/", None, jail.MS_REC | jail.MS_PRIVATE)
jail._mount("tmpfs", outside + "/share", "tmpfs", 0, "size=1m")
jail._bind(outside, root, writable=False)
for path in (root + outside, root + outside + "/share"):
    try:
        open(path + "/x", "w")
        print("written")
    except OSError as error:
        print(error.strerror)
"""


@pytest.mark.root
def test_what_is_mounted_below_what_is_bound_is_read_only_too(tmp_path: Path) -> None:
    (tmp_path / "outside" / "share").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    command = [sys.executable, "-c", NESTED, str(tmp_path / "outside"), str(tmp_path / "root")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "Read-only file system\n" * 2


def test_nothing_is_bound_twice() -> None:
    paths = outermost(["/a/b/c", "/a/b", "/ab", "/usr/lib/x", "/a/b"], within=["/usr"])
    assert paths == ["/ab", "/a/b"]


def test_the_code_paths_hold_our_packages_and_the_interpreter() -> None:
    import mitmsec_certs

    found = code_paths()
    assert any(mitmsec_certs.__file__.startswith(path + "/") for path in found)
    assert "/" not in found


@pytest.mark.root
def test_a_jailed_broker_dials_and_resolves_names_and_sees_nothing_else(state: State) -> None:
    """It is the one that asks issuers on the network: in the network that it is given."""

    async def story() -> None:
        network = os.open("/proc/self/ns/net", os.O_RDONLY)
        account = account_of(Role.BROKER)
        jail = Jail(role=Role.BROKER, account=account, mountpoint=str(state.jail), network=network)
        broker = ChildProcess(Role.BROKER, partial(module.spawn, jail), print, [Ready])
        roots = os.memfd_create("roots")
        os.write(roots, CA.pem)
        assert isinstance(await broker.start(BrokerSettings(), roots), Ready)
        inside = Path(f"/proc/{broker.pid}/root")
        for path in ("etc/resolv.conf", "etc/hosts"):
            assert (inside / path).read_text() == Path("/", path).read_text()
        assert not (inside / "etc" / "shadow").exists()
        assert not (inside / "home").exists()
        assert not (inside / str(state.folder)[1:]).exists()
        assert os.readlink(f"/proc/{broker.pid}/ns/net") == os.readlink("/proc/self/ns/net")
        assert len(list(Path(f"/proc/{broker.pid}/task").iterdir())) > 4, "threads are started before it is sealed"
        assert "OpenSSL" not in await broker.modules()
        with responding() as server:
            leaf = CA.leaf("www.origin.test", more=naming(crl=f"http://localhost:{server.port}/crl"))
            server.answers["/crl"] = lambda: revocation_list(CA, leaf)
            mine, theirs = pair()
            broker.channel.send(ProducerUp(role=Role.WORKER), theirs.fileno())
            question = RevocationQuestion(number=1, chain=chain_of(leaf, CA))
            worker = Channel(mine, [RevocationAnswer])
            answer = await asyncio.to_thread(worker.exchange, question, timeout_s=20)
            assert answer is not None
            assert answer[0].statuses[0].standing is Standing.REVOKED
            worker.close()
            theirs.close()
        await broker.stop()
        os.close(roots)
        os.close(network)

    asyncio.run(story())
