"""The map of runs' cgroups; what the hook makes of it is seen in test_connect_hook_selection."""

from __future__ import annotations

from pathlib import Path

import pytest

from mitmsec_redirect.bpf import Map
from mitmsec_redirect.runs import RunCgroups

pytestmark = pytest.mark.root


def test_it_holds_those_that_were_named_last(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    numbers = [folder.stat().st_ino.to_bytes(8, "little") for folder in folders]
    runs = RunCgroups()
    seen = Map(runs.fd, 8, 4)
    try:
        runs.are(folders[:2])
        assert sorted(seen.keys()) == sorted(numbers[:2])
        folders[0].rmdir()  # a run that has gone is left out by number
        runs.are(folders[1:])
        assert sorted(seen.keys()) == sorted(numbers[1:])
        runs.are([tmp_path / "gone"])
        assert list(seen.keys()) == []
    finally:
        runs.close()
