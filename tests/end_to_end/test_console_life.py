"""`mitmsec audit console` and `audit account` as they are called: the process, what it may, the record, and its end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from conftest import MITMSEC, here

from mitmsec.cli import cli
from mitmsec.core.messages import Role
from mitmsec.core.policy import Policy
from mitmsec.service import notices
from mitmsec.service.accounts import account_of
from mitmsec.service.state import State

pytestmark = pytest.mark.root
PASSWORD = "four plain words here"


@pytest.fixture
def state() -> Iterator[Path]:
    """In a folder that the console's user may pass."""
    folder = Path(tempfile.mkdtemp(prefix="mitmsec-console-"))
    folder.chmod(0o711)
    yield folder / "state"
    shutil.rmtree(folder)


def mitmsec(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MITMSEC, *arguments], capture_output=True, text=True, check=False, timeout=60)


def called(*arguments: str, text: str = "") -> Result:
    """In this process: to start another for each takes half of the test's time."""
    return CliRunner().invoke(cli, arguments, input=text, catch_exceptions=False)


class Called:
    """A console that was started, and a browser of one person."""

    def __init__(self, state: Path, *options: str) -> None:
        command = [*MITMSEC, "audit", "console", "--state", str(state), "--listen", "127.0.0.1:0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("the console is at "), line + self.process.communicate()[1]
        self.address = line.split()[4].rstrip("/")
        begun = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.pid = next(int(pid) for pid in begun if b"\0console\0" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def browser(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, headers={"origin": self.address}, trust_env=False, **options)

    def signed_in(self, name: str) -> httpx.Client:
        made = self.browser()
        found = made.post("/sign-in", data={"name": name, "password": PASSWORD})
        assert (found.status_code, found.headers["location"]) == (303, "/overview")
        return made

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=20)[1]
        return self.process.returncode, said


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def recorder_of(state: Path) -> int:
    answer = json.loads(here("status", "--json", "--state", str(state)))
    return next(int(pid) for role, pid, _ in answer["processes"] if role == "recorder")


def supervisor_of(state: Path) -> int:
    return int(json.loads(here("status", "--json", "--state", str(state)))["supervisor"])


def test_an_auditor_is_given_an_account_reviews_and_takes_the_proof_away(state: Path, tmp_path: Path) -> None:
    where = ("--state", str(state))
    added = called(
        "audit", "account", "add", "rosa", "--role", "reviewer", "--password-stdin", *where, text=PASSWORD + "\n"
    )
    assert (added.exit_code, added.stdout) == (0, "")
    once = called("audit", "account", "add", "otto", "--role", "viewer", *where)
    assert re.fullmatch(r"(\w{5}-){3}\w{5}\n", once.stdout)
    assert "must be changed at the first sign-in" in once.stderr
    assert called("audit", "account", "add", "otto", "--role", "viewer", *where).exit_code == 1
    assert called("audit", "account", "add", "a b", "--role", "viewer", *where).exit_code == 2
    notices.put_up(State(state), Policy())
    console = Called(state)
    try:
        confined(console.pid, state)
        browser = console.signed_in("rosa")
        assert (
            "All of their connections that these programs make are opened and inspected." in browser.get("/notice").text
        )
        assert browser.get("/event/1").status_code == 200
        until_there_is_another(recorder_of(state), browser, state, 2)
        until_there_is_another(supervisor_of(state), browser, state, 3)
        csrf = re.search(r'name="csrf" value="([^"]+)"', browser.get("/health").text)
        assert csrf is not None
        exported = browser.post("/export?kind=review", data={"csrf": csrf[1]})
        assert exported.status_code == 200, exported.text
        (tmp_path / "b.zip").write_bytes(exported.content)
        for arguments in (("role", "otto", "--role", "approver"), ("password", "otto"), ("remove", "otto")):
            assert called("audit", "account", *arguments, *where).exit_code == 0
        assert called("audit", "account", "remove", "otto", *where).exit_code == 1
        listed = [json.loads(line) for line in here("audit", "account", "list", "--json", *where).splitlines()]
        assert [(one["name"], one["role"], one["one_time"]) for one in listed] == [("rosa", "reviewer", False)]
        assert "rosa" in here("audit", "account", "list", *where)
    finally:
        status, said = console.end()
    assert (status, said) == (0, "")
    on_record(state)
    the_bundle_verifies(tmp_path / "b.zip", state, tmp_path)


def confined(pid: int, state: Path) -> None:
    status = status_of(pid)
    assert status["Uid"].split() == [str(account_of(Role.CONSOLE).uid)] * 4
    assert status["Groups"].strip() == ""
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    root = Path(f"/proc/{pid}/root")
    mounts = Path(f"/proc/{pid}/mounts").read_text().splitlines()
    mine = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts if str(state) in line}
    assert mine == {str(state / "log"): "ro", str(state / "review"): "rw"}
    assert not (root / "proc").exists()
    assert not (root / str(state / "ca").lstrip("/")).exists()


def until_there_is_another(pid: int, browser: httpx.Client, state: Path, number: int) -> None:
    """Meanwhile nothing is shown that is not on record."""
    os.kill(pid, signal.SIGKILL)
    until_s, answers = time.monotonic() + 30, set[int]()
    while (found := browser.get(f"/event/{number}")).status_code != 200 and time.monotonic() < until_s:
        answers.add(found.status_code)
        time.sleep(0.1)
    assert found.status_code == 200
    assert answers <= {503}
    listed = here("audit", "list", "--json", "--kind", "review", "--state", str(state)).splitlines()
    looked_at = json.loads(here("audit", "show", str(number), "--json", "--state", str(state)))["id"]
    assert json.loads(listed[-1])["item"] == looked_at, "that it was looked at is on record"


def on_record(state: Path) -> None:
    events = [
        json.loads(line)
        for line in here("audit", "list", "--json", "--kind", "review", "--state", str(state)).splitlines()
    ]
    told = [
        (event["producer"], event["operation"], event["item"])
        for event in events
        if event["operation"] != "event_opened"
    ]
    assert told == [
        ("supervisor", "account_added", "rosa"),
        ("supervisor", "account_added", "otto"),
        ("console", "signed_in", "rosa"),
        ("console", "exported", "kind=review"),
        ("supervisor", "role_changed", "otto"),
        ("supervisor", "password_reset", "otto"),
        ("supervisor", "account_removed", "otto"),
    ]
    assert called("audit", "verify", "--state", str(state)).exit_code == 0


def the_bundle_verifies(bundle: Path, state: Path, folder: Path) -> None:
    (folder / "log.key").write_text(here("audit", "key", "--state", str(state)))
    whole = called("audit", "verify", "--bundle", str(bundle), "--key", str(folder / "log.key"))
    assert whole.exit_code == 0, whole.stderr
    assert whole.stdout.startswith("sound: ")
    assert "Without a checkpoint that was kept elsewhere" in whole.stdout
    told = json.loads(called("audit", "verify", "--bundle", str(bundle), "--json").stdout)
    assert (told["verified"], told["signed"]) == (True, False)
    events = len(here("audit", "list", "--json", "--state", str(state)).splitlines())
    until_s = time.monotonic() + 30
    while int((note := here("audit", "checkpoint", "--state", str(state))).splitlines()[1]) < events:
        assert time.monotonic() < until_s  # one is signed about once a second
        time.sleep(0.1)
    (folder / "kept.note").write_text(note)
    later = called("audit", "verify", "--bundle", str(bundle), "--key", str(folder / "log.key"),
                    "--checkpoint", str(folder / "kept.note"))  # fmt: skip
    assert later.exit_code == 1
    assert "export it again" in later.stderr
    bundle.write_bytes(bundle.read_bytes()[:-30])
    broken = called("audit", "verify", "--bundle", str(bundle), "--json")
    assert (broken.exit_code, json.loads(broken.stdout)["verified"]) == (1, False)


def test_what_the_console_cannot_be_given_is_told_and_nothing_is_begun(state: Path) -> None:
    where = ("--state", str(state))
    for arguments, why in (
        (("--listen", "0.0.0.0:0"), "is not this machine alone"),
        (("--listen", "192.0.2.1"), "is not ADDRESS:PORT"),
        (("--listen", "example.com:80"), "is not ADDRESS:PORT"),
        (("--tls-cert", __file__), "come together"),
    ):
        refused = called("audit", "console", *arguments, *where)
        assert (refused.exit_code, why in refused.stderr) == (2, True), arguments
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = called("audit", "console", "--listen", f"127.0.0.1:{taken.getsockname()[1]}", *where)
    assert (refused.exit_code, "choose another port" in refused.stderr) == (2, True)
    done = mitmsec("audit", "console", "--listen", "127.0.0.1:0", "--tls-cert", __file__, "--tls-key", __file__, *where)
    assert (done.returncode, "the console cannot begin" in done.stderr) == (2, True)


def test_with_a_certificate_it_speaks_tls_and_says_that_it_has_no_account(state: Path, tmp_path: Path) -> None:
    key, pem = tmp_path / "k.pem", tmp_path / "c.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "1",
                    "-subj", "/CN=console.test", "-addext", "subjectAltName=DNS:console.test,IP:127.0.0.1",
                    "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)  # fmt: skip
    console = Called(state, "--tls-cert", str(pem), "--tls-key", str(key), "--host", "console.test")
    try:
        port = console.address.rpartition(":")[2]
        assert console.address == f"https://console.test:{port}"
        with httpx.Client(
            verify=ssl.create_default_context(cafile=str(pem)), trust_env=False, base_url=f"https://127.0.0.1:{port}"
        ) as browser:
            found = browser.get("/sign-in")
            assert found.headers["strict-transport-security"] == "max-age=31536000"
            assert browser.get("/sign-in", headers={"host": f"console.test:{port}"}).status_code == 200
            assert browser.get("/sign-in", headers={"host": f"evil.test:{port}"}).status_code == 421
        os.kill(console.pid, signal.SIGKILL)
        said = console.process.communicate(timeout=20)[1]
        assert "it has no account yet; make one: " in said
        assert "the console ended by itself" in said
        assert console.process.returncode == 125
    finally:
        console.process.kill()
        console.process.wait()


def test_anybody_is_told_what_is_inspected(state: Path) -> None:
    assert "no policy has been in force" in here("status", "--user", "--state", str(state))
    State(state).make()
    notices.put_up(State(state), Policy())
    os.seteuid(65534)
    try:
        told = here("status", "--user", "--state", str(state))
    finally:
        os.seteuid(0)
    assert "Which programs\n  Connections of programs that are started under mitmsec." in told
    titles = [one["title"] for one in json.loads(here("status", "--user", "--json", "--state", str(state)))["sections"]]
    assert titles[0] == "Which programs"
