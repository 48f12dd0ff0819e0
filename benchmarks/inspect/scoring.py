"""How many of the texts each inspector is right about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from benchmarks.inspect.corpus import Text
from mitmsec.core.inspection import Inspector, Part, PartKind
from mitmsec.core.model import Finding, Value

SLICE_BYTES = 7  # so that whatever is found was cut
PART = Part(flow="f", kind=PartKind.BODY, sent=True, host="h")


class Score(Value, frozen=True):
    """Of one inspector on one half. A text in which it ought to find nothing, whoever else ought to, is a negative."""

    found: int
    missed: int
    wrong: int
    missed_kinds: tuple[tuple[str, int], ...] = ()
    wrong_kinds: tuple[tuple[str, int], ...] = ()

    @property
    def precision(self) -> float:
        return self.found / max(self.found + self.wrong, 1)

    @property
    def recall(self) -> float:
        return self.found / max(self.found + self.missed, 1)


def scores(inspectors: Mapping[str, Inspector], texts: Iterable[Text]) -> dict[str, Score]:
    """Of each inspector by its name."""
    missed: dict[str, Counter[str]] = {name: Counter() for name in inspectors}
    wrong: dict[str, Counter[str]] = {name: Counter() for name in inspectors}
    found: Counter[str] = Counter()
    for text in texts:
        for name, inspector in inspectors.items():
            is_told = tells(inspector, text.text.encode())
            if text.detector == name:
                found[name] += is_told
                missed[name][text.kind] += not is_told
            elif is_told and (text.detector is None or name != "secrets"):
                wrong[name][text.kind] += 1
    return {
        name: Score(found[name], missed[name].total(), wrong[name].total(), _most(missed[name]), _most(wrong[name]))
        for name in inspectors
    }


def tells(inspector: Inspector, data: bytes) -> bool:
    """It finds something in it, read in small slices."""
    inspection = inspector.open(PART)
    assert inspection is not None
    slices = (data[at : at + SLICE_BYTES] for at in range(0, len(data), SLICE_BYTES))
    return any([*(list(inspection.feed(one)) for one in slices), list(inspection.close())])


def splits(inspector: Inspector, text: Text) -> tuple[int, int]:
    """At how many offsets it may be cut and the same is found, and how many there are."""
    data = text.text.encode()
    whole = _told(inspector, data)
    return sum(_told(inspector, data[:at], data[at:]) == whole != [] for at in range(len(data))), len(data)


def _told(inspector: Inspector, *slices: bytes) -> list[Finding]:
    inspection = inspector.open(PART)
    assert inspection is not None
    return [*(one for data in slices for one in inspection.feed(data)), *inspection.close()]


def _most(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple((kind, count) for kind, count in counts.most_common() if count)
