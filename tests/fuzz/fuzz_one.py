"""Fuzzes one target in this process, guided by coverage: `fuzz_one.py TARGET [libFuzzer's arguments]`.

libFuzzer ends the process itself. atheris sees only code that is loaded under its eyes, so targets come after it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import atheris

sys.path.insert(1, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["mitmsec_redirect", "mitmsec.core"]):
    from fuzz_targets import TARGETS

program, name, *arguments = sys.argv
again = shlex.join([sys.executable, program, name])  # libFuzzer starts itself anew for a merge, through a shell
atheris.Setup([again, *arguments], TARGETS[name])
atheris.Fuzz()
