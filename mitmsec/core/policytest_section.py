"""The section `[[test]]` of a policy file: one flow, and what the policy must say to it."""

from __future__ import annotations

import ipaddress
from datetime import datetime

from mitmsec.core.model import Action, Direction
from mitmsec.core.names import written_name
from mitmsec.core.policyfile import PORT_MAX, Context, read_end
from mitmsec.core.quic_outcome import QUIC_PORT
from mitmsec.core.rules import DEFAULTS, PolicyTest
from mitmsec.core.selector import is_path
from mitmsec.core.sniff import WITH_HELLO, WITH_NAME, Protocol
from mitmsec.core.toml_table import Table, kind_of
from mitmsec.core.units import container_mistake, service_mistake


def read_test(table: Table, context: Context) -> PolicyTest:
    application = table.text("application", required=True) or "?"
    if not is_path(application):
        table.note(f'the path of a program is wanted, such as "/usr/bin/{application}"', "application")
    rule = table.text("rule")
    if rule is not None and rule != DEFAULTS and rule not in context.rules:
        table.note(f'no rule is called "{rule}"', "rule")
    test = PolicyTest(
        application=application,
        expect=table.choice("expect", Action, None) or Action.BLOCK,
        host=_test_host(table),
        port=_test_port(table),
        address=_test_address(table),
        user=None if (user := table.text("user")) is None else context.user_name(user),
        service=_test_service(table),
        signer=table.text("signer"),
        container=_test_container(table),
        protocol=_test_protocol(table),
        alpn=tuple(text for _, text in table.texts("alpn")),
        ja4=table.text("ja4"),
        ech=table.flag("ech") if "ech" in table else None,
        at_s=_test_time(table, context),
        rule=rule,
        direction=table.choice("direction", Direction, Direction.OUTBOUND) or Direction.OUTBOUND,
        line=table.notes.line(table.path),
    )
    table.close()
    return test


def _test_host(table: Table) -> str | None:
    text = table.text("host")
    try:
        return None if text is None else written_name(text)
    except ValueError as error:
        table.note(str(error), "host")
        return None


def _test_port(table: Table) -> int:
    value = table.raw("port")
    if value is None:
        return 443
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= PORT_MAX:
        return value
    table.note(f"a port is a number within 1-{PORT_MAX}, not {kind_of(value)}", "port")
    return 443


def _test_address(table: Table) -> str:
    text = table.text("address")
    try:
        return "" if text is None else ipaddress.ip_address(text).compressed
    except ValueError:
        table.note(f'"{text}" is not an IP address', "address")
        return ""


def _test_protocol(table: Table) -> Protocol | None:
    """A test of what no connection can be proves nothing."""
    if "protocol" not in table:
        return None
    protocol = table.choice("protocol", Protocol, Protocol.TLS) or Protocol.TLS
    if protocol not in WITH_HELLO and any(key in table for key in ("alpn", "ja4", "ech")):
        table.note("alpn, ja4 and ech are TLS's", "protocol")
    if protocol is Protocol.QUIC and table.raw("port") not in (None, QUIC_PORT):
        table.note(f"what the gate hears of QUIC goes to port {QUIC_PORT}", "port")
    if protocol not in WITH_NAME and "host" in table:
        table.note(f"{protocol} shows no name", "host")
    return protocol


def _test_time(table: Table, context: Context) -> int | None:
    moment = read_end(table, context, "time")
    if moment is not None and not isinstance(table.raw("time"), datetime):
        table.note("a moment is wanted, such as 2026-12-31T12:00:00, not a whole day", "time")
    return None if moment is None else moment[1]


def _test_service(table: Table) -> str | None:
    text = table.text("service")
    if text is not None and (why := service_mistake(text)) is not None:
        table.note(why, "service")
    return text


def _test_container(table: Table) -> str | None:
    text = table.text("container")
    if text is not None and (why := container_mistake(text)) is not None:
        table.note(why, "container")
    return text
