"""What a policy keeps in does not get out, and stands in the log without being told there."""

from __future__ import annotations

import random
import string

import pytest
from conftest import Mitmsec, Network

pytestmark = [pytest.mark.root, pytest.mark.joined]

RULE = """
[[rule]]
name = "no secrets leave"
action = "decrypt"
inspect = ["secrets"]
on_finding = "block"
"""


def test_an_upload_of_a_secret_is_refused_and_another_passes(origin: Network, mitmsec: Mitmsec) -> None:
    secret = "".join(random.choices(string.ascii_letters + string.digits, k=36))
    curl = "curl -sS -o /dev/null -w '%{http_code} '"
    url = "https://origin.test/hello"
    script = f"{curl} -d 'note ghp_{secret}' {url}; {curl} -d 'note' {url}"
    done = mitmsec.run("--policy", mitmsec.policy(RULE), "--", "sh", "-c", script)
    refused, passed = done.stdout.split()
    assert (refused, passed != "403") == ("403", True)
    (finding,) = mitmsec.of_kind("finding")
    assert (finding["detector"], finding["summary"], finding["verdict"]) == ("secrets", "secret, github-pat", "block")
    assert (finding["evidence"], finding["location"]) == ("ghp_… (40 characters)", "request.body+5")
    outcomes = [(one["status"], one.get("outcome"), one.get("answered_by")) for one in mitmsec.of_kind("request")]
    assert outcomes[0] == (403, "blocked", "mitmsec")
    assert outcomes[1][1:] == (None, None), "the origin has answered that one, and heard of no other"
    assert secret not in str(mitmsec.events())
    assert mitmsec.of_kind("fault") == []
    kept = [entry.name.partition("-")[0] for entry in (mitmsec.state / "compiled").iterdir()]
    assert kept.count("secrets") == 1  # beside what others that joined have had compiled
