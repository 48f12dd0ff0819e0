"""How much somebody may do: so often in a row, and so often a second."""

from __future__ import annotations


class Allowance:
    """A token bucket. Time is an argument: seconds of a clock that never goes back."""

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self._rate_per_s, self._burst = rate_per_s, burst
        self._left, self._at_s = burst, now_s

    def spend(self, now_s: float) -> bool:
        """Take one; False when there is none."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True
