"""One measurement of one variant. Every load generator times its own window; the proxy's CPU is read around it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks import cgroups, outputs
from benchmarks.figures import Metric
from benchmarks.origin import BULK, HUGE, SIZES_BYTES, SMALL, Origin
from benchmarks.outputs import Load, Transfer, Unreadable
from benchmarks.shell import Printed
from benchmarks.variants import Running

CONNECTIONS, STREAMS = 16, 8
_TRANSFER_DEADLINE_S = 60
_PREFLIGHT_DEADLINE_S = 20
_CURL_TIMED_OUT = 28
_LEAST_CPU_MS, _LEAST_CPU_S_PER_GB = 0.001, 0.02
_PASSED_BY = "the proxy did no work: this client's traffic passes it by"
_CURL = ("--http1.1", "-sS", "-w", "%{http_code} %{size_download} %{time_total}\\n")

Figures = dict[Metric, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often: `window_s` for each load, `singles` sequential requests for the latency of one."""

    rounds: int
    window_s: int
    singles: int
    huge: bool


def preflight(running: Running) -> str:
    """Ask until the variant answers, and say whose certificate curl saw; raises `Unreadable` for a wrong one."""
    printed = answered(running, Origin.url(SMALL))
    return f"certificate from {_demand_issuer(running, outputs.parse_issuer(printed.stderr))}"


def answered(running: Running, url: str) -> Printed:
    """Ask for the small object until it comes; raises `Unreadable` where it doesn't."""
    until = time.monotonic() + _PREFLIGHT_DEADLINE_S
    argv = (running.program("curl"), "-v", "--max-time", "5", *_CURL, "-o", "/dev/null", url)
    while True:
        printed = running.shell.run(argv, timeout_s=10)
        if printed.status == 0:
            break
        if time.monotonic() > until:
            said = f"{printed.stderr.strip()[-200:]} {running.proxy_says()}".strip()
            raise Unreadable(f"curl ended with {printed.status}: {said}")
        time.sleep(0.2)
    _demand_200(printed)
    return printed


def connections(running: Running, plan: Plan) -> Figures:
    """New TLS connections, one request each."""
    return connections_to(Origin.url(SMALL), running, plan.window_s)


def connections_to(url: str, running: Running, window_s: int) -> Figures:
    """New connections to the small object there, one request each."""
    load, cpu_s = _wrk(running, url, window_s, "-H", "Connection: close")
    return {Metric.CONNECTIONS: load.per_s} | _each(running, Metric.CPU_CONNECTION, cpu_s, load)


def keepalive(running: Running, plan: Plan) -> Figures:
    """Requests over standing HTTP/1.1 connections, with their latency."""
    load, cpu_s = _wrk(running, Origin.url(SMALL), plan.window_s, "--latency")
    figures = {Metric.REQUESTS: load.per_s} | _each(running, Metric.CPU_REQUEST, cpu_s, load)
    timed = {Metric.P50: load.p50_ms, Metric.P99: load.p99_ms}
    return figures | {metric: value for metric, value in timed.items() if value is not None}


def http2(running: Running, plan: Plan) -> Figures:
    """Requests over HTTP/2."""
    if not running.variant.http2:
        raise Unreadable("no HTTP/2")
    argv = (running.program("h2load"), "-t1", f"-c{CONNECTIONS}", f"-m{STREAMS}", f"-D{plan.window_s}")
    before_s = running.cpu_s()
    printed = running.shell.run((*argv, Origin.url(SMALL)), timeout_s=plan.window_s + 20)
    cpu_s = running.cpu_s() - before_s
    load = _answered(outputs.parse_h2load(printed.stdout))
    return {Metric.H2_REQUESTS: load.per_s} | _each(running, Metric.CPU_H2_REQUEST, cpu_s, load)


def single(running: Running, plan: Plan) -> Figures:
    """One request at a time: over a standing connection, and each over a new one, handshake included."""
    curl = (running.program("curl"), *_CURL)
    one = ("-o", "/dev/null", Origin.url(SMALL))
    standing = running.shell.run((*curl, *one * plan.singles), timeout_s=_TRANSFER_DEADLINE_S)
    _, *later = outputs.parse_transfers(standing.stdout)
    repeated = f"for n in {' '.join(map(str, range(plan.singles)))}; do {shlex.join((*curl, *one))}; done"
    first = running.shell.run_script(repeated, timeout_s=_TRANSFER_DEADLINE_S)
    return {
        Metric.SINGLE: outputs.median_ms(later),
        Metric.FIRST: outputs.median_ms(outputs.parse_transfers(first.stdout)),
    }


def bulk(running: Running, plan: Plan) -> Figures:
    """One 100 MB download."""
    before_s = running.cpu_s()
    transfer = _download(running, BULK)
    return {Metric.BULK: transfer.mb_per_s} | _cpu_gb(running, running.cpu_s() - before_s, transfer)


def bulk_within(url: str, running: Running, limit_s: float) -> Figures:
    """A download as far as it comes in that time."""
    argv = (running.program("curl"), *_CURL, "--max-time", str(limit_s), "-o", "/dev/null", url)
    before_s = running.cpu_s()
    printed = running.shell.run(argv, timeout_s=_TRANSFER_DEADLINE_S)
    cpu_s = running.cpu_s() - before_s
    (transfer,) = outputs.parse_transfers(printed.stdout)
    if transfer.status != 200 or printed.status not in (0, _CURL_TIMED_OUT):
        raise Unreadable(f"status {transfer.status}: {printed.stderr.strip()[:200]}")
    return {Metric.BULK: transfer.mb_per_s} | _cpu_gb(running, cpu_s, transfer)


def resident(running: Running) -> Figures:
    """The proxy's greatest memory so far, its processes added up."""
    if not running.variant.intercepts:
        return {}
    return {Metric.RSS_PEAK: sum(cgroups.resident_mib(pid, "VmHWM") for pid in running.pids())}


def growth(running: Running) -> Figures:
    """How much the memory of the proxy process that grows most grows while 1 GB is downloaded."""
    if not running.variant.intercepts:
        return {}
    pids = running.pids()
    for pid in pids:
        cgroups.forget_peak(pid)
    before_mib = {pid: cgroups.resident_mib(pid) for pid in pids}
    _download(running, HUGE)
    return {Metric.RSS_GROWTH: max(cgroups.resident_mib(pid, "VmHWM") - mib for pid, mib in before_mib.items())}


Step = Callable[[Running, Plan], Figures]
STEPS: Mapping[str, Step] = {
    "new connections": connections,
    "keep-alive": keepalive,
    "HTTP/2": http2,
    "single requests": single,
    "bulk": bulk,
}
TURNS: Mapping[str, int] = {"bulk": 5}
"""How often a step is taken in each round, if not once: a download lasts a tenth of what another step does."""


def _wrk(running: Running, url: str, window_s: int, *options: str) -> tuple[Load, float]:
    argv = (running.program("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{window_s}s", *options, url)
    before_s = running.cpu_s()
    printed = running.shell.run(argv, timeout_s=window_s + 20)
    cpu_s = running.cpu_s() - before_s
    return _answered(outputs.parse_wrk(printed.stdout)), cpu_s


def _answered(load: Load) -> Load:
    """The load, if no more than one request in twenty went wrong."""
    if load.errors * 20 > load.requests:
        raise Unreadable(f"{load.errors} errors, {load.requests} requests")
    return load


def _each(running: Running, metric: Metric, cpu_s: float, load: Load) -> Figures:
    """CPU milliseconds of the proxy for each request; a proxy that used none was passed by, and nothing counts."""
    if not running.variant.intercepts:
        return {}
    if load.requests == 0:
        raise Unreadable("not one request was answered")
    cpu_ms = cpu_s * 1000 / load.requests
    if cpu_ms < _LEAST_CPU_MS:
        raise Unreadable(_PASSED_BY)
    return {metric: cpu_ms}


def _cpu_gb(running: Running, cpu_s: float, transfer: Transfer) -> Figures:
    """CPU seconds of the proxy for a GB; a proxy that used none was passed by, and nothing counts."""
    if not running.variant.intercepts:
        return {}
    cpu_s_per_gb = cpu_s / max(transfer.size_bytes / 1e9, 1e-9)
    if cpu_s_per_gb < _LEAST_CPU_S_PER_GB:
        raise Unreadable(_PASSED_BY)
    return {Metric.CPU_GB: cpu_s_per_gb}


def _download(running: Running, what: str) -> Transfer:
    argv = (running.program("curl"), *_CURL, "-o", "/dev/null", Origin.url(what))
    printed = running.shell.run(argv, timeout_s=_TRANSFER_DEADLINE_S)
    (transfer,) = outputs.parse_transfers(printed.stdout)
    if (transfer.status, transfer.size_bytes) != (200, SIZES_BYTES[what]):
        raise Unreadable(f"status {transfer.status}, {transfer.size_bytes} bytes: {printed.stderr.strip()[:200]}")
    return transfer


def _demand_200(printed: Printed) -> None:
    (transfer,) = outputs.parse_transfers(printed.stdout)
    if (transfer.status, transfer.size_bytes) != (200, SIZES_BYTES[SMALL]):
        raise Unreadable(f"status {transfer.status} with {transfer.size_bytes} bytes")


def _demand_issuer(running: Running, issuer: str) -> str:
    expected = running.variant.issuer or None
    if expected is None and "Bench " in issuer:
        raise Unreadable(f"not decrypted: the certificate comes from {issuer!r}")
    if expected is not None and expected not in issuer:
        raise Unreadable(f"the certificate comes from {issuer!r}, not from {expected!r}")
    return issuer
