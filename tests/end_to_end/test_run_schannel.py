"""A program of Windows, under Wine, in `mitmsec run`: content while its store has our root, lists and all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import Mitmsec, Network
from cryptography import x509
from windows_python import WHY_NOT, is_there, own_prefix, windows_python
from windows_tls import CLIENT, CONTENT, REFUSED, WITHOUT_ROOTS

from mitmsec.core.crl_place import CRL_PLACE, crl_url

pytestmark = pytest.mark.root
# Wine's server has the sockets of all its programs: it begins within the run, and ends there.
PROGRAM = f'{WITHOUT_ROOTS} && "$@"; said=$?; wineserver -k; wineserver -w; exit $said'
# In two processes: one keeps what it has read of a store.
STORY = """
import pathlib, ssl, subprocess

def both():
    return [winhttp("origin.test", 443, "/hello", lists=lists) for lists in (False, True)]

if sys.argv[-1] == "trusting":
    told(both())
    sys.exit()
told(both())
told(WindowsRoots(Location.MACHINE).trust(ssl.PEM_cert_to_DER_cert(pathlib.Path(ROOT).read_text()), pathlib.Path(NOTE)))
after, null = sys.argv[1] + ".after", subprocess.DEVNULL
words = [sys.executable, __file__, after, *sys.argv[2:], "trusting"]
subprocess.run(words, stdin=null, stdout=null, stderr=null, check=True)
told(json.loads(pathlib.Path(after).read_text()))
"""


@pytest.mark.checklist("C5")
@pytest.mark.skipif(not is_there(), reason=WHY_NOT)
def test_schannel_gets_the_lists_that_it_insists_on_from_the_gate(
    mitmsec: Mitmsec, origin: Network, tmp_path: Path
) -> None:
    anywhere = ["ip", "-n", origin.name, "route", "replace", f"{CRL_PLACE.address}/32", "dev", "lo"]
    subprocess.run(anywhere, check=True)  # this network has no way out, and the hook leaves what has no route alone
    folder = mitmsec.state / "ca"
    root, note = f"Z:{folder}/root.pem", f"Z:{tmp_path}/note"
    code = f"ROOT, NOTE = {root!r}, {note!r}\n{CLIENT}{STORY}"
    run = mitmsec.command("run", "--state", str(mitmsec.state), "--workers", "1", "--")
    trusting = ["env", f"SSL_CERT_FILE={origin.root_pem}", *run, "unshare", "-m", "sh", "-c", PROGRAM, "sh"]
    with own_prefix(tmp_path / "prefix") as prefix:
        said = windows_python("run-schannel.py", code, prefix=prefix, inside=trusting)
    assert said == [[REFUSED, REFUSED], True, [CONTENT, CONTENT]]
    assert [event["names"] for event in mitmsec.of_kind("certificate")] == [["origin.test"]]
    requests = [(event["url"], event["status"]) for event in mitmsec.of_kind("request")]
    lists = {(crl_url(key_identifier(folder / name)), 200) for name in ("root.pem", "issuing.pem")}
    assert set(requests) == {("https://origin.test/hello", 200), *lists}
    assert len(requests) == 2 + len(lists), "each list once"


def key_identifier(file: Path) -> bytes:
    certificate = x509.load_pem_x509_certificates(file.read_bytes())[0]
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
