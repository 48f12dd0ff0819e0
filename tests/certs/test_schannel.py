"""Windows' own TLS client, WinHTTP over Schannel and crypt32, is content with our certificates: Wine's, at least."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from enterprise import DER
from limited_authorities import Authorities, leafs_signature, read_by_wine
from lists_stage import FIRST_PORT, lists_network, serving_lists
from windows_python import WHY_NOT, is_there, own_prefix, windows_python
from windows_tls import (
    CLIENT,
    CONTENT,
    LIST_OUT_OF_REACH,
    NAME_EXCLUDED,
    NAME_NOT_PERMITTED,
    NO_ROOT,
    REFUSED,
    WITHOUT_ROOTS,
)

from mitmsec_certs.constraints import written
from mitmsec_certs.keystore import Keystore

PREAMBLE = """
import hashlib, pathlib, socket, ssl, winreg

def python():
    with socket.create_connection(("127.0.0.1", PORT), timeout=20) as client:
        try:
            ssl.create_default_context().wrap_socket(client, server_hostname="localhost").close()
            return True
        except ssl.SSLCertVerificationError:
            return False

def registry():
    found = {}
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, KEYS) as key:
        for number in range(winreg.QueryInfoKey(key)[0]):
            name = winreg.EnumKey(key, number)
            with winreg.OpenKey(key, name) as one:
                values = [winreg.EnumValue(one, place) for place in range(winreg.QueryInfoKey(one)[1])]
            found[name] = hashlib.sha256(repr(sorted(values)).encode()).hexdigest()
    return found

roots = WindowsRoots(Location.MACHINE)
notes = [pathlib.Path(f"Z:{FOLDER}", f"{number}.note") for number in range(len(ROOTS))]
"""
BEFORE = """
roots.certificates()  # the first who asks has Wine drop the machine's own roots, which are not there now
before = registry()
told([winhttp("localhost", PORT), flaws(CHAIN), python(), roots.holds(ROOTS[0])])
told([[roots.trust(*one), roots.holds(one[0]), one[1].exists()] for one in zip(ROOTS, notes)])
told([roots.trust(ROOTS[0], notes[0]), notes[0].exists()])
told(before)
"""
TRUSTED = """
told([winhttp("localhost", PORT), flaws(CHAIN), python()])
told([winhttp("localhost", PORT, lists=True), flaws(CHAIN, lists=True)])
told(winhttp("localhost", PORT, "/lists"))
told([winhttp("localhost", PORT, lists=True), flaws(CHAIN, lists=True)])
told([winhttp(name, PORT + number, lists=True) for number, name in enumerate(LIMITED, 1)])
told([[flaws(chain, lists=True) for chain in chains] for chains in (BY_NAME, BY_NETWORK)])
told([[roots.untrust(note), roots.holds(der), note.exists(), roots.untrust(note)] for der, note in zip(ROOTS, notes)])
told(registry())
"""
AFTER = """
told([winhttp("localhost", PORT), flaws(CHAIN), python(), roots.holds(ROOTS[0])])
told(winhttp(LIMITED[0], PORT + 1))
"""
ALONE = f'mount --bind "$0" /etc/hosts && {WITHOUT_ROOTS} && exec "$@"'
LIMITED_TO_NAMES = (
    ("www.corp.example", 0),
    ("www.other.example", NAME_NOT_PERMITTED),
    ("10.1.2.3", NAME_EXCLUDED),
    ("2001:db8::7", NAME_EXCLUDED),
)
LIMITED_TO_NETWORKS = (
    ("10.1.2.3", 0),
    ("2001:db8::7", 0),
    ("192.168.1.2", NAME_NOT_PERMITTED),
    ("2001:db9::7", NAME_NOT_PERMITTED),
)


@pytest.mark.root
@pytest.mark.checklist("C5", "K7")
@pytest.mark.skipif(not is_there(), reason=WHY_NOT)
def test_schannel_is_content_while_the_machines_store_has_our_root_and_the_lists_can_be_had(
    keystore: Keystore, leaf_of: Callable[..., Any], tmp_path: Path
) -> None:
    """Each part in a process of its own: Windows' programs keep what they have read of a store."""
    by_name = Authorities(written(["corp.example"], []))
    by_network = Authorities(written(["10.0.0.0/8", "2001:db8::/32"], []))
    lists, hosts = tmp_path / "lists", tmp_path / "hosts"
    lists.mkdir()
    for path, der in (*keystore.crls(int(time.time())), *by_name.crls(), *by_network.crls()):
        (lists / path.removeprefix("/")).write_bytes(der)
    names = [name for name, _ in LIMITED_TO_NAMES[:2]]
    hosts.write_text(f"127.0.0.1 localhost {' '.join(names)}\n")
    leaf = read_by_wine(lambda: leaf_of("localhost"), lambda leaf: leafs_signature(leaf.chain))
    # Wine's Schannel knows no addresses in certificates, its crypt32 does
    leaves = (leaf.file, *(by_name.leaf(name, tmp_path / name) for name in names))
    roots = [ssl.PEM_cert_to_DER_cert(keystore.root_pem), *(ca.root.public_bytes(DER) for ca in (by_name, by_network))]
    given = {
        "PORT": FIRST_PORT,
        "FOLDER": str(tmp_path),
        "CHAIN": leaf.chain,
        "ROOTS": roots,
        "LIMITED": names,
        "BY_NAME": [by_name.chain(name) for name, _ in LIMITED_TO_NAMES],
        "BY_NETWORK": [by_network.chain(name) for name, _ in LIMITED_TO_NETWORKS],
    }
    preamble = "".join(f"{name} = {value!r}\n" for name, value in given.items()) + CLIENT + PREAMBLE
    with (
        lists_network() as network,
        serving_lists(network, lists, *leaves, begin="later") as asked,
        own_prefix(tmp_path / "prefix") as prefix,
    ):
        inside = [*network, "sh", "-c", ALONE, str(hosts)]

        def said(name: str, code: str) -> list[Any]:
            return windows_python(name, preamble + code, prefix=prefix, inside=inside)

        before = said("schannel-1.py", BEFORE)
        trusted = said("schannel-2.py", TRUSTED)
        after = said("schannel-3.py", AFTER)
    assert before[0] == [REFUSED, NO_ROOT, False, False]
    assert before[1] == [[True, True, True]] * len(roots)
    assert before[2] == [False, True], "a second time it is not ours to add"
    assert trusted[0] == [CONTENT, 0, True]
    assert trusted[1] == [REFUSED, LIST_OUT_OF_REACH], "who insists on lists is not content without"
    assert trusted[2] == CONTENT
    assert trusted[3] == [CONTENT, 0]
    assert sorted(asked) == sorted(f"/{path.name}" for path in lists.iterdir()), "of leaves and issuing CAs, once"
    assert trusted[4] == [CONTENT, REFUSED]
    assert trusted[5] == [[flaw for _, flaw in limit] for limit in (LIMITED_TO_NAMES, LIMITED_TO_NETWORKS)]
    assert trusted[6] == [[True, False, False, False]] * len(roots)
    assert trusted[7] == before[3], "the registry is what it was, byte for byte"
    assert after == [[REFUSED, NO_ROOT, False, False], REFUSED]
