"""Whether a gate, signer or recorder hangs: its heart stands still while the supervisor's own time goes on.

A heartbeat that is old alone proves nothing: a machine that slept, or starved everybody, has old ones. So only time in
which the supervisor itself was awake counts, a step at a time. After one second without a beat the hook does what
`on_failure` says; this is for the gate that never beats again. Signer and recorder beat when they are asked
(`ChildProcess.ask_for_beat`): the recorder waits for disks in a thread, and the signer answers a worker once in a turn
of its loop, so that even one with a slow token beats between two certificates.
"""

from __future__ import annotations

HANGS_S = 5.0
AWAKE_STEP_S = 0.5  # between two looks at most; the supervisor looks ten times a second


class Pulse:
    """One process's, from the moment that it serves. `hangs_s`: without a beat for so long it hangs."""

    def __init__(self, hangs_s: float = HANGS_S) -> None:
        self._hangs_s = hangs_s
        self._beat_ns: int | None = None
        self._looked_s: float | None = None
        self._silent_s = 0.0

    def hangs(self, beat_ns: int, now_s: float) -> bool:
        """To be asked regularly: its last heartbeat is `beat_ns`, and it is `now_s` by a clock that never goes back."""
        step_s = 0.0 if self._looked_s is None else min(now_s - self._looked_s, AWAKE_STEP_S)
        self._looked_s = now_s
        if beat_ns != self._beat_ns:
            self._beat_ns, self._silent_s = beat_ns, 0.0
        else:
            self._silent_s += step_s
        return self._silent_s > self._hangs_s
