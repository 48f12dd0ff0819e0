"""Our modules in a Windows Python under Wine: `make wine` sets it up. What it prints is JSON, a line at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from windows_compiler import FOLDER

ROOT = Path(__file__).parents[2]
WHY_NOT = "`make wine` sets up a Windows Python"
PREAMBLE = """
import json, os, sys
here = os.path.dirname(sys.executable)
sys.path[:0] = [os.path.join(here, "site"), *sys.argv[1:]]
def told(value): print(json.dumps(value), flush=True)
"""


@cache
def is_there() -> bool:
    return (FOLDER / "site").is_dir() and (FOLDER / "prefix").is_dir() and shutil.which("wine") is not None


def windows_python(name: str, code: str) -> list[Any]:
    """What `told(value)` was called with in `code`, which is written to the file `name`."""
    script = FOLDER / name
    script.write_text(PREAMBLE + code)
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    environment |= {"WINEPREFIX": str(FOLDER / "prefix"), "WINEARCH": "win64", "WINEDEBUG": "-all"}
    command = ["wine", str(FOLDER / "python.exe"), f"Z:{script}", f"Z:{ROOT}", f"Z:{ROOT}/redirect"]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
