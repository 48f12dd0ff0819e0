"""A passphrase, from whoever knows it: asked for on a terminal, or read from a file or a descriptor.

Never from an argument or a variable, which other programs of the machine can read.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from typing import Any

import click

from mitmsec.service.options import EXIT_USAGE, fail
from mitmsec_certs.ceremony import keep_undumped

LIMIT_BYTES = 8192
STDIN = "-"


def passphrase_options[Command: Callable[..., Any]](command: Command) -> Command:
    """`--passphrase-file` and `--passphrase-fd`, as `passphrase_file` and `passphrase_fd`."""
    by_fd = click.option(
        "--passphrase-fd", type=click.IntRange(min=0), metavar="N", help="Read it from this open descriptor instead."
    )
    by_file = click.option(
        "--passphrase-file",
        metavar="FILE",
        help="Read the passphrase from the first line of FILE (`-`: stdin), which only you may read. Default: ask.",
    )
    return by_file(by_fd(command))


def passphrase(what: str, file: str | None, descriptor: int | None, *, is_new: bool = False) -> str:
    """The passphrase of `what`, or the end of the command. A new one is asked for twice."""
    if os.geteuid() == 0:  # of others' commands the kernel makes no file that somebody else can read
        keep_undumped()
    if file is not None and descriptor is not None:
        raise click.UsageError("--passphrase-file and --passphrase-fd are one too many")
    if file is not None and file != STDIN:
        return _first_line(_opened(file), file)
    if file is not None or descriptor is not None:
        number = descriptor if descriptor is not None else 0
        return _first_line(number, f"descriptor {number}")
    if not sys.stdin.isatty():
        fail(
            f"the passphrase of {what} is needed, and nobody is here to be asked",
            "--passphrase-file FILE (or - for stdin) or --passphrase-fd N brings it",
            EXIT_USAGE,
        )
    answer: str = click.prompt(f"passphrase of {what}", hide_input=True, confirmation_prompt=is_new, err=True)
    return answer


def _opened(file: str) -> int:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        fail(
            f"--passphrase-file: {file}: {error.strerror}",
            "name a file with the passphrase in its first line",
            EXIT_USAGE,
        )
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (why := others_can_read(status)) is not None:
        what = f"--passphrase-file: {file}: {why}: others can read it, so it is a secret no more"
        fail(
            what, f"choose another passphrase, and keep it in a file that is yours alone: chmod 600 {file}", EXIT_USAGE
        )
    return descriptor


def others_can_read(status: os.stat_result) -> str | None:
    """Why others than we, and than who called sudo, can read a file; None where they cannot."""
    caller = os.environ.get("SUDO_UID", "")
    if status.st_uid not in {os.geteuid(), 0, int(caller) if caller.isdigit() else 0}:
        return f"owned by uid {status.st_uid}"
    return f"mode {stat.S_IMODE(status.st_mode):04o}" if status.st_mode & 0o077 else None


def _first_line(descriptor: int, name: str) -> str:
    try:
        with open(descriptor, "rb", closefd=descriptor != 0) as source:
            line = source.readline(LIMIT_BYTES)
        word = line.decode().rstrip("\r\n")
    except OSError as error:
        fail(f"the passphrase cannot be read from {name}: {error.strerror}", "", EXIT_USAGE)
    except UnicodeDecodeError:
        fail(f"the passphrase cannot be read from {name}: it is not UTF-8", "", EXIT_USAGE)
    if not word:
        fail(f"{name} is empty, or its first line is", "the passphrase has to stand in the first line", EXIT_USAGE)
    return word
