"""`mitmsec policy lists` and `policy init --example`, as they are called."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from mitmsec import examples, lists
from mitmsec.cli import cli


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["policy", *words])


def test_every_list_is_shown_with_what_it_is_for() -> None:
    lines = run("lists").stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == list(lists.shipped())
    assert lines[1].startswith("finance (")
    assert "names): Banks, brokers" in lines[1]
    told = [json.loads(line) for line in run("lists", "--json").stdout.splitlines()]
    assert [one["name"] for one in told] == list(lists.shipped())
    assert all(one["names"] >= 20 for one in told)
    assert all("Provenance: " in one["head"] for one in told)


def test_a_list_is_shown_as_it_is_shipped() -> None:
    assert run("lists", "health").stdout == lists.shipped()["health"]()
    assert "nhs.uk" in json.loads(run("lists", "health", "--json").stdout)["names"]
    assert run("lists", "helth").exit_code == 2


def test_an_example_is_written_as_any_policy_to_start_from(tmp_path: Path) -> None:
    path = str(tmp_path / "p.toml")
    assert run("init", path, "--example", "security-team").exit_code == 0
    assert run("init", "--example", "security-team").stdout == examples.text("security-team")
    assert run("check", path).exit_code == 0
    assert "8 of 8 tests passed" in run("test", path).stdout
