"""`mitmsec audit export`: events in other programs' formats, to stdout, a file or a syslog server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mitmsec.audit.export import Format
from mitmsec.service.audit_filters import filter_of, filter_options
from mitmsec.service.options import debug_option, state_option

if TYPE_CHECKING:  # `audit list` takes neither formats nor TLS
    from mitmsec.service.exporting import Wanted

_path = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice([form.value for form in Format]),
    help="Default: jsonl; with --to: syslog, whose message is the event as JSON.",
)
@filter_options
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest N that match. Default: all.")
@click.option("--output", type=_path, metavar="FILE", help="A new file, yours alone. Default: stdout.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--to", metavar="URL", help="A syslog server behind TLS (RFC 5425): syslog+tls://HOST:PORT.")
@click.option("--ca", type=_path, metavar="FILE", help="With --to: verify the server by these roots, not the system's.")
@click.option(
    "--client-certificate", type=_path, metavar="FILE", help="With --to: who we are (PEM; its key inside too)."
)
@click.option("--client-key", type=_path, metavar="FILE", help="The key of --client-certificate, if it is apart.")
@click.option(
    "--trust-tcp",
    is_flag=True,
    help="With --to: an end of TCP without a reset is answer enough; for servers that do not answer close_notify.",
)
@click.option("--cursor", type=_path, metavar="FILE", help="Go on after what was delivered last; FILE remembers it.")
@click.option("--follow", is_flag=True, help="Go on with what comes, for ever.")
@state_option
@debug_option
def export(
    *, form: str | None, limit: int | None, output: Path | None, force: bool, to: str | None, ca: Path | None,
    client_certificate: Path | None, client_key: Path | None, trust_tcp: bool, cursor: Path | None, follow: bool,
    state_folder: Path, **criteria: Any,
) -> None:  # fmt: skip
    """Write events in another format.

    To stdout, to a file, or to a syslog server. With --cursor every event is delivered at least once, also over
    restarts; an event may come twice.
    """
    from mitmsec.service.exporting import Wanted, at_least_once, once

    wanted = Wanted(
        form=Format(form or ("syslog" if to else "jsonl")),
        filter=filter_of(criteria, limit),
        output=output,
        replaces=force,
        to=to,
        cursor=cursor,
        follows=follow,
        state_folder=state_folder,
        ca=ca,
        certificate=client_certificate,
        key=client_key,
        trusts_tcp=trust_tcp,
    )
    _check(wanted)
    (at_least_once if wanted.cursor is not None or wanted.follows else once)(wanted)


def _check(wanted: Wanted) -> None:
    """Raises UsageError for options that do not go together."""
    has_file, has_server = wanted.output is not None, wanted.to is not None
    goes_on = wanted.cursor is not None or wanted.follows
    of_server = wanted.ca or wanted.certificate or wanted.key or wanted.trusts_tcp
    for is_wrong, words in (
        (has_file and has_server, "--output and --to: which of them?"),
        (wanted.replaces and (not has_file or goes_on), "--force goes with --output, without --cursor and --follow"),
        (of_server and not has_server, "--ca, --client-certificate, --client-key and --trust-tcp go with --to"),
        (wanted.key and not wanted.certificate, "--client-key goes with --client-certificate"),
        (has_server and wanted.form is Format.CSV, "CSV has a first line, and goes into no syslog message"),
        (wanted.cursor and not has_file and not has_server, "--cursor goes with --output or --to"),
        (has_file and wanted.follows and not wanted.cursor, "--follow with --output wants a --cursor FILE"),
        (goes_on and wanted.filter.limit, "--limit is for an export that ends"),
    ):
        if is_wrong:
            raise click.UsageError(words)
