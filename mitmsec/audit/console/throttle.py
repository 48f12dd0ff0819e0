"""How often somebody may try to sign in: after some failures each further try waits, twice as long each time.

Counted for an account and for an address apart, so neither guessing at one account from everywhere nor at many from one
place goes fast. Pure: time is an argument.
"""

from __future__ import annotations

FREE_TRIES = 5
FIRST_WAIT_S, WAIT_LIMIT_S = 15.0, 900.0
FORGOTTEN_S = 3600.0
KEYS_LIMIT = 4096


class Throttle:
    """Failures by key. At most KEYS_LIMIT keys: those that failed longest ago are forgotten first."""

    def __init__(self, free_tries: int = FREE_TRIES) -> None:
        self._free_tries = free_tries
        self._failures: dict[str, tuple[int, float]] = {}  # how many, the newest

    def waits_s(self, key: str, now_s: float) -> float:
        """How long until the next try is looked at; 0: now."""
        count, newest_s = self._failures.get(key, (0, 0.0))
        if count < self._free_tries or now_s - newest_s > FORGOTTEN_S:
            return 0.0
        wait_s = min(FIRST_WAIT_S * 2.0 ** min(count - self._free_tries, 16), WAIT_LIMIT_S)
        return max(0.0, newest_s + wait_s - now_s)

    def failed(self, key: str, now_s: float) -> None:
        count, newest_s = self._failures.pop(key, (0, now_s))
        if now_s - newest_s > FORGOTTEN_S:
            count = 0
        self._failures[key] = (count + 1, now_s)
        while len(self._failures) > KEYS_LIMIT:
            del self._failures[next(iter(self._failures))]

    def succeeded(self, key: str) -> None:
        self._failures.pop(key, None)
