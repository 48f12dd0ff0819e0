"""A blocked flow whose client is told so inside TLS: a page for every request, and no origin anywhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from engine_h2 import Client, get
from engine_world import NAME, Word, World, connected, curl, trusting, world
from msgspec.structs import replace

from mitmsec.audit.event import BytesSeen, Outcome, SecretsSeen
from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import FlowEnded
from mitmsec.core.model import Action, Decision, Refusal
from mitmsec.engine import notice

BLOCKED = Decision(action=Action.BLOCK, rule="no <games>", reason="works council", page=True)
NOBODY = 1  # a port at which nothing listens: whoever dialled would fail


@contextlib.asynccontextmanager
async def blocking(tmp_path: Path, *, capture: bool = False, deadline_s: float = 20.0) -> AsyncIterator[World]:
    async with world(tmp_path, NOBODY, inspectors=[Word()], capture=capture, deadline_s=deadline_s) as made:
        made.decision = BLOCKED
        yield made
        assert made.connects == 0


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_the_page_names_rule_reason_and_flow(tmp_path: Path, version: str) -> None:
    async def main() -> None:
        async with blocking(tmp_path) as made:
            status, out, err = await curl(made, tmp_path, version, "-w", "%{http_code} %{http_version}", path="/a?b=c")
            said, _, codes = out.rpartition("\n")
            assert (status, err, codes) == (0, "", "403 2" if version == "--http2" else "403 1.1")
            assert said == "Blocked by mitmsec.\n\nrule:   no <games>\nreason: works council\nid:     flow-1"
            end = await made.end()
            assert end.tls is not None
            assert end.tls.client is not None
            assert (end.tls.client.version, end.tls.client.sni, end.tls.server) == ("TLSv1.3", NAME, None)
            (request,) = made.recorder.requests
            assert (request.method, request.url, request.status) == ("GET", f"https://{NAME}:{NOBODY}/a?b=", 403)
            assert (request.answered_by, request.outcome) == ("mitmsec", None)
            assert [question.name for question in made.mint.questions] == [NAME]
            assert made.recorder.faults == []

    asyncio.run(main())


def test_what_is_asked_for_is_not_kept_whatever_is_captured(tmp_path: Path) -> None:
    """Neither bytes nor keys go to a capture, and no inspector sees them."""

    async def main() -> None:
        async with blocking(tmp_path, capture=True) as made:
            body = tmp_path / "body"
            body.write_bytes(b"SECRET" * 50_000)
            status, out, _ = await curl(made, tmp_path, "--data-binary", f"@{body}", "-H", "Expect:")
            assert (status, out.partition("\n")[0]) == (0, "Blocked by mitmsec.")
            await made.end()
            assert made.recorder.of(BytesSeen) == made.recorder.of(SecretsSeen) == made.recorder.findings == []
            assert made.recorder.requests[0].request_bytes == 0

    asyncio.run(main())


def test_a_client_that_asks_again_is_told_again_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice, "SHOWN_S", 1.0)

    async def main() -> None:
        async with blocking(tmp_path) as made:
            asking = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            asking.flush()
            for path in ("/1", "/2"):
                stream = asking.request(get(path, NAME))
                await asking.until_ended(stream)
                assert asking.headers[stream][":status"] == "403"
            end = await made.end()
            assert (end.outcome, end.reset) == (Outcome.BLOCKED, False)
            assert [request.status for request in made.recorder.requests] == [403, 403]

    asyncio.run(main())


def test_a_request_for_another_host_is_misdirected_so_that_its_client_asks_where_it_belongs(tmp_path: Path) -> None:
    async def main() -> None:
        async with blocking(tmp_path) as made:
            _, out, _ = await curl(made, tmp_path, "-H", "Host: other.test", "-w", "%{http_code}", "-o", "/dev/null")
            assert out == "421"
            await made.end()

    asyncio.run(main())


def test_no_answer_has_a_body_that_nobody_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with blocking(tmp_path) as made:
            status, out, err = await curl(made, tmp_path, "-I")
            assert (status, err, out.split()[1]) == (0, "", "403")

    asyncio.run(main())


@pytest.mark.parametrize("words", [b"\x00\x01binary", b"EHLO me\r\n"])
def test_what_is_not_http_is_reset_without_a_word(tmp_path: Path, words: bytes) -> None:
    async def main() -> None:
        async with blocking(tmp_path) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            writer.write(words)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            end = await made.end()
            assert (end.outcome, end.error, end.reset) == (
                Outcome.BLOCKED,
                "what it speaks has no place for a page",
                True,
            )
            assert made.recorder.requests == []
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("acme", "http/1.0")])
def test_whatever_of_http_a_client_offers_it_gets_its_page(tmp_path: Path, alpn: tuple[str, ...]) -> None:
    async def main() -> None:
        async with blocking(tmp_path) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=alpn))
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == (alpn[-1] if alpn else None)
            writer.write(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % NAME.encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_that_does_not_trust_us_is_told_apart(tmp_path: Path, version: str) -> None:
    """Its alert comes in the handshake, or after it."""

    async def main() -> None:
        async with blocking(tmp_path) as made:
            trustme.CA().cert_pem.write_to_path(tmp_path / "pinned.pem")
            status, _, _ = await curl(made, tmp_path, "--cacert", str(tmp_path / "pinned.pem"), "--tls-max", version)
            assert status == 60
            assert refusal(await made.end()) is Refusal.ALERT

    asyncio.run(main())


def refusal(end: FlowEnded) -> Refusal | None:
    assert end.outcome == Outcome.CLIENT_REJECTED
    assert end.tls is not None
    assert end.tls.client is not None
    return end.tls.client.refusal


def test_no_certificate_no_page(tmp_path: Path) -> None:
    async def main() -> None:
        async with blocking(tmp_path) as made:
            made.mint.refuses = True
            status, out, _ = await curl(made, tmp_path)
            assert (status, out) == (35, "")
            end = await made.end()
            assert (end.outcome, end.reset) == (Outcome.FAULT, True)
            assert [fault.what for fault in made.recorder.faults] == ["no_certificate"]

    asyncio.run(main())


def test_a_client_that_can_do_with_rsa_only_has_a_page_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with blocking(tmp_path) as made:
            status, out, _ = await curl(made, tmp_path, "--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES128-GCM-SHA256")
            assert (status, out.partition("\n")[0]) == (0, "Blocked by mitmsec.")
            assert [question.key for question in made.mint.questions] == [LeafKeyKind.RSA2048]

    asyncio.run(main())


def test_a_hello_for_another_name_and_half_a_hello_go_nowhere(tmp_path: Path) -> None:
    async def main() -> None:
        async with blocking(tmp_path, deadline_s=0.5) as made:
            made.name = "other.test"
            assert (await curl(made, tmp_path))[0] == 35
            assert (await made.end()).outcome == Outcome.FAULT
            reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writer.write(b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03")
            end = await made.end()
            assert (end.outcome, end.error) == (Outcome.BLOCKED, "the TLS handshake took too long")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert made.mint.questions == []

    asyncio.run(main())


def test_a_worker_that_is_stopped_resets_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with blocking(tmp_path) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            await made.engine.stop()
            end = await made.end()
            assert (end.outcome, end.reset) == (Outcome.CUT, True)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(main())


def test_a_fault_of_ours_is_a_reset_and_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(notice, "client_facts", broken)

    async def main() -> None:
        async with blocking(tmp_path) as made:
            assert (await curl(made, tmp_path))[0] != 0
            end = await made.end()
            assert (end.outcome, end.reset) == (Outcome.FAULT, True)
            assert "secret" not in str(made.recorder.faults)

    asyncio.run(main())


def test_without_an_origin_nothing_else_can_become_of_a_flow(tmp_path: Path) -> None:
    """A gate that hands over half of a flow that is to be decrypted has it refused, not guessed at."""

    async def main() -> None:
        async with blocking(tmp_path) as made:
            made.decision = replace(BLOCKED, page=False)
            _, out, _ = await curl(made, tmp_path)
            assert out.startswith("Blocked by mitmsec.")

    asyncio.run(main())
