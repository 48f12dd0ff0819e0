"""A private bpffs, so that pins of ours outlive the process that made them without touching the machine's own."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from mitmsec_redirect import bpf
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.mounts import mounts

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8

NEW = "_new"  # a dot is not permitted in names on a bpffs

_libc = ctypes.CDLL(None, use_errno=True)


def is_mounted(folder: Path) -> bool:
    """A bpffs is what one sees at `folder`."""
    there = [mount for mount in mounts() if mount.point == folder.resolve()]
    return bool(there) and there[-1].kind == "bpf"


def mount(folder: Path) -> None:
    """Make `folder` (created if need be, 0700) a bpffs of its own. Nothing happens if it is one already.

    Raises EbpfUnavailable where this user or this kernel cannot.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_mounted(folder):
        return
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if _libc.mount(b"mitmsec", os.fsencode(folder), b"bpf", flags, b"mode=0700") == 0:
        return
    code = ctypes.get_errno()
    if code == errno.ENODEV:
        raise EbpfUnavailable("this kernel has no bpffs", "Use a kernel built with CONFIG_BPF_SYSCALL.")
    if code == errno.EPERM:
        raise EbpfUnavailable(f"mounting a bpffs at {folder} is not permitted", "Run as root, with CAP_SYS_ADMIN.")
    raise OSError(code, f"mount a bpffs: {os.strerror(code)}", str(folder))


def pin(fd: int, path: Path) -> None:
    """Keep the object alive under `path`, in place of what was pinned there before.

    That stays until then: at no moment is nothing pinned there. Raises OSError; then the one before still is.
    """
    new = path.with_name(f"{path.name}{NEW}")
    new.unlink(missing_ok=True)  # of somebody who was killed in between
    bpf.pin(fd, str(new))
    try:
        new.replace(path)
    except OSError:
        new.unlink()  # or it would be held without a name that anybody looks for
        raise


def unmount(folder: Path) -> bool:
    """Undo `mount` and remove the folder; what was pinned there and is held by nothing else ends. False: none there."""
    if not folder.exists() or not is_mounted(folder):
        return False
    if _libc.umount2(os.fsencode(folder), 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"unmount a bpffs: {os.strerror(code)}", str(folder))
    folder.rmdir()
    return True
