"""The words of a question; what they come to in an answer is tested in test_policy_commands."""

from __future__ import annotations

import click
import pytest

from mitmsec.core.sniff import Protocol, Shown
from mitmsec.service.policy_question import (
    CONTAINER,
    UNIT,
    HostName,
    IpAddress,
    ProgramPath,
    Sha256,
    UserName,
    shown_by,
)


@pytest.mark.parametrize(
    ("kind", "word", "meant"),
    [
        (HostName(), "B\u00fccher.example.", "xn--bcher-kva.example"),
        (IpAddress(), "2001:DB8::1", "2001:db8::1"),
        (ProgramPath(), "C:\\x.exe", "C:\\x.exe"),
        (UserName(), "0", "root"),
        (UserName(), "4294967294", "4294967294"),
        (Sha256(), "AB" * 32, "ab" * 32),
        (UNIT, "nginx.service", "nginx.service"),
        (CONTAINER, f"docker:{'ab' * 32}", f"docker:{'ab' * 32}"),
    ],
)
def test_a_word_of_a_question_comes_out_as_rules_are_asked_about_it(
    kind: click.ParamType[str], word: str, meant: str
) -> None:
    assert kind.convert(word, None, None) == meant


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (HostName(), "10.0.0.1"),
        (HostName(), "a b"),
        (IpAddress(), "x"),
        (ProgramPath(), "no-such-program"),
        (UserName(), " "),
        (Sha256(), "ab"),
        (UNIT, "nginx"),
        (CONTAINER, "x"),
    ],
)
def test_a_word_of_a_question_that_means_nothing_is_refused(kind: click.ParamType[str], word: str) -> None:
    with pytest.raises(click.BadParameter):
        kind.convert(word, None, None)


def test_first_bytes_are_taken_for_tls_where_they_show_what_tls_shows() -> None:
    assert shown_by(None, None, (), None) == Shown()
    assert shown_by("a.test", None, (), None) == Shown(protocol=Protocol.TLS, name="a.test", ech=False)
    assert shown_by(None, None, (), None, ech=True) == Shown(protocol=Protocol.TLS, ech=True)
    assert shown_by("a.test", "http", (), None) == Shown(protocol=Protocol.HTTP, name="a.test")


@pytest.mark.parametrize(
    ("host", "protocol", "ja4", "says"),
    [("a.test", "ssh", None, "ssh shows no name"), (None, "http", "t13d", "--alpn, --ja4 and --ech are TLS's")],
)
def test_what_no_first_bytes_can_show_is_no_question(
    host: str | None, protocol: str, ja4: str | None, says: str
) -> None:
    with pytest.raises(click.UsageError, match=says):
        shown_by(host, protocol, (), ja4)
