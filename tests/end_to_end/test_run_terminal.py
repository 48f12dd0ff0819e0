"""`mitmsec run` stays out of the way: streams, signals, job control and exit status are the command's."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MITMSEC, Mitmsec, Network, status_of

from mitmsec.service import survivors
from mitmsec.service.state import State

pytestmark = [pytest.mark.root, pytest.mark.joined, pytest.mark.unread]


def test_input_output_and_status_pass_through_with_one_word_of_ours(network: Network, mitmsec: Mitmsec) -> None:
    """That the command runs as root; to one that runs as the user that was chosen nothing is said."""
    done = mitmsec.run("--", "sh", "-c", "cat; echo to-stderr >&2; exit 42", input="to-stdin\n")
    assert (done.returncode, done.stdout) == (42, "to-stdin\n")
    assert done.stderr == "mitmsec: the command runs as root; --user chooses another user\nto-stderr\n"
    script = "id -un; id -u; head -c 10 $SSL_CERT_FILE; echo err >&2"
    done = mitmsec.run("--user", "nobody", "--", "sh", "-c", script)
    assert done.stderr == "err\n"
    assert done.stdout.splitlines()[0] == "nobody"
    assert done.stdout.splitlines()[2] == "-----BEGIN", done.stderr


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("no-such-command-here", 127, "not found"),
        ("./plain-text", 126, "not executable"),
        ("./", 126, ": is a directory\n"),
    ],
)
@pytest.mark.joined(False)
def test_what_cannot_be_run_ends_as_env_would(
    network: Network, mitmsec: Mitmsec, tmp_path: Path, command: str, status: int, said: str
) -> None:
    (tmp_path / "plain-text").write_text("nothing to run\n")
    done = mitmsec.run("--", command.replace("./", f"{tmp_path}/"))
    assert done.returncode == status
    assert said in done.stderr
    assert not mitmsec.state.exists()


def test_the_policys_whole_path_stands_in_the_log(network: Network, mitmsec: Mitmsec) -> None:
    """A relative one, and one through a link, would mean something else tomorrow."""
    text = '[defaults]\naction = "bypass"\n'
    policy = Path(mitmsec.policy(text))
    (link := policy.with_name("link.toml")).symlink_to(policy)
    for given in (policy.name, link.name):
        run = [*MITMSEC, "run", "--state", str(mitmsec.state), "--workers", "1", "--policy", given, "--", "true"]
        subprocess.run(network.inside("sh", "-c", 'cd "$0" && exec "$@"', str(policy.parent), *run), check=True)
    assert mitmsec.run("--policy", "/dev/stdin", "--", "true", input=f"version = 1\n{text}").returncode == 0
    paths = [event["path"] for event in mitmsec.of_kind("policy")]
    assert paths == [os.path.realpath(policy)] * 2 + ["/dev/stdin"]


def test_a_script_without_interpreter_line_is_the_shells_and_a_very_long_command_line_and_word_list_are_fine(
    network: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    (tmp_path / "script").write_text("echo ran with $1\n")
    (tmp_path / "script").chmod(0o755)
    words = ", ".join(f'"word{number:0190}"' for number in range(1000))
    policy = mitmsec.policy(f'[defaults]\ninspect = ["keywords"]\n[inspector.keywords]\nwords = [{words}]\n')
    arguments = ["x" * 100] * 3000
    done = mitmsec.run("--policy", policy, "--", str(tmp_path / "script"), "this", *arguments)
    assert (done.returncode, done.stdout) == (0, "ran with this\n"), done.stderr


def test_a_stopped_command_stops_us_and_signals_that_only_we_were_sent_reach_it(
    network: Network, mitmsec: Mitmsec
) -> None:
    """As by kill(1), which knows our pid and not the command's. It is continued with us."""
    numbers = [int(number) for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)]
    script = (
        "import os, signal, sys, time\n"
        f"for number in {numbers}: signal.signal(number, lambda number, _: os.write(1, b'%d\\n' % number))\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))\n"
        "print(os.getpid(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "print('on', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    run = mitmsec.start("--", sys.executable, "-c", script)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    _until(lambda: _state(run.pid) == "T")
    assert _state(pid) == "T"
    run.send_signal(signal.SIGCONT)
    assert run.stdout.readline() == "on\n"
    for number in numbers:
        run.send_signal(number)
        assert run.stdout.readline() == f"{number}\n"
    run.send_signal(signal.SIGUSR2)
    assert run.wait(20) == 7
    run.communicate()


@pytest.mark.joined(False)
def test_an_interrupt_before_the_command_starts_is_130_and_destroys_nothing(
    network: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    """A supervisor that never comes stands in for any slow start."""
    report, capture = tmp_path / "report.json", tmp_path / "capture.pcapng"
    report.write_text("an earlier report")
    capture.write_text("an earlier capture")
    state = State(mitmsec.state)
    state.make()
    lock = state.hold()
    run = mitmsec.start("--report", str(report), "--capture", str(capture), "--", "touch", str(tmp_path / "started"))
    try:
        _until(lambda: state.supervisor_log.exists() and "pid" in state.supervisor_log.read_text())
        assert report.read_text() == "an earlier report"
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=20)
    finally:
        run.kill()
        os.close(lock)
    assert run.returncode == 130
    assert "Traceback" not in errors
    told = json.loads(report.read_text())
    assert (told["status"], told["status_of"]) == (130, "mitmsec")
    assert capture.read_text() == "an earlier capture"
    assert not (tmp_path / "started").exists()


def test_a_wrong_policy_leaves_earlier_results_alone(network: Network, mitmsec: Mitmsec, tmp_path: Path) -> None:
    earlier = {option: tmp_path / option for option in ("--report", "--capture")}
    for result in earlier.values():
        result.write_text("earlier")
    options = (word for option, result in earlier.items() for word in (option, str(result)))
    done = mitmsec.run("--policy", mitmsec.policy("x = 1\n"), *options, "--", "true")
    assert done.returncode == 2
    assert [result.read_text() for result in earlier.values()] == ["earlier"] * 2


@pytest.mark.parametrize("option", ["--report", "--capture"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_others_laid_in_a_folder_for_everybody_is_not_written_to(
    network: Network, mitmsec: Mitmsec, tmp_path: Path, option: str, kind: str
) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir()
    shared.chmod(0o1777)
    victim.write_text("precious")
    laid = shared / "result"
    if kind == "link":
        laid.symlink_to(victim)
    else:
        laid.write_text("precious")
        os.chown(laid, 1000, 1000)
    done = mitmsec.run(option, str(laid), "--", "touch", str(tmp_path / "started"))
    assert done.returncode == 2, done.stderr
    assert str(laid) in done.stderr
    assert (victim.read_text(), laid.read_text()) == ("precious", "precious")
    assert not (tmp_path / "started").exists()


@pytest.mark.joined(False)
def test_a_state_directory_of_somebody_else_is_refused(network: Network, mitmsec: Mitmsec) -> None:
    mitmsec.state.mkdir()
    os.chown(mitmsec.state, 1000, 1000)
    done = mitmsec.run("--", "true")
    assert done.returncode == 2
    assert "belongs to user 1000" in done.stderr
    assert "only root" in done.stderr
    mitmsec.state.rmdir()


def test_the_report_says_whose_status_it_was_and_arguments_never_stand_in_the_log(
    network: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    command = ["sh", "-c", "exit 3", "--password", "hunter2"]
    mitmsec.run("--report", str(report), "--", *command)
    ours = json.loads(report.read_text())
    assert (ours["status"], ours["status_of"], ours["command"]) == (3, "command", command)
    mitmsec.run("--report", str(report), "--", "no-such-command-here")
    theirs = json.loads(report.read_text())
    assert (theirs["status"], theirs["status_of"]) == (127, "mitmsec")
    assert "hunter2" not in json.dumps(mitmsec.events())
    (started,) = [event for event in mitmsec.of_kind("service") if event["operation"] == "run_started"]
    assert started["command"][0].endswith("/sh")
    assert started["detail"] == "4 arguments, diverted by connect_hook"


def test_ctrl_c_and_ctrl_z_are_the_commands(network: Network, mitmsec: Mitmsec) -> None:
    """On a terminal: the interrupt ends the command, the suspension suspends both and `fg` continues both."""
    script = (
        "import os, signal, sys, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *a: (seen.append(1), os.write(1, b'interrupted\\n')))\n"
        "print('up', flush=True)\n"
        "while not seen: time.sleep(0.1)\n"
        "time.sleep(0.5)\n"
        "sys.exit(6 + len(seen))\n"
    )
    controller, terminal = pty.openpty()
    run = subprocess.Popen(
        mitmsec.begun_by("--", sys.executable, "-c", script),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=mitmsec.environment(),
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(terminal)
    seen = _read_until(controller, "up")
    os.write(controller, b"\x03")
    seen += _read_until(controller, "interrupted")
    assert run.wait(20) == 7, seen  # once, though we had it as well
    os.close(controller)


def _read_until(descriptor: int, word: str, within_s: float = 30) -> str:
    seen = ""
    deadline = time.monotonic() + within_s
    while word not in seen:
        ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{word!r} did not come; seen: {seen!r}"
        seen += os.read(descriptor, 4096).decode()
    return seen


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _until(true: object, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.joined(False)
def test_a_wrong_policy_starts_nothing_and_names_every_error_and_is_reported_too(
    network: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    policy = mitmsec.policy('[[rule]]\nname = "a"\naction = "explode"\n\n[[rule]]\nname = "a"\nhots = ["x"]\n')
    started = ("--", "touch", str(mitmsec.state.parent / "started"))
    done = mitmsec.run("--policy", policy, "--report", str(report), *started)
    assert done.returncode == 2
    told = json.loads(report.read_text())
    assert (told["status"], told["status_of"]) == (2, "mitmsec")
    assert f"{policy}:4" in done.stderr
    assert "runs as root" not in done.stderr  # first things first
    assert "hots" in done.stderr
    assert not (mitmsec.state.parent / "started").exists()
    assert not mitmsec.state.exists()


def test_without_root_it_says_what_to_do(network: Network, mitmsec: Mitmsec) -> None:
    command = ["unshare", "--user", *MITMSEC, "run", "--", "true"]  # in there nobody is root
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "sudo" in done.stderr


@pytest.mark.joined(False)
def test_two_runs_share_one_log_and_a_signal_reaches_the_one_that_it_is_for_whose_death_is_told(
    network: Network, mitmsec: Mitmsec
) -> None:
    first = mitmsec.start("--", sys.executable, "-c", "print('up', flush=True); input()", stdin=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == "up\n"
    second = mitmsec.start("--", sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)")
    assert second.stdout is not None
    assert second.stdout.readline() == "up\n"
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 128 + signal.SIGTERM
    second.communicate()
    first.communicate("\n")
    assert first.returncode == 0
    runs = [event for event in mitmsec.of_kind("service") if event["operation"].startswith("run_")]
    assert [event["operation"] for event in runs] == ["run_started", "run_started", "run_ended", "run_ended"]


def test_waiting_for_the_last_child_can_be_given_up(network: Network, mitmsec: Mitmsec) -> None:
    run = mitmsec.start("--wait", "--", "sh", "-c", "sleep 300 </dev/null >/dev/null 2>&1 & echo $!")
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    try:
        while _name_of_parent(pid) == "sh":  # until the command has ended, the signal would be for it
            time.sleep(0.01)
        until = time.monotonic() + 30
        while run.poll() is None and time.monotonic() < until:
            run.send_signal(signal.SIGINT)
            time.sleep(0.2)
        _, err = run.communicate(timeout=10)
        assert "not waited for to its end" in err
        assert run.returncode == 0
        assert "mitmsec-" in Path(f"/proc/{pid}/cgroup").read_text()  # still diverted
    finally:
        os.kill(pid, signal.SIGKILL)


def _name_of_parent(pid: int) -> str:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return Path(f"/proc/{status['PPid']}/comm").read_text().strip()


@pytest.mark.joined(False)
def test_children_that_live_on_are_no_longer_diverted_and_keep_the_roots_that_their_environment_names(
    origin: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    """Undiverted they meet the origin's own certificate, and verify it; when they have ended, the next start tidies."""
    os.mkfifo(tmp_path / "go")
    daemon = (
        f"read line <{tmp_path}/go; curl -sS https://origin.test/hello >{tmp_path}/said 2>&1; echo $? >{tmp_path}/done"
    )
    done = mitmsec.run("--", "sh", "-c", f"({daemon}) >/dev/null 2>&1 & echo $! $SSL_CERT_FILE")
    assert done.stderr.endswith("mitmsec: 1 process lives on, no longer diverted; --wait stays with them\n")
    pid, named = done.stdout.split()
    roots = Path(named)
    assert "mitmsec-" not in Path(f"/proc/{pid}/cgroup").read_text()
    ended = [event for event in mitmsec.of_kind("service") if event["operation"] == "run_ended"]
    assert ended[0]["detail"] == "1 process lives on, no longer diverted"
    assert mitmsec.run("--", "true").returncode == 0  # a start, and an end, in between
    cleaned = subprocess.run([*MITMSEC, "clean", "--state", str(mitmsec.state)], capture_output=True, text=True)
    assert f"{roots.parent.name} stays: its roots are those of process" in cleaned.stdout
    assert roots.exists()
    (tmp_path / "go").write_text("\n")
    _until(lambda: (tmp_path / "done").exists() and (tmp_path / "done").read_text() == "0\n")
    assert (tmp_path / "said").read_text().startswith("hello over ")
    _until(lambda: not survivors.living(roots.parent))
    assert mitmsec.run("--", "true").returncode == 0
    assert not roots.parent.exists()


def test_a_program_whose_interpreter_is_missing_never_started(
    network: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    """So the status is ours, and the report is one document that says so."""
    (tmp_path / "script").write_text("#!/no/such/interpreter\n")
    (tmp_path / "script").chmod(0o755)
    report = tmp_path / "report.json"
    assert mitmsec.run("--report", str(report), "--", str(tmp_path / "script")).returncode == 127
    told = json.loads(report.read_text())
    assert (told["status"], told["status_of"]) == (127, "mitmsec")
    ended = [event for event in mitmsec.of_kind("service") if event["operation"] == "run_ended"]
    assert [event.get("status") for event in ended] == [None]


@pytest.mark.joined(False)
def test_a_recorder_that_does_not_confirm_is_told(network: Network, mitmsec: Mitmsec, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    script = "print('up', flush=True); input()"
    run = mitmsec.start("--report", str(report), "--", sys.executable, "-c", script, stdin=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    recorder = next(pid for role, pid, _ in status_of(mitmsec).processes if role == "recorder")
    os.kill(recorder, signal.SIGSTOP)
    _, errors = run.communicate("\n", timeout=60)
    assert not Path(f"/proc/{recorder}").exists(), "one that hangs is ended"
    assert run.returncode == 0
    assert "did not confirm" in errors
    told = json.loads(report.read_text())
    assert "did not confirm" in told["error"]
    assert [told[count] for count in ("connections", "requests", "findings", "faults")] == [None] * 4
    assert (told["cut"], told["survivors"]) == (0, 0)
