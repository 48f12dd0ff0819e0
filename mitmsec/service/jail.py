"""Where a child process lives: a root of its own with nothing in it but the interpreter, our code and its own folder.

    supervisor ── fork ──► child: first process of its own pid namespace; own network (or the run's), private mounts
                                  tmpfs as the new root
                                    /usr /lib …            read-only, from the machine
                                    interpreter, packages  read-only, at the paths they have outside
                                    STATE/<its folder>     writable, where the role has one
                                  pivot_root; the old root is gone
                                  no capability, no group, own uid, no new privileges, bounded memory
                                  no io_uring, ptrace, mount …; all but gate and broker: no connect, bind, listen, bpf
                                  exec python -m mitmsec.service <role> <control descriptor>

Paths stay what they are, so a checkout below a home folder that nobody else may enter works: the new root has folders
of the same names that anybody may pass, and only what is bound below them. There is no /proc, so what another process
does is invisible; the only descriptors are the control channel, /dev/null and the pipe that stdout and stderr go to.

All workers share one user, and a user's processes may signal each other and change each other's limits. In a pid
namespace of its own a child has a name for nobody but itself and its threads. It is process 1 there: a signal that it
has no handler for is ignored unless the supervisor sends SIGKILL or SIGSTOP, and what it started ends with it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from mitmsec.core.messages import Role
from mitmsec.core.model import Value
from mitmsec.service import seccomp
from mitmsec.service.accounts import Account

PACKAGES = ("mitmsec", "mitmsec_certs", "mitmsec_redirect", "mitmsec_addons")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/urandom")
RESOLVER = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/host.conf")
NETWORKED = frozenset({Role.GATE, Role.BROKER})  # they dial; nobody else has business with a network

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR = 442  # on every architecture
CAPABILITIES = 64
GIB = 1 << 30
MEMORY_BYTES = {  # of address space; several times what the busiest was seen to use, see docs/processes.md
    Role.BROKER: 2 * GIB,  # the C library reserves some for each thread
    Role.CONSOLE: 2 * GIB,
    Role.GATE: 4 * GIB,
    Role.RECORDER: 4 * GIB,
    Role.SCANNER: 2 * GIB,
    Role.SIGNER: 1 * GIB,
    Role.WORKER: 4 * GIB,
}
FILES = {Role.SCANNER: 256}  # descriptors, of who writes no file; the others have as many as there may be
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


class Jail(Value, frozen=True):
    """What one child gets. `network` is a descriptor, or None for an empty network namespace of its own."""

    role: Role
    account: Account
    mountpoint: str  # an existing empty folder; the mount is private to the child
    network: int | None = None
    folder: str | None = None  # the only writable place, but for
    further: str | None = None  # another one
    shows: tuple[str, ...] = ()  # what else there is to read


def spawn(jail: Jail, control: int, output: int) -> int:
    """Start `jail.role` as a child process and return its pid, as it is here. Nothing but `control` and `output`
    (for stdout and stderr) is inherited.

    A failure before exec, or of exec itself, is written to `output` and ends the child with status 120.
    """
    code, python = code_paths(), interpreter()  # in the new root nothing could be resolved
    pid = _fork_apart()
    if pid:
        return pid
    try:
        _become(jail, control, output, code, python)
    except BaseException as error:
        os.write(2, f"could not start: {error!r}\n".encode())
    finally:
        os._exit(120)


def _fork_apart() -> int:
    """As os.fork(), but the child is the first process of a new pid namespace. Ours stays what it is."""
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    os.unshare(os.CLONE_NEWPID)  # for children only
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            os.setns(ours, os.CLONE_NEWPID)
            os.close(ours)
    return pid


def code_paths() -> tuple[str, ...]:
    """Folders and files that an interpreter needs to run our packages, wherever they are installed."""
    wanted = {os.path.realpath(sys.base_prefix), sys.base_prefix, os.path.realpath(sys.executable)}
    wanted |= {os.path.realpath(sys.prefix), sys.prefix}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            wanted.add(str(Path(spec.origin).parent))
    wanted.update(_mapped_files())
    return tuple(outermost(path for path in wanted if os.path.exists(path) and path != "/"))


def outermost(paths: Iterable[str], *, within: Sequence[str] = SYSTEM) -> list[str]:
    """`paths` without those that lie below another of them or below `within`, shortest first."""
    kept: list[str] = []
    for path in sorted(paths, key=lambda path: (len(path), path)):
        if not any(path == parent or path.startswith(parent + "/") for parent in (*within, *kept)):
            kept.append(path)
    return kept


def _mapped_files() -> set[str]:
    """Shared objects that this process runs on: an interpreter from an unusual place brings its libraries along."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6 and ".so" in fields[5]}


def _become(jail: Jail, control: int, output: int, code: Sequence[str], python: str) -> NoReturn:
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    for target in (1, 2):
        os.dup2(output, target)
    os.set_inheritable(control, True)
    if jail.network is None:
        os.unshare(os.CLONE_NEWNET)
    else:
        os.setns(jail.network, os.CLONE_NEWNET)
    os.unshare(os.CLONE_NEWNS | os.CLONE_NEWIPC | os.CLONE_NEWUTS)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", jail.mountpoint, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755")
    for path in (*SYSTEM, *DEVICES, *code):
        _bind(path, jail.mountpoint, writable=False)
    for path in RESOLVER if jail.role is Role.BROKER else ():
        _bind_content(path, jail.mountpoint)
    for folder in (jail.folder, jail.further):
        if folder is not None:
            _bind(folder, jail.mountpoint, writable=True)
    for path in outermost(jail.shows):
        _bind(path, jail.mountpoint, writable=False)
    _enter(jail.mountpoint)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES[jail.role], MEMORY_BYTES[jail.role]))
    _drop(jail.account)
    if jail.role is not Role.RECORDER:  # which reads its producers to their ends first, and these are the others
        _checked(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    seccomp.apply(network=jail.role in NETWORKED, serves=jail.role is Role.CONSOLE)
    arguments = [python, "-P", "-s", *_program(jail.role), str(control)]
    os.closerange(3, control)
    os.closerange(control + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if (files := FILES.get(jail.role)) is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    os.execve(python, arguments, _environment())


def interpreter() -> str:
    """Ours, by a path that passes through nothing but what is bound: links on the way to its folder are not there."""
    folder, name = os.path.split(sys.executable)  # the name itself may be a link: a virtual environment is found by it
    return os.path.join(os.path.realpath(folder), name)


def _program(role: Role) -> list[str]:
    optimise = ["-O"] if role is Role.WORKER else []  # the engine's type checks cost a third of a request
    return [*optimise, "-m", "mitmsec.service", str(role)]


def _environment() -> dict[str, str]:
    return {"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


def _bind(path: str, root: str, *, writable: bool) -> None:
    """Show `path` at the same place below `root`; a symbolic link is copied as one. What does not exist is left out."""
    target = root + path
    if os.path.lexists(target) or not os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target, 0o755)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(path, target, None, MS_BIND | MS_REC)
    if path not in DEVICES:  # a bound device must stay one
        _restrict(target, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (0 if writable else MOUNT_ATTR_RDONLY))


def _bind_content(path: str, root: str) -> None:
    """Show the file that `path` is in the end (`/etc/resolv.conf` is mostly a link) at `path` itself."""
    real, target = os.path.realpath(path), root + path
    if os.path.isfile(real) and not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(real, target, None, MS_BIND)
        _restrict(target, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY)


def _restrict(target: str, attributes: int) -> None:
    """`target` and every mount below it: mount(2) can only do one. mount_setattr(2), Linux 5.12."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    path = os.fsencode(target)
    _checked(_libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, wanted, len(wanted)), f"restrict {target}")


def _enter(root: str) -> None:
    os.chdir(root)
    _checked(_libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")
    _mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _drop(account: Account) -> None:
    for capability in range(CAPABILITIES):
        _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # numbers that the kernel does not know fail: fine
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    _checked(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
