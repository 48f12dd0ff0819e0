"""The system is chosen in one place, and what is another's is not even imported there."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest
from windows_python import WHY_NOT, is_there, windows_python

from mitmsec_redirect.divert_linux import LinuxDivert
from mitmsec_redirect.divert_system import DivertSystem, this_system

BPF = "bpf(2) and what it makes"
PROC = "processes as /proc has them, clock ticks of sysconf(3)"
LINUX_ONLY = {  # and why; all else can be imported on Windows
    **dict.fromkeys(("bpf", "bpffs", "dns_lead", "legs", "origins", "heartbeat", "runs", "routes"), BPF),
    **dict.fromkeys(
        (
            "connect_hook",
            "connect_notes",
            "dns_hook",
            "inbound_hook",
            "udp_hook",
            "steering",
            "hook_programs",
            "kernel_types",
        ),
        BPF,
    ),
    **dict.fromkeys(("cgroup", "cgroup_ids", "bystanders", "call_notes", "executable_paths", "monitor"), BPF),
    **dict.fromkeys(("callers", "proc_files", "processes", "socket_owner"), PROC),
    **dict.fromkeys(("nft", "nft_level", "nft_udp", "nftables"), "rules of the Linux kernel for a cgroup's processes"),
    "divert_linux": "libebpfdivert's classifiers, and /proc",
    "probe": "asks what works of Linux' backends",
}
IMPORTS = r"""
import importlib, pathlib
def names(folder, package):
    for path in sorted(pathlib.Path(folder).glob("*.py")):
        yield package if path.stem == "__init__" else f"{package}.{path.stem}"
root = pathlib.Path(sys.argv[2])
import mitmsec_redirect.windivert
from mitmsec_redirect.divert_system import this_system
system = this_system()
told([type(system).__name__, system.has_cookies, system.ticks_per_s])
told(sorted(name.partition(".")[2] for name in sys.modules if name.startswith("mitmsec_redirect.")))
refused = {}
for name in [*names(root / "mitmsec" / "core", "mitmsec.core"),
             *names(root / "redirect" / "mitmsec_redirect", "mitmsec_redirect")]:
    try:
        importlib.import_module(name)
    except (AttributeError, ImportError, TypeError) as error:
        refused[name] = repr(error)
told(refused)
"""


def test_here_it_is_linux() -> None:
    system: DivertSystem = this_system()
    assert isinstance(system, LinuxDivert)


def test_on_windows_it_is_asked_for_which_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("psutil")  # it looks at the platform when it is imported
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(OSError, match="on Windows only"):
        this_system()


@pytest.mark.skipif(not is_there(), reason=WHY_NOT)
def test_under_wine_everything_can_be_imported_but_what_is_linuxs_own_and_the_backend_needs_none_of_that() -> None:
    (chosen, has_cookies, ticks_per_s), loaded, refused = windows_python("imports.py", IMPORTS)
    assert (chosen, has_cookies) == ("WindowsDivert", False)
    assert ticks_per_s >= 1_000_000
    assert {"windivert", "divert_windows", "windows_processes", "windows_table"} <= set(loaded)
    assert set(loaded) & set(LINUX_ONLY) == set()
    assert {name.removeprefix("mitmsec_redirect.") for name in refused} == set(LINUX_ONLY), refused


def test_the_list_of_what_is_linuxs_own_names_modules() -> None:
    assert [name for name in LINUX_ONLY if importlib.util.find_spec(f"mitmsec_redirect.{name}") is None] == []
