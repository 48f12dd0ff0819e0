"""`mitmsec demo`: a tour in a network of its own. Real origins, real clients, the real thing in between.

private network and mounts ── origins (own process) ◄── gate ◄── curl, Python under `mitmsec run`
                                                                    │
what each step printed, what the origins saw and what the log holds are compared: only then a step counts
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from mitmsec.service.called import program
from mitmsec.service.demo_tour import ADDRESSES, POLICY, STEPS, TOUR, Evidence, Step
from mitmsec.service.options import EXIT_NOT_SO, EXIT_PRIVILEGE, debug_option, fail, need_root
from mitmsec.service.terminal import console, shown, tell

PIPED_COLUMNS = 120
CLONE_FLAGS = os.CLONE_NEWNET | os.CLONE_NEWNS if hasattr(os, "CLONE_NEWNET") else 0


@click.command()
@debug_option
@click.option("--keep", is_flag=True, help="Keep the folder with the log and the capture file, and say where it is.")
def demo(*, keep: bool) -> None:
    """Take a tour on origins of its own, in seconds.

    It shows decrypt, bypass, block, capture, a finding and a refused upload: offline, in a private network; nothing
    here is changed. Exit status 0 only if all of it happened.
    """
    need_root("demo")
    for tool in ("curl", "ip", "mount"):
        if shutil.which(tool) is None:
            fail(f"the demo needs {tool}", "on Debian: apt-get install curl iproute2 mount", EXIT_PRIVILEGE)
    folder = Path(tempfile.mkdtemp(prefix="mitmsec-demo-"))
    folder.chmod(0o755)
    is_told = False
    try:
        passed = _tour(folder, console(width_in_pipe=PIPED_COLUMNS), keep=keep)
        is_told = True
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        elif not is_told:
            click.echo(f"kept: {folder}", err=True)
    sys.exit(0 if passed else EXIT_NOT_SO)


def _tour(folder: Path, out: Console, *, keep: bool) -> bool:
    began = time.monotonic()
    policy = Syntax(POLICY.rstrip(), "toml", background_color="default", theme="ansi_dark")
    tell(out, "\n[bold]mitmsec[/] [dim]· see, govern and prove what a program sends[/]\n")
    tell(out, "The policy that governs this tour:\n", Padding(policy, (0, 4)))
    _own_network(folder)
    (folder / "policy.toml").write_text(POLICY)
    (folder / "tour.sh").write_text(TOUR)
    with out.status("starting origins"):
        origins = _origins(folder)
    try:
        with out.status("curl and Python are on tour, diverted in the kernel"):
            status, evidence = _run(folder)
            evidence.contacts = _contacts(folder)
    finally:
        origins.terminate()
        origins.wait()
    if status != 0:
        fail("the tour's run failed", f"its status was {status}; try --keep and read run/supervisor.log", EXIT_NOT_SO)
    results = [(step, step.check(evidence)) for step in STEPS]
    _show_steps(out, results)
    verified = _show_audit(folder, out)
    passed = verified and all(problem is None for _, problem in results)
    seconds = time.monotonic() - began
    word = "[green]All of it happened[/]" if passed else "[red]Not all of it happened[/]"
    left = f"What --keep keeps is in {folder}; nothing else of it" if keep else "Nothing of it"
    out.print(f"\n{word}, in {seconds:.0f} s. {left} is left on this machine.", soft_wrap=True)
    here = f" --state {shlex.quote(str(folder / 'state'))}" if keep else ""
    after = f"Next: {program()} run -- curl https://…\n      {program()} audit list{here}\n"
    out.print(Text(after, style="dim"), soft_wrap=True)  # to be copied: no line of it is broken
    return passed


def _own_network(folder: Path) -> None:
    """From here on this process has a network and mounts of its own: only loopback, our addresses, our names."""
    os.unshare(CLONE_FLAGS)
    _quietly("mount", "--make-rprivate", "/")
    _quietly("ip", "link", "set", "lo", "up")
    for address in ADDRESSES.values():
        _quietly("ip", "address", "add", address, "dev", "lo")
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items()))
    hosts.chmod(0o644)
    _quietly("mount", "--bind", str(hosts), "/etc/hosts")


def _quietly(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fail(f"{' '.join(command)}: {done.stderr.strip()}", "`mitmsec doctor` says what is missing", EXIT_PRIVILEGE)


def _origins(folder: Path) -> subprocess.Popen[str]:
    from mitmsec_certs.origin_pki import origin_pki

    names = tuple(name for name in ADDRESSES if not name.startswith("telemetry"))
    pki = origin_pki("Demo Origins", names, int(time.time()))
    (folder / "demo-root.pem").write_bytes(pki.root)
    for name, (chain, key) in pki.servers.items():
        (folder / f"{name}.pem").write_bytes(chain)
        (folder / f"{name}.key").write_bytes(key)
        (folder / f"{name}.key").chmod(0o600)
    log = open(folder / "origins.log", "w")  # noqa: SIM115 - lives as long as the process
    pairs = [f"{name}={address}" for name, address in ADDRESSES.items()]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mitmsec.service.demo_origins", str(folder), *pairs],
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )
    _until(lambda: "ready" in (folder / "origins.log").read_text(), process)
    return process


def _until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        if time.monotonic() > deadline or process.poll() is not None:
            fail("the demo's origins did not start", "try --keep and read origins.log", EXIT_NOT_SO)
        time.sleep(0.02)


def _contacts(folder: Path) -> list[str]:
    return (folder / "origins.log").read_text().splitlines()


def _mitmsec(*arguments: str, stderr: IO[str] | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "mitmsec", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
    )


def _run(folder: Path) -> tuple[int, Evidence]:
    arguments = ["--policy", str(folder / "policy.toml"), "--capture", str(folder / "demo.pcapng"), "--user", "root"]
    with open(folder / "run.log", "w") as log:
        done = _mitmsec(
            *["run", "--state", str(folder / "state"), *arguments, "--", "sh", str(folder / "tour.sh"), str(folder)],
            stderr=log,
            SSL_CERT_FILE=str(folder / "demo-root.pem"),
            DEMO_PYTHON=sys.executable,
        )
    events = _events(folder)
    printed = {step.name: _output(folder, step.name) for step in STEPS}
    capture = folder / "demo.pcapng"
    return done.returncode, Evidence(
        events=events, printed=printed, capture_bytes=capture.stat().st_size if capture.exists() else 0
    )


def _output(folder: Path, name: str) -> str:
    path = folder / f"{name}.out"
    return path.read_text(errors="replace") if path.exists() else ""


def _events(folder: Path) -> list[dict[str, Any]]:
    listed = _mitmsec("audit", "list", "--state", str(folder / "state"), "--json", "--limit", "1000")
    return [json.loads(line) for line in listed.stdout.splitlines()]


def _show_steps(out: Console, results: Sequence[tuple[Step, str | None]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for step, problem in results:
        mark = "[green]✔[/]" if problem is None else "[red]✘[/]"
        said = Text(step.shown, "dim") if problem is None else Text(shown(problem), "red")
        table.add_row(mark, Text(step.name, "bold"), step.told, said)
    tell(out, "\nWhat happened:\n", Padding(table, (0, 4)))


def _show_audit(folder: Path, out: Console) -> bool:
    tell(out, "\nWhat an auditor sees [dim](mitmsec audit list)[/]:\n")
    _show(folder, out, "list", indent=2)
    tell(out, "\nIs the log intact [dim](mitmsec audit verify)[/]?\n")
    return _show(folder, out, "verify", indent=4) == 0


def _show(folder: Path, out: Console, question: str, *, indent: int) -> int:
    """What `mitmsec audit QUESTION` prints, and its exit status."""
    asked = _mitmsec("audit", question, "--state", str(folder / "state"), COLUMNS=str(out.width - indent))
    for line in asked.stdout.splitlines():
        click.echo(f"{'':{indent}}{line}".rstrip())
    return asked.returncode
