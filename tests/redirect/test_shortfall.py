"""What is not told of callers, and why. That hooks step down so is in test_executable_paths and test_caller_steps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from msgspec.structs import fields

from mitmsec_redirect import shortfall
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.shortfall import Shortfall, Untold

OFFSETS = Offsets(**{field.name: 0 for field in fields(Offsets)})
PATHS = PathMaps(3, 4)
WHY = "cannot use helper bpf_probe_read_kernel_str#115"


@dataclass(frozen=True)
class Layout:
    offsets: Offsets | None
    paths: PathMaps | None


@pytest.mark.parametrize(
    ("wanted", "accepted", "refused", "expected"),
    [
        (Layout(OFFSETS, PATHS), Layout(OFFSETS, PATHS), "", None),
        (Layout(OFFSETS, None), Layout(OFFSETS, None), "", None),  # nobody asked for paths
        (Layout(OFFSETS, PATHS), Layout(OFFSETS, None), WHY, Shortfall(Untold.EXECUTABLE_PATHS, WHY)),
        (Layout(OFFSETS, PATHS), Layout(None, None), WHY, Shortfall(Untold.CALLERS, WHY)),
        (Layout(None, PATHS), Layout(None, None), WHY, Shortfall(Untold.CALLERS, WHY)),
        (Layout(None, None), Layout(None, None), "", Shortfall(Untold.CALLERS, shortfall.NO_TYPES)),
    ],
)
def test_it_is_told_what_is_less_than_was_wanted(
    wanted: Layout, accepted: Layout, refused: str, expected: Shortfall | None
) -> None:
    assert shortfall.of(wanted, accepted, refused) == expected


@pytest.mark.parametrize("untold", Untold)
def test_each_is_told_with_the_kernels_words_and_a_way_out(untold: Untold) -> None:
    told = Shortfall(untold, WHY)
    assert str(told).endswith(f": {WHY}")
    assert len({str(Shortfall(one, WHY)) for one in Untold}) == len(Untold)
    assert told.remedy.endswith(".")
