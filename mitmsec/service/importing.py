"""Modules imported at once, with the collector at rest."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def imported(name: str) -> ModuleType:
    """The module, once. What it brought is never looked at by the collector, now or later.

    A collector that looks while thousands of objects are made finds nothing to collect, and takes a tenth of a start.
    """
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()
