"""mitmsec's own variants, started through its command line as a user starts them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.host import ORIGIN_NAME
from benchmarks.variants import Variant

# Nothing learned: what is measured as decrypted is decrypted to the last connection.
_DECRYPT = 'version = 1\n\n[defaults]\naction = "decrypt"\nlearned_bypass = false\n'
_BYPASS = f"""version = 1

[defaults]
action = "decrypt"

[[rule]]
name = "the origin stays private"
host = ["{ORIGIN_NAME}"]
action = "bypass"
"""


def decrypt(folder: Path, origin_ca: Path, workers: int | None) -> Variant:
    """Decrypted and recorded under the shortest policy; no authority of the benchmark issues the certificate."""
    return _variant("mitmsec decrypt", "", _DECRYPT, folder, origin_ca, workers)


def bypass(folder: Path, origin_ca: Path, origin_issuer: str, workers: int | None) -> Variant:
    """Bypassed by name: the gate must read the hello before it lets the connection go."""
    return _variant("mitmsec bypass", origin_issuer, _BYPASS, folder, origin_ca, workers)


def inspecting(name: str, inspectors: Sequence[str], folder: Path, origin_ca: Path) -> Variant:
    """Decrypted by one worker, and read by these inspectors, which stop nothing."""
    rule = f"""
[[rule]]
name = "all is read"
action = "decrypt"
inspect = [{", ".join(f'"{one}"' for one in inspectors)}]
on_finding = "alert"
"""
    return _variant(name, "", _DECRYPT + (rule if inspectors else ""), folder, origin_ca, 1)


def _variant(name: str, issuer: str, policy: str, folder: Path, origin_ca: Path, workers: int | None) -> Variant:
    policy_file = folder / "policy.toml"
    policy_file.write_text(policy)
    count = ("--workers", str(workers)) if workers else ()
    run = (
        sys.executable,
        "-m",
        "mitmsec",
        "run",
        "--state",
        str(folder / "state"),
        "--policy",
        str(policy_file),
        *count,
    )
    # The caller's roots: mitmsec gives them, with its own, to the command and verifies the origin by them.
    return Variant(name, issuer, (*run, "--"), environment={"SSL_CERT_FILE": str(origin_ca), "SSL_CERT_DIR": ""})
