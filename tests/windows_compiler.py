"""WinDivert's own filter compiler, the real WinDivert64.dll, in a Windows Python under Wine: `make wine` sets it up."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".venv" / "wine"
SCRIPT = r"""
import ctypes, sys
compiler = ctypes.WinDLL(sys.argv[1]).WinDivertHelperCompileFilter
reason, position = ctypes.c_char_p(), ctypes.c_uint()
for line in sys.stdin:
    layer, _, text = line.rstrip("\r\n").partition(" ")
    accepted = compiler(text.encode(), int(layer), None, 0, ctypes.byref(reason), ctypes.byref(position))
    print("yes" if accepted else f"{reason.value.decode()} at {position.value}", flush=True)
"""


class WindowsCompiler:
    """One process for all questions: each start of Wine takes a second or more."""

    def __init__(self, folder: Path) -> None:
        script = folder / "compiler.py"
        script.write_text(SCRIPT)
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {"WINEPREFIX": str(folder / "prefix"), "WINEARCH": "win64", "WINEDEBUG": "-all"}
        self._process = subprocess.Popen(
            ["wine", str(folder / "python.exe"), "Z:" + str(script), "Z:" + str(folder / "WinDivert64.dll")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )

    def refuses(self, text: str, layer: int) -> str:
        """Why, and where in the text; empty where it compiles."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{layer} {text}\n")
        answer = self._process.stdout.readline().strip()
        assert answer, f"the compiler ended with {self._process.poll()}"
        return "" if answer == "yes" else answer

    def close(self) -> None:
        self._process.communicate()


@cache
def windows_compiler() -> WindowsCompiler | None:
    """None where it is not set up."""
    if not (FOLDER / "prefix").is_dir() or shutil.which("wine") is None:
        return None
    return WindowsCompiler(FOLDER)
