"""What a policy keeps in or out does not get through, and stands in the log without being told there."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import random
import re
import string
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from conftest import Mitmsec, Network, here
from test_console_life import PASSWORD, Called

from mitmsec.audit.checkpoint import parsed
from mitmsec.audit.merkle import leaf_hash, root_from
from mitmsec.channel import Channel, decoder
from mitmsec.cli import cli
from mitmsec.core.content_orders import ContentOrder, EraseContent, RequestUnmasking, UnmaskingRequested
from mitmsec.core.messages import encode
from mitmsec.core.unmasking import Person
from mitmsec.service import control
from mitmsec.service.state import State

pytestmark = [pytest.mark.root, pytest.mark.joined]

RULE = """
[engine]
mitmproxy_addons = ["marks.py"]

[[rule]]
name = "no secrets leave"
action = "decrypt"
inspect = ["secrets"]
on_finding = "block"
"""
ADDON = """
class Marks:
    def request(self, flow):
        if flow.request.path == "/led":
            flow.request.host = "bank.test"

    def responseheaders(self, flow):
        if flow.request.path.startswith("/hello"):
            flow.response.headers["x-addon"] = "was-here"

addons = [Marks()]
"""


def test_a_secret_neither_leaves_nor_arrives_and_an_addon_leads_nowhere_else(origin: Network, mitmsec: Mitmsec) -> None:
    secret = "".join(random.choices(string.ascii_letters + string.digits, k=36))
    (origin.folder / "www" / "leaked.txt").write_text(f"a note ghp_{secret}\n")
    (mitmsec.state.parent / "marks.py").write_text(ADDON)
    curl = "curl -sS -o /dev/null -w '%{http_code}%header{x-addon} '"
    url = "https://origin.test/hello"
    script = f"{curl} -d 'note ghp_{secret}' {url}; {curl} -d 'note' {url}; {curl} https://origin.test/led; "
    script += "curl -sS --http1.1 https://origin.test/leaked.txt; curl -sS --http2 https://origin.test/leaked.txt"
    done = mitmsec.run("--policy", mitmsec.policy(RULE), "--", "sh", "-c", script)
    refused, passed, led, pages = done.stdout.split(" ", 3)
    assert (refused, passed, led) == ("403", "200was-here", "421"), done
    assert pages.count("403 Forbidden\n\nmitmsec blocked the answer to this request because of what it carries.\n") == 2
    assert pages.count("Finding: secrets: secret, github-pat\nRule: no secrets leave\nConnection: ") == 2
    sent, *received = mitmsec.of_kind("finding")
    for finding, location in ((sent, "request.body+5"), *((one, "response.body+7") for one in received)):
        assert (finding["detector"], finding["summary"], finding["verdict"]) == (
            "secrets", "secret, github-pat", "block",
        )  # fmt: skip
        assert (finding["evidence"], finding["location"]) == ("ghp_… (40 characters)", location)
    asked = [
        (one["status"], one.get("outcome"), one.get("answered_by"), one.get("modified_by"))
        for one in mitmsec.of_kind("request")
    ]
    assert asked == [
        (403, "blocked", "mitmsec", None),
        (200, None, None, ["marks.py"]),  # the origin has answered that one, and heard of no other upload
        (421, None, "mitmsec", ["marks.py"]),
        *[(403, "blocked", "mitmsec", None)] * 2,
    ]
    assert secret not in str(mitmsec.events())
    (loaded,) = [one for one in mitmsec.of_kind("service") if one["operation"] == "mitmproxy_addon"]
    assert loaded["detail"] == f"marks.py, sha256 {hashlib.sha256(ADDON.encode()).hexdigest()}"
    (fault,) = mitmsec.of_kind("fault")
    assert (fault["what"], fault["failed"]) == ("misdirected_request", "closed")
    kept = [entry.name.partition("-")[0] for entry in (mitmsec.state / "compiled").iterdir()]
    assert kept.count("secrets") == 1  # beside what others that joined have had compiled


def test_what_is_put_under_quarantine_is_opened_by_two_people(origin: Network, mitmsec: Mitmsec) -> None:
    folder, state = mitmsec.state.parent, str(mitmsec.state)
    files = [folder / f"{name}.pem" for name in ("alice", "bob", "carol")]
    people = [
        json.loads(here("quarantine", "keys", file.stem, "-o", str(file), "--json"))["recipient"] for file in files
    ]
    secret = "".join(random.choices(string.ascii_letters + string.digits, k=36))
    upload = folder / "upload"
    upload.write_text(f"note ghp_{secret}\n" + "\n".join(f"line {number}" for number in range(4000)))
    policy = f"[quarantine]\nrecipients = {people!r}\n"
    policy += RULE.partition("\n\n")[2].replace('"block"', '"quarantine"')
    sent = f"curl -sS --data-binary @{upload} https://origin.test/hello"
    done = mitmsec.run("--policy", mitmsec.policy(policy), "--", "sh", "-c", sent)
    assert "403 Forbidden" in done.stdout, done
    (finding,) = mitmsec.of_kind("finding")
    (kept,) = [one for one in mitmsec.of_kind("service") if one["operation"] == "quarantined"]
    item = finding["item"]
    assert (finding["verdict"], kept["item"], kept["connection"]) == ("quarantine", item, finding["connection"])
    assert mitmsec.of_kind("fault") == []
    file = mitmsec.state / "quarantine" / item
    assert file.stat().st_mode & 0o777 == 0o600
    assert secret.encode() not in file.read_bytes()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in kept["detail"]
    (listed,) = map(json.loads, here("quarantine", "list", "--json", "--state", state).splitlines())
    assert (listed["item"], listed["content_bytes"], listed["is_whole"]) == (item, upload.stat().st_size, True)
    assert listed["sealed_for"] == ["alice", "bob", "carol"]
    words = ["quarantine", "release", item, "--key", str(files[2]), "--key", str(files[0]), "--state", state, "--json"]
    about = json.loads(here(*words, "-o", str(folder / "released")))
    assert (folder / "released").read_bytes() == upload.read_bytes()
    assert (about["location"], about["detector"], about["people"]) == ("request.body+5", "secrets", ["alice", "carol"])
    (review,) = mitmsec.of_kind("review")
    assert (review["operation"], review["item"], review["people"]) == (
        "quarantine_released", item, ["alice", "carol"],
    )  # fmt: skip
    assert [f"{name}:{key}" for name, key in zip(review["people"], review["keys"], strict=True)] == people[::2]
    assert review["user"]


def as_caller(uid: int, *words: str) -> Result:
    """`mitmsec audit …` of whoever has called sudo."""
    return CliRunner().invoke(cli, ["audit", *words], env={"SUDO_UID": str(uid)})


def asked_by_uid(uid: int, state: State, order: ContentOrder) -> Any:
    """The answer to a client that runs as `uid`, and as nobody's group but the control socket's."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(*[state.control.stat().st_gid] * 3)
            os.setresuid(uid, uid, uid)
            received = Channel(control.connect(state.control), control.FROM_SUPERVISOR).exchange(order, timeout_s=20)
            os.write(writing, b"none" if received is None else encode(received[0]))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said if said in (b"", b"none") else decoder(control.FROM_SUPERVISOR)(said)


def proved(event: str, state: Path, beyond: int = 0) -> dict[str, Any]:
    """As `audit prove` says it, once a checkpoint stands for the event, and for more than `beyond` in all."""
    words, deadline = ["audit", "prove", event, "--json", "--state", str(state)], time.monotonic() + 10
    told: dict[str, Any] = {"size": 0}
    while told["size"] <= beyond:
        assert time.monotonic() < deadline
        done = CliRunner().invoke(cli, words)
        told = json.loads(done.stdout) if done.exit_code == 0 else told
        time.sleep(0.1)
    return told


def shown_in_the_console(state: Path, event: str) -> str:
    """Rosa asks, Axel agrees, and she sees it, once."""
    for name, role in (("rosa", "reviewer"), ("axel", "approver")):
        words = ["audit", "account", "add", name, "--role", role, "--password-stdin", "--state", str(state)]
        assert CliRunner().invoke(cli, words, input=f"{PASSWORD}\n").exit_code == 0
    console = Called(state)
    try:
        rosa, axel = console.signed_in("rosa"), console.signed_in("axel")

        def ordered(who: httpx.Client, order: str, **fields: str) -> httpx.Response:
            csrf = re.search(r'name="csrf" value="([^"]+)"', who.get(f"/case/{event}").text)
            assert csrf is not None
            return who.post(f"/case/{event}", data={"csrf": csrf[1], "order": order, **fields})

        assert ordered(rosa, "ask", text="ticket 8").status_code == 303
        assert ordered(rosa, "see").status_code in {403, 409}
        assert ordered(rosa, "approve").status_code == 403
        assert ordered(axel, "approve").status_code == 303
        page = ordered(rosa, "see")
        assert page.status_code == 200, page.text
        again = ordered(rosa, "see")
        shown = re.search(r"ghp_\w{36}", page.text)
        assert shown is not None
        assert shown[0] not in again.text
        return shown[0]
    finally:
        console.end()


def test_evidence_lies_beside_the_log_is_shown_to_two_and_erased_while_every_proof_stays_valid(
    origin: Network, mitmsec: Mitmsec
) -> None:
    secret = "ghp_" + "".join(random.choices(string.ascii_letters + string.digits, k=36))
    rule = RULE.partition("\n\n")[2].replace('on_finding = "block"', "keep_evidence = true")
    script = f"curl -sS -d 'note {secret}' https://origin.test/hello"
    done = mitmsec.run("--policy", mitmsec.policy(f'[retention]\nevidence = "30d"\n{rule}'), "--", "sh", "-c", script)
    assert done.stdout.startswith("hello over"), done
    (finding,) = mitmsec.of_kind("finding")
    assert finding["content"].keys() == {"id", "sha256", "size"}
    state, event = ("--state", str(mitmsec.state)), finding["id"]
    files = [file for file in (mitmsec.state / "log").iterdir() if file.is_file()]
    assert [file for file in files if secret.encode() in file.read_bytes()] == []

    asked = json.loads(as_caller(1, "unmask", event, "--reason", "ticket 7", "--json", *state).stdout)
    alone = as_caller(1, "approve", asked["request"], *state)
    assert (alone.exit_code, "another person has to agree" in alone.stderr) == (1, True)
    assert as_caller(2, "approve", asked["request"], *state).exit_code == 0
    seen = as_caller(1, "unmask", event, *state)
    assert (seen.exit_code, seen.stdout) == (0, f"{secret}\n")
    again = as_caller(1, "unmask", event, *state)
    assert (again.exit_code, again.stdout, "it has been shown once" in again.stderr) == (1, "", True)
    assert "ticket 7" in here("audit", "requests", *state)
    reviews = mitmsec.of_kind("review")
    assert [one["operation"] for one in reviews] == ["evidence_requested", "evidence_approved", "evidence_unmasked"]
    assert (reviews[2]["event"], reviews[2]["uid"]) == (event, 1)

    assert shown_in_the_console(mitmsec.state, event) == html.escape(secret)
    by = [(one["operation"], one.get("user")) for one in mitmsec.of_kind("review") if "evidence" in one["operation"]]
    assert by[3:] == [("evidence_requested", "rosa"), ("evidence_approved", "axel"), ("evidence_unmasked", "rosa")]

    claims = RequestUnmasking(event=event, reason="mine", by=Person(name="alice", uid=1))
    assert isinstance(asked_by_uid(64000, State(mitmsec.state), claims), UnmaskingRequested)
    assert asked_by_uid(64000, State(mitmsec.state), EraseContent(event=event)) == b"none"  # it is not heard out
    (review,) = [one for one in mitmsec.of_kind("review") if one.get("reason") == "mine"]
    assert (review["user"], review["uid"]) == ("64000", 64000)

    kept, key = mitmsec.state.parent / "kept.note", mitmsec.state.parent / "log.key"
    before = proved(event, mitmsec.state)
    kept.write_text(before["checkpoint"])
    key.write_text(here("audit", "key", *state))
    erased = as_caller(2, "erase", "--connection", finding["connection"], "--reason", "asked for", "--json", *state)
    assert json.loads(erased.stdout) == {"erased": 1}
    gone = as_caller(1, "unmask", event, "--reason", "once more", *state)
    assert (gone.exit_code, "was erased" in gone.stderr) == (1, True)
    assert mitmsec.of_kind("finding") == [finding]
    (review,) = [one for one in mitmsec.of_kind("review") if one["operation"] == "evidence_erased"]
    assert (review["count"], review["reason"], review["uid"]) == (1, "asked for", 2)
    told = json.loads(here("audit", "verify", "--checkpoint", str(kept), "--key", str(key), "--json", *state))
    assert (told["verified"], told["signatures_checked"]) == (True, True)
    after = proved(event, mitmsec.state, before["size"])
    assert (after["event"], after["leaf"]) == (before["event"], before["leaf"])
    for proof in (before, after):
        leaf, *path = map(base64.b64decode, [proof["leaf"], *proof["path"]])
        assert leaf == leaf_hash(proof["event"].encode())
        signed = parsed(proof["checkpoint"].partition("\n\n")[0] + "\n")
        assert root_from(leaf, proof["index"], proof["size"], path) == signed.root
    assert secret not in str(mitmsec.events())
