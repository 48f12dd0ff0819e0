"""A policy file and all that it names, as a command needs it: loaded, or the end of the command with every error."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec
from msgspec.structs import replace

from mitmsec.config import ConfigError, PolicyErrors, load_policy_and_text
from mitmsec.core.inbound_section import Pair
from mitmsec.core.inspection import SCANS
from mitmsec.core.policy import Policy
from mitmsec.service.called import program
from mitmsec.service.caller import as_ourselves
from mitmsec.service.options import EXIT_USAGE
from mitmsec.service.terminal import shown
from mitmsec_addons.registry import Names, build
from mitmsec_addons.yara_rules import MISSING, RuleFile, RulesRefused
from mitmsec_certs.bundle import BadBundle, all_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mitmsec.service.known_keys import KnownKeys
    from mitmsec_addons.installed import Make

NO_OTHERS: Mapping[str, Make] = {}


class Loaded(NamedTuple):
    """A policy, the text that it is, and what the files hold that it names."""

    policy: Policy
    text: str
    roots: tuple[bytes, ...] = ()
    """The certificates (DER) of its `upstream_roots`."""
    rules: tuple[RuleFile, ...] = ()
    """The files of rules that it names, not compiled yet."""
    keys: int | None = None
    """A descriptor, the keys of its services behind it; None: the policy needs none."""

    def forget_keys(self) -> None:
        """Close the descriptor, where nobody is handed it."""
        if self.keys is not None:
            os.close(self.keys)


def load(file: Path, *, as_json: bool = False, others: Mapping[str, Make] = NO_OTHERS) -> Loaded:
    """What `file` and the files that it names hold, or the end of the command with every error.

    `others` are inspectors that it may name, too.
    """
    roots: list[bytes] = []
    rules: dict[str, str] = {}
    keys: KnownKeys | None = None

    def no_roots(name: str, pem: str) -> str | None:
        try:
            roots.extend(all_certificates(name, pem.encode()))
        except BadBundle as error:
            return str(error)
        return None

    def pair(certificate: str, key: str) -> Pair:
        nonlocal keys
        if keys is None:
            with as_ourselves():
                from mitmsec.service.known_keys import KnownKeys  # what reads certificates takes long to import

            keys = KnownKeys(file.parent)
        return keys.pair(certificate, key)

    try:
        policy, text = load_policy_and_text(
            file,
            inspectors=Names(others),
            unusable=lambda name, words: _unusable(others.get(name), name, words),
            no_roots=no_roots,
            pair=pair,
            rule_file=rules.__setitem__,
        )
        if roots:
            policy = replace(policy, root_sha256s=tuple(hashlib.sha256(root).hexdigest() for root in roots))
        kept = keys.detach(policy.key_bytes) if keys is not None and policy.needs_keys else None
        return Loaded(policy, text, tuple(roots), tuple(RuleFile(name=one, text=rules[one]) for one in rules), kept)
    except PolicyErrors as errors:
        _tell_errors(file, errors.errors, as_json=as_json)
        sys.exit(EXIT_USAGE)
    finally:
        if keys is not None:
            keys.close()


@contextmanager
def flaws_told(file: Path, *, as_json: bool = False) -> Iterator[None]:
    """Around whatever compiles the rules that the policy `file` names: what is wrong in them ends the command."""
    try:
        yield
    except RulesRefused as refused:
        errors = [ConfigError(file=one.file, line=one.line, key="", message=one.message) for one in refused.flaws]
        _tell_errors(file, tuple(errors), as_json=as_json)
        sys.exit(EXIT_USAGE)


def _unusable(make: Make | None, name: str, words: tuple[str, ...]) -> str | None:
    if name == SCANS and find_spec("yara_x") is None:
        return MISSING
    try:
        with as_ourselves():
            build(name, words) if make is None else make(words)
    except ValueError as error:
        return str(error)
    except Exception as error:
        return f"the inspector fails when it is made: {type(error).__name__}"
    return None


def _tell_errors(file: Path, errors: tuple[ConfigError, ...], *, as_json: bool) -> None:
    for error in errors:
        if as_json:
            click.echo(msgspec.json.encode({"valid": False, **msgspec.to_builtins(error)}))
        else:
            click.echo(shown(error), err=True)
    if not as_json:
        these = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        again = f"{program()} policy check {shlex.quote(str(file))}"
        click.echo(f"mitmsec: {these} in the policy\n  mend it, then look again: {again}", err=True)
