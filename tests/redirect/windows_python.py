"""Our modules in a Windows Python under Wine, which `make wine` sets up."""

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
import json, os, sys, traceback
here = os.path.dirname(sys.executable)
answers = open(sys.argv[1], "w", encoding="utf-8")
sys.path[:0] = [os.path.join(here, "site"), *sys.argv[2:]]
sys.excepthook = lambda *what: (traceback.print_exception(*what, file=answers), answers.close())
def told(value): print(json.dumps(value), file=answers, flush=True)
"""


@cache
def is_there() -> bool:
    return (FOLDER / "site").is_dir() and (FOLDER / "prefix").is_dir() and shutil.which("wine") is not None


def windows_python(name: str, code: str) -> list[Any]:
    """What `told(value)` was called with in `code`, which is written to the file `name`.

    It answers through a file. The first process under Wine starts others, which keep its stdio as long as any lives: a
    pipe would not end before these do.
    """
    script, answers = FOLDER / name, FOLDER / f"{name}.answers"
    script.write_text(PREAMBLE + code)
    answers.unlink(missing_ok=True)
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    environment |= {"WINEPREFIX": str(FOLDER / "prefix"), "WINEARCH": "win64", "WINEDEBUG": "-all"}
    null = subprocess.DEVNULL
    done = subprocess.run(
        ["wine", str(FOLDER / "python.exe"), *(f"Z:{path}" for path in (script, answers, ROOT, ROOT / "redirect"))],
        env=environment,
        stdin=null,
        stdout=null,
        stderr=null,
        timeout=100,
    )
    said = answers.read_text(encoding="utf-8") if answers.exists() else "nothing"
    assert done.returncode == 0, said
    return [json.loads(line) for line in said.splitlines()]
