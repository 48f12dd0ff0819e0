"""Programs that connect and are gone before anybody reads them: who they were, from the kernel's own notes alone.

Each test begins with an empty table and empty notes, so nothing is known from an earlier process.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from caller_stage import mark, mounted
from redirect_sandbox import CONNECT_LOCAL, V4, Agent, Sandbox

from mitmsec.core.model import Caller, Confidence, OnFailure, Process, Quic
from mitmsec_redirect import bpf, callers
from mitmsec_redirect.bpf import Attach, ProgramRejected
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.inbound_hook import InboundHook
from mitmsec_redirect.inbound_records import Inbound, InboundKind
from mitmsec_redirect.process_records import Executable
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.shortfall import Shortfall, Untold
from mitmsec_redirect.udp_hook import UdpHook
from mitmsec_redirect.udp_records import UdpFlow

pytestmark = pytest.mark.root

BASH = shutil.which("bash") or ""
CONNECTS = "exec 3<>/dev/udp/203.0.113.9/5"
PYTHON = os.path.realpath(sys.executable)
ACCEPTS = """
import os, socket, subprocess, sys
served = socket.create_server(("10.77.0.1", 0))
code = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).accept()"
words = [sys.executable, "-I", "-S", "-c", code, str(served.fileno())]
child = subprocess.Popen(words, pass_fds=[served.fileno()])
answer = served.getsockname()[1]
"""


@pytest.fixture
def paths() -> Iterator[ExecutablePaths]:
    made = ExecutablePaths()
    yield made
    made.close()


@pytest.fixture
def table(paths: ExecutablePaths) -> Iterator[ProcessTable]:
    made = ProcessTable(paths=paths)
    yield made
    made.close()


class Stage:
    """A UDP hook that notes paths, and an agent that runs programs to their end."""

    def __init__(self, hook: UdpHook, agent: Agent, table: ProcessTable) -> None:
        self.hook, self._agent, self._table = hook, agent, table

    def run(self, *words: str | Path) -> None:
        """It has ended, and been reaped."""
        told = self._agent(f"import subprocess; subprocess.run({[str(word) for word in words]!r}, check=True)")
        assert "error" not in told

    def callers(self) -> list[UdpFlow]:
        """The flows since the last look, whose processes are gone."""
        flows = [one for one in self.hook.drain(100).told if isinstance(one, UdpFlow)]
        assert not any(Path(f"/proc/{flow.pid}").exists() for flow in flows)
        return flows

    def caller(self) -> UdpFlow:
        """The only one."""
        (flow,) = self.callers()
        return flow

    def whose(self, flow: UdpFlow) -> Process:
        return read(self._table, flow.pid, flow.uid, flow.comm, flow.at_ns, flow.caller)

    def who(self, *words: str | Path, noted: Path | str | None = None) -> Process:
        """Who connected, when it is gone; `noted` is what stood in the notes then."""
        self.run(*words)
        flow = self.caller()
        assert self._table.paths is not None
        assert noted is None or self._table.paths.find(executable_of(flow)) == str(noted)
        return self.whose(flow)


def read(table: ProcessTable, pid: int, uid: int, comm: str, at_ns: int, caller: Caller | None) -> Process:
    owner = table.whose(pid, uid, comm, at_ns, caller)
    if owner.sha256 is not None:
        owner.sha256.result(timeout=20)
    return owner.hashed()


@pytest.fixture
def stage(sandbox: Sandbox, table: ProcessTable) -> Iterator[Stage]:
    with UdpHook.open(sandbox.cgroup.path, quic=Quic.BYPASS, paths=table.paths) as hook:
        yield Stage(hook, sandbox.agent(), table)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return Path(shutil.copy(BASH, tmp_path / "program"))


def is_known(process: Process, program: Path) -> bool:
    sha256 = hashlib.sha256(program.read_bytes()).hexdigest()
    return (process.exe, process.sha256, process.confidence) == (str(program), sha256, Confidence.KERNEL)


def is_unknown(process: Process) -> bool:
    return (process.exe, process.sha256, process.confidence) == (None, None, Confidence.INFERRED)


# --- whichever hook met it --------------------------------------------------------------------------------------------
def test_who_exchanges_datagrams_and_ends_at_once_is_known(stage: Stage, program: Path) -> None:
    process = stage.who(program, "-c", CONNECTS)
    assert is_known(process, program)
    assert process.name == "program"


def test_who_connects_and_ends_at_once_is_known(
    sandbox: Sandbox, table: ProcessTable, paths: ExecutablePaths, program: Path
) -> None:
    hook, agent = sandbox.hook(paths=paths), sandbox.agent()
    words = [str(program), "-c", "exec 3<>/dev/tcp/203.0.113.9/443"]
    agent(f"import subprocess; subprocess.run({words!r}, check=True)")
    origin = sandbox.accept(hook)
    assert origin is not None
    assert not Path(f"/proc/{origin.pid}").exists()
    process = read(table, origin.pid, origin.uid, origin.comm, origin.connected_ns, origin.caller)
    assert is_known(process, program)


def test_who_accepts_and_ends_at_once_is_known(sandbox: Sandbox, table: ProcessTable, paths: ExecutablePaths) -> None:
    with InboundHook.open(sandbox.cgroup.path, paths=paths) as hook:
        agent = sandbox.agent()
        port = agent(ACCEPTS)["answer"]
        sandbox.agent(inside=False)(CONNECT_LOCAL.format(port=port))
        agent("child.wait()")
        (one,) = accepted(hook)
    assert not Path(f"/proc/{one.pid}").exists()
    assert is_known(read(table, one.pid, one.uid, one.comm, one.at_ns, one.caller), Path(PYTHON))


def accepted(hook: InboundHook) -> list[Inbound]:
    return [one for one in hook.drain() if one.kind is InboundKind.ACCEPTED]


def test_what_one_hook_has_noted_serves_the_others(
    sandbox: Sandbox, stage: Stage, paths: ExecutablePaths, program: Path
) -> None:
    stage.run(program, "-c", CONNECTS)
    mark(paths, executable_of(stage.caller()), "/mark")
    hook, agent = sandbox.hook(paths=paths), sandbox.agent()
    words = [str(program), "-c", "exec 3<>/dev/tcp/203.0.113.9/443"]
    agent(f"import subprocess; subprocess.run({words!r}, check=True)")
    origin = sandbox.accept(hook)
    assert origin is not None
    assert paths.find(executable_of(origin)) == "/mark"


# --- once for each executable -----------------------------------------------------------------------------------------
def executable_of(told: object) -> Executable:
    caller = getattr(told, "caller", None)
    assert isinstance(caller, Caller)
    executable = callers.executable_of(caller)
    assert executable is not None
    return executable


def test_a_path_is_noted_once_and_anew_when_it_was_of_no_use(
    stage: Stage, paths: ExecutablePaths, program: Path, tmp_path: Path
) -> None:
    stage.run(program, "-c", CONNECTS)
    executable = executable_of(stage.caller())
    assert paths.find(executable) == str(program)
    false = str(tmp_path / "false")
    mark(paths, executable, false)
    stage.run(program, "-c", CONNECTS)
    stage.caller()
    assert paths.find(executable) == false, "met before, so not written again"
    assert is_unknown(stage.who(program, "-c", CONNECTS)), "there is no such file"
    assert paths.find(executable) is None
    assert is_known(stage.who(program, "-c", CONNECTS), program)


def test_a_path_that_leads_to_another_file_is_not_believed(stage: Stage, paths: ExecutablePaths, program: Path) -> None:
    stage.run(program, "-c", CONNECTS)
    mark(paths, executable_of(stage.caller()), BASH)
    assert is_unknown(stage.who(program, "-c", CONNECTS))


def test_a_file_that_was_changed_is_another_executable(stage: Stage, program: Path) -> None:
    assert is_known(stage.who(program, "-c", CONNECTS), program)
    with program.open("ab") as file:
        file.write(b"changed")
    assert is_known(stage.who(program, "-c", CONNECTS), program)


def test_of_many_that_come_at_once_the_first_ones_too_are_known(stage: Stage, program: Path) -> None:
    """Some find the note while another still writes it, and are not told less for that."""
    stage.run(BASH, "-c", f"for _ in {{1..40}}; do {program} -c '{CONNECTS}' & done; wait")
    told = stage.callers()
    assert len(told) == 40
    assert all(is_known(stage.whose(flow), program) for flow in told)


# --- wherever it lies -------------------------------------------------------------------------------------------------
def laid(program: Path, *names: str) -> Path:
    """A copy in folders of these names."""
    copy = program.parent.joinpath(*names)
    copy.parent.mkdir(parents=True)
    return Path(shutil.copy(program, copy))


@pytest.mark.parametrize("name", ["x" * 255, "a name\nwith a line", "na\u00efve"])
def test_a_name_may_be_as_long_as_names_are_and_hold_whatever_it_likes(stage: Stage, program: Path, name: str) -> None:
    copy = laid(program, "folder", name)
    process = stage.who(copy, "-c", CONNECTS)
    assert process.confidence is Confidence.KERNEL
    assert process.sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("names", "is_told"),
    [
        (["f"] * 14, True),
        (["f"] * 24, False),
        (["x" * 200, "y" * 200], True),
        (["x" * 255] * 4, False),
    ],
    ids=["deep", "too deep", "long", "too long"],
)
def test_a_path_that_is_longer_than_we_follow_is_not_told(
    stage: Stage, program: Path, names: list[str], is_told: bool
) -> None:
    copy = laid(program, *names, "program")
    process = stage.who(copy, "-c", CONNECTS)
    assert is_known(process, copy) if is_told else is_unknown(process)


def test_a_program_that_was_deleted_has_no_path(stage: Stage, program: Path) -> None:
    assert is_unknown(stage.who(program, "-c", f"rm {program}; {CONNECTS}"))


def test_a_program_with_two_names_has_no_path(stage: Stage, program: Path) -> None:
    os.link(program, program.with_name("second"))
    assert is_unknown(stage.who(program, "-c", CONNECTS))


def test_a_program_without_a_file_has_no_path(stage: Stage) -> None:
    code = f"import os; f = os.memfd_create('m'); os.write(f, open({BASH!r}, 'rb').read()); "
    code += f"os.execve(f, ['m', '-c', {CONNECTS!r}], os.environ)"
    assert is_unknown(stage.who(PYTHON, "-I", "-S", "-c", code))


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_program_on_a_mount_of_ours_is_known_by_its_path_there(
    stage: Stage, program: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "merged").mkdir()
    with mounted("tmpfs", tmp_path / "lower"):
        copy = Path(shutil.copy(program, tmp_path / "lower" / "program"))
        if kind == "tmpfs":
            assert stage.who(copy, "-c", CONNECTS).exe == str(copy)
            return
        with mounted("overlay", tmp_path / "merged", f"lowerdir={copy.parent}:{tmp_path}"):
            merged = tmp_path / "merged" / "program"
            process = stage.who(merged, "-c", CONNECTS)
            assert (process.exe, process.confidence) == (str(merged), Confidence.KERNEL)


# --- whatever its mounts ----------------------------------------------------------------------------------------------
def test_through_a_bind_mount_that_we_have_too_it_is_known_by_the_way_it_took(
    stage: Stage, program: Path, tmp_path: Path
) -> None:
    copy, second = laid(program, "first", "program"), tmp_path / "second"
    second.mkdir()
    subprocess.run(["mount", "--bind", copy.parent, second], check=True)
    try:
        assert is_known(stage.who(second / "program", "-c", CONNECTS), second / "program")
    finally:
        subprocess.run(["umount", second], check=True)
    assert is_unknown(stage.who(copy, "-c", CONNECTS)), "the way that was noted is gone"
    assert is_known(stage.who(copy, "-c", CONNECTS), copy), "and the next one told its own"


def in_own_mounts(commands: str) -> list[str]:
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", commands]


def test_who_mounts_its_own_program_over_another_is_not_taken_for_that(stage: Stage, program: Path) -> None:
    decoy = laid(program, "bin", "decoy")
    words = in_own_mounts(f"mount --bind {program} {decoy}; exec {decoy} -c '{CONNECTS}'")
    assert is_unknown(stage.who(*words, noted=decoy))
    assert is_known(stage.who(program, "-c", CONNECTS), program), "elsewhere it is what it is"


def test_who_runs_it_first_by_a_way_without_an_end_hides_nobody_who_runs_it_later(stage: Stage, program: Path) -> None:
    deep = laid(program, *["f"] * 24, "program")
    words = in_own_mounts(f"mount --bind {program} {deep}; exec {deep} -c '{CONNECTS}'")
    assert is_unknown(stage.who(*words))
    assert is_known(stage.who(program, "-c", CONNECTS), program)


def test_a_link_of_ours_that_its_own_mounts_imitate_is_no_place_where_it_lies(stage: Stage, program: Path) -> None:
    vendor = program.parent / "vendor"
    vendor.mkdir()
    (link := vendor / "current").symlink_to(program.parent)
    mounts = f"mount -t tmpfs own {vendor}; mkdir {link}; mount --bind {program.parent} {link}"
    words = in_own_mounts(f"{mounts}; exec {link}/program -c '{CONNECTS}'")
    assert is_unknown(stage.who(*words, noted=link / "program"))


def test_a_file_system_of_its_own_makes_nothing_true(stage: Stage, tmp_path: Path) -> None:
    decoy = tmp_path / "program"
    decoy.write_bytes(b"another")
    mount = f"mount -t tmpfs own {tmp_path}; cp {BASH} {decoy}"
    assert is_unknown(stage.who(*in_own_mounts(f"{mount}; exec {decoy} -c '{CONNECTS}'"), noted=decoy))


@pytest.mark.parametrize("way", ["chroot", "pivot_root"])
def test_another_root_makes_no_path_true_that_is_not(stage: Stage, program: Path, tmp_path: Path, way: str) -> None:
    """The root is a bind mount of ours, with the caller's own program at another's name."""
    decoy, root = laid(program, "bin", "decoy"), tmp_path / "root"
    root.mkdir()
    enter = {"chroot": f"exec chroot {root}", "pivot_root": f"cd {root}; pivot_root . mnt; exec chroot ."}[way]
    prepare = f"mount --rbind / {root}; mount --bind {program} {root}{decoy}"
    noted = {"chroot": f"{root}{decoy}", "pivot_root": decoy}[way]
    assert is_unknown(stage.who(*in_own_mounts(f"{prepare}; {enter} {decoy} -c '{CONNECTS}'"), noted=noted))


def test_in_a_root_that_we_have_too_it_is_known_by_our_path(stage: Stage, program: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["mount", "--bind", "/", root], check=True)
    try:
        outside = Path(f"{root}{program}")
        assert is_known(stage.who("chroot", root, program, "-c", CONNECTS), outside)
    finally:
        subprocess.run(["umount", root], check=True)


def test_under_user_and_mount_namespaces_of_its_own_a_program_can_hide_and_not_lie(stage: Stage, program: Path) -> None:
    decoy = laid(program, "bin", "decoy")
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    mount = f"mount --bind {program} {decoy}"
    assert is_unknown(stage.who(*words, f"{mount}; exec {decoy} -c '{CONNECTS}'", noted=decoy))


# --- where the kernel will not ----------------------------------------------------------------------------------------
def refusing(helper: int) -> Callable[[bytes, Attach, str], int]:
    plain = bpf.load_program

    def load(code: bytes, attach: Attach, name: str) -> int:
        """As a kernel does that has no such helper, or keeps it from us."""
        if code.find(bytes((0x85, 0, 0, 0)) + helper.to_bytes(4, "little")) >= 0:
            raise ProgramRejected(22, f"unknown func #{helper}")
        return plain(code, attach, name)

    return load


def test_a_kernel_that_lets_nobody_read_names_still_tells_callers(
    sandbox: Sandbox, table: ProcessTable, paths: ExecutablePaths, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf, "load_program", refusing(115))
    hook = sandbox.hook(paths=paths)
    assert hook.tells_callers
    with (
        UdpHook.open(sandbox.cgroup.path, quic=Quic.BYPASS, paths=paths) as udp,
        InboundHook.open(sandbox.cgroup.path, paths=paths) as inbound,
    ):
        assert udp.tells_callers
        hook.change(on_failure=OnFailure.OPEN, quic=Quic.REFUSE)
        udp.change(quic=Quic.REFUSE)
        udp.change(quic=Quic.BYPASS)
        for one in (hook, udp, inbound):
            assert one.shortfall == Shortfall(Untold.EXECUTABLE_PATHS, "unknown func #115")
        stage = Stage(udp, sandbox.agent(), table)
        assert is_unknown(stage.who(program, "-c", CONNECTS))
    sandbox.agent()(f"connected({V4})")
    origin = sandbox.accept(hook)
    assert origin is not None
    assert origin.caller is not None
    assert paths.find(executable_of(origin)) is None


def test_nothing_is_known_before_a_hook_has_asked_for_the_maps_nor_after_they_were_closed() -> None:
    file = Executable(1, 2, 3)
    paths = ExecutablePaths()
    paths.forget(file)
    assert paths.find(file) is None
    assert paths.maps() == paths.maps()
    mark(paths, file, "/bin/x")
    assert paths.find(file) == "/bin/x"
    paths.close()
    paths.close()
    assert paths.find(file) is None
