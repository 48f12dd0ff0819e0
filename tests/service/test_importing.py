"""How our processes begin: modules imported with the collector at rest, by a name that is one of a few."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from mitmsec.core.messages import Role
from mitmsec.service.__main__ import ROLES
from mitmsec.service.importing import imported


def test_what_is_imported_stays_out_of_the_collectors_sight() -> None:
    frozen = gc.get_freeze_count()
    try:
        assert imported("mitmsec.core.units").__name__ == "mitmsec.core.units"
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


def test_a_module_that_cannot_be_imported_leaves_the_collector_at_work() -> None:
    try:
        with pytest.raises(ModuleNotFoundError):
            imported("mitmsec.nowhere")
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_every_role_can_be_begun() -> None:
    assert set(ROLES) == set(Role)


@pytest.mark.parametrize("words", [[], ["nobody"], ["jail"]])
def test_nothing_else_begins(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "mitmsec.service", *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the first argument is one of broker, console, diverter, gate, " in done.stderr
