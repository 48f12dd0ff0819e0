"""What looking costs: bytes a second, how long a slice holds the loop, and how fast compiled rules are there again.

CPU time of the process throughout: a busy machine changes it little.
"""

from __future__ import annotations

import os
import random
import string
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path

from benchmarks.inspect.scoring import PART
from mitmsec.core.inspection import Inspector
from mitmsec.core.model import Value
from mitmsec.service.prepared import kept_or_made
from mitmsec_addons.registry import build

PART_BYTES, SLICE_BYTES, FLOOD_BYTES = 1 << 20, 1 << 14, 1 << 18


class Held(Value, frozen=True):
    """How long one slice held the loop, in milliseconds, and how much a second of a core looks through."""

    mb_a_s: float
    p50_ms: float
    p99_ms: float


def held(inspector: Inspector, data: bytes) -> Held:
    """In parts of a mebibyte, so that ten findings are never the end of it."""
    took: list[float] = []
    for begin in range(0, len(data), PART_BYTES):
        inspection = inspector.open(PART)
        assert inspection is not None
        part = data[begin : begin + PART_BYTES]
        slices = (part[at : at + SLICE_BYTES] for at in range(0, len(part), SLICE_BYTES))
        took += [_cpu_s(partial(inspection.feed, one)) for one in slices]
        took.append(_cpu_s(inspection.close))
    milliseconds = sorted(1000 * one for one in took)
    p50_ms, p99_ms = milliseconds[len(took) // 2], milliseconds[len(took) * 99 // 100]
    return Held(mb_a_s=len(data) / sum(took) / 1e6, p50_ms=p50_ms, p99_ms=p99_ms)


def floods() -> dict[str, tuple[str, bytes]]:
    """Content made to cost much: the name of whom it is for, and bytes of nothing else."""
    rng = random.Random(1)
    luhn, iban = import_module("stdnum.luhn"), import_module("stdnum.iban")

    def digits(count: int) -> str:
        return "".join(rng.choices(string.digits, k=count))

    def some(count: int) -> str:
        return "".join(rng.choices(string.ascii_letters + string.digits, k=count))

    def card() -> str:
        return f"{(one := '4' + digits(14))}{luhn.calc_check_digit(one)}"

    def account() -> str:
        return f"DE{iban.calc_check_digits(f'DE00{(one := digits(18))}')}{one}"

    make: Mapping[str, tuple[str, Callable[[], str]]] = {
        "cards": ("payment_card", card),
        "numbers like cards": ("payment_card", lambda: "4" + digits(15)),
        "bank accounts": ("iban", account),
        "text like bank accounts": ("iban", lambda: "DE00" + digits(18)),
        "identity numbers": ("national_id", lambda: f"ssn {rng.randint(100, 665)}-{rng.randint(10, 99)}-{digits(4)}"),
        "numbers like them": ("national_id", lambda: f"{digits(3)}-{digits(2)}-{digits(4)}"),
        "tokens": ("secrets", lambda: f"ghp_{some(36)}"),
        "passwords": ("secrets", lambda: f'password="{some(20)}"'),
        "names that are given nothing": ("secrets", lambda: "keykeykey======"),
        "values of keys": ("secrets", lambda: '"Key": "photos/index-of.text",'),
    }
    return {kind: (name, _filled(one)) for kind, (name, one) in make.items()}


def reload_ms(prepared: bytes) -> float:
    """From what is kept on disk to an inspector that can open: a worker's part and its front-end's together."""

    def never() -> bytes:
        raise AssertionError("it was kept")

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        kept_or_made(Path(folder), "secrets", "key", lambda: prepared)
        return 1000 * min(
            _cpu_s(lambda: build("secrets", (), kept_or_made(Path(folder), "secrets", "key", never))) for _ in range(9)
        )


def _filled(make: Callable[[], str]) -> bytes:
    told: list[str] = []
    size_bytes = 0
    while size_bytes < FLOOD_BYTES:
        told.append(make())
        size_bytes += len(told[-1]) + 1
    return " ".join(told).encode()[:FLOOD_BYTES]


def _cpu_s(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun
