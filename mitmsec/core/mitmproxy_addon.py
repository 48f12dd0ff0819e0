"""Plain addons of mitmproxy's that a policy names (`[engine] mitmproxy_addons`): their text, which workers execute."""

from __future__ import annotations

import hashlib

from mitmsec.core.model import Value

FILES_LIMIT = 16
FILE_LIMIT_CHARACTERS = 1 << 18


class MitmproxyAddon(Value, frozen=True):
    """One file. `name` is what the policy calls it, and events."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the file, hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def told(self) -> str:
        """In events."""
        return f"{self.name}, sha256 {self.sha256}"


def flaw_of(addon: MitmproxyAddon) -> str | None:
    """Why it cannot be one, without executing it; None where nothing speaks against it."""
    if len(addon.text) > FILE_LIMIT_CHARACTERS:
        return f"{addon.name} is longer than {FILE_LIMIT_CHARACTERS} characters"
    try:
        compile(addon.text, addon.name, "exec")
    except SyntaxError as error:
        return f"{addon.name} is no Python: line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"{addon.name} is no Python: {error}"
    return None
