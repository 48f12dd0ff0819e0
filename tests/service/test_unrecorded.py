"""A session that was begun is known until its end is on record, whatever happens to who began it."""

from __future__ import annotations

from pathlib import Path

from mitmsec.core.model import OnFailure
from mitmsec.service import unrecorded
from mitmsec.service.state import State
from mitmsec.service.unrecorded import Begun


def test_what_was_begun_and_not_ended_is_left(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert unrecorded.left(state) == []
    state.run.mkdir()
    first = Begun(session="ab12", program="/usr/bin/curl", on_failure=OnFailure.CLOSED)
    second = Begun(session="cd34", program="(service)", on_failure=OnFailure.OPEN)
    unrecorded.begin(state, second)
    unrecorded.begin(state, first)
    assert unrecorded.left(state) == [first, second]
    unrecorded.end(state, "cd34")
    unrecorded.end(state, "cd34")
    assert unrecorded.left(state) == [first]


def test_what_did_not_reach_the_disk_whole_still_names_the_session(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.run.mkdir()
    for content in (b"", b"{", b"[1]"):
        (state.run / "ab12.open").write_bytes(content)
        assert unrecorded.left(state) == [Begun(session="ab12")]
