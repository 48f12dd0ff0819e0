"""Real programs, told of our root by their environment only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mitmsec_certs.bundle import BadBundle, Bundle, roots_as_used
from mitmsec_certs.keystore import Keystore
from mitmsec_certs.truststore.environment import ADDING, REPLACING, command_trust

PYTHON = sys.executable
UV = str(Path(PYTHON).with_name("uv"))  # the environment has one, whatever the PATH says
CLIENTS: dict[str, Callable[[str], list[str]]] = {
    "curl": lambda url: ["curl", "-sS", "--fail", url],
    "git": lambda url: ["git", "ls-remote", url],
    "httpx": lambda url: [PYTHON, "-c", f"import httpx, ssl; print(httpx.get({url!r}).text)"],
    "node": lambda url: [
        "node",
        "-e",
        f"fetch('{url}').then(r => r.text()).then(console.log, e => {{console.error(e.cause); process.exit(1)}})",
    ],
    "openssl": lambda url: [
        "openssl",
        "s_client",
        "-verify_return_error",
        "-connect",
        url.removeprefix("https://").rstrip("/"),
    ],
    "pip": lambda url: [PYTHON, "-m", "pip", "download", "--no-input", "--retries=0", "-i", url, "no-such-package"],
    "python": lambda url: [PYTHON, "-c", f"from urllib.request import urlopen; print(urlopen({url!r}).read())"],
    "requests": lambda url: [PYTHON, "-c", f"import requests; print(requests.get({url!r}).text)"],
    "uv": lambda url: [UV, "pip", "compile", "--no-config", "--no-cache", "--index-url", url, "requirements.in"],
}
# These fail in any case, because there is no repository and no package: that they asked for one is what counts.
ASKERS = ("git", "pip", "uv")


def run(command: list[str], environ: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "HOME": str(folder), "NO_PROXY": "*", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        command, cwd=folder, env=base | environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def trusts(client: str, https: Any, environ: dict[str, str], folder: Path) -> bool:
    (folder / "requirements.in").write_text("no-such-package\n")
    before = len(https.requests)
    done = run(CLIENTS[client](f"https://127.0.0.1:{https.port}/"), environ, folder)
    print(done.stdout, done.stderr)
    return len(https.requests) > before if client in ASKERS else done.returncode == 0


def is_installed(client: str, folder: Path) -> bool:
    """A name on the path may be a stand-in that only says where the program could be."""
    program = CLIENTS[client]("")[0]
    return shutil.which(program) is not None and run([program, "version"], {}, folder).returncode != 127


@pytest.fixture
def variables(keystore: Keystore, tmp_path: Path) -> dict[str, str]:
    trust = command_trust({}, Bundle(roots=(), sources=()), keystore.root_pem)
    (tmp_path / "bundle.pem").write_bytes(trust.bundle_pem)
    (tmp_path / "extra.pem").write_bytes(trust.extra_pem)
    return trust.variables(str(tmp_path / "bundle.pem"), str(tmp_path / "extra.pem"))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_program_that_listens_trusts_our_leaf(
    client: str, https: Any, variables: dict[str, str], tmp_path: Path
) -> None:
    """And without the variables it does not, so the variables are what did it."""
    if not is_installed(client, tmp_path):
        pytest.skip(f"{client} is not installed")
    assert not trusts(client, https, {}, tmp_path)
    assert trusts(client, https, variables, tmp_path)


@pytest.mark.parametrize("client", ["curl", "python", "requests", "openssl"])
def test_a_folder_of_the_callers_does_not_hide_our_root(
    client: str, https: Any, variables: dict[str, str], tmp_path: Path
) -> None:
    """SSL_CERT_DIR stays as it was: every program adds it to the file."""
    (tmp_path / "roots").mkdir()
    assert trusts(client, https, variables | {"SSL_CERT_DIR": str(tmp_path / "roots")}, tmp_path)


def test_the_bundle_holds_the_roots_as_used_and_ours(keystore: Keystore, tmp_path: Path) -> None:
    other = tmp_path / "corp.pem"
    other.write_text(keystore.issuing_pem)
    environ = {"SSL_CERT_FILE": str(other)}
    trust = command_trust(environ, roots_as_used(environ), keystore.root_pem)
    assert trust.bundle_pem.decode() == keystore.issuing_pem + keystore.root_pem
    assert trust.extra_pem.decode() == keystore.root_pem
    assert trust.replaced == ()


def test_what_the_caller_added_for_node_stays(keystore: Keystore, tmp_path: Path) -> None:
    added = tmp_path / "extra.pem"
    added.write_text(keystore.issuing_pem)
    trust = command_trust({ADDING: str(added)}, Bundle(roots=(), sources=()), keystore.root_pem)
    assert trust.extra_pem.decode() == keystore.issuing_pem + keystore.root_pem
    assert trust.bundle_pem.decode() == keystore.root_pem


def test_what_the_caller_added_for_node_and_cannot_be_read_is_named(keystore: Keystore) -> None:
    with pytest.raises(BadBundle, match=r"NODE_EXTRA_CA_CERTS: /nowhere/extra\.pem"):
        command_trust({ADDING: "/nowhere/extra.pem"}, Bundle(roots=(), sources=()), keystore.root_pem)


def test_variables_that_no_longer_say_what_the_caller_said_are_told(keystore: Keystore) -> None:
    environ = {"SSL_CERT_FILE": "/corp.pem", "PIP_CERT": "/corp.pem", "AWS_CA_BUNDLE": "/aws.pem", "CURL_CA_BUNDLE": ""}
    trust = command_trust(environ, Bundle(roots=(), sources=()), keystore.root_pem)
    assert trust.replaced == ("AWS_CA_BUNDLE",)


def test_every_variable_points_to_the_right_file(keystore: Keystore) -> None:
    trust = command_trust({}, Bundle(roots=(), sources=()), keystore.root_pem)
    variables = trust.variables("/run/bundle.pem", "/run/extra.pem")
    assert variables.pop(ADDING) == "/run/extra.pem"
    assert set(variables) == set(REPLACING)
    assert set(variables.values()) == {"/run/bundle.pem"}
