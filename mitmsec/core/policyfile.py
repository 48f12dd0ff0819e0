"""The sections of a policy file, from TOML tables to values. Every reader goes on after an error and notes it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from datetime import date
from enum import StrEnum

import msgspec

from mitmsec.core.host_lists import HostList
from mitmsec.core.hours import LOCAL, Clocks, Week
from mitmsec.core.inspection import ASKS_SERVER, SCANS
from mitmsec.core.learning_section import read_learned_bypass, read_on_request
from mitmsec.core.model import (
    Action,
    Delivery,
    Direction,
    OnFinding,
    Revocation,
    TlsVersion,
    Transparency,
    Upstream,
    UpstreamTrust,
)
from mitmsec.core.names import parse_name
from mitmsec.core.names_section import read_categories, read_hosts
from mitmsec.core.policy import DEFAULTS, Application, Rule
from mitmsec.core.selector import is_path
from mitmsec.core.sniff import Protocol
from mitmsec.core.toml_table import Notes, Table, kind_of, meant
from mitmsec.core.units import container_pattern, container_pattern_mistake, is_glob, service_mistake
from mitmsec.core.yara_section import read_rules

NEEDS_WORDS = frozenset({"keywords", SCANS}) | ASKS_SERVER
CRITERIA = ("path", "process_name", "user", "sha256", "service", "signer", "container", "pid")
PORT_MAX = 0xFFFF
PID_MAX = 0xFFFF_FFFF  # of Windows; Linux has no pid beyond 4194304

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PORT_RANGE = re.compile(r"([0-9]{1,5})\s*-\s*([0-9]{1,5})")


class Context(msgspec.Struct):
    """What the sections need to know of each other and of the outside."""

    notes: Notes
    read_list: Callable[[str], str]
    inspectors: Collection[str]
    unusable: Callable[[str, tuple[str, ...]], str | None] = lambda name, words: None  # why an inspector refuses these
    rule_file: Callable[[str, str], None] = lambda name, text: None  # is told each file of rules, for who compiles them
    user_name: Callable[[str], str] = lambda user: user  # of a number, the name where there is one
    zone: Callable[[str], bytes] = lambda name: b""  # a time zone's data; raises ValueError
    zones: dict[str, bytes] = msgspec.field(default_factory=dict)  # those that are asked for
    applications: dict[str, int] = msgspec.field(default_factory=dict)  # name → line
    rules: dict[str, int] = msgspec.field(default_factory=dict)
    identities: dict[str, int] = msgspec.field(default_factory=dict)
    words: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    categories: Mapping[str, Callable[[], str]] = msgspec.field(
        default_factory=dict
    )  # shipped lists, by name, and their texts
    lists: dict[str, HostList] = msgspec.field(
        default_factory=dict
    )  # those that could be read, and that any rule names

    def text_of(self, table: Table, file: str, *key: str | int) -> str | None:
        """What a file that the policy names holds; None, and an error at `key`, if it can't be read."""
        try:
            return self.read_list(file)
        except UnicodeDecodeError:
            why = "it is not UTF-8 text"
        except (OSError, ValueError) as error:  # ValueError: no file can have this name
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        table.note(f"cannot read {file}: {why}", *key)
        return None

    def lines_of(self, table: Table, file: str, *key: str | int) -> list[tuple[int, str]]:
        """The lines of a list file without comments, with their numbers; an error at `key` if it can't be read."""
        text = self.text_of(table, file, *key) or ""
        lines = [line.partition("#")[0].strip() for line in text.removeprefix("\ufeff").splitlines()]
        return [(number, line) for number, line in enumerate(lines, 1) if line]


def unique_name(table: Table, names: dict[str, int]) -> str:
    """The table's `name`, noted in `names`; empty where it is missing or taken."""
    name = table.text("name", required=True)
    if name is None:
        return ""
    table.notes.named(table.path, name)
    if name in names:
        table.note(f'the name "{name}" is taken since line {names[name]}', "name")
        return ""
    names[name] = table.notes.line((*table.path, "name"))
    return name


# --- [inspector.…] ----------------------------------------------------------------------------------------------------
def read_inspectors(table: Table, context: Context) -> None:
    """Fill `context.words`."""
    for name in table.keys():  # noqa: SIM118  (a Table is not a dict)
        inner = table.table(name)
        if name not in context.inspectors:
            inner.note(f"no inspector has this name; there are: {', '.join(sorted(context.inspectors))}")
            continue
        if name in ASKS_SERVER:
            key, words = "socket", [socket] if (socket := inner.text("socket", required=True)) else []
        elif name == SCANS:
            key, words = "rules", read_rules(inner, context)
        else:
            key, words = "words", _words(inner, context)
        inner.close()
        context.words[name] = tuple(dict.fromkeys(words))
        if context.words[name] and (why := context.unusable(name, context.words[name])) is not None:
            inner.note(why, key)


def _words(table: Table, context: Context) -> list[str]:
    words = [word for _, word in table.texts("words")]
    for place, file in table.texts("lists"):
        words += [line for _, line in context.lines_of(table, file.removeprefix("@"), "lists", place)]
    return words


def read_inspect(table: Table, context: Context) -> tuple[str, ...] | None:
    """The `inspect` of a rule or of the defaults; None where it is absent."""
    if "inspect" not in table:
        return None
    names = table.texts("inspect", may_be_empty=True)
    for place, name in names:
        if name not in context.inspectors:
            known = ", ".join(sorted(context.inspectors))
            table.note(f'no inspector is called "{name}"; there are: {known}', "inspect", place)
        elif name in NEEDS_WORDS and not context.words.get(name):
            needs = "socket" if name in ASKS_SERVER else "rules" if name == SCANS else "words or lists"
            table.note(f"{name} has nothing to look for; add [inspector.{name}] with {needs}", "inspect", place)
        else:
            context.words.setdefault(name, ())  # it is to be made
    return tuple(dict.fromkeys(name for _, name in names))


# --- [[application]] --------------------------------------------------------------------------------------------------
def read_application(table: Table, context: Context) -> Application:
    name = unique_name(table, context.applications)
    if is_path(name):
        table.note("a name cannot contain / \\ * ?: those mark path globs", "name")
    application = Application(
        name=name,
        path=tuple(_path(table, place, glob) for place, glob in table.texts("path")),
        process_name=tuple(text for _, text in table.texts("process_name")),
        user=_users(table, context),
        sha256=tuple(_sha256(table, place, text) for place, text in table.texts("sha256")),
        service=tuple(_service(table, place, text) for place, text in table.texts("service")),
        signer=tuple(text for _, text in table.texts("signer")),
        container=tuple(_container(table, place, text) for place, text in table.texts("container")),
        pid=_pids(table),
        children=table.flag("children"),
    )
    if not any(key in table for key in CRITERIA):
        table.note(f"selects nothing: give {', '.join(CRITERIA[:-1])} or {CRITERIA[-1]}")
    if application.children and not _has_heirs(application):
        table.note(
            "of a parent only path and pid are known: children needs one of these, no process_name, sha256 or signer",
            "children",
        )
    table.close()
    return application


def _has_heirs(application: Application) -> bool:
    is_known_of_parents = bool(application.path or application.pid)
    return is_known_of_parents and not (application.process_name or application.sha256 or application.signer)


def _path(table: Table, place: int, glob: str) -> str:
    if not is_path(glob):
        table.note(f'"{glob}" is no path; for a program anywhere write "*/{glob}"', "path", place)
    return glob


def _sha256(table: Table, place: int, text: str) -> str:
    if not _SHA256.fullmatch(text.lower()):
        table.note("64 hexadecimal digits are wanted", "sha256", place)
    return text.lower()


def _service(table: Table, place: int, text: str) -> str:
    if not is_glob(text) and (why := service_mistake(text)) is not None:
        table.note(why, "service", place)
    return text


def _container(table: Table, place: int, text: str) -> str:
    pattern = container_pattern(text)
    if (why := container_pattern_mistake(pattern)) is not None:
        table.note(why, "container", place)
    return pattern


def knows_zone(table: Table, context: Context, name: str, *key: str | int) -> bool:
    """Whether it is known what the clocks there show; from then on the policy knows it, too."""
    if name not in context.zones and name != "UTC":
        try:
            data = context.zone(name)
            Clocks(((name, data),))
        except ValueError as error:
            table.note(str(error), *key)
            return False
        context.zones[name] = data
    return True


def read_end(table: Table, context: Context, key: str) -> tuple[str, int] | None:
    """A date or a moment: as it is written, and as Unix seconds."""
    value = table.raw(key)
    if value is None:
        return None
    if not isinstance(value, date):
        table.note(f"a date is wanted, such as 2026-12-31, or a date and a time; not {kind_of(value)}", key)
    elif getattr(value, "tzinfo", None) is not None or knows_zone(table, context, LOCAL, key):
        try:
            return str(value), Clocks(tuple(context.zones.items())).end_s(value)
        except ValueError as error:
            table.note(str(error), key)
    return None


def _times(table: Table, context: Context) -> tuple[str, ...]:
    found = []
    for place, text in table.texts("time"):
        try:
            zone = Week.of(text).zone
        except ValueError as error:
            table.note(str(error), "time", place)
            continue
        if knows_zone(table, context, zone, "time", place):
            found.append(text)
    return tuple(found)


def _users(table: Table, context: Context) -> tuple[str, ...]:
    """A number stands for itself, whoever has it when a program runs; beside it is the name that it has now."""
    written = [text for _, text in table.texts("user")]
    return tuple(dict.fromkeys(spelt for text in written for spelt in (text, context.user_name(text))))


def _pids(table: Table) -> tuple[int, ...]:
    return tuple(pid for place, value in table.items("pid") if (pid := _pid(table, place, value)) is not None)


def _pid(table: Table, place: int, value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        table.note(f"a pid is a number, not {kind_of(value)}", "pid", place)
    elif not 1 <= value <= PID_MAX:
        table.note(f"{value} is not within 1-{PID_MAX}", "pid", place)
    else:
        return value
    return None


# --- [[rule]] ---------------------------------------------------------------------------------------------------------
def read_rule(table: Table, context: Context) -> Rule:
    name = unique_name(table, context.rules)
    if name == DEFAULTS:
        table.note(f'"{DEFAULTS}" stands for the [defaults] in every record; choose another name', "name")
    direction = table.choice("direction", Direction, Direction.OUTBOUND) or Direction.OUTBOUND
    for key in ("host", "category"):
        if direction is Direction.INBOUND and key in table:
            table.note("of connections that come in no name is known", key)
    end = read_end(table, context, "expires")
    rule = Rule(
        name=name,
        action=table.choice("action", Action, None) or Action.DECRYPT,  # the one that excludes no other setting
        direction=direction,
        application=tuple(_reference(table, place, entry, context) for place, entry in table.texts("application")),
        host=read_hosts(table, context),
        category=read_categories(table, context),
        port=read_ports(table),
        address=_addresses(table),
        user=_users(table, context),
        protocol=read_protocols(table),
        alpn=tuple(text for _, text in table.texts("alpn")),
        ja4=tuple(text for _, text in table.texts("ja4")),
        ech=(table.flag("ech"),) if "ech" in table else (),
        time=_times(table, context),
        expires=end[0] if end else "",
        expires_s=end[1] if end else None,
        owner=table.text("owner") or "",
        reason=table.text("reason") or "",
        inspect=read_inspect(table, context),
        on_finding=table.choice("on_finding", OnFinding, OnFinding.ALERT) or OnFinding.ALERT,
        keep_evidence=table.flag("keep_evidence") if "keep_evidence" in table else None,
        delivery=table.choice("delivery", Delivery, Delivery.HOLD) or Delivery.HOLD,
        learned_bypass=read_learned_bypass(table),
        on_certificate_request=read_on_request(table),
        client_certificate=_identity(table, context),
        upstream=_own(table, "upstream", Upstream),
        upstream_trust=_own(table, "upstream_trust", UpstreamTrust),
        upstream_revocation=_own(table, "upstream_revocation", Revocation),
        upstream_sct=_own(table, "upstream_sct", Transparency),
        min_tls=_own(table, "min_tls", TlsVersion),
        page=table.flag("page"),
    )
    table.close()
    return rule


def read_protocols(table: Table) -> tuple[Protocol, ...]:
    """The words under `protocol`."""
    found = []
    for place, word in table.texts("protocol"):
        if word in list(Protocol):
            found.append(Protocol(word))
        else:
            table.note(f'"{word}" is not one of {", ".join(Protocol)}{meant(word, list(Protocol))}', "protocol", place)
    return tuple(dict.fromkeys(found))


def _own[E: StrEnum](table: Table, key: str, of: type[E]) -> E | None:
    """What the rule says itself."""
    return table.choice(key, of, None) if key in table else None


def _identity(table: Table, context: Context) -> str | None:
    name = table.text("client_certificate")
    if name is not None and name not in context.identities:
        table.note(f'no [[client_certificate]] is called "{name}"', "client_certificate")
    return name


def _reference(table: Table, place: int, entry: str, context: Context) -> str:
    if not is_path(entry) and entry not in context.applications:
        table.note(f'no [[application]] is called "{entry}", and it is no path', "application", place)
    return entry


def read_ports(table: Table) -> tuple[tuple[int, int], ...]:
    """The ranges under `port`."""
    ranges = [_port_range(table, place, value) for place, value in table.items("port")]
    return tuple(ports for ports in ranges if ports is not None)


def _port_range(table: Table, place: int, value: object) -> tuple[int, int] | None:
    if isinstance(value, int) and not isinstance(value, bool):
        low = high = value
    elif isinstance(value, str) and (written := _PORT_RANGE.fullmatch(value.strip())):
        low, high = int(written[1]), int(written[2])
    else:
        table.note(f'a port is a number or a range like "8000-8999", not {kind_of(value)}', "port", place)
        return None
    if low > high:
        table.note(f"the range {low}-{high} is empty", "port", place)
        return None
    if not 1 <= low <= high <= PORT_MAX:
        table.note(f"{value} is not within 1-{PORT_MAX}", "port", place)
        return None
    return low, high


def _addresses(table: Table) -> tuple[str, ...]:
    return tuple(
        network for place, text in table.texts("address") if (network := _network(table, place, text)) is not None
    )


def _network(table: Table, place: int, text: str) -> str | None:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        table.note(_no_network(text), "address", place)
        return None
    if isinstance(network, ipaddress.IPv6Network):
        if network.network_address.ipv4_mapped is not None:
            table.note("IPv4-mapped addresses are seen as IPv4: write the IPv4 network", "address", place)
        if network.network_address.scope_id is not None:
            table.note(f'"{text}" names an interface: write the address without %…', "address", place)
    return str(network)


def _no_network(text: str) -> str:
    """What is wrong with `text`, and what was probably meant."""
    try:
        around = ipaddress.ip_network(text, strict=False)
    except ValueError:
        if parse_name(text):
            return f'"{text}" is a name, not an address; names stand under host'
        return f'"{text}" is neither an IP address nor a network like "10.0.0.0/8"'
    address = text.partition("/")[0]
    return f'"{text}" is an address inside a network: write "{around}" for the network, "{address}" for the address'
