"""Which PKCS #11 modules the signer may load: root's word, in a file beside the CA's (STATE/ca/modules.json)."""

from __future__ import annotations

from mitmsec.core.model import Value

FILE = "modules.json"


class TokenModule(Value, frozen=True):
    """A module (a shared object), and what it finds where the signer lives."""

    path: str  # absolute, without a link on the way
    shows: tuple[str, ...] = ()  # files and folders that it reads
    environment: tuple[tuple[str, str], ...] = ()  # what it is told by the environment


class TokenModules(Value, frozen=True):
    """All that are allowed."""

    modules: tuple[TokenModule, ...] = ()

    def of(self, path: str) -> TokenModule | None:
        """The one at `path`, or None: it is not allowed."""
        return next((module for module in self.modules if module.path == path), None)

    def plus(self, module: TokenModule) -> TokenModules:
        """With `module`, in place of what was said of it before."""
        return TokenModules(modules=(*(one for one in self.modules if one.path != module.path), module))

    @property
    def shows(self) -> tuple[str, ...]:
        """What the signer has to see for them, the modules themselves included; each once."""
        return tuple(dict.fromkeys(path for module in self.modules for path in (module.path, *module.shows)))
