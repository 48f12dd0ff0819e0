"""A real clamd with a small database of its own, which knows EICAR's test file, and a real c-icap that asks it.

Skipped loudly where they are not installed.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
SIGNATURE = "44d88612fea8a8f36de82e1278abb02f:68:Eicar-Test\n"  # MD5, size, name
STREAM_LIMIT_BYTES = 1 << 20
STARTS_S = 60.0


@contextmanager
def clamd(folder: Path) -> Iterator[Path]:
    """Its socket, in `folder`. It takes STREAM_LIMIT_BYTES at most."""
    program = shutil.which("clamd") or shutil.which("/usr/sbin/clamd")
    if program is None:
        pytest.skip("CLAMD IS NOT INSTALLED: malware is not tested (Debian: apt-get install clamav-daemon)")
    (folder / "db").mkdir()
    (folder / "db/own.hdb").write_text(SIGNATURE)
    address = folder / "clamd.sock"
    configuration = folder / "clamd.conf"
    configuration.write_text(
        f"LocalSocket {address}\nDatabaseDirectory {folder / 'db'}\nForeground yes\nLogFile {folder / 'log'}\n"
        f"StreamMaxLength {STREAM_LIMIT_BYTES}\nMaxThreads 2\n"
    )
    process = subprocess.Popen([program, "-c", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + STARTS_S
        while not _answers(address):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


def _answers(address: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        try:
            sock.connect(str(address))
            sock.sendall(b"zPING\0")
            return sock.recv(9) == b"PONG\0"
        except OSError:
            return False


@contextmanager
def c_icap(folder: Path, clamd_socket: Path) -> Iterator[str]:
    """The address of a c-icap with the services `virus_scan` and `echo`."""
    program = shutil.which("c-icap")
    modules = next(Path("/usr/lib").glob("*/c_icap/virus_scan.so"), None)
    if program is None or modules is None:
        pytest.skip("C-ICAP IS NOT INSTALLED: icap is not tested (Debian: apt-get install libc-icap-mod-virus-scan)")
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    configuration = folder / "c-icap.conf"
    configuration.write_text(
        f"PidFile {folder}/pid\nCommandsSocket {folder}/ctl\nPort 127.0.0.1:{port}\nTmpDir {folder}\n"
        f"ServerLog {folder}/server.log\nAccessLog {folder}/access.log\nTemplateDir /usr/share/c_icap/templates/\n"
        f"ModulesDir {modules.parent}\nServicesDir {modules.parent}\n"
        "StartServers 1\nMaxServers 1\nMinSpareThreads 2\nThreadsPerChild 4\n"
        "Service echo srv_echo.so\nService virus_scan virus_scan.so\nModule common clamd_mod.so\n"
        "virus_scan.ScanFileTypes TEXT DATA EXECUTABLE ARCHIVE\nvirus_scan.DefaultEngine clamd\n"
        f"clamd_mod.ClamdSocket {clamd_socket}\n"
    )
    process = subprocess.Popen(
        [program, "-N", "-f", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline_s = time.monotonic() + STARTS_S
        while not _listens(port):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()  # it ends its children
        process.wait()


def _listens(port: int) -> bool:
    with closing(socket.socket()) as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
