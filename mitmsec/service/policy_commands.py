"""`mitmsec policy`: is a policy file valid, why does it decide as it does, do its own tests pass?"""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import datetime
from pathlib import Path

import click
import msgspec

from mitmsec import examples
from mitmsec.core import identity
from mitmsec.core.beyond_ca import beyond_ca
from mitmsec.core.contradiction import escapes, expired
from mitmsec.core.explain import Explanation, explain
from mitmsec.core.known_service import doubts
from mitmsec.core.model import Direction, Endpoint, ParentProcess, Process
from mitmsec.core.overlap import overlaps
from mitmsec.core.policy import Policy
from mitmsec.core.policyfile import PID_MAX
from mitmsec.core.policytest import TestOutcome, basename, run_tests
from mitmsec.core.quic_outcome import QUIC_PORT
from mitmsec.core.selector import NO_PID
from mitmsec.core.sniff import Protocol
from mitmsec.core.udp_limits import udp_limits
from mitmsec.core.units import windows_services
from mitmsec.service import origin_roots
from mitmsec.service.explained import explained
from mitmsec.service.groups import Group
from mitmsec.service.options import EXIT_NOT_SO, EXIT_USAGE, debug_option, fail, json_option, state_option
from mitmsec.service.policy_lists_command import show_lists
from mitmsec.service.policy_loading import flaws_told, load
from mitmsec.service.policy_question import (
    CONTAINER,
    MOMENT,
    NOTES,
    UNIT,
    HostName,
    IpAddress,
    ProgramPath,
    Sha256,
    UserName,
    shown_by,
)
from mitmsec.service.policy_starter import STARTER
from mitmsec.service.replay_command import replay
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell
from mitmsec.service.unmatched import unmatched
from mitmsec_addons.yara_rules import compiled
from mitmsec_certs.ca_facts import limits
from mitmsec_certs.ca_folder import KeystoreRefused
from mitmsec_certs.constraints import Constraints

POLICY_FILE = click.argument("file", metavar="F", type=click.Path(path_type=Path))


@click.group(cls=Group)
def policy() -> None:
    """Write, check, explain, test and replay a policy file."""


policy.add_command(replay)
policy.add_command(show_lists)


@policy.command()
@click.argument("file", metavar="[F]", required=False, type=click.Path(path_type=Path))
@click.option("--example", type=click.Choice(examples.names()), help="A whole policy for this kind of work.")
@debug_option
def init(file: Path | None, example: str | None) -> None:
    """Write a commented policy to start from, to F or to stdout.

    F must not exist yet.
    """
    text = STARTER if example is None else examples.text(example)
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        fail(
            f"{file} exists already", "name a file that does not, or look at it with `mitmsec policy check`", EXIT_USAGE
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        fail(f"{file} cannot be written: {why}", "name a file in a folder that you may write to", EXIT_USAGE)
    click.echo(f"{file}: written; change it, then `mitmsec policy check {file}`")


@policy.command()
@POLICY_FILE
@json_option
@state_option
@debug_option
def check(file: Path, as_json: bool, state_folder: Path) -> None:
    """Say whether F is valid, and every error if it is not.

    Errors come with file, line and key, and exit status 2. F may be -, for standard input. What F decrypts and the CA
    of this state may not speak for is told, too.
    """
    loaded = _loaded(file, as_json=as_json, compiles=True)
    doubts = [*_doubts(loaded), *_beyond_ca(loaded, State(state_folder))]
    if as_json:
        warnings = [*unmatched(loaded), *doubts]
        return _print_json({"valid": True, "file": str(file), **_counts(loaded), "warnings": warnings})
    counts = ", ".join(f"{what}: {number}" for what, number in _counts(loaded).items())
    click.echo(f"{file}: valid; {counts}")
    click.echo(
        f"otherwise: {loaded.action.value}; on failure: {loaded.on_failure.value}; quic: {loaded.quic.value}; "
        f"upstream: {loaded.upstream.value}"
    )
    for sentence in [*(f"on this machine, {one}" for one in unmatched(loaded)), *doubts]:
        click.echo(sentence, err=True)


@policy.command("explain")
@POLICY_FILE
@click.option("--app", type=ProgramPath(), required=True, metavar="P", help="The program: its path, or its name here.")
@click.option("--host", type=HostName(), metavar="H", help="The name it asks for. Without: it shows none.")
@click.option("--port", type=click.IntRange(1, 65535), default=443, metavar="N", help="The port. Default: 443.")
@click.option("--address", type=IpAddress(), metavar="A", help="The address it connects to.")
@click.option(
    "--direction",
    type=click.Choice([direction.value for direction in Direction]),
    default=Direction.OUTBOUND.value,
    help="Inbound: it is the service on the port, and the address is the peer's. Default: outbound.",
)
@click.option("--user", type=UserName(), metavar="U", help="Whom the program runs as.")
@click.option("--sha256", type=Sha256(), metavar="HEX", help="The hash of the program.")
@click.option("--parent", type=ProgramPath(), metavar="P", help="The program that started it, as --app.")
@click.option("--unit", type=UNIT, metavar="U", help="The systemd unit it runs in: nginx.service.")
@click.option("--signer", metavar="S", help="The subject of the certificate that signed it (Windows).")
@click.option("--container", type=CONTAINER, metavar="C", help="The container it runs in: runtime:id, in full.")
@click.option(
    "--protocol",
    type=click.Choice([protocol.value for protocol in Protocol]),
    help="What it speaks. Default: tls, with a name.",
)
@click.option("--alpn", multiple=True, metavar="A", help="A protocol that its TLS offers; may be given again.")
@click.option("--ja4", metavar="J", help="The JA4 fingerprint of its TLS.")
@click.option("--ech", is_flag=True, help="Its hello has an encrypted one inside.")
@click.option("--pid", type=click.IntRange(1, PID_MAX), metavar="N", help="The number of its process.")
@click.option("--at", type=MOMENT, metavar="T", help="When: 2026-12-31T12:00, local time. Default: now.")
@json_option
@debug_option
@click.pass_context
def explain_decision(
    ctx: click.Context,
    file: Path,
    app: str,
    host: str | None,
    port: int,
    address: str | None,
    direction: str,
    user: str | None,
    sha256: str | None,
    parent: str | None,
    unit: str | None,
    signer: str | None,
    container: str | None,
    protocol: str | None,
    alpn: tuple[str, ...],
    ja4: str | None,
    ech: bool,
    pid: int | None,
    at: datetime | None,
    as_json: bool,
) -> None:
    """Say which rule of F decides a connection, and why."""
    protocol = protocol or (Protocol.TLS if direction == Direction.INBOUND else None)
    of_hello = shown_by(host, protocol, alpn, ja4, ech or None)
    if protocol == Protocol.QUIC and port != QUIC_PORT:
        raise click.UsageError(f"what the gate hears of QUIC goes to port {QUIC_PORT}")
    loaded = _loaded(file, as_json=as_json)
    for words in ctx.meta.get(NOTES, []):
        click.echo(words, err=True)
    process = Process(
        pid=pid or NO_PID,
        exe=app,
        name=basename(app),
        user=user,
        sha256=sha256,
        parent=ParentProcess(pid=NO_PID, exe=parent) if parent else None,
        unit=None if windows_services(unit) else unit,
        services=windows_services(unit),
        signer=signer,
        container=container,
        source="question",
    )
    remote = Endpoint(address=address or "", port=port)
    at_s = time.time() if at is None else at.timestamp()
    story = explain(loaded, process, remote, at_s, of_hello, Direction(direction))
    if as_json:
        for tried in story.tried:
            _print_json({"kind": "rule", **msgspec.to_builtins(tried)})
        return _print_json({"kind": "decision", "needs_name": story.needs_name, **msgspec.to_builtins(story.decision)})
    tell(console(), *explained(story, _when(story, host)))


@policy.command("test")
@POLICY_FILE
@json_option
@debug_option
def run_policy_tests(file: Path, as_json: bool) -> None:
    """Run the [[test]] blocks of F.

    Exit status 1 if one fails.
    """
    loaded = _loaded(file, as_json=as_json)
    outcomes = run_tests(loaded, time.time())
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if as_json:
        for outcome in outcomes:
            _print_json(_outcome_json(outcome))
    else:
        for outcome in failed:
            click.echo(f"{file}:{outcome.test.line}: {shown(_flow(outcome))}", err=True)
            click.echo(f"  expected: {shown(outcome.expected)}\n  got:      {shown(outcome.got)}", err=True)
            click.echo(f"  reason:   {shown(outcome.decision.reason)}", err=True)
        click.echo(f"{file}: {len(outcomes) - len(failed)} of {len(outcomes)} tests passed")
    if not outcomes:
        click.echo(f"mitmsec: {file} has no [[test]]", err=True)
    if failed:
        sys.exit(EXIT_NOT_SO)


def _loaded(file: Path, *, as_json: bool, compiles: bool = False) -> Policy:
    """The policy, or the end of the command with every error. `compiles`: also with those in the rules that it names,
    which may take seconds to find.
    """
    loaded = load(file, as_json=as_json)
    loaded.forget_keys()
    if compiles and loaded.rules:
        with flaws_told(file, as_json=as_json):
            compiled(loaded.rules)
    return loaded.policy


def _counts(loaded: Policy) -> dict[str, int]:
    return {"applications": len(loaded.applications), "rules": len(loaded.rules), "tests": len(loaded.tests)}


def _doubts(loaded: Policy) -> list[str]:
    now_s = int(time.time())
    used = {rule.client_certificate for rule in loaded.rules if rule.client_certificate is not None}
    of_keys = doubts(loaded.services, now_s, are_used=loaded.decrypts_inbound)
    of_keys += identity.doubts(loaded.identities, used, now_s)
    of_rules = expired(loaded.rules, now_s) + overlaps(loaded)
    return of_rules + udp_limits(loaded) + of_keys + escapes(loaded) + origin_roots.doubt(loaded)


def _beyond_ca(loaded: Policy, state: State) -> list[str]:
    """Nothing where there is no CA, or none that this user may look at."""
    limit: tuple[Constraints, ...] = ()
    with contextlib.suppress(KeystoreRefused, OSError):
        limit = tuple(one for one in limits(state.ca) if not one.are_none)
    excluded = [name for one in limit for name in one.excluded_names]
    return beyond_ca(loaded, lambda name: all(one.allow(name) for one in limit), excluded) if limit else []


def _when(story: Explanation, host: str | None) -> str:
    if not story.needs_name:
        return "at connect: no name could change it"
    if host is None:
        return "when the first bytes show no name; a name could change it: add --host"
    return "when the first bytes show the name"


def _flow(outcome: TestOutcome) -> str:
    test = outcome.test
    where = test.host or test.address or "a host that shows no name"
    if test.direction is Direction.INBOUND:
        return f"{test.application}, port {test.port}, from {test.address or 'an address that is not told'}"
    return f"{test.application} to {where}, port {test.port}"


def _outcome_json(outcome: TestOutcome) -> dict[str, object]:
    test = msgspec.to_builtins(outcome.test)
    decision = outcome.decision
    return {
        "passed": outcome.passed,
        **test,
        "got": {"action": decision.action.value, "rule": decision.rule, "reason": decision.reason},
    }


def _print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value))
