"""`mitmsec run`: the front-end that a person or script sees. It prepares, starts the command, waits, and gets out of
the way: the terminal, the signals and the exit status are the command's.

    check everything that can be wrong ─► supervisor (started if none) ─► OpenRun ─► fork
       child:  into the cgroup, the caller's user, exec                   parent: wait, pass signals on
    CommandEnded ─► RunClosed: the last event is committed ─► the command's status
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

import msgspec

from mitmsec.core.model import OnFailure, Value
from mitmsec.core.policy import DEFAULT_POLICY, Policy
from mitmsec.core.resolv_conf import nameservers
from mitmsec.service import control, refusals
from mitmsec.service.caller import Caller, acting_as
from mitmsec.service.joining import START_DEADLINE_S, join
from mitmsec.service.refusals import CannotRun
from mitmsec.service.state import State

CLOSE_DEADLINE_S = 60.0
JOIN_TRIES = 3
WORKERS_LIMIT = 4
RESOLV_CONF, NAMESERVERS_LIMIT = Path("/etc/resolv.conf"), 8
KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
HEARD = frozenset({*KEYBOARD, *FORWARDED, signal.SIGCHLD})
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
RECORDED = ("connections", "requests", "findings", "faults")  # the recorder's word
SEEN = ("cut", "survivors")  # the supervisor's
SI_KERNEL = 0x80  # si_code of a signal that the terminal sent, to all of its foreground processes
_WENT = {OnFailure.OPEN: "let through, unrecorded", OnFailure.CLOSED: "denied until the command ended"}


class Plan(Value, frozen=True):
    """Everything that was asked for, checked as far as it can be before anything starts."""

    command: tuple[str, ...]
    executable: str
    caller: Caller
    policy: Policy
    """Without the names of its lists: the run may take days, and they a hundred megabytes."""
    packed_policy: int  # a descriptor, all of the policy behind it
    policy_file: str
    policy_sha256: str
    workers: int
    wait: bool
    java: bool = False
    backend: control.BackendChoice = control.BackendChoice.AUTO
    upstream_roots: tuple[bytes, ...] = ()  # DER, beside those that the command would have used
    keys: int | None = None  # a descriptor, the keys of the policy's services behind it


class Report(Value, frozen=True):
    """What `--report` writes: whose status it is, and what the run recorded."""

    session: str
    command: tuple[str, ...]
    status: int
    status_of: str  # "command" | "mitmsec"
    started: str
    duration_s: float
    connections: int | None = 0  # these: None where it is not known
    requests: int | None = 0
    findings: int | None = 0
    faults: int | None = 0
    cut: int | None = 0
    survivors: int | None = 0
    error: str = ""


def find_executable(command: str, environ: Mapping[str, str], caller: Caller) -> str:
    """The file that `exec` would run for `caller`. Raises CannotRun with 126 or 127, as env does."""
    folders = [""] if os.path.sep in command else environ.get("PATH", os.defpath).split(os.pathsep)
    with acting_as(caller):
        for folder in folders:
            path = os.path.abspath(os.path.join(folder, command))
            if os.path.isfile(path) and os.access(path, os.X_OK, effective_ids=True):
                return path
        if os.path.sep in command and os.path.isdir(command):
            raise CannotRun(f"{command}: is a directory", "give the path of a program", 126)
        if os.path.sep in command and os.path.exists(command):
            raise CannotRun(f"{command}: not executable", f"check its permissions: chmod +x {command}", 126)
    raise CannotRun(f"{command}: command not found", "check the spelling, or give the path of the program", 127)


def memory_file(name: str, content: bytes) -> int:
    """A descriptor of an anonymous file that nobody can open by name."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)  # whoever gets it reads what we wrote
    return descriptor


def plan_policy(text: str | None) -> str:
    """The fingerprint of a policy that stands in the log: of its text, or of the built-in one."""
    content = text.encode() if text is not None else msgspec.json.encode(DEFAULT_POLICY)
    return hashlib.sha256(content).hexdigest()


def _nameservers() -> tuple[str, ...]:
    """Of the caller's /etc/resolv.conf: the supervisor's mounts may be others."""
    try:
        return nameservers(RESOLV_CONF.read_text())[:NAMESERVERS_LIMIT]
    except (OSError, UnicodeDecodeError):  # there is none
        return ()


# -- the run -------------------------------------------------------------------------------------------------------
class Run:
    """One command under the supervisor's eyes."""

    def __init__(self, state: State, plan: Plan, roots_pem: bytes, capture: IO[bytes] | None) -> None:
        self._state, self._plan, self._roots, self._capture = state, plan, roots_pem, capture
        self.session = ""
        self._started_s = time.time()

    def open(self) -> control.RunOpened:
        """Hook and gate are ready afterwards. Raises CannotRun."""
        roots = memory_file("roots", self._roots)
        network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        order = control.OpenRun(
            program=self._plan.executable[:1024],
            arguments=len(self._plan.command) - 1,
            user=self._plan.caller.name,
            policy_file=self._plan.policy_file[:1024],
            policy_sha256=self._plan.policy_sha256,
            workers=self._plan.workers,
            capture=self._capture is not None,
            backend=self._plan.backend,
            keys=self._plan.keys is not None,
            nameservers=_nameservers(),
        )
        keys = [] if self._plan.keys is None else [self._plan.keys]
        fds = [network, self._plan.packed_policy, roots, *([self._capture.fileno()] if self._capture else []), *keys]
        answer = None
        for _ in range(JOIN_TRIES):  # the supervisor may be ending with its last run just when we ask
            self._channel = join(self._state, worker=self._plan.policy.needs_workers)
            self._empty_capture()
            if (answer := self._asked(order, *fds, timeout_s=START_DEADLINE_S)) is not None:
                break
            self._channel.close()
        for descriptor in (network, self._plan.packed_policy, roots, *keys):
            os.close(descriptor)
        if isinstance(answer, control.Refused) and answer.status == refusals.OURS:
            raise CannotRun(*refusals.of_start(answer.error, self._state))
        if isinstance(answer, control.Refused):
            raise CannotRun(answer.error, answer.remedy, answer.status)
        if not isinstance(answer, control.RunOpened):
            raise CannotRun("the supervisor ended", f"read {self._state.supervisor_log}", 125)
        self.session = answer.session
        return answer

    def _empty_capture(self) -> None:
        """What an earlier run captured goes only now, when nothing but the run itself can fail any more."""
        if self._capture is not None and stat.S_ISREG(os.fstat(self._capture.fileno()).st_mode):
            os.ftruncate(self._capture.fileno(), 0)

    def _asked(self, message: Any, *fds: int, timeout_s: float | None) -> Any:
        try:
            received = self._channel.exchange(message, *fds, timeout_s=timeout_s)
        except (OSError, TimeoutError):
            return None
        return received[0] if received is not None else None

    def command(self, opened: control.RunOpened, environ: Mapping[str, str]) -> int:
        """Run the command to its end and return its status as a shell would. Raises CannotRun if it cannot start."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)  # what comes from now on is for the command
        try:
            return self._started(opened, environ, before)
        finally:
            for number in KEYBOARD:
                signal.signal(number, signal.SIG_IGN)  # and what was still pending goes
            while signal.sigtimedwait(HEARD, 0) is not None:
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _started(self, opened: control.RunOpened, environ: Mapping[str, str], mask: set[int]) -> int:
        members = entrance(opened.cgroup)
        try:
            pid, error = _fork(self._plan, members, environ, mask)
        finally:
            os.close(members)
        if error is not None:
            os.waitpid(pid, 0)
            status = 127 if error == errno.ENOENT else 126
            raise CannotRun(
                f"{self._plan.command[0]}: {os.strerror(error)}", "check the program and its #! line", status
            )
        return _wait(pid)

    def close(self, status: int | None) -> Report:
        """Everything is committed afterwards, or the report's `error` says that it may not be."""
        answer, left = None, ""
        waits = self._plan.wait
        try:
            for number in KEYBOARD if waits else ():
                signal.signal(number, _interrupt_once)
            ended = control.CommandEnded(status=status, wait=waits)
            answer = self._asked(ended, timeout_s=None if waits else CLOSE_DEADLINE_S)
        except KeyboardInterrupt:
            left = "not waited for to its end: the run goes on, diverted and recorded, until its last child has ended"
        for number in KEYBOARD:
            signal.signal(number, signal.SIG_IGN)
        self._channel.close()
        counts = answer if isinstance(answer, control.RunClosed) else None
        known = () if counts is None else (*RECORDED, *SEEN) if counts.committed else SEEN
        numbers: dict[str, Any] = {name: getattr(counts, name) if name in known else None for name in RECORDED + SEEN}
        return Report(
            session=self.session,
            command=self._plan.command,
            status=status if status is not None else 125,
            status_of="command" if status is not None else "mitmsec",
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started_s)),
            duration_s=round(time.time() - self._started_s, 3),
            **numbers,
            error=left or self._doubt(counts),
        )

    def _doubt(self, counts: control.RunClosed | None) -> str:
        if counts is None:
            return (
                f"the supervisor ended before the run did, killed unless {self._state.supervisor_log} says why; "
                f"connections from then on were {_WENT[self._plan.policy.on_failure]}"
            )
        if not counts.committed:
            return f"the recorder did not confirm that every event is on disk; read {self._state.supervisor_log}"
        return ""


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    """What a second Ctrl-C would end is over in a moment, and tells the command's own status."""
    for number in KEYBOARD:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def entrance(cgroup: str) -> int:
    """The descriptor by which processes enter it. Raises CannotRun where the supervisor's path is not seen."""
    try:
        return os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        remedy = "call mitmsec where its supervisor runs, or with a state of its own (--state)"
        raise CannotRun(f"the run's cgroup {cgroup} cannot be entered from here: {error.strerror}", remedy, 3) from None


def _fork(plan: Plan, members: int, environ: Mapping[str, str], mask: set[int]) -> tuple[int, int | None]:
    """The command's process, in the cgroup before its first instruction, as the caller's user; or why exec failed.

    `members` is the cgroup's `entrance`.

    Called with the signals HEARD blocked; the command gets `mask` and every action as it would be without us.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()  # closed by a successful exec
    pid = os.fork()
    if pid:
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read()
        return pid, int(said) if said else None
    try:
        os.write(members, b"0")
        caller = plan.caller
        if os.getuid() != caller.uid:
            os.setgroups(os.getgrouplist(caller.name, caller.gid) if not caller.name.isdigit() else [caller.gid])
            os.setresgid(caller.gid, caller.gid, caller.gid)
            os.setresuid(caller.uid, caller.uid, caller.uid)
            environ = {**environ, "HOME": caller.home, "USER": caller.name, "LOGNAME": caller.name}
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, the command may not
            signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _execute(plan, environ)
    except OSError as error:
        os.write(writing, str(error.errno).encode())
    finally:
        os._exit(125)


def _execute(plan: Plan, environ: Mapping[str, str]) -> None:
    """As execvp(3) does: what the kernel does not know as a program is a shell script."""
    try:
        os.execve(plan.executable, plan.command, environ)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        os.execve("/bin/sh", ["/bin/sh", plan.executable, *plan.command[1:]], environ)


def _wait(pid: int) -> int:
    """Wait as a shell would: signals sent to us go on to the command, its stop is our stop, its status our result.

    Called with the signals HEARD blocked. What the keyboard sends reaches the command by itself, since it is in our
    process group; what it sent us itself, as to the whole group, it has had too.
    """
    while True:
        ended, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
        if not ended:
            told = signal.sigwaitinfo(HEARD)
            is_keyboards = told.si_signo in KEYBOARD and told.si_code == SI_KERNEL
            if told.si_signo != signal.SIGCHLD and not is_keyboards and told.si_pid != pid:
                _pass_on(pid, told.si_signo)
        elif not os.WIFSTOPPED(status):
            return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        elif _is_stopped(pid):  # the terminal may have continued both of us already
            os.kill(os.getpid(), signal.SIGSTOP)
            _pass_on(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    time.sleep(0.02)  # the terminal signals one process of the group after the other
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


def _pass_on(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
