"""`mitmsec audit` on a log of a test's, as people and scripts use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audit_events import forging
from click.testing import CliRunner, Result

from mitmsec.audit.store import FILE_NAME
from mitmsec.service.audit_commands import audit


def mitmsec(state: Path, *words: str, columns: int = 160) -> Result:
    return CliRunner().invoke(audit, [*words, "--state", str(state)], env={"COLUMNS": str(columns)})


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def tamper(state: Path, sql: str) -> None:
    with forging(state / "log" / FILE_NAME) as conn:
        conn.execute(sql)
