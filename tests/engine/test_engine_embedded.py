"""What of mitmproxy is there, and what is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mitmproxy import version
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy.context import Context

from mitmsec.core.model import Endpoint
from mitmsec.engine.embedded import Embedded, MitmsecMode, server_of


def test_a_context_knows_both_ends_and_our_mode() -> None:
    client, origin = Endpoint(address="192.0.2.1", port=1), Endpoint(address="192.0.2.2", port=443)
    context = Embedded().context("flow-1", client, origin, time.time())
    assert context.client.peername == ("192.0.2.1", 1)
    assert context.client.state is ConnectionState.OPEN
    assert isinstance(context.client.proxy_mode, MitmsecMode)
    assert context.options.rawtcp
    assert not context.options.websocket


def test_a_fork_knows_what_its_context_knows_and_has_layers_of_its_own() -> None:
    """And all that mitmproxy's own has, which ours makes without asking it."""
    made, endpoint = Embedded(), Endpoint(address="192.0.2.1", port=1)
    context = made.context("flow-1", endpoint, endpoint, time.time())
    context.server = server_of("flow-1", endpoint, "a.test", None)
    fork = context.fork().fork()
    assert (fork.client, fork.server, fork.options) == (context.client, context.server, context.options)
    assert vars(fork).keys() == vars(context).keys() == vars(Context(context.client, made.options)).keys()
    assert fork.layers is not context.layers


def test_both_ends_of_a_flow_are_told_apart_by_mitmproxy_and_from_those_of_every_other() -> None:
    """Which gives each connection a name at random, for the same."""
    made, endpoint = Embedded(), Endpoint(address="192.0.2.1", port=1)
    ends = [
        end
        for flow in ("flow-1", "flow-2")
        for end in (made.context(flow, endpoint, endpoint, 0.0).client, server_of(flow, endpoint, "a.test", None))
    ]
    assert len({*ends, Server(address=None)}) == 5


def test_options_are_settled() -> None:
    """mitmproxy would copy each value deeply whenever a layer reads it."""
    made = Embedded()
    assert made.options.rawtcp is True
    assert made.options.body_size_limit is None
    assert set(made.options.keys()) <= vars(made.options).keys()  # type: ignore[no-untyped-call]


def test_another_mitmproxy_than_was_tested_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "VERSION", "13.0.0")
    with pytest.raises(RuntimeError, match=r"13\.0\.0"):
        Embedded()


def test_it_leaves_nothing_behind_and_loads_no_addons(tmp_path: Path) -> None:
    """No configuration folder, no web server, no script runner where hostile bytes are read."""
    code = (
        "import sys, mitmsec.engine.engine\n"
        "from mitmsec.engine.embedded import Embedded\n"
        "Embedded()\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "mitmproxy.proxy.layers.http" in loaded
    assert not {"mitmproxy.master", "mitmproxy.addons", "mitmproxy.platform", "flask", "tornado", "ldap3"} & loaded
    assert list(tmp_path.iterdir()) == []
