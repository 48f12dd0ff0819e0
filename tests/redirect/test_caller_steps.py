"""Who called connect(), as the program in the kernel saw it, against what /proc says of the same process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from caller_stage import mounted
from redirect_sandbox import V4, V6, Sandbox, stall

from mitmsec.core.model import Caller, OnFailure
from mitmsec_redirect import bpf, callers, connect_hook, kernel_types, proc_files
from mitmsec_redirect.bpf import ProgramRejected
from mitmsec_redirect.process_history import TICK_NS
from mitmsec_redirect.shortfall import NO_TYPES, Shortfall, Untold

pytestmark = pytest.mark.root

EXECUTE_AFTERWARDS = f"""
s = connected({V4})
s.set_inheritable(True)
os.execv("/bin/sleep", ["sleep", "30"])
"""
IN_ANOTHER_PROGRAM = """
import subprocess
words = ["{program}", "-c", "exec 3<>/dev/tcp/203.0.113.9/443; read"]
child = subprocess.Popen(words, stdin=subprocess.PIPE)
"""
FROM_A_THREAD = f"""
import threading
thread = threading.Thread(target=lambda: connected({V6})); thread.start(); thread.join(); answer = os.getpid()
"""


@pytest.fixture
def folders() -> Iterator[dict[int, int]]:
    """Open folders of /proc by pid."""
    held: dict[int, int] = {}
    yield held
    for folder in held.values():
        os.close(folder)


def runs(pid: int, caller: Caller, folders: dict[int, int]) -> bool:
    folder = folders[pid] = proc_files.opened(pid) or -1
    return callers.runs_still(folder, caller)


def test_the_caller_is_told_by_its_start_its_parent_and_its_file(sandbox: Sandbox, folders: dict[int, int]) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    assert hook.tells_callers
    agent(f"connected({V4})")
    origin = sandbox.accept(hook)
    assert origin is not None
    assert origin.caller is not None
    assert runs(agent.pid, origin.caller, folders)
    assert origin.caller.start_ns % TICK_NS, "finer than a clock tick"
    assert origin.caller.parent == os.getpid()
    ours = proc_files.status_of_pid(os.getpid())
    assert ours is not None
    assert origin.caller.parent_start_ns // TICK_NS == ours.start_ticks


def test_a_thread_is_told_as_its_process(sandbox: Sandbox, folders: dict[int, int]) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    agent(FROM_A_THREAD)
    origin = sandbox.accept(hook, v6=True)
    assert origin is not None
    assert origin.caller is not None
    assert runs(agent.pid, origin.caller, folders)


def test_who_executes_another_program_after_connecting_is_told_as_the_one_that_called(
    sandbox: Sandbox, folders: dict[int, int]
) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    python = os.stat(f"/proc/{agent.pid}/exe")
    agent.start(EXECUTE_AFTERWARDS)
    origin = sandbox.accept(hook)
    assert origin is not None
    assert origin.caller is not None
    while Path(f"/proc/{agent.pid}/exe").resolve().name == Path(f"/proc/{os.getpid()}/exe").resolve().name:
        pass
    assert callers.executable_of(origin.caller) == proc_files.file_of(python)
    assert not runs(agent.pid, origin.caller, folders)
    os.kill(agent.pid, 9)


def test_a_program_in_a_file_system_of_layers_is_known_although_stat_tells_another_device(
    sandbox: Sandbox, folders: dict[int, int], tmp_path: Path
) -> None:
    lower, merged = (tmp_path / name for name in ("lower", "merged"))
    for folder in (lower, merged):
        folder.mkdir()
    with mounted("tmpfs", lower), mounted("overlay", merged, f"lowerdir={lower}:{tmp_path}"):
        program = Path(shutil.copy("/bin/bash", lower / "program"))
        hook, agent = sandbox.hook(), sandbox.agent()
        agent(IN_ANOTHER_PROGRAM.format(program=str(merged / program.name)))
        origin = sandbox.accept(hook)
        assert origin is not None
        assert origin.caller is not None
        executable = callers.executable_of(origin.caller)
        assert executable != proc_files.file_of((merged / program.name).stat())
        assert runs(origin.pid, origin.caller, folders)
        agent("child.communicate()")


def test_a_missed_connection_tells_its_caller_too(sandbox: Sandbox, folders: dict[int, int]) -> None:
    hook, agent = sandbox.hook(OnFailure.CLOSED), sandbox.agent()
    stall(hook)
    assert agent(f"connected({V4})") == {"error": "EPERM"}
    (missed,) = hook.missed()
    assert missed.caller is not None
    assert runs(agent.pid, missed.caller, folders)


def test_without_the_kernels_types_the_hook_diverts_and_tells_pids_alone(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_types, "process_offsets", lambda: None)
    hook, agent = sandbox.hook(), sandbox.agent()
    agent(f"connected({V4})")
    origin = sandbox.accept(hook)
    assert origin is not None
    assert (origin.pid, origin.caller, hook.tells_callers) == (agent.pid, None, False)
    assert hook.shortfall == Shortfall(Untold.CALLERS, NO_TYPES)


def test_a_kernel_that_lets_no_program_look_at_its_caller_is_asked_for_no_more_than_pids(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = connect_hook.bpf.load_program

    def load(code: bytes, attach: bpf.Attach, name: str) -> int:
        """As a kernel does that has no such helper."""
        if code.find(b"\x85\0\0\0\x9e\0\0\0") >= 0:
            raise ProgramRejected(22, "unknown func bpf_get_current_task_btf#158")
        return plain(code, attach, name)

    monkeypatch.setattr(connect_hook.bpf, "load_program", load)
    hook, agent = sandbox.hook(), sandbox.agent()
    agent(f"connected({V4})")
    origin = sandbox.accept(hook)
    assert origin is not None
    assert (origin.pid, origin.caller, hook.tells_callers) == (agent.pid, None, False)
    assert hook.shortfall == Shortfall(Untold.CALLERS, "unknown func bpf_get_current_task_btf#158")
