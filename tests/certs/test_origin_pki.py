"""The throw-away PKI of demo and tests: real servers with it are trusted by who has its root, and by nobody else."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from mitmsec_certs.origin_pki import origin_pki


def test_its_chains_verify_under_its_root_alone(tmp_path: Path) -> None:
    pki = origin_pki("Label", ("a.example", "192.0.2.1"), int(time.time()))
    other = origin_pki("Other", ("a.example",), int(time.time()))
    assert set(pki.servers) == {"a.example", "192.0.2.1"}
    (tmp_path / "chain.pem").write_bytes(pki.servers["a.example"][0])
    for name, root, good in (("root", pki.root, True), ("other", other.root, False)):
        (tmp_path / f"{name}.pem").write_bytes(root)
        done = subprocess.run(
            ["openssl", "verify", "-purpose", "sslserver", "-verify_hostname", "a.example",
             "-CAfile", str(tmp_path / f"{name}.pem"), "-untrusted", str(tmp_path / "chain.pem"),
             str(tmp_path / "chain.pem")],
            capture_output=True, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) is good
