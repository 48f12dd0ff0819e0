"""What the signer's one answer costs, in CPU time of its thread: a new leaf, and one that is kept.

    python -m benchmarks.minting [--leaves 2000] [--softhsm]

With `--softhsm` the issuing key is in a token of SoftHSM's, made for it (root).

The whole way through the desk is measured: the gate's word, the worker's question, the answer and the event. Channels
and the recorder are not in it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import MintQuestion
from mitmsec.core.token_module import TokenModule
from mitmsec_certs import ceremony
from mitmsec_certs.authority import Authority, spki_of
from mitmsec_certs.keystore import open_keystore
from mitmsec_certs.leaf_keys import LeafKeys
from mitmsec_certs.signer import Mint, SignerDesk
from mitmsec_certs.token_key import found_or_made
from mitmsec_certs.token_uri import parse

MINT_AT_MOST_US, HIT_AT_MOST_US = 500.0, 20.0
FIRST, WARM = -10, 10
SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"


def costs_us(ask: Callable[[int], None], count: int, first: int = 0) -> list[float]:
    """CPU time of each call, microseconds."""
    found = []
    for number in range(first, first + count):
        before_ns = time.thread_time_ns()
        ask(number)
        found.append((time.thread_time_ns() - before_ns) / 1000)
    return found


def asking(desk: SignerDesk, flows: itertools.count[int], kind: LeafKeyKind, *, fresh: bool) -> Callable[[int], None]:
    """A question for a new name each time, or for one name; the first few are asked already."""

    def ask(number: int) -> None:
        flow, now_s = str(next(flows)), int(time.time())
        desk.decide(flow, f"{f'host{number - FIRST}' if fresh else 'kept'}.{kind}.example", now_s)
        answer, event = desk.answer(MintQuestion(number=number, flow=flow, key=kind), now_s)
        assert answer.chain
        assert (event is not None) is (fresh or number == FIRST)

    costs_us(ask, WARM, FIRST)  # the day's key is made with the first
    return ask


def in_softhsm(folder: Path) -> Authority:
    """An automatic CA whose key was made in a token of SoftHSM's below `folder`."""
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    pin = secrets.token_hex(8)
    words = ["--init-token", "--free", "--label", "benchmark", "--so-pin", pin, "--pin", pin]
    subprocess.run(["softhsm2-util", *words], check=True, capture_output=True)
    path = os.path.realpath(SOFTHSM)
    module = TokenModule(path=path, environment=(("SOFTHSM2_CONF", os.environ["SOFTHSM2_CONF"]),))
    key = found_or_made(parse(f"pkcs11:token=benchmark;object=issuing?module-path={path}"), pin, module)
    _, issuing = ceremony.automatic(spki_of(key.public_key()), "benchmark", int(time.time()))
    return Authority(key, x509.load_pem_x509_certificate(issuing))


def told(what: str, found: list[float], at_most_us: float) -> str:
    ordered = sorted(found)
    median, late = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    reached = "reached" if statistics.mean(ordered) <= at_most_us else "NOT reached"
    return (
        f"{what:<22} mean {statistics.mean(ordered):7.1f} µs   median {median:7.1f} µs   99 % below {late:7.1f} µs   "
        f"at most {at_most_us:.0f} µs wanted: {reached}"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--leaves", type=int, default=2000)
    parser.add_argument("--softhsm", action="store_true", help="with the key in a token (root; Debian: softhsm2)")
    asked = parser.parse_args()
    count = asked.leaves
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_file = open_keystore(folder / "ca", "benchmark", int(time.time())).authority
        desk, flows = SignerDesk(Mint(in_softhsm(folder) if asked.softhsm else in_file), LeafKeys()), itertools.count()
        for kind in LeafKeyKind:
            mint = costs_us(asking(desk, flows, kind, fresh=True), count)
            print(told(f"{kind}: a new leaf", mint, MINT_AT_MOST_US))
            hit = costs_us(asking(desk, flows, kind, fresh=False), count)
            print(told(f"{kind}: a kept leaf", hit, HIT_AT_MOST_US))


if __name__ == "__main__":
    main()
