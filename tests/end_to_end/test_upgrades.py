"""Dialogues of real servers and clients that go on under TLS: decrypted, recorded, or let pass by their name."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import upgrade_stage
from conftest import V4, Mitmsec, Network, _until_listening

pytestmark = [pytest.mark.root, pytest.mark.joined]
POLICY = """
[defaults]
inspect = ["keywords"]
[inspector.keywords]
words = ["a STARTTLS in a letter", "the answer"]
[[client_certificate]]
name = "partner"
certificate = "{folder}/partner.pem"
key = "{folder}/partner.key"
[[rule]]
name = "databases"
port = [3306]
action = "decrypt"
client_certificate = "partner"
[[rule]]
name = "private mail"
host = ["bank.test"]
action = "bypass"
"""
DIALOGUES = {"smtp", "imap", "pop3", "ftp", "ldap", "xmpp", "postgresql", "mysql"}
READ_BY_OPENSSL = {"ldap", "xmpp", "postgresql"}  # whose clients do not say who signed what they verified


@pytest.fixture
def servers(origin: Network) -> Iterator[Path]:
    missing = [name for name in upgrade_stage.NEEDED if shutil.which(name, path="/usr/sbin:/usr/bin:/bin") is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    folder = Path(tempfile.mkdtemp(prefix="mitmsec-servers-"))  # some of them are other users
    running = upgrade_stage.start(origin, folder)
    try:
        for port in upgrade_stage.PORTS.values():
            _until_listening(origin, V4, port)
        yield folder
    finally:
        for server in running:
            server.terminate()
        for server in running:
            server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def test_dialogues_of_eight_protocols_are_decrypted_once_they_go_on_under_tls(servers: Path, mitmsec: Mitmsec) -> None:
    """One run for all; what each came to is told apart by its protocol."""
    policy = mitmsec.policy(POLICY.format(folder=servers))
    done = mitmsec.run("--policy", policy, "--", sys.executable, "-c", upgrade_stage.CLIENTS)
    assert done.returncode == 0, done.stderr
    came_to = dict(map(json.loads, done.stdout.splitlines()))
    assert came_to.pop("bypassed") == "Test Origins nginx"  # the origin's own certificate
    assert came_to.keys() == DIALOGUES
    for name, who in came_to.items():
        assert who == "verified" if name in READ_BY_OPENSSL else who.startswith("mitmsec issuing"), (name, who)
    connections = [one for one in mitmsec.of_kind("connection") if one["protocol"] != "dns"]
    _bypassed(connections)
    decrypted = {one["protocol"]: one for one in connections if one["action"] == "decrypt"}
    assert decrypted.keys() == {*DIALOGUES, "tls"}  # the last is a data connection of FTP
    for protocol, one in decrypted.items():
        ends = (
            {"completed", "origin_reset"} if protocol == "mysql" else {"completed"}
        )  # MariaDB may not read the farewell
        assert one["outcome"] in ends, one
        assert one["remote"]["host"] == "origin.test", one
        assert (one["tls"]["client"]["sni"], one["tls"]["client"]["version"]) == ("origin.test", "TLSv1.3"), one
        assert one["tls"]["server"]["verified"] is True, one
        assert one["rule"] == ("databases" if protocol == "mysql" else "defaults")
        assert min(one["bytes"].values()) > 100, one  # what was said before TLS, too
    assert decrypted["mysql"]["tls"]["server"]["client_certificate"] == "partner"
    names = {tuple(one["names"]) for one in mitmsec.of_kind("certificate")}
    assert names == {("origin.test",)}  # none for the name that is let pass
    found = {one["connection"]: one["location"] for one in mitmsec.of_kind("finding")}
    assert found.keys() == {decrypted[name]["id"] for name in ("imap", "mysql", "smtp")}
    assert found[decrypted["smtp"]["id"]] == "request.body+0 in part 1 of mail 1"
    assert [one["what"] for one in mitmsec.of_kind("fault")] == []


def _bypassed(connections: list[dict[str, Any]]) -> None:
    """A dialogue that is let pass by the name in its hello: what was said before that is read, TLS is not."""
    (one,) = [one for one in connections if one["action"] == "bypass"]
    assert (one["protocol"], one["rule"], one["remote"]["host"]) == ("smtp", "private mail", "bank.test")
    assert (one["tls"]["client"]["sni"], one["tls"]["server"], one["outcome"]) == ("bank.test", None, "completed")
