"""A socket that was passed in cannot be taken elsewhere, by any way that the kernel offers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from mitmsec.service import seccomp

# Runs as a child: gets a connected socket as descriptor 3 and a port to try for; prints what each attempt ended in.
PRISONER = """
import ctypes, errno, os, platform, socket, sys, threading
from mitmsec.service import seccomp
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
if sys.argv[2] != "free":
    seccomp.apply(serves=sys.argv[2] == "serving")
passed, target = socket.socket(fileno=int(sys.argv[3])), ("127.0.0.1", int(sys.argv[1]))
libc = ctypes.CDLL(None, use_errno=True)
def unspecified():
    if libc.connect(passed.fileno(), bytes(16), 16) < 0: raise OSError(ctypes.get_errno(), "connect")
def again(): passed.connect(target)
def fast_open():
    fresh = socket.socket(); fresh.sendto(b"x", socket.MSG_FASTOPEN, target)
def fast_open_message():
    fresh = socket.socket(); fresh.sendmsg([b"x"], [], socket.MSG_FASTOPEN, target)
def datagram(): socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", target)
def listening(): socket.socket().listen()
def binding(): socket.socket().bind(("127.0.0.1", 0))
def ring():
    if libc.syscall(425, 1, bytes(200)) < 0: raise OSError(ctypes.get_errno(), "io_uring")
def namespace(): os.unshare(os.CLONE_NEWUSER)
def lingering(): passed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 9, 0, 0, 0)))
def lingering_by_a_wide_number():
    if libc.syscall(54, passed.fileno(), ctypes.c_ulong(1 << 32 | 1), ctypes.c_ulong(1 << 32 | 13), bytes(8), 8) < 0:
        raise OSError(ctypes.get_errno(), "setsockopt")
def keeping_alive(): passed.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
def another_thirteen(): passed.setsockopt(socket.IPPROTO_TCP, 13, b"cubic")
def sending(): passed.send(b"still works")
def thread(): t = threading.Thread(target=lambda: None); t.start(); t.join()
def fork(): pid = os.fork(); pid or os._exit(0); os.waitpid(pid, 0)
for attempt in (sending, thread, fork, unspecified, again, fast_open, fast_open_message, datagram, listening, binding,
                ring, namespace, lingering, lingering_by_a_wide_number, keeping_alive, another_thirteen):
    try: attempt(); print(attempt.__name__, "ok")
    except OSError as error: print(attempt.__name__, errno.errorcode.get(error.errno, error.errno))
"""


def attempts(mode: str) -> dict[str, str]:
    """What each attempt ended in, and under `contact` how many connections another listener then saw."""
    first, other = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(first.getsockname())
    accepted, _ = first.accept()
    done = subprocess.run(
        [sys.executable, "-c", PRISONER, str(other.getsockname()[1]), mode, str(client.fileno())],
        pass_fds=(client.fileno(),),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert accepted.recv(99) == b"still works"
    other.setblocking(False)
    contacts = 0
    while True:
        try:
            other.accept()[0].close()
            contacts += 1
        except BlockingIOError:
            break
    for sock in (first, other, client, accepted):
        sock.close()
    return dict(line.split() for line in done.stdout.splitlines()) | {"contact": str(contacts)}


def test_without_the_filter_a_passed_socket_goes_anywhere() -> None:
    free = attempts("free")
    assert (free["unspecified"], free["again"]) == ("ok", "ok")
    assert int(free["contact"]) >= 1


def test_with_it_no_way_leads_out_and_what_is_needed_still_works() -> None:
    jailed = attempts("jailed")
    allowed = {"sending", "thread", "fork", "keeping_alive", "another_thirteen"}
    assert {name for name, end in jailed.items() if end == "ok"} == allowed
    assert set(jailed.values()) == {"ok", "EPERM", "0"}
    assert jailed["contact"] == "0"


def test_who_serves_may_listen_on_what_it_was_given_and_no_way_leads_out() -> None:
    serving = attempts("serving")
    allowed = {"sending", "thread", "fork", "keeping_alive", "another_thirteen", "listening"}
    assert {name for name, end in serving.items() if end == "ok"} == allowed
    assert serving["contact"] == "0"


# Runs as a child: the gate's filter, a map in its hand, and what it tries.
GATE = """
import ctypes, errno, os, socket, sys, threading
from mitmsec.service import seccomp
from mitmsec_redirect.bpf import Map, MapKind
table = Map.create(MapKind.HASH, 4, 4, 8, "mitmsec_test")
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
seccomp.apply(network=True)
seccomp.seal()
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), str(number))
def listening():
    listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen()
    client = socket.create_connection(listener.getsockname()); listener.accept()
def datagram(): socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
def maps(): table.update(b"1234", b"5678"); assert table.lookup(b"1234") == b"5678" and table.delete(b"1234")
def take(): table.update(b"1234", b"5678"); assert table.take(b"1234") == b"5678"
def new_map():
    try: Map.create(MapKind.HASH, 4, 4, 8, "mitmsec_other")
    except Exception as error: raise OSError(errno.EPERM, "bpf") from error
def program(): os.execv("/bin/true", ["/bin/true"])
def process(): pid = os.fork(); pid or os._exit(0); os.waitpid(pid, 0)
def thread():
    try: threading.Thread(target=lambda: None).start()
    except RuntimeError as error: raise OSError(errno.EPERM, "thread") from error
def memory_file(): os.memfd_create("x")
def trace(): call(101, 0, 0, 0, 0)
def peeking(): call(310, os.getpid(), 0, 0, 0, 0, 0)
def ring(): call(425, 1, bytes(200))
def mounting(): call(165, 0, 0, 0, 0, 0)
def keys(): call(250, 0, 0, 0, 0, 0)
def faults(): call(323, 0)
def kexec(): call(246, 0, 0, 0, 0)
def module(): call(313, 0, 0, 0)
def performance(): call(298, 0, 0, 0, 0, 0)
def namespace(): os.unshare(os.CLONE_NEWUSER)
def entering(): call(308, 0, 0)
for attempt in (listening, datagram, maps, take, thread, memory_file, new_map, program, process, trace, peeking, ring,
                mounting, keys, faults, kexec, module, performance, namespace, entering):
    try: attempt(); print(attempt.__name__, "ok")
    except OSError as error: print(attempt.__name__, errno.errorcode.get(error.errno, error.errno))
"""


@pytest.mark.root
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="calls by their numbers on x86_64")
def test_a_gate_keeps_the_network_and_its_maps_and_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", GATE], capture_output=True, text=True, check=False)
    ends = dict(line.split() for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    assert {name for name, end in ends.items() if end == "ok"} == {"listening", "datagram", "maps", "take"}
    assert set(ends.values()) == {"ok", "EPERM"}
    assert len(ends) == 20


PROGRAMS = {
    "jailed": seccomp.program,
    "console": lambda machine: seccomp.program(machine, serves=True),
    "gate": lambda machine: seccomp.program(machine, network=True),
    "sealed": seccomp.sealing,
}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
@pytest.mark.parametrize("machine", sorted(seccomp.AUDIT_ARCH))
def test_every_jump_of_the_program_stays_inside(machine: str, name: str) -> None:
    code = PROGRAMS[name](machine)
    steps = [code[at : at + 8] for at in range(0, len(code), 8)]
    assert all(at + 1 + max(step[2], step[3]) < len(steps) for at, step in enumerate(steps) if step[0] != 6)
    assert seccomp.DENIED[machine].keys() == seccomp.DENIED["x86_64"].keys()


def test_the_numbers_are_this_machines() -> None:
    """Against the kernel's own header, where it is installed."""
    header = "/usr/include/asm/unistd_64.h"
    paths = [path for path in (header, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h") if os.path.exists(path)]
    if not paths or os.uname().machine != "x86_64":
        pytest.skip("no kernel headers for x86_64 here")
    with open(paths[0]) as file:
        known = dict(line.split()[1:3] for line in file if line.startswith("#define __NR_"))
    ours: dict[str, int] = {}
    for table in (seccomp.DENIED, seccomp.NETWORK, seccomp.PROGRAMS, seccomp.WEIGHED):
        ours |= table["x86_64"]
    assert {name: int(known[f"__NR_{name}"]) for name in ours} == ours


# Runs as a child: a thread that was there before the seal tries what it could before.
THREADED = """
import errno, os, queue, threading
from mitmsec.service import seccomp
work, ends = queue.Queue(), queue.Queue()
def serve():
    work.get()
    for name, attempt in (("process", os.fork), ("thread", threading.Thread(target=int).start)):
        try: attempt(); ends.put(name + " ok")
        except (OSError, RuntimeError): ends.put(name + " denied")
threading.Thread(target=serve, daemon=True).start()
seccomp.seal()
work.put(None)
print(ends.get(), ends.get())
"""


def test_the_seal_holds_for_threads_that_are_there_already() -> None:
    done = subprocess.run([sys.executable, "-c", THREADED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("process denied thread denied\n", 0), done.stderr
