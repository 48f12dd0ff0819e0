"""Real programs, in a copy of the machine: they accept our leaf while the stores that they read trust our root, and
refuse it again afterwards.

Nobody is told anything by its environment, but for those who never read the system's store (docs/trust.md).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from trust_stage import in_copy, keeper_of, looks_the_same, nss_home

from mitmsec_certs.keystore import Keystore
from mitmsec_certs.truststore.found import stores
from mitmsec_certs.truststore.keeper import Became
from mitmsec_certs.truststore.plan import Root, Store, StoreName
from mitmsec_certs.truststore.root import root_of

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.slow]

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
JAVA = """
import java.net.URI;
import java.net.http.*;
public class Client {
    public static void main(String[] words) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(words[0])).build();
        System.out.print(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"""
PIP = [sys.executable, "-m", "pip", "download", "--no-input", "--retries=0"]
FETCH = "fetch('{url}').then(r => r.text()).then(console.log, e => {{console.error(e.cause); process.exit(1)}})"
PYTHON = "from urllib.request import urlopen; print(urlopen({url!r}).read())"


class Client(NamedTuple):
    """A program: its package on Debian, how it is called, and whether it is content with a server that has nothing."""

    package: str
    argv: Callable[[str, int], list[str]]
    environ: dict[str, str] = {}  # noqa: RUF012
    only_asks: bool = False  # it fails in any case: that it asked is what counts


CLIENTS = {
    "curl (OpenSSL)": Client("curl", lambda url, port: ["curl", "-sS", "--fail", url]),
    "git (curl with GnuTLS)": Client("git", lambda url, port: ["git", "ls-remote", url], only_asks=True),
    "gnutls-cli": Client("gnutls-bin", lambda url, port: ["gnutls-cli", "--port", str(port), "127.0.0.1"]),
    "java (HttpClient)": Client("default-jdk-headless", lambda url, port: ["java", "Client.java", url]),
    "node --use-openssl-ca": Client(
        "nodejs", lambda url, port: ["node", "--use-openssl-ca", "-e", FETCH.format(url=url)], {"SSL_CERT_FILE": BUNDLE}
    ),
    "node (NODE_EXTRA_CA_CERTS)": Client(
        "nodejs", lambda url, port: ["node", "-e", FETCH.format(url=url)], {"NODE_EXTRA_CA_CERTS": BUNDLE}
    ),
    "npm": Client(
        "npm",
        lambda url, port: ["npm", "view", "none-such", f"--registry={url}", "--fetch-retries=0", "--prefer-online"],
        {"NODE_EXTRA_CA_CERTS": BUNDLE},
        only_asks=True,
    ),
    "openssl": Client(
        "openssl", lambda url, port: ["openssl", "s_client", "-verify_return_error", "-connect", f"127.0.0.1:{port}"]
    ),
    "pip (24.2 and later)": Client(
        "python3-pip",
        lambda url, port: [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-input",
            "--retries=0",
            "-i",
            url,
            "none-such",
        ],
        only_asks=True,
    ),
    "python (Debian's)": Client("python3", lambda url, port: ["/usr/bin/python3", "-c", PYTHON.format(url=url)]),
    "wget (GnuTLS)": Client("wget", lambda url, port: ["wget", "-q", "-O-", "--tries=1", url]),
}
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]


def test_programs_that_read_the_systems_store(accepted: dict[str, dict[str, bool]]) -> None:
    assert accepted, "at least one of them is installed"


@pytest.mark.checklist("K7")
@pytest.mark.parametrize("name", CLIENTS)
def test_it_accepts_our_leaf_while_the_store_trusts_us_and_not_after(
    name: str, accepted: dict[str, dict[str, bool]]
) -> None:
    if name not in accepted:
        pytest.skip(f"{name} is missing (Debian package {CLIENTS[name].package})")
    assert accepted[name] == {"trusted": True, "untrusted": False}


@pytest.fixture(scope="module")
def accepted(
    serve: Any, leaf_of: Any, keystore: Keystore, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, bool]]:
    """Program → whether it accepted our leaf while the system's store trusted our root, and afterwards."""
    folder, root = tmp_path_factory.mktemp("clients"), root_of(keystore.root_pem.encode())
    (folder / "Client.java").write_text(JAVA)
    leaf = leaf_of("127.0.0.1")

    def story() -> None:
        (system,) = [store for store in stores([]) if store.name is StoreName.SYSTEM]
        found: dict[str, dict[str, bool]] = {name: {} for name, one in CLIENTS.items() if is_here(one, folder)}
        with serve(leaf) as https:
            for phase in during(system, root):
                for name in found:
                    found[name][phase] = accepts(CLIENTS[name], https, folder)
        (folder / "found.json").write_text(json.dumps(found))

    in_copy(story)
    found: dict[str, dict[str, bool]] = json.loads((folder / "found.json").read_text())
    return found


def during(store: Store, root: Root) -> Any:
    """`trusted`, and then `untrusted`: the store is then what it was."""
    keeper, journal = keeper_of(Path("/var/lib/mitmsec-test"))
    with looks_the_same("/etc/ssl", "/usr/local/share/ca-certificates"):
        with journal.held():
            assert keeper.trust(store, root).became is Became.ADDED
        yield "trusted"
        with journal.held():
            assert keeper.untrust(*journal.entries()).became is Became.RESTORED
    yield "untrusted"


def accepts(client: Client, https: Any, folder: Path) -> bool:
    before = len(https.requests)
    done = run(client.argv(f"https://127.0.0.1:{https.port}/", https.port), folder, client.environ)
    print(client.package, done.returncode, done.stdout[-400:], done.stderr[-400:])
    return len(https.requests) > before if client.only_asks else done.returncode == 0


def run(argv: list[str], folder: Path, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    base = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "HOME": str(folder), "NO_PROXY": "*", "LC_ALL": "C.UTF-8"}
    base |= {"PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        argv,
        cwd=folder,
        env=base | (environ or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )


def is_here(client: Client, folder: Path) -> bool:
    """A name on the path may be a stand-in that only says where the program could be."""
    program = client.argv("", 0)[0]
    return shutil.which(program) is not None and run([program, "--version"], folder).returncode != 127


@pytest.mark.checklist("K7")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is missing (Debian package chromium)")
def test_chromium_reads_its_users_database(https: Any, keystore: Keystore, tmp_path: Path) -> None:
    (store,) = stores([nss_home(tmp_path / "home", ".pki/nssdb")], str(tmp_path))
    keeper, journal = keeper_of(tmp_path / "trust")
    root, found = root_of(keystore.root_pem.encode()), []
    with looks_the_same(store.place):
        with journal.held():
            keeper.trust(store, root)
        found.append(chromium_accepts(https, tmp_path / "home"))
        with journal.held():
            keeper.untrust(*journal.entries())
    found.append(chromium_accepts(https, tmp_path / "home"))
    assert found == [True, False]


def chromium_accepts(https: Any, home: Path) -> bool:
    before = len(https.requests)
    profile = f"--user-data-dir={home}/chromium"
    done = run([*CHROMIUM, profile, f"https://127.0.0.1:{https.port}/"], home)
    print(done.returncode, done.stdout[-400:], done.stderr[-400:])
    return "ok" in done.stdout and len(https.requests) > before


FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
QUIET = {"datareporting.policy.dataSubmissionEnabled": "false", "browser.startup.homepage_override.mstone": '"ignore"'}


@pytest.mark.checklist("K7")
@pytest.mark.skipif(FIREFOX is None, reason="firefox-esr is missing (Debian package firefox-esr)")
def test_firefox_reads_its_profiles_database(leaf_of: Any, keystore: Keystore, tmp_path: Path) -> None:
    (store,) = stores([nss_home(tmp_path / "home", ".mozilla/firefox/x.default")], str(tmp_path))
    lines = [f'user_pref("{name}", {value});' for name, value in QUIET.items()]
    Path(store.place, "user.js").write_text("\n".join(lines))
    keeper, journal = keeper_of(tmp_path / "trust")
    leaf, found = leaf_of("127.0.0.1"), []
    with journal.held():
        keeper.trust(store, root_of(keystore.root_pem.encode()))
    found.append(firefox_says(leaf, store, tmp_path / "home"))
    with journal.held():
        keeper.untrust(*journal.entries())
    found.append(firefox_says(leaf, store, tmp_path / "home"))
    assert found == ["GET / HTTP/1.1", "unknown CA"]


def firefox_says(leaf: Any, store: Store, home: Path) -> str:
    """Its request, or its alert."""
    assert FIREFOX is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.file)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        argv = [FIREFOX, "--headless", "--no-remote", "--profile", store.place]
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "MOZ_CRASHREPORTER_DISABLE": "1"}
        firefox = subprocess.Popen(
            [*argv, f"https://127.0.0.1:{listener.getsockname()[1]}/"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while True:
                if said := _said(listener, context):
                    return said
        finally:
            os.killpg(firefox.pid, signal.SIGKILL)
            firefox.wait()


def _said(listener: socket.socket, context: ssl.SSLContext) -> str:
    """What one connection brings; empty: it came to look only, as browsers do."""
    with listener.accept()[0] as client:
        client.settimeout(20)
        try:
            with context.wrap_socket(client, server_side=True) as tls:
                return tls.recv(4096).partition(b"\r\n")[0].decode()
        except ssl.SSLError as error:
            return (error.reason or "").rpartition("ALERT_")[2].lower().replace("_ca", " CA")
        except OSError:
            return ""
