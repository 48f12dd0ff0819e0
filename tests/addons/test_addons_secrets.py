"""Secrets are found by both engines, wherever they are cut, and never told."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Finding, Severity
from mitmsec.engine.withheld import WINDOW_BYTES
from mitmsec_addons.secrets import Secrets
from mitmsec_addons.shaped import FINDINGS_LIMIT
from mitmsec_addons.triggers import ByWords

RANDOM = random.Random(7)
LETTERS, LOWER, UPPER = (
    string.ascii_letters + string.digits,
    string.ascii_lowercase + string.digits,
    string.ascii_uppercase,
)


def some(count: int, of: str = LETTERS) -> str:
    """Told apart here, so that nobody's scanner finds them in this file."""
    return "".join(RANDOM.choice(of) for _ in range(count))


HEAD = "-----BEGIN " + "PRIVATE KEY-----"
SECRETS = [
    ("github-pat", f"{{}}ghp_{some(36)}", 0.9),
    ("gcp-api-key", f'{{}}"AIza{some(35)}"', 0.9),
    ("stripe-access-token", f"{{}}sk_live_{some(24)}\n", 0.9),
    ("aws-access-token", f"{{}}AKIA{some(16, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567')} ", 0.9),
    ("gitlab-pat", f"{{}}glpat-{some(20)} ", 0.9),
    ("slack-bot-token", f"{{}}xoxb-{some(12, string.digits)}-{some(12, string.digits)}-{some(24)} ", 0.9),
    ("jwt", f"{{}}eyJhbGciOiJIUzI1NiJ9.ey{some(900)}.{some(43)} ", 0.9),
    ("private-key", f"{{}}{HEAD}\n{some(64)}\n{some(64)}\n", 0.9),
    ("datadog-access-token", f'{{}}datadog_key = "{some(40, LOWER)}"', 0.7),
    ("generic-api-key", f'{{}}"password": "{some(24, LETTERS + "_.=-")}"', 0.5),
]
NOTHING = [
    "api_key = os.environ.get('API_KEY_NAME')", 'token: "aaaaaaaaaaaaaaaaaaaa"', "password = ${DATABASE_PASSWORD}",
    'secret: "changeme_example_secret"', "ghp_" + "x" * 36, "AKIAIOSFODNN7" + "EXAMPLE", '"Key": "some-file-name.text"',
    "commit 3f786850e387550fdab836ed7e6dc881de23001b", "-----BEGIN PRIVATE KEY-----", "import { token } from './key'",
    'token = "example1A9x8Zq7Kp2Lm"', f"hooks-slack-com/services/{some(44)}",
]  # fmt: skip


@pytest.fixture(scope="session", params=["hyperscan", "words"])
def inspector(request: pytest.FixtureRequest, prepared_secrets: bytes) -> Secrets:
    """By each engine: the same is expected of both."""
    if request.param == "hyperscan":
        return Secrets((), prepared_secrets)
    return Secrets((), prepared_secrets, compile_triggers=lambda triggers, _: ByWords(triggers))


def part(kind: PartKind = PartKind.BODY) -> Part:
    return Part(flow="f", kind=kind, sent=True, host="h")


def found(inspector: Secrets, *slices: bytes) -> list[Finding]:
    inspection = inspector.open(part())
    assert inspection is not None
    return [*(one for data in slices for one in inspection.feed(data)), *inspection.close()]


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize(("rule", "text", "confidence"), SECRETS)
def test_a_secret_is_found_and_named_by_its_rule(inspector: Secrets, rule: str, text: str, confidence: float) -> None:
    (one,) = found(inspector, text.format("x = 1; ").encode())
    assert (one.detector, one.summary, one.confidence) == ("secrets", f"secret, {rule}", confidence)
    assert one.severity is (Severity.MEDIUM if rule == "generic-api-key" else Severity.HIGH)
    assert one.location.startswith("request.body+")


@pytest.mark.parametrize(("rule", "text", "confidence"), SECRETS)
def test_it_is_not_told(inspector: Secrets, rule: str, text: str, confidence: float) -> None:
    (one,) = found(inspector, text.format("x = 1; ").encode())
    told = repr(one)
    secret = text[-25:-1]
    assert not any(secret[at : at + 6] in told for at in range(len(secret) - 5))


@pytest.mark.parametrize("text", NOTHING)
def test_what_only_looks_like_one(inspector: Secrets, text: str) -> None:
    assert found(inspector, f"{text}\n".encode()) == []


@pytest.mark.parametrize("behind", ["", "&id=7", "</token>", r"\"}", r"\n", "\n", ";"])
def test_what_stands_behind_it_in_traffic(inspector: Secrets, behind: str) -> None:
    assert [one.summary for one in found(inspector, f"sk_live_{'4fR7kq2ZbT' * 2}{behind}".encode())] == [
        "secret, stripe-access-token"
    ]


def test_every_split_finds_it(inspector: Secrets) -> None:
    text = f"a = 1\nexport GH=ghp_{some(36)}\n" + "." * 300
    (whole,) = found(inspector, text.encode())
    for at in range(len(text)):
        assert found(inspector, text[:at].encode(), text[at:].encode()) == [whole]
    assert found(inspector, *cut(text.encode(), 1)) == [whole]


def test_a_long_one_is_found_in_small_pieces(inspector: Secrets) -> None:
    text = f"cookie eyJhbGciOiJIUzI1NiJ9.ey{some(3000)}.{some(342)} ;" + "." * 5000
    assert [one.summary for one in found(inspector, *cut(text.encode(), 100))] == ["secret, jwt"]


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.one_of(st.sampled_from([text.format("") for _, text, _ in SECRETS] + NOTHING),
                              st.text("ab =:\"';\n.", max_size=40)), max_size=12),
    cuts=st.lists(st.integers(0, 8000), max_size=6),
)  # fmt: skip
def test_both_engines_find_the_same_however_it_is_cut(
    both: tuple[Secrets, Secrets], pieces: list[str], cuts: list[int]
) -> None:
    data = " ".join(pieces).encode()
    ends = sorted({0, *(one for one in cuts if one < len(data)), len(data)})
    slices = [data[begin:end] for begin, end in itertools.pairwise(ends)]
    for inspector in both:
        assert found(inspector, *slices) == found(inspector, data)
    if len(found(both[0], data)) < FINDINGS_LIMIT:
        assert set(found(both[0], data)) == set(found(both[1], data))  # which is certain first may differ


@pytest.fixture(scope="session")
def both(prepared_secrets: bytes) -> tuple[Secrets, Secrets]:
    by_words = Secrets((), prepared_secrets, compile_triggers=lambda triggers, _: ByWords(triggers))
    return Secrets((), prepared_secrets), by_words


def test_heads_are_not_looked_at(both: tuple[Secrets, Secrets]) -> None:
    assert both[0].open(part(PartKind.HEADERS)) is None
    assert both[0].open(part(PartKind.URL)) is not None


def test_it_has_no_words() -> None:
    with pytest.raises(ValueError, match="has no words"):
        Secrets(("token",))


def test_what_was_prepared_for_another_machine_is_refused(prepared_secrets: bytes) -> None:
    with pytest.raises(ValueError, match="not for this machine"):
        Secrets((), prepared_secrets[:-1000])


PASSWORD = '{"password": "zX9qLk3Wv7Tb2Rm8Yp4Hs6"},\n'


def test_it_is_told_while_it_can_be_stopped_though_many_numbers_have_a_name(prepared_secrets: bytes) -> None:
    """Before what is withheld of a body in its window has gone on. Without Hyperscan it may be later."""
    inspector = Secrets((), prepared_secrets)
    body = (PASSWORD + f'"key": 7, "name": "{"x" * 120}", ' * 200).encode()
    reading = inspector.open(Part(flow="f", kind=PartKind.BODY, sent=True, host="h"))
    assert reading is not None
    at = next(at for at in range(0, len(body), 1400) if reading.feed(body[at : at + 1400]))
    assert at + 1400 - len(PASSWORD) <= WINDOW_BYTES


def test_many_that_are_none_before_it_do_not_hide_it(prepared_secrets: bytes) -> None:
    inspector = Secrets((), prepared_secrets)
    record = '{"token_type": "refresh_token_2", "id": %d, "scope": "read:user,write:repo,admin:all", "state": "on"},\n'
    body = "".join(record % number for number in range(72)) + PASSWORD + "".join(record % 9 for _ in range(20))
    assert [finding.summary for finding in found(inspector, body.encode())] == ["secret, generic-api-key"]
