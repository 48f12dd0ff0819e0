"""What `mitmsec audit export` does: once, or at least once each with a cursor.

once           log ─► stdout │ new file │ syslog server            all that matches, then the end
at_least_once  log ─► batch ─► sink ─► settled ─► cursor ─┐        over restarts; with --follow for ever
                └──────────────────◄──────────────────────┘
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import batched, islice
from pathlib import Path

import click
from msgspec.structs import replace

from mitmsec import __version__
from mitmsec.audit.criteria import Filter
from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import Format
from mitmsec.audit.export.cursor import (
    BEGINNING,
    Cursor,
    OtherLog,
    Position,
    check_event,
    check_log,
    position_of,
)
from mitmsec.audit.export.formats import header, in_file, in_syslog
from mitmsec.audit.export.reading import Source
from mitmsec.audit.review import Review
from mitmsec.core.model import Value
from mitmsec.service.export_cursor import CursorFile, CursorRefused, held
from mitmsec.service.export_delivery import Batch, Delivery, Sink, Undelivered
from mitmsec.service.export_file import Appended, Printed, Written, new_file
from mitmsec.service.log_reading import opened_log
from mitmsec.service.options import EXIT_NOT_SO, EXIT_PRIVILEGE, EXIT_USAGE, fail
from mitmsec.service.terminal import console, shown

BATCH_EVENTS = 512
BAR_AFTER_S = 1.0

type Record = Callable[[Fields], bytes]
type Told = Callable[[int], None]


class Wanted(Value, frozen=True):
    """What the options ask for, together possible."""

    form: Format
    filter: Filter
    output: Path | None
    replaces: bool
    to: str | None
    ca: Path | None
    certificate: Path | None
    key: Path | None
    trusts_tcp: bool
    cursor: Path | None
    follows: bool
    state_folder: Path

    @property
    def target(self) -> str:
        """Where events go, in one spelling."""
        return self.to or (str(self.output.absolute()) if self.output is not None else "stdout")


# --- once -------------------------------------------------------------------------------------------------------------
def once(wanted: Wanted) -> None:
    """All that matches; a file that cannot be written to the end is not there."""
    with opened_log(wanted.state_folder) as log, _to_the_end(wanted) as sink, _progress(log.size(), wanted) as told:
        record, found = _records(wanted, log), False
        for some in batched(log.events(wanted.filter), BATCH_EVENTS):
            found = True
            sink.take([record(event) for event in some])
            told(int(some[-1]["seq"]))
        sink.settle()
    if not found:
        click.echo("no event matches", err=True)


@contextmanager
def _to_the_end(wanted: Wanted) -> Iterator[Sink]:
    with _undelivered_is_told():
        if wanted.to is not None:
            yield _server(wanted)
        elif wanted.output is None:
            yield _printed(wanted)
        else:
            with new_file(wanted.output, replaces=wanted.replaces) as file:
                file.write(header(wanted.form))
                yield Written(file)


def _printed(wanted: Wanted) -> Printed:
    printed = Printed()
    printed.take([header(wanted.form)])
    return printed


@contextmanager
def _undelivered_is_told() -> Iterator[None]:
    try:
        yield
    except Undelivered as error:
        fail(f"not everything was delivered: {error}", "put that right, then order it once more", EXIT_PRIVILEGE)


def _records(wanted: Wanted, log: Review) -> Record:
    writes = in_file(wanted.form) if wanted.to is None else in_syslog(wanted.form)
    source = Source(host=socket.gethostname(), version=__version__, log=_name(log))
    return lambda event: writes(event, source)


def _name(log: Review) -> str:
    return next((key.name for _, key in log.proofs.signers()), "")


# --- with a cursor ----------------------------------------------------------------------------------------------------
def at_least_once(wanted: Wanted) -> None:
    """What comes after the cursor; without one, only to follow. Ends where the log is not the cursor's."""
    with _cursor_file(wanted) as file, _undelivered_is_told(), _bar(wanted) as told:
        start = _start(wanted, file)
        reading = _Reading(wanted, start.log, told)

        def keep(at: Position) -> None:
            if file is not None:
                _kept(file, Cursor(to=wanted.target, log=reading.log, at=at))

        keep(start.at)  # before the file: whoever is killed in between finds that it is the cursor's
        Delivery(reading.after, _going_on(wanted), keep, Clock(), _tell).run(start.at, follow=wanted.follows)


@contextmanager
def _cursor_file(wanted: Wanted) -> Iterator[CursorFile | None]:
    if wanted.cursor is None:
        yield None
        return
    try:
        with held(wanted.cursor) as file:
            yield file
    except CursorRefused as error:
        fail(f"--cursor: {shown(wanted.cursor)} {error}", "name another file; a new one begins anew", EXIT_USAGE)


def _kept(file: CursorFile, cursor: Cursor) -> None:
    try:
        file.keep(cursor)
    except OSError as error:
        what = f"--cursor: {shown(file.path)} cannot be written: {error.strerror}"
        fail(what, "put that right, then order it once more; what it does not hold is delivered again", EXIT_PRIVILEGE)


def _start(wanted: Wanted, file: CursorFile | None) -> Cursor:
    """Where this export goes on, or begins."""
    cursor = None if file is None else file.read()
    if cursor is None:
        if file is not None and wanted.output is not None and _has_content(wanted.output):
            error = f"--output: {shown(wanted.output)} is there already, and its cursor is not"
            fail(error, "name a new file, or the cursor that was used with it", EXIT_USAGE)
        return Cursor(to=wanted.target, log="", at=BEGINNING)
    if cursor.to != wanted.target:
        error = f"--cursor: {shown(wanted.cursor)} says how far the export to {shown(cursor.to)} has come"
        fail(error, "use one cursor for each place; or change `to` in it, if it has moved there", EXIT_USAGE)
    return cursor


def _has_content(path: Path) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0  # or it cannot be seen, and then not opened either


def _going_on(wanted: Wanted) -> Sink:
    if wanted.to is not None:
        return _server(wanted)
    if wanted.output is None:
        return _printed(wanted)
    appended = Appended(wanted.output, header(wanted.form))
    appended.take([])  # a torn line is cut off even if nothing comes
    return appended


class _Reading:
    """What comes after a position. The log is opened for each batch: it grows, and its recorder tidies up."""

    def __init__(self, wanted: Wanted, log: str, told: Told) -> None:
        self.log = log  # its name; empty: not known yet
        self._wanted, self._told = wanted, told

    def after(self, at: Position) -> Batch | None:
        """None: nothing yet."""
        with opened_log(self._wanted.state_folder) as log:
            newest = next(log.events(Filter(limit=1)), None)
            self._check(log, at, -1 if newest is None else int(newest["seq"]))
            if newest is None or newest["seq"] == at.seq:
                return None
            events = list(islice(log.events(replace(self._wanted.filter, after=at.seq)), BATCH_EVENTS))
            record = _records(self._wanted, log)
        last = events[-1] if events else newest
        if len(events) < BATCH_EVENTS and newest["seq"] > last["seq"]:
            last = newest
        self._told(int(last["seq"]))
        return Batch(tuple(map(record, events)), position_of(last))

    def _check(self, log: Review, at: Position, newest: int) -> None:
        name = _name(log)
        try:
            check_log(Cursor(to=self._wanted.target, log=self.log, at=at), name)
            check_event(at, log.event(str(at.seq)) if at.seq >= 0 else None, newest)
        except OtherLog as error:
            fail(str(error), "to begin anew with this log, name a new --cursor FILE and a new place", EXIT_NOT_SO)
        self.log = self.log or name


class Clock:
    """The machine's."""

    def now_s(self) -> float:
        """Never goes back."""
        return time.monotonic()

    def pause(self, span_s: float) -> None:
        """Ctrl-C ends it."""
        time.sleep(span_s)


def _tell(words: str) -> None:
    click.echo(f"mitmsec: {shown(words)}", err=True)


# --- what both have in common -----------------------------------------------------------------------------------------
def _server(wanted: Wanted) -> Sink:
    from mitmsec.service.export_syslog import Address, SyslogServer, Unusable, context
    from mitmsec_certs.bundle import BadBundle, Bundle, LocalFiles, named_file, roots_as_used

    try:
        address = Address.parse(wanted.to or "")
    except ValueError as error:
        fail(f"--to: {shown(error)}", "for example --to syslog+tls://collector.example:6514", EXIT_USAGE)
    try:
        if wanted.ca is None:
            roots = roots_as_used(os.environ)
        else:
            roots = Bundle(roots=named_file("--ca", str(wanted.ca), LocalFiles()), sources=())
        tls = context(roots.pem.decode(), wanted.certificate, wanted.key)
    except (BadBundle, Unusable) as error:
        fail(str(error), "name PEM files that you may read", EXIT_USAGE)
    return SyslogServer(address, tls, trusts_tcp=wanted.trusts_tcp)


@contextmanager
def _bar(wanted: Wanted) -> Iterator[Told]:
    if wanted.follows:
        yield lambda seq: None
        return
    with opened_log(wanted.state_folder) as log:
        size = log.size()
    with _progress(size, wanted) as told:
        yield told


@contextmanager
def _progress(size: int, wanted: Wanted) -> Iterator[Told]:
    """A bar on stderr for people who wait, unless the events run over the same screen."""
    out = console(stderr=True)
    if not out.is_terminal or (wanted.output is None and wanted.to is None and sys.stdout.isatty()):
        yield lambda seq: None
        return
    from rich.progress import Progress

    bar, began_s = Progress(console=out, transient=True), time.monotonic()
    task = bar.add_task("exporting", total=size)

    def told(seq: int) -> None:
        if not bar.live.is_started and time.monotonic() - began_s > BAR_AFTER_S:
            bar.start()
        bar.update(task, completed=seq + 1)

    try:
        yield told
    finally:
        bar.stop()
