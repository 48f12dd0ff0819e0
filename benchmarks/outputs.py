"""What wrk, h2load and curl print, read into figures. Pure; raises `Unreadable` for anything else."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_UNIT_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
_DURATION = r"([\d.]+)(us|ms|s|m|h)"


class Unreadable(Exception):
    """The program did not print what was expected; the message quotes it."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load generator's own account of its measuring window."""

    requests: int
    per_s: float
    errors: int
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Transfer:
    """One curl transaction, by its own clock."""

    status: int
    size_bytes: int
    total_ms: float

    @property
    def mb_per_s(self) -> float:
        """Megabytes (10^6) a second, handshake included."""
        return self.size_bytes / 1000 / self.total_ms


def parse_wrk(text: str) -> Load:
    """`wrk --latency`: requests, rate, p50/p99, and its socket errors and refused statuses added up."""
    requests = _need(r"(\d+) requests in", text)
    rate = _need(r"Requests/sec:\s+([\d.]+)", text)
    errors = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", text))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return Load(
        int(requests),
        float(rate),
        errors + (int(refused[1]) if refused else 0),
        _percentile_ms(50, text),
        _percentile_ms(99, text),
    )


def parse_h2load(text: str) -> Load:
    """`h2load -D`: requests that succeeded and their rate; refuses a run that did not speak HTTP/2."""
    protocol = _need(r"Application protocol: (\S+)", text)
    if protocol != "h2":
        raise Unreadable(f"spoke {protocol}, not HTTP/2")
    rate = _need(r"finished in [\d.]+\w+, ([\d.]+) req/s", text)
    done, failed = _need(r"(\d+) succeeded", text), _need(r"(\d+) failed", text)
    return Load(int(done), float(rate), int(failed))


def parse_transfers(text: str) -> list[Transfer]:
    """Lines of `curl -w '%{http_code} %{size_download} %{time_total}\\n'`, one a transaction."""
    try:
        fields = [line.split() for line in text.splitlines() if line.strip()]
        transfers = [Transfer(int(code), int(size), float(total_s) * 1000) for code, size, total_s in fields]
    except ValueError as wrong:
        raise Unreadable(f"curl printed {text[:200]!r}") from wrong
    if not transfers:
        raise Unreadable("curl printed nothing")
    return transfers


def median_ms(transfers: Sequence[Transfer]) -> float:
    """The median whole transaction of those that were answered 200."""
    good = [transfer.total_ms for transfer in transfers if transfer.status == 200]
    if len(good) * 2 <= len(transfers):
        raise Unreadable(f"only {len(good)} of {len(transfers)} requests were answered 200")
    return statistics.median(good)


def parse_issuer(verbose: str) -> str:
    """Who issued the certificate that `curl -v` was shown."""
    return _need(r"^\*\s+issuer: (.+?)\s*$", verbose)


def _percentile_ms(percent: int, text: str) -> float | None:
    found = re.search(rf"^\s+{percent}%\s+{_DURATION}\s*$", text, re.MULTILINE)
    return None if found is None else float(found[1]) * _UNIT_MS[found[2]]


def _need(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise Unreadable(f"no /{pattern}/ in {text.strip()[-300:]!r}")
    return found[1]
