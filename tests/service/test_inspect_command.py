"""`mitmsec inspect`: what is found in files, how it is told, and with which status."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from yara_stage import EVIL

from mitmsec.service.inspect_command import inspect

ROOT = Path(__file__).resolve().parents[2]
CARD = b"card number 4539 1488 0343 6467, thank you\n"
POLICY = """version = 1
[inspector.keywords]
words = ["project falcon"]
[[rule]]
name = "r"
action = "decrypt"
inspect = ["keywords"]
"""


def run(*words: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(inspect, [str(word) for word in words], input=stdin, catch_exceptions=False)


CARDS = ("--inspector", "payment_card")  # all of them take a second more, for the rules of `secrets`


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    path = tmp_path / "letter.txt"
    path.write_bytes(CARD + b"about Project Falcon")
    return path


def test_a_file_with_nothing_in_it_is_status_0_and_silence(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "harmless").write_bytes(b"four score and seven years ago")
    result = run(tmp_path / "empty", tmp_path / "harmless")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_what_is_found_is_told_with_redacted_evidence_and_its_place(letter: Path) -> None:
    result = run(letter)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{letter}: payment_card (high, 1.0): ")
    assert result.stdout.endswith(", file+12\n")
    assert "0343" not in result.stdout
    (told,) = objects(run("--json", *CARDS, letter))
    assert (told["kind"], told["file"], told["detector"], told["location"]) == (
        "finding", str(letter), "payment_card", "file+12",
    )  # fmt: skip


def test_a_policy_gives_the_inspectors_and_their_words(letter: Path, tmp_path: Path) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text(POLICY)
    (told,) = objects(run("--json", "--policy", policy, letter))
    assert (told["detector"], told["location"]) == ("keywords", "file+49")
    (told,) = objects(run("--json", "--policy", policy, "--inspector", "payment_card", letter))
    assert told["detector"] == "payment_card"


def test_standard_input_is_a_file_called_dash() -> None:
    (told,) = objects(run("--json", *CARDS, "-", stdin=CARD))
    assert (told["file"], told["location"]) == ("-", "file+12")


def tickets(folder: Path) -> Path:
    """The example of docs/inspectors.md, as it stands there."""
    (example,) = re.findall(
        r"```python\n(.*?class Tickets.*?)```", (ROOT / "docs/inspectors.md").read_text(), re.DOTALL
    )
    assert len([line for line in example.splitlines() if line]) <= 10
    file = folder / "tickets.py"
    file.write_text(example)
    return file


def test_ten_lines_of_the_documentation_make_a_working_inspector(tmp_path: Path) -> None:
    mail = tmp_path / "mail"
    mail.write_bytes(b"see TICKET-123456 and TICKET-12")
    (told,) = objects(run("--json", "--inspector", tickets(tmp_path), mail))
    assert (told["detector"], told["summary"], told["evidence"]) == ("tickets", "a ticket number", "TICKET-…")
    assert told["location"] == "file+4"


def test_what_such_an_inspector_cannot_look_at_is_told_as_a_failure_and_is_no_success(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes((4 << 20) + 1))
    (told,) = objects(run("--json", "--inspector", tickets(tmp_path), large))
    assert (told["kind"], told["inspector"], told["what"]) == ("fault", "tickets", "unread")
    result = run("--inspector", tickets(tmp_path), large)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"{large}: tickets: unread: longer than 4194304 bytes, which is all that it keeps (file)\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--inspector", "keyword"],
            'there is no inspector "keyword"\n  there are archives, documents, doh, file_type,',
        ),
        (["--inspector", "keywords"], "keywords has nothing to look for\n"),
        (["--inspector", "missing.py"], "missing.py cannot be read: No such file or directory\n"),
        (["--inspector", __file__], "has no inspector: that is a class with a `name` and a method `open`\n"),
        (["--policy", "missing.toml"], "missing.toml"),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_to_do(letter: Path, words: list[str], said: str) -> None:
    result = run(*words, letter)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_a_file_that_cannot_be_read_is_status_2_and_the_others_are_read(letter: Path, tmp_path: Path) -> None:
    result = run(*CARDS, tmp_path / "missing", tmp_path, letter)
    assert result.exit_code == 2
    assert f"{tmp_path / 'missing'} cannot be read: No such file or directory\n" in result.stderr
    assert f"{tmp_path} cannot be read: Is a directory\n" in result.stderr
    assert "payment_card" in result.stdout


def test_hostile_names_of_files_cannot_move_the_cursor(tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[2J.txt"
    file.write_bytes(CARD)
    assert "a\\x1b[2J.txt: payment_card" in run(*CARDS, file).stdout


def test_rules_of_yara_are_asked_in_the_command_itself(letter: Path, tmp_path: Path) -> None:
    """Whose errors are told as those of the policy are."""
    policy = tmp_path / "p.toml"
    policy.write_text(POLICY.replace("inspector.keywords", "inspector.yara").replace("words", "rules"))
    named = policy.read_text().replace("project falcon", "@own.yar").replace('"keyrules"', '"yara", "archives"')
    policy.write_text(named)
    (tmp_path / "own.yar").write_text(EVIL)
    (tmp_path / "evil").write_bytes(b"some evil-bytes")
    (tmp_path / "evil.gz").write_bytes(gzip.compress(b"some evil-bytes"))
    done = run("--policy", policy, letter, tmp_path / "evil", tmp_path / "evil.gz")
    assert done.exit_code == 1
    evil = "yara (high, 0.8): YARA rule Evil: bytes that are evil [$evil, 10 bytes], file+5"
    inside = evil.replace("file+5", "file!evil+5")
    assert done.stdout.splitlines() == [f"{tmp_path / 'evil'}: {evil}", f"{tmp_path / 'evil.gz'}: {inside}"]
    (tmp_path / "own.yar").write_text("rule")
    done = run("--policy", policy, letter)
    assert (done.exit_code, done.stderr.partition(":")[0]) == (2, "own.yar")
