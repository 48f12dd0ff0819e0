"""The shell in which a variant's clients run: started once, before the measuring, and fed through its stdin."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_END_DEADLINE_S = 15
_MARK = "mitmsec-bench-done"


class Ended(Exception):
    """The shell, or what it runs under, is gone; the message says how."""


class TooLate(Exception):
    """A command did not end in its time and was stopped."""


@dataclass(frozen=True, slots=True)
class Printed:
    """What one command printed."""

    stdout: str
    stderr: str
    status: int


class Shell:
    """`sh`, perhaps under a program that diverts what it runs (`mitmsec run -- sh`)."""

    def __init__(self, argv: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Start it; the folder takes what it and its commands print."""
        self._folder = folder
        self._log = folder / "shell.err"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*argv, "sh"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both are pipes")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._unread = b""

    def pid(self, timeout_s: float) -> int:
        """The process id of `sh` itself, once it has started."""
        self._send("echo $$")
        return int(self._line(time.monotonic() + timeout_s))

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Printed:
        """Run one command to its end; raises `TooLate` or `Ended`."""
        return self.run_script(shlex.join(argv), timeout_s=timeout_s)

    def run_script(self, script: str, *, timeout_s: float) -> Printed:
        """Run a line of shell to its end; raises `TooLate` or `Ended`."""
        out, err = self._folder / "command.out", self._folder / "command.err"
        stopped = f"timeout -k 1 {timeout_s:.0f} sh -c {shlex.quote(script)}"
        self._send(f"{stopped} </dev/null >{shlex.quote(str(out))} 2>{shlex.quote(str(err))}; echo {_MARK} $?")
        line = self._line(time.monotonic() + timeout_s + 5)
        mark, _, status = line.partition(" ")
        if mark != _MARK:
            raise Ended(f"unexpected output of the shell: {line[:200]!r}")
        if int(status) in (124, 137):
            raise TooLate(f"not done after {timeout_s:.0f} s")
        return Printed(out.read_text(errors="replace"), err.read_text(errors="replace"), int(status))

    def close(self) -> int:
        """End of input, then wait: gives the exit status that came through."""
        with suppress(OSError):
            self._stdin.close()
        try:
            return self._process.wait(_END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._stdout.close()

    def _send(self, line: str) -> None:
        try:
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()
        except OSError as wrong:
            raise self._ended() from wrong

    def _line(self, until: float) -> str:
        while b"\n" not in self._unread:
            readable, _, _ = select.select([self._stdout], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                raise TooLate("the shell does not answer")
            some = os.read(self._stdout.fileno(), 4096)
            if not some:
                raise self._ended()
            self._unread += some
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode(errors="replace").strip()

    def _ended(self) -> Ended:
        try:
            status: object = self._process.wait(2)
        except subprocess.TimeoutExpired:
            status = "unknown"
        said = self._log.read_text(errors="replace").strip()[-400:]
        return Ended(f"ended with status {status}: {said or 'nothing on stderr'}")
