"""Plain addons of mitmproxy's at work: what they change is on record and inspected, and leads nowhere else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import brotli
import pytest
import trustme
from engine_h2 import Client, get
from engine_h2 import Origin as H2Origin
from engine_world import NAME, Word, World, connected, origin, server_context, trusting, world
from mitmproxy.net import encoding

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import Plaintext
from mitmsec.core.mitmproxy_addon import MitmproxyAddon
from mitmsec.core.model import OnFailure, OnFinding
from mitmsec.engine import limited


@pytest.fixture(autouse=True)
def mitmproxys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker with addons puts in its place is put back: others ask what mitmproxy does as it comes."""
    monkeypatch.setattr(encoding, "decode", encoding.decode)


MARKS = MitmproxyAddon(
    name="marks.py",
    text="""
import asyncio
from dataclasses import dataclass
from mitmproxy import ctx, http

@dataclass
class Kept:
    count: int = 0

class Marks:
    kept = Kept()

    def request(self, flow: http.HTTPFlow) -> None:
        self.kept.count += 1
        if flow.request.path.startswith("/marked"):
            flow.request.headers["x-mark"] = "from an addon"
            flow.request.text = flow.request.text.replace("old", "newer")
            ctx.log.info("marked")

    async def response(self, flow):
        await asyncio.sleep(0)
        if flow.request.path.startswith("/marked"):
            flow.response.status_code = 201
            flow.response.text = flow.response.text.upper()

def responseheaders(flow):
    if flow.request.path == "/answer-marked":
        flow.response.headers["x-mark"] = "answer"

addons = [Marks()]
""",
)


def addon(body: str, name: str = "one.py") -> MitmproxyAddon:
    """One whose hooks are functions of the module."""
    return MitmproxyAddon(name=name, text=f"from mitmproxy import http\n{body}\n")


class Echo:
    """An origin over HTTP/1.1 that remembers what it was sent, and answers with what a body it got."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            told = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            self.bodies.append(await reader.readexactly(told[0]) if told else b"")
            answer = b"you said: " + self.bodies[-1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))


async def ask(made: World, path: str, body: bytes = b"", method: str = "POST") -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    reader, writer = await connected(made, None)
    length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {NAME}\r\n{length}Connection: close\r\n\r\n".encode() + body)
    whole = await asyncio.wait_for(reader.read(), 10)
    head, _, rest = whole.partition(b"\r\n\r\n")
    return head, rest


def plain_world(tmp_path: Path, port: int, *addons: MitmproxyAddon, **more: Any) -> Any:
    return world(tmp_path, port, kind=Plaintext.HTTP, addons=addons, **more)


def test_what_addons_change_arrives_and_stands_in_the_record(tmp_path: Path) -> None:
    async def main() -> None:
        echo = Echo()
        async with origin(echo, None) as port, plain_world(tmp_path, port, MARKS) as made:
            head, body = await ask(made, "/marked", b"an old word")
            assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 201 OK", b"YOU SAID: AN NEWER WORD")
            assert echo.bodies == [b"an newer word"]
            assert b"x-mark: from an addon" in echo.heads[0]
            assert (await ask(made, "/plain", b"an old word"))[1] == b"you said: an old word"
            assert b"x-mark: answer" in (await ask(made, "/answer-marked"))[0]
            assert (await ask(made, "/large", b"x" * (1 << 21)))[1] == b"you said: " + b"x" * (1 << 21)  # goes by
            seen = [(one.status, one.seen_by, one.modified_by) for one in made.recorder.requests]
            both, none = ("marks.py",), ()
            assert seen == [(201, both, both), (200, both, none), (200, both, both), (200, both, none)]
            assert made.recorder.faults == []

    asyncio.run(main())


def test_they_are_asked_over_http2_too(tmp_path: Path) -> None:
    async def main() -> None:
        ca, asked = trustme.CA(), H2Origin()
        async with (
            origin(asked, server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], addons=[MARKS]) as made,
        ):
            client = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            post = [(":method", "POST"), *get("/marked", NAME)[1:], ("content-length", "3")]
            stream = client.request(post, b"old")
            await client.until_ended(stream)
            assert asked.requests[0][1] == b"newer"
            assert asked.requests[0][0]["x-mark"] == "from an addon"
            assert bytes(client.bodies[stream]) == b"you asked for /marked"  # no length was told: it goes by
            assert [one.modified_by for one in made.recorder.requests] == [("marks.py",)]

    asyncio.run(main())


LEADS = {
    "host": "flow.request.host = 'elsewhere.test'",
    "field": "flow.request.headers['host'] = 'elsewhere.test'",
    "address": "flow.request.data.host = '192.0.2.1'",
    "port": "flow.request.port = 8443",
    "scheme": "flow.request.scheme = 'https'",
    "whole": "flow.request = flow.request.copy(); flow.request.host = 'elsewhere.test'",
}


@pytest.mark.parametrize("how", LEADS.values(), ids=LEADS)
@pytest.mark.parametrize("hook", ["requestheaders", "request"])
def test_an_addon_leads_no_request_to_another_origin(tmp_path: Path, how: str, hook: str) -> None:
    async def main() -> None:
        echo = Echo()
        text = f"def {hook}(flow):\n    {how}\n"
        async with origin(echo, None) as port, plain_world(tmp_path, port, addon(text)) as made:
            head, _ = await ask(made, "/", b"a word")
            assert head.startswith(b"HTTP/1.1 421 ")
            assert echo.heads == []
            assert made.connects == 0
            (request,) = made.recorder.requests
            assert (request.status, request.answered_by, request.modified_by) == (421, "mitmsec", ("one.py",))
            (fault,) = made.recorder.faults
            assert (fault.what, fault.failed) == ("misdirected_request", "closed")
            assert fault.detail.endswith(f"decided for {NAME}, by one.py")

    asyncio.run(main())


BROKEN = {
    "raises": ("request", "raise ValueError(flow.request.text)", "request: ValueError"),
    "leaves": ("request", "raise SystemExit", "request: SystemExit"),
    "exits": ("request", "raise GeneratorExit", "request: GeneratorExit"),
    "interrupts": ("request", "raise KeyboardInterrupt", "request: KeyboardInterrupt"),
    "interrupts later": ("request", "return interrupts()", "request: KeyboardInterrupt"),
    "cancels": ("request", "raise asyncio.CancelledError", "request: CancelledError"),
    "fails as a group": ("request", "raise BaseExceptionGroup('g', [GeneratorExit()])", "request: BaseExceptionGroup"),
    "computes in a group": ("request", "return grouped()", "request: BaseExceptionGroup"),
    "computes when it is copied": ("request", "flow.request = Endless()", "request: TooLong"),
    "never runs": ("request", "yield", "request: Unsound, a hook that is a generator"),
    "computes": ("request", "\n    while True: pass", "request: TooLong"),
    "computes later": ("request", "return hold()", "request: TooLong"),
    "splits": (
        "request",
        "flow.request.path = '/ HTTP/1.1\\r\\n\\r\\nGET /other'",
        "request: Unsound, a method or path",
    ),
    "tunnel": ("request", "flow.request.data.method = b'connect'", "request: Unsound, a method or path"),
    "absolute": ("request", "flow.request.path = 'http://elsewhere.test/'", "request: Unsound, a method or path"),
    "field": ("request", "flow.request.headers['x'] = 'a\\r\\nb: c'", "request: Unsound, a field that cannot be sent"),
    "framing": ("requestheaders", "flow.request.headers['transfer-encoding'] = 'chunked'", "Unsound, the length"),
    "length": ("requestheaders", "flow.request.headers['content-length'] = '1'", "Unsound, the length"),
    "takes body": ("request", "flow.request.content = None", "request: Unsound, a body that is not there"),
    "takes answer": ("response", "flow.response.content = None", "response: Unsound, a body that is not there"),
    "no sender": (
        "request",
        "flow.request = http.Request.make('POST', 'http://x/'); flow.request.content = None",
        "request: Unsound, a body that is not there",
    ),
    "to head": ("request", "flow.request.method = 'HEAD'", "request: Unsound, a HEAD"),
    "to head early": ("requestheaders", "flow.request.method = 'head'", "requestheaders: Unsound, a HEAD"),
    "status": ("response", "flow.response.status_code = 101", "response: Unsound, no answer"),
    "no body": ("response", "flow.response.status_code = 204", "response: Unsound, a body where there can be none"),
    "version": ("response", "flow.response.http_version = 'HTTP/7'", "response: Unsound, the version of HTTP"),
    "reason": ("response", "flow.response.reason = 'a\\r\\nb: c'", "response: Unsound, a reason"),
    "not bytes": ("request", "flow.request.data.content = bytearray(b'new')", "request: TypeError"),
    "taken": ("response", "flow.response = None", "response: Unsound, an answer that has come"),
}


@pytest.mark.parametrize(("hook", "what", "told"), BROKEN.values(), ids=BROKEN)
def test_an_addon_that_fails_leaves_things_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, what: str, told: str
) -> None:
    monkeypatch.setattr(limited, "CALL_LIMIT_S", 0.3)
    text = f"""
import asyncio

async def hold():
    for _ in range(10**8): pass

async def grouped():
    async with asyncio.TaskGroup():
        await hold()

async def interrupts():
    raise KeyboardInterrupt

class Endless:
    def copy(self):
        while True: pass

def {hook}(flow):
    flow.request.headers['x-half'] = 'done'
    {what}
"""

    async def main() -> None:
        echo = Echo()
        async with origin(echo, None) as port, plain_world(tmp_path, port, addon(text)) as made:
            head, body = await ask(made, "/", b"a word")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert body == b"you said: a word"
            assert b"x-half" not in echo.heads[0]
            (fault,) = made.recorder.faults
            assert (fault.what, fault.failed) == ("addon_failed", "open")
            assert told in fault.detail
            assert "a word" not in fault.detail
            assert [(one.seen_by, one.modified_by) for one in made.recorder.requests] == [(("one.py",), ())]

    asyncio.run(main())


@pytest.mark.parametrize("hook", ["requestheaders", "request", "responseheaders", "response"])
def test_where_failures_close_an_addon_that_fails_stops_the_exchange(tmp_path: Path, hook: str) -> None:
    async def main() -> None:
        echo = Echo()
        bad = addon(f"def {hook}(flow): raise ValueError\n")
        async with origin(echo, None) as port, plain_world(tmp_path, port, bad, on_failure=OnFailure.CLOSED) as made:
            assert (await ask(made, "/", b"a word"))[0].startswith(b"HTTP/1.1 403 ")
            assert (echo.bodies == []) == hook.startswith("request")
            assert [one.outcome for one in made.recorder.requests] == [Outcome.BLOCKED]

    asyncio.run(main())


@pytest.mark.parametrize("on_failure", OnFailure)
def test_one_that_cannot_be_loaded_is_a_failure_of_every_flow(tmp_path: Path, on_failure: OnFailure) -> None:
    async def main() -> None:
        bad = addon("import no_such_module")
        async with origin(Echo(), None) as port, plain_world(tmp_path, port, bad, on_failure=on_failure) as made:
            try:
                head, _ = await ask(made, "/", b"a word")
            except ConnectionResetError:
                head = b""
            assert head.startswith(b"HTTP/1.1 200 ") == (on_failure is OnFailure.OPEN)
            assert made.recorder.faults[0].detail == "one.py: ModuleNotFoundError"
            assert {fault.what for fault in made.recorder.faults} == {"addon_failed"}

    asyncio.run(main())


def test_inspectors_read_what_an_addon_makes_of_a_message(tmp_path: Path) -> None:
    text = """
def request(flow):
    if flow.request.path == "/adds":
        flow.request.text = "a SECRET"
    if flow.request.path == "/renames":
        flow.request.path = "/SECRET"
    if flow.request.path == "/removes":
        flow.request.text = "nothing"

def response(flow):
    if flow.request.path == "/answers":
        flow.response.text = "a SECRET"
"""

    async def main() -> None:
        echo = Echo()
        async with (
            origin(echo, None) as port,
            plain_world(tmp_path, port, addon(text), inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            for path, method in (("/adds", "GET"), ("/adds", "POST"), ("/renames", "POST"), ("/answers", "POST")):
                assert (await ask(made, path, b"", method))[0].startswith(b"HTTP/1.1 403 "), path
            assert len(echo.heads) == 1  # of the last
            assert (await ask(made, "/removes", b"a SECRET"))[1] == b"you said: nothing"
            assert [seen.finding.location for seen in made.recorder.findings] == [
                "request.body", "request.body", "request.url", "response.body",
            ]  # fmt: skip

    asyncio.run(main())


def test_an_addon_may_answer_itself_or_end_a_flow(tmp_path: Path) -> None:
    text = """
def request(flow):
    if flow.request.path == "/answered":
        flow.response = http.Response.make(418, b"a teapot", {"content-type": "text/plain"})
    elif flow.request.path == "/ended":
        flow.kill()
    elif flow.request.path == "/bare":
        flow.response = http.Response(b"HTTP/1.1", 200, b"OK", http.Headers(), None, None, 0, 0)

def requestheaders(flow):
    if flow.request.path == "/early":
        flow.response = http.Response.make(418)
"""

    async def main() -> None:
        echo = Echo()
        async with origin(echo, None) as port, plain_world(tmp_path, port, addon(text)) as made:
            head, body = await ask(made, "/answered", b"a word")
            assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 418 I'm a teapot", b"a teapot")
            assert await ask(made, "/ended", b"a word") == (b"", b"")
            assert (await ask(made, "/bare", b"a word"))[0].endswith(b"content-length: 0")
            assert (await ask(made, "/early", b"a word"))[0].startswith(b"HTTP/1.1 418 ")
            assert echo.heads == []
            assert made.recorder.faults == []
            assert (await ask(made, "/early", b"x" * (1 << 21)))[0].startswith(b"HTTP/1.1 200 ")  # it goes by
            (fault,) = made.recorder.faults
            assert "is not to be answered before it has" in fault.detail
            first, second = made.recorder.requests[:2]
            assert (first.status, first.answered_by, first.modified_by) == (418, "addon one.py", ("one.py",))
            assert (second.status, second.modified_by) == (None, ("one.py",))

    asyncio.run(main())


def test_what_an_addon_changes_after_its_turn_goes_nowhere(tmp_path: Path) -> None:
    text = """
import asyncio
tasks = []

def request(flow):
    flow.metadata["first"] = flow
    flow.request.headers["x-mark"] = "in time"
    tasks.append(asyncio.create_task(later(flow)))

async def later(flow):
    for _ in range(200):
        flow.request.data.path = b"/smuggled HTTP/1.1\\r\\nX: y"
        flow.request.headers["x-late"] = "late"
        if flow.response:
            flow.response.data.reason = b"a\\r\\nb: c"
        await asyncio.sleep(0)

def response(flow):
    flow.response.headers["x-same"] = str(flow.metadata["first"] is flow and flow.request.path == "/a")
    flow.request.method = "CONNECT"
"""

    async def main() -> None:
        echo = Echo()
        async with origin(echo, None) as port, plain_world(tmp_path, port, addon(text)) as made:
            head, body = await ask(made, "/a", b"a word")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"x-same: True" in head
            assert body == b"you said: a word"
            (sent,) = echo.heads
            assert sent.startswith(b"POST /a HTTP/1.1\r\n")
            assert b"x-mark: in time" in sent
            assert b"late" not in sent
            assert made.recorder.faults == []
            (request,) = made.recorder.requests
            assert (request.method, request.modified_by) == ("POST", ("one.py",))

    asyncio.run(main())


def test_an_addon_reads_no_decompression_bomb(tmp_path: Path) -> None:
    bomb = brotli.compress(bytes(1 << 21), quality=1)

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb)

        reads = addon("def response(flow): flow.response.text")
        async with origin(answer, None) as port, plain_world(tmp_path, port, reads) as made:
            assert (await ask(made, "/", method="GET"))[1] == bomb
            assert [fault.detail for fault in made.recorder.faults] == ["one.py: response: TooLarge"]

    asyncio.run(main())
