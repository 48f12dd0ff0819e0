"""What the demo shows: its policy, its steps, and for each step what must have happened for it to count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mitmsec.core.model import Value

ADDRESSES = {
    "shop.example": "203.0.113.10",
    "bank.example": "203.0.113.20",
    "tracker.example": "203.0.113.30",
    "telemetry.example": "203.0.113.40",
    "paste.example": "203.0.113.50",
}

POLICY = """\
version = 1

[defaults]
action = "decrypt"
inspect = ["keywords"]

[inspector.keywords]
words = ["project nightingale"]

[[rule]]
name = "banks stay private"
host = ["bank.example", "*.bank.example"]
action = "bypass"
reason = "works council agreement 4.2"

[[rule]]
name = "no trackers"
host = ["tracker.example"]
action = "block"
reason = "not needed for work"

[[rule]]
name = "no secrets leave"
host = ["paste.example"]
action = "decrypt"
inspect = ["secrets"]
on_finding = "block"
"""

TOKEN = "16C7e42F292c6912" + "E7710c838347Ae178B4a"  # nobody's
TOUR = """\
#!/bin/sh
# The programs of the tour. Each runs as it would anywhere: certificate verification on, no proxy set.
folder=$1
step() { name=$1; shift; "$@" >"$folder/$name.out" 2>&1; echo "status=$?" >>"$folder/$name.out"; }
step decrypt curl -sSv https://shop.example/cart?card=4711
step bypass  curl -sSv https://bank.example/login
step block   curl -sS  https://tracker.example/pixel
step capture "$DEMO_PYTHON" -c '
import socket
line = socket.create_connection(("telemetry.example", 7000), 5).makefile("rw")
print(line.readline().strip())
line.write("cpu 42\\n"); line.flush()
print(line.readline().strip())
'
step finding "$DEMO_PYTHON" -c '
import urllib.request
print(urllib.request.urlopen("https://shop.example/upload", b"minutes of Project Nightingale").read().decode())
'
step secret curl -sS -w 'answered %{http_code}\n' -d "deploy with ghp_""TOKEN" https://paste.example/new
exit 0
""".replace("TOKEN", TOKEN)


class Evidence(msgspec.Struct):
    """Three witnesses: what the clients printed, what the origins saw, what the log holds."""

    events: list[dict[str, Any]]
    printed: dict[str, str]
    capture_bytes: int
    contacts: list[str] = msgspec.field(default_factory=list)

    def connection(self, host: str) -> dict[str, Any]:
        """The connection to `host`, or to the address that stands for it."""
        for event in self.events:
            if event["kind"] == "connection" and event["outcome"] != "open":
                remote = event["remote"]
                if host in (remote.get("host"), _name_of(remote["address"])):
                    return event
        return {}

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


class Step(Value, frozen=True):
    """One thing that is shown. `check` gives None, or why it does not count."""

    name: str
    told: str
    shown: str
    check: Callable[[Evidence], str | None]


def _name_of(address: str) -> str:
    return next((name for name, known in ADDRESSES.items() if known == address), "")


def _issuer(printed: str) -> str:
    return next((line.partition("issuer:")[2].strip() for line in printed.splitlines() if "issuer:" in line), "")


def decrypted(seen: Evidence) -> str | None:
    """curl trusted a leaf of our CA, and the log holds URL, status and program."""
    if "status=0" not in seen.printed["decrypt"] or "hello from shop.example" not in seen.printed["decrypt"]:
        return "curl did not get its page: " + seen.printed["decrypt"][-160:]
    if "mitmsec issuing" not in _issuer(seen.printed["decrypt"]):
        return f"the certificate was by {_issuer(seen.printed['decrypt'])!r}"
    found = [event for event in seen.of_kind("request") if event["url"].startswith("https://shop.example/cart")]
    if not found or found[0]["status"] != 200 or not str(found[0]["process"]["exe"]).endswith("curl"):
        return "the log holds no such request of curl"
    return "a query value stands in the log" if "4711" in found[0]["url"] else None


def bypassed(seen: Evidence) -> str | None:
    """curl saw the bank's own certificate, and nobody read a byte."""
    if "status=0" not in seen.printed["bypass"] or "Demo Origins" not in _issuer(seen.printed["bypass"]):
        return "curl did not see the origin's own certificate: " + seen.printed["bypass"][-160:]
    if any("bank.example" in event["url"] for event in seen.of_kind("request")):
        return "a request of it stands in the log"
    return None if seen.connection("bank.example").get("action") == "bypass" else "the log does not say bypass"


def blocked(seen: Evidence) -> str | None:
    """The tracker was never contacted."""
    if "status=0" in seen.printed["block"]:
        return "curl got an answer"
    if "contact tracker.example" in seen.contacts:
        return "the origin was contacted"
    return (
        None if seen.connection("tracker.example").get("rule") == "no trackers" else "the log does not say who blocked"
    )


def captured(seen: Evidence) -> str | None:
    """What is not TLS is relayed and kept."""
    if "TELEMETRY 1 READY" not in seen.printed["capture"] or "ACK cpu 42" not in seen.printed["capture"]:
        return "the program did not get its answers: " + seen.printed["capture"][-160:]
    event = seen.connection("telemetry.example")
    if not event or event["bytes"] != {"sent": 7, "received": 29}:
        return f"the log does not hold its bytes: {event.get('bytes')}"
    return None if seen.capture_bytes > 1000 else "the capture file is empty"


def found(seen: Evidence) -> str | None:
    """The keyword was found in the upload, with its program and place."""
    if "stored" not in seen.printed["finding"]:
        return "the upload did not arrive: " + seen.printed["finding"][-160:]
    hits = [event for event in seen.of_kind("finding") if event["detector"] == "keywords"]
    return None if hits else "the log holds no finding"


def kept_in(seen: Evidence) -> str | None:
    """curl was refused, the origin got no upload, and the log names the kind of secret, and not the secret."""
    if "answered 403" not in seen.printed["secret"]:
        return "the upload was not refused: " + seen.printed["secret"][-160:]
    if sum(line.startswith("upload ") for line in seen.contacts) != 1:  # the document's
        return "the origin has got it"
    hits = [event for event in seen.of_kind("finding") if event["detector"] == "secrets"]
    if [(hit["summary"], hit["verdict"]) for hit in hits] != [("secret, github-pat", "block")]:
        return "the log holds no such finding"
    return "the secret stands in the log" if TOKEN in str(seen.events) else None


STEPS = (
    Step(
        "decrypt",
        "curl https://shop.example/cart",
        "a certificate by our CA; URL logged",
        decrypted,
    ),
    Step("bypass", "curl https://bank.example/login", "the bank's own certificate; unread", bypassed),
    Step("block", "curl https://tracker.example/pixel", "reset; the origin never contacted", blocked),
    Step("capture", "Python telemetry.example:7000", "relayed; every byte kept as pcapng", captured),
    Step("finding", "Python uploads a document", "“project nightingale” in the body", found),
    Step("secret", "curl uploads a GitHub token", "403; it never left; redacted on record", kept_in),
)
