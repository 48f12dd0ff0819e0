"""Files under way: malware that a real clamd knows, asked by a worker that may not connect anywhere."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from clamd_stage import EICAR, clamd
from conftest import Mitmsec, Network

pytestmark = [pytest.mark.root, pytest.mark.joined]
POLICY = """
[inspector.malware]
socket = "{}"
[[rule]]
name = "files"
action = "decrypt"
inspect = ["malware", "archives", "payment_card"]
on_finding = "block"
"""


def zipped(content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", content)
    return made.getvalue()


def test_uploads_with_malware_or_a_card_in_an_archive_are_refused_and_others_are_not(
    origin: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    for name, content in {"clean": b"nothing", "virus": EICAR, "card": b"card 4539 1488 0343 6467"}.items():
        (tmp_path / name).write_bytes(zipped(content))
        (tmp_path / name).chmod(0o644)
    tmp_path.chmod(0o755)
    curl = "curl -s --max-time 20 -o /dev/null -w '%{http_code} ' https://origin.test/ --data-binary"
    script = "; ".join(f"{curl} @{tmp_path / name}" for name in ("clean", "virus", "card"))
    with clamd(tmp_path) as address:
        done = mitmsec.run("--policy", mitmsec.policy(POLICY.format(address)), "--", "sh", "-c", script)
    assert done.stdout.split()[1:] == ["403", "403"]
    asked = [(one.get("outcome"), one.get("answered_by")) for one in mitmsec.of_kind("request")]
    assert asked == [(None, None), ("blocked", "mitmsec"), ("blocked", "mitmsec")]
    found = {(one["detector"], one["summary"], one["location"]) for one in mitmsec.of_kind("finding")}
    assert found == {
        ("malware", "malware: Eicar-Test.UNOFFICIAL", "request.body"),
        ("payment_card", "payment card number, Visa", "request.body!inside+5"),
    }
    assert mitmsec.of_kind("fault") == []
