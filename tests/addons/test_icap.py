"""`icap`: a real c-icap is asked, and servers that say other things."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from clamd_stage import EICAR, c_icap, clamd
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.inspection import Part, PartKind, Unread, server_address
from mitmsec.core.model import Finding, Severity
from mitmsec_addons.icap import Answer, Icap, judged, parsed

SENT = Part(flow="f", kind=PartKind.BODY, sent=True, host="h.test", method="PUT", url="https://h.test/x\r\nX: y")
GOT = Part(flow="f", kind=PartKind.BODY, sent=False, host="h.test", method="GET", url="https://h.test/x")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("icap")
    with clamd(folder) as scanner, c_icap(folder, scanner) as address:
        yield address


def asked(icap: Icap, part: Part, *slices: bytes) -> list[Finding | Unread]:
    async def ask() -> list[Finding | Unread]:
        inspection = icap.begin(part)
        told = [one for piece in slices for one in await inspection.feed(piece)]
        return [*told, *await inspection.close()]

    return asyncio.run(ask())


def scan(server: str, service: str = "virus_scan") -> Icap:
    return Icap((f"icap://{server}/{service}",))


@pytest.mark.parametrize("part", [SENT, GOT], ids=["request", "response"])
@pytest.mark.parametrize("cut", [1, 40, 68])
def test_malware_is_found_in_what_fits_into_the_preview(server: str, part: Part, cut: int) -> None:
    icap = scan(server)
    (told,) = asked(icap, part, EICAR[:cut], *([EICAR[cut:]] if EICAR[cut:] else []))
    assert isinstance(told, Finding)
    assert (told.summary, told.severity) == ("malware: Eicar-Test.UNOFFICIAL", Severity.HIGH)
    assert icap.preview_bytes == 1024


def test_what_is_longer_follows_after_the_preview(server: str) -> None:
    large = random.Random(1).randbytes(600_000)
    assert asked(scan(server), SENT, large[:1000], large[1000:70_000], large[70_000:]) == []
    assert asked(scan(server), GOT, large) == []


def test_what_it_has_nothing_against_passes_and_nothing_is_nothing(server: str) -> None:
    icap = scan(server)
    assert asked(icap, GOT, b"four score and seven years ago") == asked(icap, SENT) == []


def test_a_service_that_gives_back_what_it_got_has_nothing_against_it(server: str) -> None:
    assert asked(scan(server, "echo"), GOT, bytes(50_000), b"more") == []


def test_a_service_that_is_none_is_a_failure(server: str) -> None:
    (told,) = asked(scan(server, "nothing"), GOT, b"x")
    assert told == Unread(why="the ICAP server says 404", location="response.body")


def test_a_server_that_hangs_up_after_its_options_is_called_again() -> None:
    async def story() -> None:
        calls = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal calls
            calls += 1
            head = await reader.readuntil(b"\r\n\r\n")
            is_options = head.startswith(b"OPTIONS ")
            writer.write(b"ICAP/1.0 200 OK\r\nConnection: close\r\n\r\n" if is_options else b"ICAP/1.0 204 No\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            icap = Icap((f"icap://127.0.0.1:{listening.sockets[0].getsockname()[1]}/x",))
            for _ in range(2):
                inspection = icap.begin(SENT)
                assert [*await inspection.feed(b"abc"), *await inspection.close()] == []
        assert calls == 3

    asyncio.run(asyncio.wait_for(story(), 20))


def test_a_server_that_answers_early_and_reads_no_more_is_heard() -> None:
    """It refuses after the first piece of the rest, without reading what follows."""

    async def story() -> None:
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"ICAP/1.0 200 OK\r\nPreview: 4\r\nEncapsulated: null-body=0\r\n\r\n")
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(b"ICAP/1.0 100 Continue\r\n\r\n")
            await reader.readexactly(9)
            writer.write(b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=30\r\n\r\nHTTP/1.1 403 No\r\n\r\n")
            await done.wait()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024) as listening:
            port = listening.sockets[0].getsockname()[1]
            inspection = Icap((f"icap://127.0.0.1:{port}/x",)).begin(SENT)
            told: list[Finding | Unread] = []
            for _ in range(200):
                told += await inspection.feed(bytes(1 << 16))
                if told:
                    break
            told += await inspection.close()
            assert [one.summary for one in told if isinstance(one, Finding)] == ["the ICAP server refuses it (403)"]
            assert len(told) == 1
            inspection.abandon()
            done.set()

    asyncio.run(asyncio.wait_for(story(), 20))


@pytest.mark.parametrize(
    ("answer", "summary"),
    [
        (Answer(204, {}), None),
        (Answer(200, {}), None),
        (Answer(200, {}, 302), None),
        (Answer(200, {}, 403), "the ICAP server refuses it (403)"),
        (Answer(200, {"x-violations-found": "2"}), "a violation, says the ICAP server"),
        (Answer(200, {"x-virus-id": "Bad\x1b[2J"}), "malware: Bad�[2J"),
        (Answer(200, {"x-infection-found": "Type=0; Threat=Worse;"}), "malware: Worse"),
    ],
)
def test_what_an_answer_means(answer: Answer, summary: str | None) -> None:
    assert [one.summary for one in judged(answer, SENT) if isinstance(one, Finding)] == ([summary] if summary else [])


@pytest.mark.parametrize(
    "words", [(), ("a", "b"), ("127.0.0.1:1344",), ("icap://scanner/x",), ("icap://127.0.0.1:1344",)]
)
def test_what_is_no_uri_of_a_service_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        Icap(words)


def test_the_address_of_a_uri_is_what_is_lent() -> None:
    assert server_address("icap://127.0.0.1:1344/scan") == Icap(("icap://127.0.0.1:1344/scan",)).address
    assert server_address("/run/clamd.ctl") == "/run/clamd.ctl"


@given(st.binary(max_size=80), st.sampled_from([b"", b"ICAP/1.0 ", b"ICAP/1.0 200 OK\r\n"]))
def test_hostile_answers_are_read_or_refused(data: bytes, begin: bytes) -> None:
    try:
        answer = parsed(begin + data)
    except ValueError:
        return
    assert 100 <= answer.status < 600
