"""What `mitmsec status` says, for people."""

from __future__ import annotations

from collections import Counter

from rich.table import Table
from rich.text import Text

from mitmsec.core.model import LearnedBypass
from mitmsec.service import control
from mitmsec.service.terminal import shown

HASH_SHOWN = 12


def told(answer: control.StatusAnswer) -> Table:
    """One line for each thing that is at work."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    flows = {session: (live, decrypted) for session, live, decrypted in answer.flows}
    backends = dict(answer.backends)
    if answer.off:
        table.add_row("switch", Text("off: nothing is decrypted until `mitmsec on`", "bold yellow"))
    if answer.service is None:
        table.add_row("service", "none")
    else:
        _add_service(table, answer.service, flows)
    for session, command, _ in answer.sessions:
        if answer.service is None or session != answer.service.session:
            by = f" by {backends[session]}" if session in backends else ""
            table.add_row("run", f"{session}  {shown(command)}{by}; {_flows(flows.get(session))}")
    for _, bypass in answer.learned:
        table.add_row("passes", _passes(bypass))
    table.add_row("processes", _processes(answer))
    if answer.left_out:
        table.add_row("", f"and {answer.left_out} more that have no room here")
    return table


def _add_service(table: Table, service: control.ServiceStatus, flows: dict[str, tuple[int, int]]) -> None:
    table.add_row("service", f"at work since {service.started}, by {service.backend}")
    table.add_row("policy", f"{shown(service.policy_file)} · sha256 {service.policy_sha256[:HASH_SHOWN]}…")
    table.add_row("selects", ", ".join(map(shown, service.applications)))
    table.add_row("on failure", service.on_failure.value)
    table.add_row("flows", _flows(flows.get(service.session)))
    table.add_row("names", _names(service.names))
    table.add_row("faults", Text(str(service.faults), "bold red" if service.faults else ""))


def _flows(counts: tuple[int, int] | None) -> str:
    live, decrypted = counts or (0, 0)
    return f"{live} live, {decrypted} of them decrypted"


def _names(names: control.NamesStatus | None) -> str:
    if names is None:
        return "what programs ask name servers is not heard"
    more = f"; not from {names.beyond} more" if names.beyond else ""
    return f"from DNS, as answered by {', '.join(names.servers) or 'whom programs ask'}{more}"


def _passes(bypass: LearnedBypass) -> str:
    hours, minutes = divmod(bypass.left_s // 60, 60)
    where = f"{shown(bypass.program)} of {shown(bypass.user) or '?'} to {shown(bypass.host)}, port {bypass.port}"
    return f"{where}, for another {hours} h {minutes} min: {bypass.why}"


def _processes(answer: control.StatusAnswer) -> str:
    pids = {role: pid for role, pid, _ in answer.processes}
    counts = Counter(role for role, _, _ in answer.processes)
    words = [f"{role} {pids[role]}" if count == 1 else f"{count} {role}s" for role, count in sorted(counts.items())]
    return " · ".join([f"supervisor {answer.supervisor}", *words])
