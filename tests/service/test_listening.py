"""A daemon's first process listens, and has ended before anybody could read it: its program is known all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec.core.model import Caller, Confidence, Endpoint
from mitmsec.service import listening
from mitmsec_redirect import proc_files
from mitmsec_redirect.inbound_records import Inbound, InboundKind
from mitmsec_redirect.process_history import TICK_NS
from mitmsec_redirect.processes import ProcessTable

pytestmark = pytest.mark.root
NOBODY = Endpoint.of("::", 0)
FORKS = "import os, sys\nif os.fork(): print(os.getpid(), flush=True); os._exit(0)\nsys.stdin.read()"


@pytest.fixture
def processes() -> Iterator[ProcessTable]:
    table = ProcessTable()
    yield table
    table.close()


def told(kind: InboundKind, pid: int, program: Path, start_ns: int = 7 * TICK_NS) -> Inbound:
    """As the kernel tells of a process that ran `program`."""
    file = os.stat(program)
    device = os.major(file.st_dev) << 20 | os.minor(file.st_dev)
    caller = Caller(start_ns=start_ns, device=device, inode=file.st_ino, ctime_ns=file.st_ctime_ns)
    return Inbound(
        kind=kind, cookie=1, netns=1, local=NOBODY, remote=NOBODY, began_ns=0, at_ns=0, sent_bytes=0, received_bytes=0,
        error=0, is_accepted=False, pid=pid, uid=0, comm="daemon", caller=caller,
    )  # fmt: skip


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return Path(shutil.copy(os.path.realpath(sys.executable), tmp_path / "daemon"))


@pytest.fixture
def daemon(program: Path) -> Iterator[tuple[int, int]]:
    """The pid of the first process, which has ended, and that of its heir."""
    environment = os.environ | {"PYTHONHOME": sys.base_prefix}
    command = [str(program), "-S", "-c", FORKS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        first.wait()
        heirs = [one.pid for one in proc_files.living() if one.exe.path == str(program)]
        yield first.pid, heirs[0]


@pytest.mark.parametrize("kind", [InboundKind.LISTENS, InboundKind.BEGAN])
def test_its_heirs_say_where_its_file_lies(
    processes: ProcessTable, program: Path, daemon: tuple[int, int], kind: InboundKind
) -> None:
    ended, heir = daemon
    owner = listening.whose(processes, told(kind, ended, program), lambda: [heir])
    if kind is InboundKind.LISTENS:
        assert (owner.process.exe, owner.process.confidence) == (str(program), Confidence.KERNEL)
        later = listening.whose(processes, told(InboundKind.BEGAN, ended, program), list)
        assert later.process.exe == str(program), "remembered"
    else:
        assert owner.process.exe is None, "nobody is searched for at each connection"


def test_who_runs_another_file_is_no_heir(processes: ProcessTable, program: Path, daemon: tuple[int, int]) -> None:
    owner = listening.whose(processes, told(InboundKind.LISTENS, daemon[0], program), lambda: [os.getpid(), 4_194_303])
    assert owner.process.exe is None
