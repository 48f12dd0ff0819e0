"""Connections that come in for a service whose key is known are read, and neither it nor its peers notice."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
import sys

import pytest
from conftest import Mitmsec, Network
from incoming_stage import OURS_V4, PEER_V4, outside, until
from keyed_stage import NAME, PORT, Keyed, keyed

pytestmark = [pytest.mark.root, pytest.mark.joined]
__all__ = ["outside"]  # a fixture
PEER = f"""
import hashlib, http.client, socket, ssl, sys, time
context = ssl.create_default_context(cafile=sys.argv[1])
tls = context.wrap_socket(socket.create_connection((sys.argv[2], {PORT}), 20), server_hostname="{NAME}")
print(hashlib.sha256(tls.getpeercert(binary_form=True)).hexdigest())
one = http.client.HTTPConnection("{NAME}")
one.sock = tls
for _ in range(2):
    one.request("GET", "/again")
    print(one.getresponse().read().decode())
    time.sleep(2)
"""


def test_the_peer_sees_the_service_itself_and_the_record_sees_what_they_say(
    mitmsec: Mitmsec, network: Network, outside: list[str]
) -> None:
    capture = mitmsec.state.parent / "in.pcapng"
    with keyed(mitmsec, network, OURS_V4, "--capture", str(capture)) as shop:
        assert shop.fetch(outside, "--http1.1", "-d", "about Project Eagle") == f"{PEER_V4} HTTP/1.1"
        assert shop.fetch(outside, "--http2") == f"{PEER_V4} HTTP/2.0"
        certificate, again = as_a_peer_that_keeps_its_connection(shop, outside)
        assert again == [f"{PEER_V4} HTTP/1.1"] * 2, "the service has closed between the two, and is called once more"
        assert shop.fetch(outside, "-k", name="other.example") == f"{PEER_V4} HTTP/2.0"
        with pytest.raises(subprocess.CalledProcessError):
            shop.fetch(outside, "-f", "-H", f"Host: admin.{NAME}", "--http1.1")
        own = ssl.PEM_cert_to_DER_cert(
            (shop.folder / "shop.pem").read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
        )
        assert certificate == hashlib.sha256(own).hexdigest()
        posted, got, kept, other, misdirected = until(mitmsec, 5)
    for event in (posted, got, kept, misdirected):
        assert (event["action"], event["outcome"], event["protocol"]) == ("decrypt", "completed", "tls")
        assert event["tls"]["server"]["certificate_sha256"] == certificate
        assert event["tls"]["server"]["verified"] is True
        assert event["remote"]["address"] == PEER_V4
    assert (other["action"], other["outcome"]) == ("bypass", "completed")
    assert f"no [[inbound]] is for other.example on port {PORT}, so it is relayed unread" in other["reason"]
    requests = mitmsec.of_kind("request")
    url = f"https://{NAME}:{PORT}/a?key="
    assert [(event["method"], event["url"], event["status"]) for event in requests] == [
        ("POST", url, 200),
        ("GET", url, 200),
        *[("GET", f"https://{NAME}:{PORT}/again", 200)] * 2,
        ("GET", url, 421),
    ]
    assert {event["direction"] for event in requests} == {"inbound"}
    (finding,) = mitmsec.of_kind("finding")
    assert (finding["connection"], finding["location"].partition("+")[0]) == (posted["connection"], "request.body")
    assert finding["direction"] == "inbound"
    assert mitmsec.of_kind("certificate") == [], "nobody has made one"
    kept = capture.read_bytes()
    assert b"CLIENT_TRAFFIC_SECRET_0" in kept, "the peers' leg can be read in the capture"
    assert NAME.encode() in kept
    assert b"other.example" not in kept, "what is relayed unread is not kept either"
    (policy,) = mitmsec.of_kind("policy")
    assert policy["certificates"] == [certificate]


def as_a_peer_that_keeps_its_connection(shop: Keyed, outside: list[str]) -> tuple[str, list[str]]:
    """What it is shown, and what it is answered, before and after the service has closed its side."""
    command = [*outside, sys.executable, "-c", PEER, str(shop.root), OURS_V4]
    certificate, *answers = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return certificate, answers
