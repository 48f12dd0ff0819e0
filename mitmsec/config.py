"""From a policy file to a policy that cannot be wrong, or to every error in it at once.

text ─ tomllib ─► tables ─ policyfile ─► values ─ contradiction ─► Policy
         │           │                              │
         └───────────┴── ConfigError* ◄─────────────┘  with file, line and key (toml_lines)
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import stat
import struct
import sys
import tomllib
import zoneinfo
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO

from mitmsec import lists
from mitmsec.core.contradiction import impossible_defaults, impossible_pairs, never_matching, without_key
from mitmsec.core.engine_section import read_addons
from mitmsec.core.hours import LOCAL
from mitmsec.core.identity_section import read_identity
from mitmsec.core.inbound_section import ReadPair, read_inbound, unread_pair
from mitmsec.core.learning_section import read_hours, read_learned_bypass, read_on_request
from mitmsec.core.model import (
    Action,
    DnsEch,
    OnFailure,
    Quic,
    Revocation,
    Transparency,
    UnprovenName,
    Upstream,
    UpstreamTrust,
)
from mitmsec.core.policy import LANGUAGE_VERSION, Policy, Rule
from mitmsec.core.policyfile import (
    Context,
    read_application,
    read_inspect,
    read_inspectors,
    read_rule,
)
from mitmsec.core.policytest_section import read_test
from mitmsec.core.quarantine_section import read_recipients
from mitmsec.core.retention_section import read_retention
from mitmsec.core.toml_lines import index
from mitmsec.core.toml_syntax import complaint, endless_key
from mitmsec.core.toml_table import ConfigError, Notes, Table, kind_of

__all__ = ["KNOWN_INSPECTORS", "ConfigError", "PolicyErrors", "load_policy", "load_policy_and_text", "parse_policy"]

KNOWN_INSPECTORS = (
    "archives",
    "documents",
    "doh",
    "file_type",
    "iban",
    "icap",
    "keywords",
    "malware",
    "national_id",
    "payment_card",
    "protocol_anomaly",
    "secrets",
    "yara",
)
BYTE_ORDER_MARK = "\ufeff"  # some editors write one; it is no part of the policy
STDIN = Path("-")
LOCAL_ZONE = "/etc/localtime"
ZONE_OF_UTC = b"TZif2" + bytes(15) + struct.pack(">6L", 0, 0, 0, 0, 1, 4) + bytes(6) + b"UTC\0"
ZONE_OF_UTC += ZONE_OF_UTC + b"\nUTC0\n"  # RFC 8536: once for old readers, once for the others
RULES_LIMIT = 10_000  # tens of megabytes in every gate
FILE_LIMIT_BYTES = 1 << 28  # ten million names; what is longer is a device, or no policy
ENDLESS_NUMBER = re.compile(
    r"0[xob][0-9A-Fa-f_]{1000}"
)  # which no message could show; of decimals Python says so itself
TOO_LONG_A_NUMBER = "not a policy: a number has thousands of digits"
TOO_LONG_A_KEY = "not a policy: a key has more than a hundred parts; write a text that has dots between quotes"
PIPE_DEADLINE_S = 10.0  # for the first byte of a named pipe or of another program's output


type Unusable = Callable[[str, tuple[str, ...]], str | None]
type NoRoots = Callable[[str, str], str | None]
type RuleFile = Callable[[str, str], None]


def nothing_unusable(name: str, words: tuple[str, ...]) -> str | None:
    """For callers that know no inspectors."""
    return None


def rules_forgotten(name: str, text: str) -> None:
    """For callers that compile no rules."""


def no_certificate(name: str, pem: str) -> str | None:
    """For callers that cannot look into certificates."""
    return None if "-BEGIN CERTIFICATE-" in pem else f"{name}: no certificate in PEM form in it"


class PolicyErrors(Exception):
    """Everything that is wrong with a policy, in the order of the file."""

    def __init__(self, errors: tuple[ConfigError, ...]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = errors


def load_policy(path: Path, *, inspectors: Collection[str] = KNOWN_INSPECTORS) -> Policy:
    """The policy in the file `path`; what it names is looked for beside it. Raises PolicyErrors, for I/O errors too."""
    return load_policy_and_text(path, inspectors=inspectors)[0]


def load_policy_and_text(
    path: Path,
    *,
    inspectors: Collection[str] = KNOWN_INSPECTORS,
    unusable: Unusable = nothing_unusable,
    no_roots: NoRoots = no_certificate,
    pair: ReadPair = unread_pair,
    rule_file: RuleFile = rules_forgotten,
) -> tuple[Policy, str]:
    """As load_policy, with exactly the text that the policy was made of (for its hash).

    `-` is standard input; what that names is looked for in the current folder.
    """
    text = _text(path)
    policy = parse_policy(
        text,
        file="(standard input)" if path == STDIN else str(path),
        read_list=lambda name: _utf8(path.parent / name),
        inspectors=inspectors,
        unusable=unusable,
        no_roots=no_roots,
        pair=pair,
        rule_file=rule_file,
        user_name=named_user,
        zone=zone_data,
    )
    return policy, text


def no_zone(name: str) -> bytes:
    """For callers that know no time zones."""
    raise ValueError(f'the time zone "{name}" is not known here')


def zone_data(name: str) -> bytes:
    """What the clocks in a time zone show (TZif). Raises ValueError."""
    path = next((path for path in _zone_paths(name) if os.path.isfile(path)), None)
    if path is not None:
        with open(path, "rb") as file:
            return file.read()
    if name == LOCAL and sys.platform != "win32":
        return ZONE_OF_UTC  # as the C library has it
    if name == LOCAL:
        raise ValueError('this system does not tell its own time zone: name it, as in "08:00-18:00 Europe/Berlin"')
    raise ValueError(f'the time zone "{name}" is not known here; the package tzdata has those that there are')


def _zone_paths(name: str) -> list[str]:
    return [LOCAL_ZONE] if name == LOCAL else [os.path.join(folder, name) for folder in zoneinfo.TZPATH]


def named_user(user: str) -> str:
    """What a program of this user is told to run as: the name; of a number that nobody here has, the number."""
    if user.isascii() and user.isdecimal():
        with contextlib.suppress(ImportError, KeyError, OverflowError, ValueError):  # known on Unix; no endless number
            import pwd

            return pwd.getpwuid(int(user)).pw_name
    return user


def _text(path: Path) -> str:
    try:
        return _utf8(path)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PolicyErrors((_whole(str(path), line, "is not UTF-8 text"),)) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PolicyErrors((_whole(str(path), 0, f"cannot be read: {why}"),)) from error


def _utf8(path: Path) -> str:
    """Every byte of the file as it is, line ends too: the text's hash is the file's."""
    return _content(path).decode("utf-8")


def _content(path: Path) -> bytes:
    """Raises OSError, also for a pipe into which nobody writes: `open` would wait for somebody for ever."""
    if path == STDIN:
        return _all(sys.stdin.buffer)
    without_waiting = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | without_waiting)) as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            _await(file.fileno())
        return _all(file)


def _all(file: BinaryIO) -> bytes:
    content = file.read(FILE_LIMIT_BYTES + 1)
    if len(content) > FILE_LIMIT_BYTES:
        raise OSError(errno.EFBIG, f"it is longer than {FILE_LIMIT_BYTES} bytes")
    return content


def _await(pipe: int) -> None:
    """Until something can be read."""
    if not select.select([pipe], [], [], PIPE_DEADLINE_S)[0]:
        raise TimeoutError(errno.ETIMEDOUT, f"nothing came out of this pipe within {PIPE_DEADLINE_S:.0f} s")
    os.set_blocking(pipe, True)


def parse_policy(
    text: str,
    *,
    file: str,
    read_list: Callable[[str], str],
    inspectors: Collection[str] = KNOWN_INSPECTORS,
    unusable: Unusable = nothing_unusable,
    no_roots: NoRoots = no_certificate,
    pair: ReadPair = unread_pair,
    rule_file: RuleFile = rules_forgotten,
    user_name: Callable[[str], str] = str,
    zone: Callable[[str], bytes] = no_zone,
) -> Policy:
    """The policy that `text` is. Raises PolicyErrors with all errors.

    `file` stands in the errors. `read_list` gives the text of a file that the policy names, as it is written there
    (relative to the policy file); what it raises as OSError or ValueError becomes an error of the policy.
    `unusable` says why an inspector (name, words) cannot be made, or None: who knows the inspectors hands it in.
    `no_roots` says why a file (name, text) is none for `upstream_roots`, or None: who knows certificates hands it in,
    and with it `pair`, which reads the files of an `[[inbound]]`. `rule_file` is told the name and text of each file of
    rules: whether they compile is for who compiles them. `user_name` turns a user's number into the name.
    `zone` gives a time zone's data (mitmsec.core.hours), or raises ValueError with why not.
    """
    text = text.removeprefix(BYTE_ORDER_MARK)
    document = _document(text, file)
    notes = Notes(file, index(text))
    context = Context(
        notes=notes,
        read_list=read_list,
        inspectors=inspectors,
        unusable=unusable,
        rule_file=rule_file,
        user_name=user_name,
        categories=lists.shipped(),
        zone=zone,
    )
    policy = _policy(Table(document, (), notes), context, no_roots, pair)
    if notes.errors:
        raise PolicyErrors(tuple(sorted(notes.errors, key=lambda error: (error.file != file, error))))
    return policy


def _policy(root: Table, context: Context, no_roots: NoRoots, pair: ReadPair) -> Policy:
    """Sections in the order in which they need each other; the errors come out in the order of the file anyway."""
    _version(root)
    read_inspectors(root.table("inspector"), context)
    defaults = root.table("defaults")
    addons = read_addons(root.table("engine"), context)
    applications = tuple([read_application(table, context) for table in root.tables("application")])
    identities = tuple([read_identity(table, context, pair) for table in root.tables("client_certificate")])
    rules, sound = _rules(root, context)
    taken: dict[str, int] = {}
    policy = Policy(
        action=defaults.choice("action", Action, Action.DECRYPT) or Action.DECRYPT,
        inbound=defaults.choice("inbound", Action, Action.BYPASS) or Action.BYPASS,
        on_failure=defaults.choice("on_failure", OnFailure, OnFailure.OPEN) or OnFailure.OPEN,
        quic=defaults.choice("quic", Quic, Quic.REFUSE) or Quic.REFUSE,
        dns_ech=defaults.choice("dns_ech", DnsEch, DnsEch.KEEP) or DnsEch.KEEP,
        unproven_name=defaults.choice("unproven_name", UnprovenName, UnprovenName.ALLOW) or UnprovenName.ALLOW,
        upstream=defaults.choice("upstream", Upstream, Upstream.MIRROR) or Upstream.MIRROR,
        upstream_roots=_upstream_roots(defaults, context, no_roots),
        upstream_trust=defaults.choice("upstream_trust", UpstreamTrust, UpstreamTrust.SYSTEM) or UpstreamTrust.SYSTEM,
        upstream_revocation=defaults.choice("upstream_revocation", Revocation, Revocation.SOFT) or Revocation.SOFT,
        upstream_sct=defaults.choice("upstream_sct", Transparency, Transparency.REPORT) or Transparency.REPORT,
        inspect=read_inspect(defaults, context) or (),
        keep_evidence=defaults.flag("keep_evidence"),
        learned_bypass=read_learned_bypass(defaults),
        learned_bypass_hours=read_hours(defaults),
        on_certificate_request=read_on_request(defaults),
        applications=applications,
        rules=rules,
        tests=tuple([read_test(table, context) for table in root.tables("test")]),
        inspectors=tuple(sorted(context.words.items())),
        identities=identities,
        mitmproxy_addons=addons,
        recipients=read_recipients(root.table("quarantine")),
        retention=read_retention(root.table("retention")),
        zones=tuple(sorted(context.zones.items())),
        services=tuple([read_inbound(table, context, taken, pair) for table in root.tables("inbound")]),
        lists=tuple(context.lists.values()),
    )
    defaults.close()
    root.close()
    _note_contradictions(policy, sound, context.notes)
    return policy


def _version(root: Table) -> None:
    version = root.raw("version")
    if version is None:
        root.note(f"is missing: write version = {LANGUAGE_VERSION}", "version")
    elif version != LANGUAGE_VERSION or isinstance(version, bool):
        root.note(f"only version = {LANGUAGE_VERSION} is known here, not {kind_of(version)}", "version")


def _upstream_roots(defaults: Table, context: Context, no_roots: NoRoots) -> tuple[str, ...]:
    files = defaults.texts("upstream_roots", may_be_empty=True)
    for place, name in files:
        text = context.text_of(defaults, name, "upstream_roots", place)
        if text is not None and (why := no_roots(name, text)) is not None:
            defaults.note(why, "upstream_roots", place)
    return tuple(name for _, name in files)


def _rules(root: Table, context: Context) -> tuple[tuple[Rule, ...], frozenset[int]]:
    """All rules, and the numbers of those that are free of errors."""
    rules: list[Rule] = []
    sound: set[int] = set()
    for number, table in enumerate(root.tables("rule")):
        if number == RULES_LIMIT:
            table.note(
                f"a policy has {RULES_LIMIT:,} rules at most; names and suffixes by the thousand belong in @lists"
            )
            break
        before = len(context.notes.errors)
        rules.append(read_rule(table, context))
        if len(context.notes.errors) == before:
            sound.add(number)
    return tuple(rules), frozenset(sound)


def _note_contradictions(policy: Policy, sound: frozenset[int], notes: Notes) -> None:
    """What an error has left unread is not held against the rest."""
    if not notes.errors:
        for found in impossible_defaults(policy):
            notes.add(("defaults", found.key), found.message)
    for found in (*impossible_pairs(policy), *without_key(policy), *never_matching(policy, sound)):
        where = ("defaults",) if found.rule is None else ("rule", found.rule)
        notes.add((*where, *([found.key] if found.key else [])), found.message)


def _document(text: str, file: str) -> dict[str, object]:
    if ENDLESS_NUMBER.search(text):
        raise PolicyErrors((_whole(file, 1, TOO_LONG_A_NUMBER),))
    if line := endless_key(text):
        raise PolicyErrors((_whole(file, line, TOO_LONG_A_KEY),))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, column, words = complaint(str(error))
        where = f"column {column}" if line else "at the end"
        raise PolicyErrors(
            (_whole(file, line or text.rstrip().count("\n") + 1, f"not valid TOML, {where}: {words}"),)
        ) from error
    except RecursionError as error:
        raise PolicyErrors(
            (_whole(file, 1, "not a policy: lists or tables lie too deep inside each other"),)
        ) from error
    except ValueError as error:  # a number beyond what Python reads at once
        raise PolicyErrors((_whole(file, 1, TOO_LONG_A_NUMBER),)) from error


def _whole(file: str, line: int, message: str) -> ConfigError:
    return ConfigError(file=file, line=line, key="", message=message)
