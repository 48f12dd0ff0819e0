"""Tools that read, that do not, that say much, and that never stop."""

from __future__ import annotations

import subprocess

import pytest

from mitmsec_certs.truststore.talk import TooMuch, talk

MUCH = b"x" * 1_000_000


def told(script: str, stdin: bytes = b"", limit_s: float = 30) -> tuple[bytes, bytes]:
    process = subprocess.Popen(["sh", "-c", script], stdin=-1, stdout=-1, stderr=-1)
    try:
        return talk(process, stdin, limit_s)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def test_both_ways_at_once_and_more_than_pipes_hold() -> None:
    assert told("cat; echo why >&2", MUCH) == (MUCH, b"why\n")
    assert told("echo a; cat >&2", MUCH) == (b"a\n", MUCH)


def test_who_does_not_read_what_it_is_given_ends_all_the_same() -> None:
    assert told("exit 0", MUCH) == (b"", b"")
    assert told("exec <&-; sleep 0.1; echo done", MUCH) == (b"done\n", b"")
    assert told("cat") == (b"", b"")


@pytest.mark.parametrize("script", ["yes", "yes >&2"])
def test_who_never_stops_is_not_listened_to(script: str) -> None:
    with pytest.raises(TooMuch, match="more than 16 MiB"):
        told(script)


@pytest.mark.parametrize("script", ["sleep 60", "exec >&- 2>&- <&-; sleep 60"])
def test_who_does_not_end_is_not_waited_for(script: str) -> None:
    with pytest.raises(TimeoutError):
        told(script, limit_s=0.2)
