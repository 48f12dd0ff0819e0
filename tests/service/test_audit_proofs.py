"""Whether the log is what was written, and how that is shown to others."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from audit_cli import lines, mitmsec, tamper
from audit_events import SIGNER, connection, draft, indexed, log_of, rehashed, request, store_in
from test_audit_commands import SEEN

from mitmsec.audit.checkpoint import Checkpoint, LogKey, opened
from mitmsec.audit.index import FILE_NAME as INDEX
from mitmsec.audit.merkle import Tree, is_consistent, leaf_hash, root_from
from mitmsec.audit.recovery import LAST_NAME
from mitmsec.audit.store import FILE_NAME, Store
from mitmsec.seal import LogSigner, checks


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", SEEN)
    return tmp_path


@pytest.fixture
def signed(state: Path) -> Path:
    """Six events, signed, and one more."""
    store = store_in(state / "log")
    store.append([], signs=True)
    store.append([draft(request("flow-9"))])
    store.close()
    return state


def test_verify_prints_the_head_and_what_it_cannot_exclude(state: Path) -> None:
    result = mitmsec(state, "verify")
    assert result.exit_code == 0
    assert "6 events" in result.stdout
    assert "cannot exclude" in result.stdout
    (told,) = lines(mitmsec(state, "verify", "--json"))
    assert told["verified"] is True
    assert told["cannot_exclude"] == ["truncation", "rewriting"]
    assert f"head: {told['head']}" in result.stdout


def test_verify_against_a_kept_head_finds_a_log_that_was_cut(state: Path) -> None:
    (told,) = lines(mitmsec(state, "verify", "--json"))
    kept = mitmsec(state, "verify", "--head", told["head"])
    assert kept.exit_code == 0
    assert "All of its events are those that were kept." in kept.stdout
    tamper(state, "DELETE FROM events WHERE seq = 5")
    assert mitmsec(state, "verify").exit_code == 1
    rehashed(state / "log" / FILE_NAME)
    assert mitmsec(state, "verify").exit_code == 0
    cut = mitmsec(state, "verify", "--head", told["head"])
    assert cut.exit_code == 1
    assert "NOT the log that was kept: it ends after 5 events, and had 6" in cut.stderr
    assert NO_RELIANCE in cut.stderr


NO_RELIANCE = "any of its events may differ from those that were kept; nothing in this log can be relied on"


def test_a_head_of_another_log_says_nothing_for_any_event_of_this_one(state: Path, tmp_path: Path) -> None:
    """However alike their sizes: no event is shared, so none is called what was written."""
    other = tmp_path / "other"
    (other / "log").mkdir(parents=True)
    log_of(other / "log", [connection(f"other-{number}") for number in range(9)])
    (told,) = lines(mitmsec(other, "verify", "--json"))
    head_of_5 = _head_of(other, 5)
    for head in (told["head"], head_of_5):
        result = mitmsec(state, "verify", "--head", head)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "this is NOT the log that was kept" in result.stderr
        assert NO_RELIANCE in result.stderr
        assert "still what was written" not in result.stderr
        result = mitmsec(state, "verify", "--json", "--head", head)
        assert result.exit_code == 1
        assert json.loads(result.stdout) | {"why": ""} == {
            "verified": False,
            "seq": None,
            "why": "",
            "kept_head": False,
        }


def _head_of(state: Path, size: int) -> str:
    envelopes = mitmsec(state, "list", "--json").stdout_bytes.splitlines()[:size]
    return f"{size}:{Tree().grown([leaf_hash(line) for line in envelopes])[0].root().hex()}"


@pytest.mark.parametrize(
    ("size", "says", "kept"),
    [
        (None, "now; what stands before that event is still what was written, as far as the tree shows\n", None),
        (2, "now; the first 2 events are those that were kept, and what stands before", True),
        (4, "now; the first 4 events are those that were kept\n", True),
        (6, "now; what stands before that event is still what was written, as far as the tree shows\n", None),
    ],
)
def test_a_broken_log_says_no_more_of_what_stands_before_than_it_shows(
    state: Path, size: int | None, says: str, kept: bool | None
) -> None:
    head = [] if size is None else ["--head", _head_of(state, size)]
    tamper(state, "UPDATE events SET envelope = edit(envelope, 'bank', 'cafe') WHERE seq = 4")
    result = mitmsec(state, "verify", *head)
    assert result.exit_code == 1
    assert "NOT whole, from event 4 on" in result.stderr
    assert says in result.stderr
    assert json.loads(mitmsec(state, "verify", "--json", *head).stdout)["kept_head"] is kept


def test_where_the_first_event_is_broken_nothing_stands_before(state: Path) -> None:
    tamper(state, "DELETE FROM events WHERE seq = 0")
    assert "nothing stands before that event" in mitmsec(state, "verify").stderr


@pytest.mark.parametrize("columns", [40, 60, 80, 160])
def test_verify_wraps_its_words_and_never_its_head(state: Path, columns: int) -> None:
    told = mitmsec(state, "verify", columns=columns).stdout.splitlines()
    assert [line for line in told if line != line.rstrip()] == []
    (head,) = [line for line in told if line.startswith("head:")]
    assert re.fullmatch(r"head: 6:[0-9a-f]{64}", head)
    assert max(len(line) for line in told if line != head) <= columns


def test_the_lines_of_json_are_what_the_head_stands_for(state: Path) -> None:
    """The recipe in docs/audit.md, for people without mitmsec."""
    leaves = [
        hashlib.sha256(b"\0" + line).digest() for line in mitmsec(state, "list", "--json").stdout_bytes.splitlines()
    ]

    def root(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        left = 1 << (len(leaves) - 1).bit_length() - 1
        return hashlib.sha256(b"\1" + root(leaves[:left]) + root(leaves[left:])).digest()

    assert lines(mitmsec(state, "verify", "--json"))[0]["head"] == f"6:{root(leaves).hex()}"


# --- signed -----------------------------------------------------------------------------------------------------------
def kept_files(state: Path) -> tuple[str, str]:
    """What an auditor keeps: a checkpoint and the key, as files."""
    note, key = mitmsec(state, "checkpoint"), mitmsec(state, "key")
    assert (note.exit_code, key.exit_code) == (0, 0)
    (state / "kept.note").write_text(note.stdout)
    (state / "kept.key").write_text(key.stdout)
    return str(state / "kept.note"), str(state / "kept.key")


def test_a_checkpoint_is_printed_as_it_was_signed_and_so_is_its_key(signed: Path) -> None:
    note, key = kept_files(signed)
    assert LogKey.parse(Path(key).read_text()) == SIGNER.key
    assert opened(Path(note).read_text(), SIGNER.key, checks).size == 6
    assert lines(mitmsec(signed, "key", "--json")) == [{"from": 0, "key": str(SIGNER.key)}]


@pytest.mark.parametrize("by", ["file", "word"])
def test_what_was_kept_is_found_again(signed: Path, by: str) -> None:
    note, key = kept_files(signed)
    told = mitmsec(signed, "verify", "--checkpoint", note, "--key", key if by == "file" else str(SIGNER.key))
    assert told.exit_code == 0, told.output
    assert "whole: 7 events, each as the tree over them has it, 6 of them signed" in told.stdout
    assert "The first 6 events are those that were kept" in told.stdout
    assert "No signature was checked" not in told.stdout
    assert "No signature was checked" in mitmsec(signed, "verify", "--checkpoint", note).stdout
    (as_json,) = lines(mitmsec(signed, "verify", "--json", "--checkpoint", note, "--key", key))
    assert as_json["kept"].startswith("6:")
    assert (as_json["signed"], as_json["checkpoints"], as_json["signatures_checked"]) == (6, 1, True)
    assert (as_json["proven"], as_json["cannot_exclude"]) == (6, ["truncation", "rewriting"])


def test_whoever_writes_and_signs_the_log_anew_is_found_by_what_was_kept(signed: Path, tmp_path: Path) -> None:
    note, key = kept_files(signed)
    (signed / "log" / FILE_NAME).unlink()
    (signed / "log" / LAST_NAME).unlink()
    forger = Store(signed / "log", LogSigner(SIGNER.key.name, bytes(32)))
    forger.append([draft(connection(f"forged-{number}")) for number in range(9)], signs=True)
    forger.close()
    assert mitmsec(signed, "verify").exit_code == 0, "nothing in it says so"
    for words, why in (
        (["--checkpoint", note], "its first 6 events are not those that were kept"),
        (["--key", key], "the checkpoint of 9 events is none: it has no signature of mitmsec.log/test by this key"),
    ):
        told = mitmsec(signed, "verify", *words)
        assert told.exit_code == 1
        assert why in told.stderr


@pytest.mark.parametrize("spoil", ["text", "other"])
def test_a_checkpoint_that_was_not_signed_is_not_believed(signed: Path, spoil: str) -> None:
    note, key = kept_files(signed)
    other = LogSigner("mitmsec.log/other", bytes(32)).key
    if spoil == "text":
        Path(note).write_text(Path(note).read_text().replace("\n6\n", "\n5\n"))
    told = mitmsec(signed, "verify", "--checkpoint", note, "--key", key if spoil == "text" else str(other))
    assert (told.exit_code, told.stdout) == (1, "")
    assert "the checkpoint that was kept is none" in told.stderr


def test_what_is_proved_of_an_event_needs_no_log(signed: Path) -> None:
    (told,) = lines(mitmsec(signed, "prove", "--json", "flow-0"))
    checkpoint = opened(told["checkpoint"], SIGNER.key, checks)
    leaf = leaf_hash(told["event"].encode())
    assert (base64.b64encode(leaf).decode(), told["size"]) == (told["leaf"], checkpoint.size)
    path = [base64.b64decode(one) for one in told["path"]]
    assert root_from(leaf, told["index"], checkpoint.size, path) == checkpoint.root
    head, index, *rest = mitmsec(signed, "prove", "flow-0").stdout.split("\n")
    assert (head, index) == ("c2sp.org/tlog-proof@v1", f"index {told['index']}")
    assert rest[: len(path)] == told["path"]
    assert "\n".join(rest[len(path) + 1 :]) == told["checkpoint"]


def test_that_a_log_goes_on_where_it_was_is_proved(signed: Path) -> None:
    note, _ = kept_files(signed)
    store = store_in(signed / "log")
    store.append([draft(request("flow-10"))], signs=True)
    store.close()
    (told,) = lines(mitmsec(signed, "prove", "--json", "--since", note))
    old, new = (opened(text, SIGNER.key, checks) for text in (Path(note).read_text(), told["checkpoint"]))
    assert (told["old"], told["new"]) == (old.size, new.size) == (6, 8)
    path = [base64.b64decode(one) for one in told["path"]]
    assert is_consistent(6, old.root, 8, new.root, path)
    assert mitmsec(signed, "prove", "--since", note).stdout.startswith("old 6\n" + told["path"][0])


def test_what_is_not_signed_yet_cannot_be_proved(signed: Path, state: Path) -> None:
    told = mitmsec(signed, "prove", "6")
    assert (told.exit_code, told.stdout) == (1, "")
    assert "no checkpoint stands for that yet" in told.stderr
    assert "there is no event nobody" in mitmsec(signed, "prove", "nobody").stderr
    (signed / "bad").write_text("no note")
    assert "that is no checkpoint" in mitmsec(signed, "prove", "--since", str(signed / "bad")).stderr


def test_a_log_without_any_checkpoint_says_so(state: Path) -> None:
    told = mitmsec(state, "checkpoint")
    assert (told.exit_code, told.stdout) == (1, "")
    assert "nothing has been signed yet" in told.stderr


# --- what is not shown, and not passed over ---------------------------------------------------------------------------
def test_behind_what_was_kept_a_log_may_have_been_written_anew(signed: Path, tmp_path: Path) -> None:
    note = tmp_path / "kept.note"
    note.write_text(mitmsec(signed, "checkpoint").stdout)
    told = mitmsec(signed, "verify", "--checkpoint", str(note), "--key", str(SIGNER.key), columns=400).stdout
    assert "The first 6 events are those that were kept. The 1 behind them may since have been cut short" in told
    (said,) = lines(mitmsec(signed, "verify", "--checkpoint", str(note), "--json"))
    assert (said["proven"], said["cannot_exclude"]) == (6, ["truncation", "rewriting"])
    store = store_in(signed / "log")
    store.append([], signs=True)
    store.close()
    note.write_text(mitmsec(signed, "checkpoint").stdout)
    (said,) = lines(mitmsec(signed, "verify", "--checkpoint", str(note), "--json"))
    assert (said["proven"], said["cannot_exclude"]) == (7, [])


def test_a_file_of_keys_that_is_empty_checks_nothing_and_says_so(signed: Path, tmp_path: Path) -> None:
    (tmp_path / "log.key").write_text("\n")
    result = mitmsec(signed, "verify", "--key", str(tmp_path / "log.key"))
    assert result.exit_code == 2
    assert "it is empty" in result.stderr


def test_of_a_fork_nothing_is_shown(signed: Path, tmp_path: Path) -> None:
    """Signed by the log's own key, and of other events: someone has written it anew."""
    fork = Checkpoint(SIGNER.key.name, 4, b"\x07" * 32)
    for sign, why in ((SIGNER.sign, "its first 4 events are not those of that checkpoint"), (bytes, "no checkpoint")):
        (tmp_path / "fork.note").write_text(fork.signed(SIGNER.key, lambda body, sign=sign: sign(body)[:64]))
        result = mitmsec(signed, "prove", "--since", str(tmp_path / "fork.note"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert why in result.stderr


def test_nothing_is_proven_by_a_tree_that_was_changed(signed: Path) -> None:
    tamper(signed, "UPDATE tiles SET hashes = zeroblob(length(hashes))")
    result = mitmsec(signed, "prove", "3")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "this cannot be shown" in result.stderr


@pytest.mark.parametrize("words", [["checkpoint"], ["prove", "3"]])
def test_a_checkpoint_that_nobody_signed_is_not_handed_out(signed: Path, words: list[str]) -> None:
    false = Checkpoint(SIGNER.key.name, 6, b"\x07" * 32).signed(SIGNER.key, lambda body: bytes(64))
    tamper(signed, f"UPDATE checkpoints SET note = '{false}'")
    result = mitmsec(signed, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "its newest checkpoint is none" in result.stderr
    tamper(signed, "UPDATE checkpoints SET note = char(27) || ']0;pwn' || char(7)")
    result = mitmsec(signed, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "\x1b" not in result.stderr


def test_an_index_that_hides_an_event_is_found(signed: Path) -> None:
    indexed(signed / "log")
    (told,) = lines(mitmsec(signed, "verify", "--json"))
    assert told["index"] == {"size": 7, "why": ""}
    with closing(sqlite3.connect(signed / "log" / INDEX, isolation_level=None)) as conn:
        conn.execute("DELETE FROM found WHERE seq = 3")
    result = mitmsec(signed, "verify")
    assert result.exit_code == 1
    assert "whole: 7 events" in result.stdout
    assert "its index is NOT what it should be: it is changed: found, seq 3" in result.stderr
    assert mitmsec(signed, "verify", "--log-only").exit_code == 0
    assert mitmsec(signed, "verify", "--json").exit_code == 1
