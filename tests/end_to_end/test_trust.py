"""`mitmsec ca trust` in a copy of the machine: a user's store trusts the CA, the log says so, `clean` undoes it."""

from __future__ import annotations

import json
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trust_stage import COPIED, in_copy, looks_the_same, nss_home

pytestmark = pytest.mark.root
STATE = "/var/lib/mitmsec-trust-test"
HOME = Path(pwd.getpwuid(0).pw_dir)
STORE = f"chromium ({HOME}/.pki/nssdb, of root)"


def make_ca(folder: Path) -> None:
    word = folder / "word"
    word.write_text("correct horse battery\n")
    word.chmod(0o600)
    command = [sys.executable, "-m", "mitmsec", "ca", "init", "--state", STATE]
    command += ["--passphrase-file", str(word), "--root-file", str(folder / "root.p12")]
    subprocess.run(command, check=True, capture_output=True, timeout=100)


def mitmsec(*words: str) -> list[dict[str, Any]]:
    """What it says, a JSON object a line."""
    command = [sys.executable, "-m", "mitmsec", *words, "--state", STATE, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.checklist("K7", "K8")
def test_a_users_store_trusts_the_ca_and_the_log_says_so(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[[application]]\nname = "browser"\npath = ["/usr/lib/chromium/*"]\n')

    assert str(HOME).startswith(COPIED), "in the copy, nothing else"

    def story() -> None:
        shutil.rmtree(HOME / ".pki", ignore_errors=True)  # in the copy
        nss_home(HOME, ".pki/nssdb")
        make_ca(tmp_path)
        with looks_the_same(HOME / ".pki"):
            with looks_the_same("/etc/ssl", "/usr/local/share/ca-certificates"):
                made = mitmsec("ca", "trust", "--policy", str(policy), "--user", "root")
            assert [(row["store"], row["user"], row["became"]) for row in made] == [("chromium", "root", "added")]
            (root,) = [row["sha256"] for row in made]
            stands = mitmsec("ca", "trust", "--list", "chromium", "--user", "root")
            assert [row["state"] for row in stands] == ["trusted"]
            assert [row["name"] for row in mitmsec("clean") if row.get("what") == "trust"] == [STORE]
        mitmsec("ca", "trust", "chromium", "--user", "root")  # which also puts on record what `clean` has done
        events = mitmsec("audit", "list", "--kind", "ca")
        told = [(event["operation"], event["detail"]) for event in events if event["sha256"] == root][-3:]
        assert told == [(word, STORE) for word in ("trusted", "untrusted", "trusted")]
        mitmsec("clean", "--purge")

    in_copy(story)
