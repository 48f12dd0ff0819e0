"""Errors say what happened and what to do next, on stderr, with a status that says whose fault it is."""

from __future__ import annotations

import os
import sys

import pytest

from mitmsec.service import options


def test_a_failure_is_two_lines_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.fail("it broke", "mend it", options.EXIT_PRIVILEGE)
    assert ended.value.code == 3
    assert capsys.readouterr() == ("", "mitmsec: it broke\n  mend it\n")


def test_who_is_not_root_is_given_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        options.need_root("run")
    assert ended.value.code == options.EXIT_PRIVILEGE
    assert "sudo" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    options.need_root("run")


def test_the_command_that_helps_can_be_copied_into_a_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["mitmsec", "run", "--", "sh", "-c", "a b; c"])
    with pytest.raises(SystemExit):
        options.need_root("run")
    assert "run -- sh -c 'a b; c'\n" in capsys.readouterr().err
