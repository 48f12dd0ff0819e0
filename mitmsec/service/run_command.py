"""`mitmsec run`: options in, the command's own status out."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import IO

import click
import msgspec

from mitmsec.config import STDIN
from mitmsec.core.model import Action
from mitmsec.core.policy import DEFAULT_POLICY, Policy
from mitmsec.core.policy_packing import packed
from mitmsec.service import control, refusals
from mitmsec.service.caller import Caller, acting_as, open_result, who_calls
from mitmsec.service.options import EXIT_PRIVILEGE, EXIT_USAGE, debug_option, fail, need_root, state_option
from mitmsec.service.origin_roots import origin_roots
from mitmsec.service.policy_loading import Loaded, flaws_told, load
from mitmsec.service.prepared import prepared_for
from mitmsec.service.refusals import CannotRun
from mitmsec.service.run import WORKERS_LIMIT, Plan, Report, Run, find_executable, memory_file, plan_policy
from mitmsec.service.run_summary import capture_doubt, is_wanted, say, tell_summary, tell_survivors
from mitmsec.service.state import State
from mitmsec_certs.bundle import BadBundle, Bundle, roots_as_used
from mitmsec_certs.truststore.environment import CommandTrust, command_trust

EXIT_INTERRUPTED = 130  # as a shell says it of SIGINT


@click.command(context_settings={"allow_interspersed_args": False})
@state_option
@debug_option
@click.option("--policy", "policy_file", metavar="FILE", help="The policy; without one, everything is decrypted.")
@click.option("--capture", "capture_file", metavar="FILE.pcapng", help="Write the run's flows, with their process.")
@click.option("--report", "report_file", metavar="FILE.json", help="Write whose exit status it was, and the counts.")
@click.option("--user", metavar="USER", help="Run CMD as this user. Default: who called sudo, else the caller.")
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes. Default: one a core, at most 4.")
@click.option(
    "--backend",
    type=click.Choice([choice.value for choice in control.BackendChoice]),
    default=control.BackendChoice.AUTO.value,
    help="What diverts. Default: connect_hook where eBPF works, else nftables; windivert, on Linux, is for tests.",
)
@click.option("--wait", is_flag=True, help="Stay until the last child of CMD has ended.")
@click.option("--java", is_flag=True, help="Tell Java of the CA too (its runtime prints a line to stderr).")
@click.option("--summary/--no-summary", default=None, help="One line on stderr at the end. Default: on a terminal.")
@click.argument("command", nargs=-1, required=True, metavar="[--] CMD [ARG]...")
def run(
    state_folder: Path,
    policy_file: str | None,
    capture_file: str | None,
    report_file: str | None,
    user: str | None,
    workers: int | None,
    backend: str,
    command: tuple[str, ...],
    *,
    wait: bool,
    java: bool,
    summary: bool | None,
) -> None:
    """Run CMD with its connections, and its children's, diverted.

    CMD's environment is told of the CA; nothing else on the machine is. Its input, output, signals and exit status
    pass through. Status 2, 3, 125, 126 or 127 before CMD starts is ours; `--report` says whose it was.
    """
    need_root("run")
    environ = dict(os.environ)
    named = {"--policy": policy_file, "--capture": capture_file, "--report": report_file}
    _tell_apart({option: path for option, path in named.items() if path is not None}, _caller(environ, user))
    with _reporting(report_file, command, user, environ) as sink:
        choice = control.BackendChoice(backend)
        plan = _plan(
            environ, policy_file, user, workers, command, choice, state=State(state_folder), wait=wait, java=java
        )
        _run(plan, State(state_folder), environ, capture_file, sink)
        if is_wanted(summary):
            tell_summary(sink.report, State(state_folder), keeps=capture_file is not None)
    sys.exit(sink.report.status)


def _tell_apart(files: Mapping[str, str], caller: Caller) -> None:
    """One of them would be written over the other."""
    with acting_as(caller):
        same = next(((one, two) for one, two in combinations(files, 2) if _is_same(files[one], files[two])), None)
    if same is not None:
        one, two = same
        fail(f"{one} and {two} are the same file: {files[two]}", "name another file for one of them", EXIT_USAGE)


def _is_same(one: str, two: str) -> bool:
    try:
        found = os.stat(one)
        return not stat.S_ISCHR(found.st_mode) and os.path.samestat(found, os.stat(two))  # both may go to /dev/null
    except OSError:
        return os.path.realpath(one) == os.path.realpath(two)


class _Sink:
    """Where the report goes: opened before anything starts, with the caller's rights, and written once, at the end."""

    def __init__(self, file: IO[str] | None, command: tuple[str, ...]) -> None:
        self._file = file
        self.report = Report(session="", command=command, status=125, status_of="mitmsec", started="", duration_s=0.0)

    def ours(self, status: int, error: str) -> None:
        """The status is mitmsec's own, whatever has been reported of the run so far."""
        self.report = msgspec.structs.replace(self.report, status=status, status_of="mitmsec", error=error)

    def write(self) -> None:
        """Over an earlier report, unless all there is to tell is that the input was wrong."""
        if self._file is None:
            return
        found = os.fstat(self._file.fileno())
        is_wrong_input = not self.report.session and self.report.status == EXIT_USAGE
        if stat.S_ISREG(found.st_mode):
            if is_wrong_input and found.st_size:
                return
            os.ftruncate(self._file.fileno(), 0)  # only now: an earlier report is better than half of one
        self._file.write(json.dumps(msgspec.to_builtins(self.report), indent=2) + "\n")


@contextmanager
def _reporting(
    path: str | None, command: tuple[str, ...], user: str | None, environ: Mapping[str, str]
) -> Iterator[_Sink]:
    """Errors before the command starts end here: said on stderr, and in the report."""
    with contextlib.ExitStack() as stack:
        file = None
        if path is not None:
            with _complaining("--report", path):
                descriptor = open_result(path, _caller(environ, user))
                file = stack.enter_context(open(descriptor, "w", encoding="utf-8", closefd=True))
        sink = _Sink(file, command)
        stack.callback(sink.write)
        try:
            yield sink
        except KeyboardInterrupt:
            sink.ours(EXIT_INTERRUPTED, "interrupted before the command started")
            sys.exit(EXIT_INTERRUPTED)
        except CannotRun as error:
            sink.ours(error.status, error.error)
            fail(error.error, error.remedy, error.status)
        except OSError as error:
            if error.errno not in refusals.FULL:
                raise
            sink.ours(EXIT_PRIVILEGE, str(error))
            fail(str(error), "make room, and start it again", EXIT_PRIVILEGE)
        except SystemExit as ended:
            if ended.code != sink.report.status:
                sink.ours(int(ended.code or 0), "wrong usage or an invalid policy; stderr says more")
            raise


@contextmanager
def _complaining(option: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fail(f"{option}: {path}: {error.strerror}", "name a file that the command's user may write", EXIT_USAGE)


def _caller(environ: Mapping[str, str], user: str | None) -> Caller:
    try:
        return who_calls(environ, user=user)
    except KeyError:
        fail(f"--user: there is no user {user}", "give a name or a number that `id` knows", EXIT_USAGE)


def _plan(
    environ: Mapping[str, str],
    policy_file: str | None,
    user: str | None,
    workers: int | None,
    command: tuple[str, ...],
    backend: control.BackendChoice,
    *,
    state: State,
    wait: bool,
    java: bool,
) -> Plan:
    caller = _caller(environ, user)
    loaded = _policy(policy_file, caller)
    with flaws_told(Path(policy_file or "")):
        prepared = prepared_for(loaded.policy, state, loaded.rules)
    return Plan(
        command=command,
        executable=find_executable(command[0], environ, caller),
        caller=caller,
        policy=loaded.policy.without_names,
        packed_policy=memory_file("policy", packed(loaded.policy, prepared)),
        policy_file=_whole_path(policy_file) if policy_file else "(built in: decrypt everything)",
        policy_sha256=plan_policy(loaded.text if policy_file else None),
        upstream_roots=loaded.roots,
        keys=loaded.keys,
        workers=workers or min(WORKERS_LIMIT, len(os.sched_getaffinity(0))),
        wait=wait,
        java=java,
        backend=backend,
    )


def _policy(path: str | None, caller: Caller) -> Loaded:
    if path is None:
        return Loaded(DEFAULT_POLICY, "")
    if Path(path) == STDIN:
        fail("--policy: standard input is the command's", "name a file, or <(…) in a shell that knows it", EXIT_USAGE)
    with acting_as(caller):
        return load(Path(path))


def _whole_path(policy_file: str) -> str:
    """What stands in the log: where the text came from, seen from anywhere. A pipe has no such path."""
    real = os.path.realpath(policy_file)
    return real if os.path.isfile(real) else os.path.abspath(policy_file)


def _run(plan: Plan, state: State, environ: dict[str, str], capture_path: str | None, sink: _Sink) -> None:
    with contextlib.ExitStack() as stack:
        capture = None
        with acting_as(plan.caller):
            bundle = _roots(environ)
        if capture_path is not None:
            capture = stack.enter_context(_capture_file(capture_path, plan.caller))
        one = Run(state, plan, origin_roots(bundle, plan.policy, plan.upstream_roots), capture)
        opened = one.open()
        status = None
        try:
            told = _tell_environment(environ, bundle, opened, plan)
            if plan.caller.uid == 0:
                say("mitmsec: the command runs as root; --user chooses another user")
            if plan.backend is control.BackendChoice.WINDIVERT:
                say("mitmsec: windivert does not divert connections within this machine; the default backend does")
            if capture is None and _captures(plan.policy):
                say("mitmsec: the policy captures connections, but without --capture nothing of them is kept")
            status = one.command(opened, told)
        finally:
            sink.report = one.close(status)
        if capture is not None and (doubt := capture_doubt(sink.report, state)):
            sink.report = msgspec.structs.replace(
                sink.report, error="; ".join(filter(None, (sink.report.error, doubt)))
            )
        if sink.report.error:
            say(f"mitmsec: {sink.report.error}")
        tell_survivors(sink.report)


def _capture_file(path: str, caller: Caller) -> IO[bytes]:
    """The file, ours alone as long as anybody of the run holds its descriptor."""
    with _complaining("--capture", path):
        file = os.fdopen(open_result(path, caller), "wb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = f"another run{_locker(os.fstat(file.fileno()).st_ino)}"
                fail(f"--capture: {who} is writing {path}", "name another file, or wait for its end", EXIT_USAGE)
        return file


def _locker(inode: int) -> str:
    """The process that has locked the file, as far as the kernel tells; the run may outlive it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if "FLOCK" in words and any(word.endswith(f":{inode}") for word in words):
                return f" (pid {words[4]})"
    return ""


def _captures(policy: Policy) -> bool:
    return Action.CAPTURE in (policy.action, policy.inbound, *(rule.action for rule in policy.rules))


def _roots(environ: Mapping[str, str]) -> Bundle:
    try:
        return roots_as_used(environ)
    except BadBundle as error:
        raise CannotRun(str(error), "put the variable right or unset it", EXIT_USAGE) from None


def _tell_environment(environ: dict[str, str], bundle: Bundle, opened: control.RunOpened, plan: Plan) -> dict[str, str]:
    """The command's environment: what it had, and where the roots now stand."""
    folder = Path(opened.folder)
    try:
        with acting_as(plan.caller):
            trust = command_trust(environ, bundle, opened.root_pem)
    except BadBundle as error:
        raise CannotRun(str(error), "put the variable right or unset it", EXIT_USAGE) from None
    told = environ | trust.variables(str(_kept(folder, "roots.pem", trust.bundle_pem)), _extra(folder, trust))
    if plan.java:
        told |= _java(folder, environ, trust)
    with acting_as(plan.caller):
        if not os.access(folder / "roots.pem", os.R_OK, effective_ids=True):
            raise CannotRun(
                f"{plan.caller.name} cannot reach {folder}",
                "choose a state directory that everybody may pass: --state /var/lib/mitmsec",
                EXIT_USAGE,
            )
    return told


def _kept(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    path.chmod(0o644)
    return path


def _extra(folder: Path, trust: CommandTrust) -> str:
    return str(_kept(folder, "extra.pem", trust.extra_pem))


def _java(folder: Path, environ: Mapping[str, str], trust: CommandTrust) -> dict[str, str]:
    from mitmsec_certs.truststore.java import VARIABLE, java_options, java_truststore

    path = _kept(folder, "roots.p12", java_truststore(trust.bundle_pem))
    return {VARIABLE: f"{environ.get(VARIABLE, '')} {java_options(str(path))}".strip()}
