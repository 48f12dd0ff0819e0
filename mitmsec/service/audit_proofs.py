"""`mitmsec audit verify`, `prove`, `checkpoint`, `key`: whether the record is whole, and how others are shown that."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill

import click
import msgspec
from rich.progress import Progress
from rich.text import Text

from mitmsec.audit.checkpoint import Checkpoint, LogKey, Untrue, said_by
from mitmsec.audit.envelope import Fields, canonical
from mitmsec.audit.index import FILE_NAME as INDEX
from mitmsec.audit.index_check import Compared
from mitmsec.audit.merkle import leaf_hash
from mitmsec.audit.proving import SignedBy, Unproven
from mitmsec.audit.reading import Unreadable
from mitmsec.audit.review import Review
from mitmsec.audit.verifying import Broken, Other, Root, Verified
from mitmsec.service.log_reading import opened_log
from mitmsec.service.options import EXIT_NOT_SO, debug_option, fail, json_option, state_option
from mitmsec.service.state import State
from mitmsec.service.terminal import console, tell

PROOF = "c2sp.org/tlog-proof@v1"
UNPROVEN = (
    "Without a checkpoint that was kept elsewhere, this cannot exclude that events were cut off at the end (back to an"
    " older checkpoint), or that the log was written anew, and signed, by someone who is root here. Keep `mitmsec audit"
    " checkpoint` and `mitmsec audit key` on another machine, and verify with --checkpoint and --key later."
)
UNSIGNED = "No signature was checked: give the key that you have kept, with --key."
PROVEN = "The first {size} events are those that were kept."
ALL_PROVEN = "All of its events are those that were kept."
BEHIND = (
    " The {count} behind them may since have been cut short, or written anew, by someone who can write the log's file:"
    " keep the newest checkpoint as well."
)
INDEX_REMEDY = "searches may hide events; move {} away, and the next start of a recorder makes it anew"
OTHER = "any of its events may differ from those that were kept; nothing in this log can be relied on"
COPY = "keep a copy of STATE/log as it is now"


def _root(ctx: click.Context, param: click.Parameter, value: str | None) -> Root | None:
    try:
        return None if value is None else Root.parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not SIZE:HASH, as `audit verify` prints it after head:") from error


def _keys(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[LogKey, ...]:
    """Keys as they are, or files of them."""
    keys: list[LogKey] = []
    for value in values:
        path = Path(value)
        try:
            texts = path.read_text().split() if "+" not in value or path.is_file() else [value]
            keys += [LogKey.parse(text) for text in texts]
            if not texts:
                raise ValueError("it is empty")
        except (OSError, ValueError) as error:
            raise click.BadParameter(f"{value!r} is no key of a log, and no file of them: {error}") from error
    return tuple(keys)


def _note(ctx: click.Context, param: click.Parameter, value: Path | None) -> str | None:
    try:
        return None if value is None else value.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{value}: {error}") from error


checkpoint_option = click.option(
    "--checkpoint",
    "note",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_note,
    metavar="FILE",
    help="A checkpoint that was kept elsewhere (`audit checkpoint`).",
)


@click.command()
@checkpoint_option
@click.option(
    "--key", "keys", multiple=True, callback=_keys, metavar="KEY|FILE", help="Who signs (`audit key`); repeat."
)
@click.option(
    "--head", "kept", callback=_root, metavar="SIZE:HASH", help="In place of a checkpoint: what it stands for."
)
@click.option("--log-only", is_flag=True, help="Do not hold the index of searches against the log.")
@click.option(
    "--bundle",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Verify what the console exported instead of a log; no log is needed for it.",
)
@json_option
@state_option
@debug_option
def verify(
    *,
    note: str | None,
    keys: tuple[LogKey, ...],
    kept: Root | None,
    log_only: bool,
    bundle: Path | None,
    as_json: bool,
    state_folder: Path,
) -> None:
    """Say whether the log is what was written.

    Hashes every event again and compares; then makes the index that searches ask once more, and compares that. Exit
    status 1 if the log is not whole, not the one that was kept, or not what its index says.
    """
    if bundle is not None:
        if kept is not None:
            raise click.UsageError("--bundle is held against --checkpoint, not --head")
        from mitmsec.service.audit_bundle import verify_bundle

        return verify_bundle(bundle, keys, note, as_json=as_json)
    signed_by = _signed_by(keys) if keys else None
    if note is not None:
        kept = _kept(note, signed_by)
    index: Compared | None = None
    try:
        with opened_log(state_folder, verifies=True) as log, _progress(log, quiet=as_json) as told:
            result = log.proofs.verify(kept, told("the log"), signed_by)
            if isinstance(result, Verified) and not log_only:
                index = log.compared_index(told("its index"))
    except Unreadable as error:
        if as_json:
            _print_json({"verified": False, "seq": None, "why": str(error), "kept_head": None})
        fail(str(error), f"nothing in it can be verified; {COPY}", EXIT_NOT_SO)
    if as_json:
        _print_json(_verification(result, kept, index, is_signed=bool(keys)))
        sys.exit(0 if isinstance(result, Verified) and (index is None or not index.why) else EXIT_NOT_SO)
    match result:
        case Verified():
            _tell_verified(result, kept, is_signed=bool(keys))
            if index is not None and index.why:
                where = State(state_folder).log / INDEX
                fail(f"its index is NOT what it should be: {index.why}", INDEX_REMEDY.format(where), EXIT_NOT_SO)
        case Broken():
            fail(
                f"the log is NOT whole, from event {result.seq} on: {result.why}",
                f"{COPY}; {_before(result, kept)}",
                EXIT_NOT_SO,
            )
        case Other():
            fail(f"this is NOT the log that was kept: {result.why}", f"{COPY}; {OTHER}", EXIT_NOT_SO)


def _signed_by(keys: tuple[LogKey, ...]) -> SignedBy:
    from mitmsec.seal import checks  # what is only read does not wait for it

    return SignedBy(keys, checks)


def _kept(note: str, signed_by: SignedBy | None) -> Root:
    """What a checkpoint that was kept stands for; it ends here where it is none, or signed by no key that was kept."""
    try:
        said = said_by(note) if signed_by is None else signed_by.opened(note)[0]
    except Untrue as error:
        fail(
            f"the checkpoint that was kept is none: {error}", "give the file and the key as they were kept", EXIT_NOT_SO
        )
    return Root(said.size, said.root)


@click.command()
@state_option
@debug_option
def checkpoint(state_folder: Path) -> None:
    """Print the newest checkpoint.

    It says what the log is, signed: keep it on another machine. A recorder signs about once a second, and when it ends.
    """
    with opened_log(state_folder) as log:
        click.echo(_newest(log)[0], nl=False)


@click.command()
@json_option
@state_option
@debug_option
def key(as_json: bool, state_folder: Path) -> None:
    """Print whose signatures checkpoints have.

    Keep it on another machine. After a change of keys the newest is printed last; `verify` wants them all.
    """
    with opened_log(state_folder) as log:
        for size, known in log.proofs.signers():
            _print_json({"from": size, "key": str(known)}) if as_json else click.echo(str(known))


@click.command()
@click.argument("which", required=False, metavar="[ID|NUMBER]")
@click.option(
    "--since",
    "note",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_note,
    metavar="FILE",
    help="Show instead that the log begins with what this older checkpoint stands for.",
)
@json_option
@state_option
@debug_option
def prove(which: str | None, note: str | None, as_json: bool, state_folder: Path) -> None:
    """Show that an event is in the log.

    To somebody who has its key and nothing else. What is printed (C2SP tlog-proof; --json: with the event) is checked
    with the event's own JSON, as it is in the log.
    """
    if (which is None) == (note is None):
        raise click.UsageError("what is to be shown: an event (ID or NUMBER), or --since FILE?")
    with opened_log(state_folder) as log:
        if note is not None:
            return _prove_since(log, note, as_json=as_json)
        event = log.event(which or "")
        if event is None:
            fail(f"there is no event {which}", "`mitmsec audit list` shows what there is", EXIT_NOT_SO)
        said, checkpoint = _newest(log, least=int(event["seq"]) + 1)
        with _or_unproven():
            path = log.proofs.shown_to_include(event["seq"], checkpoint, canonical(event))
    if as_json:
        return _print_json(_proof(event, checkpoint.size, path, said))
    click.echo("\n".join([PROOF, f"index {event['seq']}", *map(_base64, path), "", said]), nl=False)


def _prove_since(log: Review, note: str, *, as_json: bool) -> None:
    try:
        old = said_by(note)
        if old.origin in {key.name for _, key in log.proofs.signers()}:
            old = _signed_here(log, note)
    except Untrue as error:
        fail(f"that is no checkpoint: {error}", "give it as `mitmsec audit checkpoint` printed it", EXIT_NOT_SO)
    said, new = _newest(log, least=old.size)
    with _or_unproven():
        path = log.proofs.shown_to_begin_with(old, new)
    if as_json:
        return _print_json({"old": old.size, "new": new.size, "path": list(map(_base64, path)), "checkpoint": said})
    click.echo("\n".join([f"old {old.size}", *map(_base64, path), "", said]), nl=False)


@contextmanager
def _or_unproven() -> Iterator[None]:
    """What cannot be shown is not printed as if it had been."""
    try:
        yield
    except Unproven as error:
        fail(f"this cannot be shown: {error}", f"{COPY}; `mitmsec audit verify` says more", EXIT_NOT_SO)


def _signed_here(log: Review, note: str) -> Checkpoint:
    """What a note says that one of the log's own keys has signed. Raises Untrue."""
    return _signed_by(tuple(key for _, key in log.proofs.signers())).opened(note)[0]


def _proof(event: Fields, size: int, path: list[bytes], note: str) -> dict[str, object]:
    envelope = canonical(event)
    return {
        "event": envelope.decode(),
        "index": event["seq"],
        "size": size,
        "leaf": _base64(leaf_hash(envelope)),
        "path": list(map(_base64, path)),
        "checkpoint": note,
    }


def _newest(log: Review, least: int = 0) -> tuple[str, Checkpoint]:
    """The newest checkpoint, as text and what it says, signed by one of the log's own keys."""
    found = log.proofs.note(least)
    if found is None:
        what = "nothing has been signed yet" if not least else "no checkpoint stands for that yet"
        fail(what, "a recorder signs about once a second, and when it ends: try again", EXIT_NOT_SO)
    try:
        _signed_here(log, found[0])
    except Untrue as error:
        fail(f"its newest checkpoint is none: {error}", f"{COPY}; `mitmsec audit verify` says more", EXIT_NOT_SO)
    return found


def _base64(hashed: bytes) -> str:
    return base64.b64encode(hashed).decode()


@contextmanager
def _progress(log: Review, *, quiet: bool) -> Iterator[Callable[[str], Callable[[int], None]]]:
    """Progress bars on stderr, for people who wait: one for each thing that is verified."""
    out = console(stderr=True)
    with Progress(console=out, transient=True, disable=quiet or not out.is_terminal) as progress:

        def told(what: str) -> Callable[[int], None]:
            task = progress.add_task(f"verifying {what}", total=log.size())
            return lambda seq: progress.update(task, completed=seq)

        yield told


def _tell_verified(result: Verified, kept: Root | None, *, is_signed: bool) -> None:
    out, size = console(), result.root.size
    signed = f", {result.signed.size} of them signed" if result.signed is not None else ""
    tell(out, Text.assemble(("whole", "bold green"), f": {size} events, each as the tree over them has it{signed}"))
    click.echo(f"head: {result.root}")  # one word to copy, however narrow it is here
    tell(out, Text(fill(_limits(size, kept, is_signed=is_signed), out.width), style="dim"))


def _limits(size: int, kept: Root | None, *, is_signed: bool) -> str:
    if kept is None:
        return UNPROVEN
    limits = ALL_PROVEN
    if kept.size < size:
        limits = PROVEN.format(size=kept.size) + BEHIND.format(count=size - kept.size)
    return limits if is_signed else f"{limits} {UNSIGNED}"


def _before(broken: Broken, kept: Root | None) -> str:
    """What can still be said of the events before the one from which on the log is not whole."""
    if broken.seq == 0:
        return "nothing stands before that event"
    proven = kept.size if kept is not None and kept.size <= broken.seq else 0
    known = f"the first {proven} events are those that were kept" if proven else ""
    if proven == broken.seq:
        return known
    fits = "what stands before that event is still what was written, as far as the tree shows"
    return f"{known}, and {fits}" if known else fits


def _verification(
    result: Verified | Broken | Other, kept: Root | None, index: Compared | None, *, is_signed: bool
) -> dict[str, object]:
    """`kept_head`: whether the log had what was kept; None where nothing was, or the log is not whole before that.

    `proven`: of so many events, the first, nothing of `cannot_exclude` can have happened.
    """
    match result:
        case Broken(seq=seq, why=why):
            had_it = True if kept is not None and kept.size <= seq else None
            return {"verified": False, "seq": seq, "why": why, "kept_head": had_it}
        case Other(why=why):
            return {"verified": False, "seq": None, "why": why, "kept_head": False}
        case Verified(root=root, signed=signed, checkpoints=checkpoints):
            return {
                "verified": True,
                "size": root.size,
                "head": str(root),
                "checkpoints": checkpoints,
                "signed": None if signed is None else signed.size,
                "signatures_checked": is_signed,
                "kept": None if kept is None else str(kept),
                "proven": 0 if kept is None else kept.size,
                "cannot_exclude": ["truncation", "rewriting"] if kept is None or kept.size < root.size else [],
                "index": None if index is None else {"size": index.size, "why": index.why},
            }


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value))
