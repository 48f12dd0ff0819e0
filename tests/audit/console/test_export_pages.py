"""What is exported is proven to whoever has the key; who exported what is in the log."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import msgspec
from audit_events import SIGNER
from console_stage import Browser, Stage

from mitmsec.audit.bundle import Sound, check
from mitmsec.audit.bundle_file import read
from mitmsec.audit.envelope import Fields
from mitmsec.audit.review import opened
from mitmsec.seal import checks


class Numbers:
    """A format for the test: the events' numbers."""

    name, file = "numbers", "numbers.txt"

    def written(self, events: list[Fields]) -> bytes:
        return " ".join(str(event["seq"]) for event in events).encode()


def test_a_bundle_of_what_the_filters_meet_verifies_offline(the: Stage, rosa: Browser, tmp_path: Path) -> None:
    with opened(the.log.folder) as review:
        kept, _ = review.proofs.note()  # type: ignore[misc]
    the.browser("rosa").get("/event/0")  # the log goes on
    the.ground.formats["numbers"] = Numbers()  # type: ignore[assignment]
    try:
        form = rosa.get("/export?kind=connection")
        assert "<b>3</b> events meet these filters" in form.text
        found = rosa.send("/export?kind=connection", checkpoint=kept.replace("\n", "\r\n"), format_numbers="on")
    finally:
        del the.ground.formats["numbers"]
    assert found.headers["content-type"] == "application/zip"
    (tmp_path / "b.zip").write_bytes(found.content)
    sound = check(read(tmp_path / "b.zip"), checks, [SIGNER.key], kept)
    assert isinstance(sound, Sound)
    assert (sound.events, sound.signed) == (3, True)
    assert sound.kept is not None
    with zipfile.ZipFile(BytesIO(found.content)) as archive:
        assert sorted(archive.namelist()) == [
            "README.txt", "checkpoint.note", "consistency.json", "events.jsonl", "log.key", "manifest.json",
            "numbers.txt", "proofs.jsonl",
        ]  # fmt: skip
        assert archive.read("numbers.txt") == b"5 6 8"
        about = msgspec.json.decode(archive.read("manifest.json"))
        assert (about["by"], about["events"], about["filters"]) == ("rosa", 3, "kind=connection")
        assert b"mitmsec audit verify --bundle" in archive.read("README.txt")
    (done,) = [one for one in the.reviews if one.operation == "exported"]
    assert (done.user, done.item, done.detail) == ("rosa", "kind=connection", "formats: jsonl, numbers")


def test_a_checkpoint_of_another_log_makes_no_bundle(the: Stage, rosa: Browser) -> None:
    found = rosa.send("/export", checkpoint="another\n3\n" + "A" * 43 + "=\n\n")
    assert found.status_code == 400
    assert "not of this log" in found.text
    assert "is no checkpoint" in rosa.send("/export", checkpoint="nonsense").text
