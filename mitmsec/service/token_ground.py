"""What root lets the signer have of PKCS #11: which modules, and what these see in its jail.

    ca init --pkcs11 ── root writes ──► STATE/ca/modules.json ── supervisor ──► the jail shows these paths, read-only
                                                              ── signer ──────► loads these modules, and no other

The folder belongs to the signer's user, who could put another file there, but not one of root's.
"""

from __future__ import annotations

import os
import stat

import msgspec

from mitmsec.core.token_module import FILE, TokenModule, TokenModules
from mitmsec.service.state import State

LIMIT_BYTES = 64 * 1024
NOTHING = TokenModules()


class ModulesRefused(OSError):
    """Root has not written what says which modules may be loaded; the text has the path."""


def modules_of(state: State) -> TokenModules:
    """Those that root has allowed. Raises ModulesRefused."""
    try:
        descriptor = os.open(state.ca / FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return NOTHING
    except OSError as error:
        raise ModulesRefused(f"{state.ca / FILE}: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if status.st_uid != 0 or status.st_mode & 0o022 or not stat.S_ISREG(status.st_mode):
            raise ModulesRefused(f"{state.ca / FILE} is not root's alone: somebody else has put it there")
        try:
            return msgspec.json.decode(file.read(LIMIT_BYTES), type=TokenModules)
        except msgspec.MsgspecError as error:
            raise ModulesRefused(f"{state.ca / FILE} says nothing that can be read ({error})") from None


def allow(state: State, module: TokenModule) -> None:
    """The signer may load `module` from its next start on. Raises OSError."""
    content = msgspec.json.encode(modules_of(state).plus(module))
    folder = os.open(state.ca, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        new = f"{FILE}.{os.urandom(8).hex()}"  # a name that nobody can have put a link at
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(new, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, FILE, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)
