"""`mitmsec quarantine`: keys for the people who may open content that findings have stopped, and opening it.

release:  keys of two people ──► the content's key ──► its first piece ──► on record who ──► all, into a new file
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec
from rich.table import Table
from rich.text import Text

from mitmsec.core.model import Value
from mitmsec.core.quarantine import (
    HEADER_LIMIT_BYTES,
    MAGIC,
    NAME_LIMIT_CHARACTERS,
    Header,
    Malformed,
    Recipient,
    parse_about,
    parse_preamble,
)
from mitmsec.service import control
from mitmsec.service.called import as_root, program, with_state
from mitmsec.service.groups import Group
from mitmsec.service.options import (
    EXIT_NOT_SO,
    EXIT_PRIVILEGE,
    EXIT_USAGE,
    debug_option,
    fail,
    json_option,
    need_root,
    state_option,
)
from mitmsec.service.review_record import calling_user, recorded
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell

if TYPE_CHECKING:
    from mitmsec.core.quarantine import About

KEY_LIMIT_BYTES = 1 << 16
ABOUT_LIMIT_BYTES = 1 << 16


class Item(Value, frozen=True):
    """One of the listing. `why` says what is wrong with a file that is none."""

    item: str
    time: str  # RFC 3339, UTC: when it was complete
    file_bytes: int
    content_bytes: int | None = None
    is_whole: bool | None = None
    sealed_for: tuple[str, ...] = ()
    why: str = ""


@click.group(cls=Group)
def quarantine() -> None:
    """List what findings have stopped; two people open it."""


@quarantine.command()
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The new file for the private key."
)
@json_option
@debug_option
def keys(*, name: str, output: Path, as_json: bool) -> None:
    """Make a pair of keys for NAME, one of the people who may open, two together.

    The private key goes into a new file, which belongs on a medium of that person's own; the line that is printed
    belongs into the policy, under [quarantine] recipients.
    """
    if not name or not name.isprintable() or len(name) > NAME_LIMIT_CHARACTERS:
        fail("this is no name", f"one of up to {NAME_LIMIT_CHARACTERS} printable characters is wanted", EXIT_USAGE)
    from mitmsec_certs.quarantine_box import new_key

    pem, public = new_key()
    with _new_file(output) as file:
        file.write(pem)
    recipient = Recipient(name=name, public=public)
    click.echo(
        msgspec.json.encode({"recipient": recipient.written, "file": str(output)}) if as_json else recipient.written
    )
    if not as_json:
        click.echo(f"mitmsec: the private key is in {shown(output)}: keep it apart from the other people's", err=True)


@quarantine.command(name="list")
@json_option
@state_option
@debug_option
def list_items(*, as_json: bool, state_folder: Path) -> None:
    """List what lies under quarantine. What it is about, its connection's events say (`audit show`)."""
    items = [_item(path) for path in _files(State(state_folder))]
    if as_json:
        for item in items:
            click.echo(msgspec.json.encode(item))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("item", "since", "bytes", "sealed for"):
        table.add_column(heading)
    table.columns[0].min_width = max((len(item.item) for item in items), default=0)  # it is what is named next
    for item in items:
        size = (
            "?" if item.content_bytes is None else f"{item.content_bytes}{'' if item.is_whole else ', not all of it'}"
        )
        whose = item.why or ", ".join(item.sealed_for)
        table.add_row(*(Text(shown(one)) for one in (item.item, item.time, size, whose)))
    tell(console(), table if items else Text("nothing lies under quarantine"))


@quarantine.command()
@click.argument("item")
@json_option
@state_option
@debug_option
def show(*, item: str, as_json: bool, state_folder: Path) -> None:
    """Show one item, as far as it can be read without the keys."""
    state = State(state_folder)
    found = _item(_file(state, item))
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        for name, value in msgspec.to_builtins(found).items():
            click.echo(
                f"{name.replace('_', ' '):14}{shown(', '.join(value) if isinstance(value, list | tuple) else value)}"
            )
        connection = found.item.rpartition("-")[0]
        click.echo(f"{'what it is':14}{program()} audit show{with_state(state)} {shown(connection)}")
    if found.why:
        fail(f"{shown(item)}: {found.why}", "its file was changed, or is of another version", EXIT_NOT_SO)


@quarantine.command()
@click.argument("item")
@click.option(
    "--key",
    "key_files",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A person's private key; two people's are wanted.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The new file for the content.")
@json_option
@state_option
@debug_option
def release(*, item: str, key_files: tuple[Path, ...], output: Path, as_json: bool, state_folder: Path) -> None:
    """Open ITEM with the keys of two people, into a new file.

    ITEM may be cut short where no other begins so. Who opens what is on record before anything of it is written. The
    item stays under quarantine. Exit status 1: these keys do not open it, or it is not what was sealed.
    """
    if len(key_files) < 2:
        fail("two people's keys are wanted", "name each with --key", EXIT_USAGE)
    need_root("opening what lies under quarantine")
    state = State(state_folder)
    path = _file(state, item)
    item = path.name
    privates = [_private(file) for file in key_files]
    from mitmsec_certs.quarantine_box import NotOpened, opened_key, opened_pieces

    try:
        with open(path, "rb") as file:
            began = file.read(len(MAGIC) + HEADER_LIMIT_BYTES)
            header, at = parse_preamble(began)
            if header.item != item:
                raise Malformed(_another(header))
            key, people = opened_key(header, privates)
            file.seek(at)
            about = _opens(header, opened_pieces(key, began[:at], file))
            with _new_file(output) as target:  # before it is on record: what cannot be written was not released
                _record(state, item, people)
                file.seek(at)
                pieces = opened_pieces(key, began[:at], file)
                target.writelines(itertools.chain([_begun(item, pieces)[1]], pieces))
    except (Malformed, NotOpened) as error:
        fail(f"{shown(item)}: {error}", "", EXIT_NOT_SO)
    if as_json:
        whose = {"people": [one.name for one in people], "keys": [one.key for one in people]}
        click.echo(msgspec.json.encode({"item": item, **whose, **msgspec.to_builtins(about)}))
        return
    for name, value in msgspec.to_builtins(about).items():
        if value not in ("", None):
            click.echo(f"{name.replace('_', ' '):14}{shown(value)}")
    click.echo(f"{'opened by':14}{shown(' and '.join(one.name for one in people))}")
    click.echo(f"{'written to':14}{shown(output)}")
    if not header.is_whole:
        click.echo("mitmsec: this may not be all of what was found", err=True)


def _begun(item: str, pieces: Iterator[bytes]) -> tuple[About, bytes]:
    """What precedes the content, and what has come of that: the header, too, is then what was sealed with it.

    Raises Malformed, and what `pieces` raise.
    """
    waiting = b""
    for piece in pieces:
        waiting += piece
        if b"\n" in waiting:
            break
        if len(waiting) > ABOUT_LIMIT_BYTES:
            raise Malformed("what it says of itself is damaged")
    line, _, rest = waiting.partition(b"\n")
    about = parse_about(line)
    if about.flow != item.rpartition("-")[0]:
        raise Malformed("it says that it is of another connection")
    return about, rest


def _opens(header: Header, pieces: Iterator[bytes]) -> About:
    """What the content is about, all of which opens. Raises Malformed, and what `pieces` raise."""
    about, first = _begun(header.item, pieces)
    size_bytes = len(first) + sum(map(len, pieces))
    if size_bytes != header.content_bytes:
        raise Malformed(f"{size_bytes} bytes where {header.content_bytes} were told")
    return about


def _another(header: Header) -> str:
    return f"it says that it is {header.item}"


def _record(state: State, item: str, people: tuple[Recipient, ...]) -> None:
    """Or the end of the command."""
    names, keys = tuple(one.name for one in people), tuple(one.key for one in people)
    recorded(state, control.Review(item=item, user=calling_user(), people=names, keys=keys), "nothing was opened")


# -- files -------------------------------------------------------------------------------------------------------------
def _files(state: State) -> list[Path]:
    """Of complete items, oldest first."""
    try:
        found = [entry for entry in os.scandir(state.quarantine) if not entry.name.endswith(".part")]
    except FileNotFoundError:
        return []
    except PermissionError:
        fail(f"{state.quarantine} is not for you to read", f"try: {as_root()}", EXIT_PRIVILEGE)
    found.sort(key=lambda entry: (entry.stat(follow_symlinks=False).st_mtime, entry.name))
    return [Path(entry.path) for entry in found]


def _file(state: State, item: str) -> Path:
    """The item, or the only one whose name begins so."""
    meant = [path for path in _files(state) if item and path.name.startswith(item)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        fail(f"{len(meant)} items begin with {shown(item)}", "name more of the one that you mean", EXIT_USAGE)
    again = f"{program()} quarantine list{with_state(state)}"
    fail(f"there is no item {shown(item)}", f"`{again}` says which there are", EXIT_NOT_SO)


def _item(path: Path) -> Item:
    found = path.stat(follow_symlinks=False)
    time = datetime.fromtimestamp(found.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    one = Item(item=path.name, time=time, file_bytes=found.st_size)
    try:
        with open(path, "rb") as file:
            header, _ = parse_preamble(file.read(len(MAGIC) + HEADER_LIMIT_BYTES))
    except Malformed as error:
        return msgspec.structs.replace(one, why=str(error))
    except OSError as error:
        fail(f"{shown(path)} cannot be read: {error.strerror}", f"try: {as_root()}", EXIT_PRIVILEGE)
    if header.item != path.name:
        return msgspec.structs.replace(one, why=_another(header))
    names = tuple(one.name for one in header.recipients)
    return msgspec.structs.replace(one, content_bytes=header.content_bytes, is_whole=header.is_whole, sealed_for=names)


def _private(path: Path) -> bytes:
    from mitmsec_certs.quarantine_box import NotOpened, private_in

    try:
        return private_in(_key_text(path))
    except NotOpened as error:
        fail(f"--key: {shown(path)}: {error}", "name the file that `quarantine keys` wrote for that person", EXIT_USAGE)


def _key_text(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                fail(f"--key: {shown(path)} is no file", "name the one that `quarantine keys` wrote", EXIT_USAGE)
            return file.read(KEY_LIMIT_BYTES)
    except OSError as error:
        fail(f"--key: {shown(path)} cannot be read: {error.strerror}", "name a file that you may read", EXIT_USAGE)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Ours alone, on disk at the end; not there where the body raises."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        fail(f"--output: {shown(path)} is there already", "name a new file", EXIT_USAGE)
    except OSError as error:
        fail(f"--output: {shown(path)} cannot be made: {error.strerror}", "name another file", EXIT_USAGE)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
