"""Our modules in a Windows Python under Wine, which `make wine` sets up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from windows_compiler import FOLDER

ROOT = Path(__file__).parents[1]
WHY_NOT = "`make wine` sets up a Windows Python"
PREAMBLE = """
import json, os, sys, traceback
here = os.path.dirname(sys.executable)
answers = open(sys.argv[1], "w", encoding="utf-8")
sys.path[:0] = [os.path.join(here, "site"), *sys.argv[2:]]
sys.excepthook = lambda *what: (traceback.print_exception(*what, file=answers), answers.close())
def told(value): print(json.dumps(value), file=answers, flush=True)
"""


SOURCES = (ROOT, ROOT / "redirect")


@cache
def is_there() -> bool:
    return (FOLDER / "site").is_dir() and (FOLDER / "prefix").is_dir() and shutil.which("wine") is not None


def environment(prefix: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return kept | {"WINEPREFIX": str(prefix), "WINEARCH": "win64", "WINEDEBUG": "-all"}


@contextlib.contextmanager
def own_prefix(prefix: Path) -> Iterator[Path]:
    """A prefix for one test, with registry, users and processes of its own: what it starts is in its own network, and
    ends with the block. The programs, 700 MB, are those of all tests."""
    shared = FOLDER / "prefix"
    (prefix / "drive_c").mkdir(parents=True)
    for file in (*shared.glob("*.reg"), shared / ".update-timestamp"):
        shutil.copy(file, prefix)
    shutil.copytree(shared / "dosdevices", prefix / "dosdevices", symlinks=True)
    shutil.copytree(shared / "drive_c" / "users", prefix / "drive_c" / "users", symlinks=True)
    for folder in (shared / "drive_c").iterdir():
        if folder.name != "users":
            (prefix / "drive_c" / folder.name).symlink_to(folder)
    try:
        yield prefix
    finally:
        for word in ("-k", "-w"):
            subprocess.run(["wineserver", word], env=environment(prefix), timeout=60, check=False)


def windows_python(name: str, code: str, *, prefix: Path | None = None, inside: Sequence[str] = ()) -> list[Any]:
    """What `told(value)` was called with in `code`, which is written to the file `name`.

    In `prefix`, where it is not that of all tests, and by the command that `inside` begins.

    It answers through a file. The first process under Wine starts others, which keep its stdio as long as any lives: a
    pipe would not end before these do.
    """
    script, answers = FOLDER / name, FOLDER / f"{name}.answers"
    script.write_text(PREAMBLE + code)
    answers.unlink(missing_ok=True)
    null = subprocess.DEVNULL
    done = subprocess.run(
        [*inside, "wine", str(FOLDER / "python.exe"), *(f"Z:{path}" for path in (script, answers, *SOURCES))],
        env=environment(prefix or FOLDER / "prefix"),
        stdin=null,
        stdout=null,
        stderr=null,
        timeout=100,
    )
    said = answers.read_text(encoding="utf-8") if answers.exists() else "nothing"
    assert done.returncode == 0, said
    return [json.loads(line) for line in said.splitlines()]
