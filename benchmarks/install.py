"""Programs that the benchmark needs and the project does not: Debian packages, and mitmdump in a folder of its own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.host import Failed, run

MITMPROXY = "12.2.3"
_CLIENTS = {"nginx": "nginx-light", "wrk": "wrk", "h2load": "nghttp2-client", "curl": "curl", "nft": "nftables"}
_TOOLS = {"ip": "iproute2", "openssl": "openssl", "setpriv": "util-linux"}
_PEERS = {
    "squid": "squid-openssl",
    "sslsplit": "sslsplit",
    "sudo": "sudo",
}  # mitmdump local starts its redirector with sudo, as root too
_POLICY = Path("/usr/sbin/policy-rc.d")
_INSTALL_DEADLINE_S = 300

Say = Callable[[str], None]


def programs(say: Say) -> dict[str, str]:
    """Install what is missing; gives the peers that still are, with the reason. Raises `Failed` for a client."""
    wanted = {**_CLIENTS, **_TOOLS, **_PEERS}
    packages = {wanted[name] for name in wanted if shutil.which(name) is None}
    trouble = ""
    if packages:
        say(f"installing {' '.join(sorted(packages))}")
        try:
            with _services_kept_down():
                _apt(sorted(packages))
        except Failed as wrong:
            trouble = str(wrong)
    for name in _CLIENTS | _TOOLS:
        if shutil.which(name) is None:
            raise Failed(f"{name} is missing and {wanted[name]} could not be installed: {trouble}")
    missing = {name: trouble for name in _PEERS if shutil.which(name) is None}
    if "squid" not in missing and "--enable-ssl-crtd" not in run(["squid", "-v"]):
        missing["squid"] = "this squid is built without OpenSSL; squid-openssl is wanted"
    return missing


def mitmdump(say: Say) -> Path:
    """mitmdump of the release to compare with, made once and kept in the user's cache; raises `Failed`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "mitmsec-bench" / f"mitmproxy-{MITMPROXY}"
    program = home / "bin" / "mitmdump"
    if not program.exists():
        say(f"installing mitmproxy {MITMPROXY} into {home}")
        run([sys.executable, "-m", "venv", "--clear", str(home)], timeout_s=_INSTALL_DEADLINE_S)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", f"mitmproxy=={MITMPROXY}"]
        run(pip, timeout_s=_INSTALL_DEADLINE_S)
    return program


def versions(missing: dict[str, str]) -> dict[str, str]:
    """What is installed, by each program's own account."""
    asked = {
        "nginx": "nginx -v 2>&1 | sed 's,.*/,,'",
        "wrk": "wrk -v 2>&1 | head -n1 | cut -d' ' -f2",
        "h2load": "h2load --version | sed 's,.*/,,'",
        "curl": "curl --version | head -n1 | cut -d' ' -f2",
        "squid": "squid -v | head -n1 | sed 's/.*Version //'",
        "sslsplit": "sslsplit -V 2>&1 | head -n1 | cut -d' ' -f2",
    }
    said = {name: run(["sh", "-c", how]).strip() for name, how in asked.items() if name not in missing}
    return {**said, "mitmproxy": MITMPROXY}


def _apt(packages: list[str]) -> None:
    if shutil.which("apt-get") is None:
        raise Failed("there is no apt-get here")
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    run([*environment, "apt-get", "update", "-qq"], timeout_s=_INSTALL_DEADLINE_S)
    options = ["-o", "DPkg::Lock::Timeout=120", "--no-install-recommends", "-y", "-qq"]
    run([*environment, "apt-get", "install", *options, *packages], timeout_s=_INSTALL_DEADLINE_S)


@contextmanager
def _services_kept_down() -> Iterator[None]:
    """Keep Debian from starting nginx and squid on the machine while it installs them."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        with suppress(OSError):
            _POLICY.unlink()
