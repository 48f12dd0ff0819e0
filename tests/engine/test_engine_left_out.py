"""What of mitmproxy a worker does not load, and what happens to whoever would use it all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest

import mitmsec.engine.left_out as left_out

FORKING = """
import os, sys, mitmsec.service.worker
for line in sys.stdin:
    if not os.fork():
        os.dup2(1, 2)
        exec(eval(line))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    print("\\0", end="", flush=True)
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[subprocess.Popen[str]]:
    """An interpreter that has loaded all that a worker loads."""
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def after(worker: subprocess.Popen[str]) -> Callable[[str], str]:
    """What a fork of it prints, whatever others have loaded."""

    def printed(code: str) -> str:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(f"{code!r}\n")
        worker.stdin.flush()
        return "".join(iter(partial(worker.stdout.read, 1), "\0"))

    return printed


def test_a_worker_has_not_loaded_what_nothing_of_ours_speaks(after: Callable[[str], str]) -> None:
    loaded = set(after("print(*(name for name, module in sys.modules.items() if module.__spec__))").split())
    assert "mitmproxy.proxy.layers.http" in loaded
    unwanted = (
        "aioquic",
        "pylsqpack",
        "wsproto",
        "ruamel",
        "service_identity",
        "mitmproxy.dns",
        "mitmsec.engine.plain_addons",
    )
    assert [name for name in loaded if name.startswith((*unwanted, *left_out.NAMES))] == []


def test_who_makes_anything_of_it_is_told_why_there_is_none(after: Callable[[str], str]) -> None:
    said = after(
        "from mitmproxy.proxy.layers import QuicStreamLayer\n"
        "assert not isinstance(None, QuicStreamLayer)\n"
        "try: QuicStreamLayer(None, True, 1)\n"
        "except RuntimeError as error: print(error)"
    )
    assert said == "QuicStreamLayer of mitmproxy is not loaded: see mitmsec.engine.left_out\n"


def test_a_name_that_stands_for_nothing_is_missing_at_once(after: Callable[[str], str]) -> None:
    """So a later mitmproxy that wants more of a module is found out by a worker's start."""
    said = after("try: from mitmproxy.proxy.layers.quic import Another\nexcept ImportError as error: print(error.name)")
    assert said == "mitmproxy.proxy.layers.quic\n"


@pytest.mark.parametrize(
    "wanted",
    [
        "import certifi; print(certifi.where()[-10:])",
        "import ruamel.yaml; print(ruamel.yaml.YAML(typ='safe', pure=True).load('cacert.pem'))",
        "import mitmproxy.optmanager as m; print(m.ruamel.yaml.YAML(typ='safe', pure=True).load('cacert.pem'))",
        "import mitmproxy.proxy.layers.http as m; print(m.wsproto.handshake.H11Handshake and 'cacert.pem')",
        "from wsproto.frame_protocol import Opcode; print(Opcode.TEXT and 'cacert.pem')",
        "import wsproto.events as e, wsproto; print(wsproto.handshake.Request is e.Request and 'cacert.pem')",
        "import wsproto.events as e, wsproto; wsproto.WSConnection; print(wsproto.events is e and 'cacert.pem')",
    ],
)
def test_a_library_that_is_hardly_ever_used_is_there_for_who_does(after: Callable[[str], str], wanted: str) -> None:
    assert after(wanted) == "cacert.pem\n"


def test_what_is_loaded_already_stays(after: Callable[[str], str]) -> None:
    said = after(
        "import mitmsec.engine.left_out as left_out\n"
        "before = {name: sys.modules[name] for name in (*left_out.NAMES, *left_out.LATER)}\n"
        "left_out.leave_out()\n"
        "print(all(sys.modules[name] is module for name, module in before.items()))"
    )
    assert said == "True\n"


def test_what_quic_takes_is_loaded_by_who_decrypts_it_and_replaces_the_names(after: Callable[[str], str]) -> None:
    said = after(
        "import mitmsec.engine.quic.conversation\n"
        "import mitmproxy.proxy.layers as layers, mitmproxy.proxy.layers.http as http\n"
        "from mitmproxy.proxy.layers.quic import QuicStreamEvent\n"
        "print('aioquic.quic.connection' in sys.modules, http.QuicStreamEvent is QuicStreamEvent,"
        " http.Http3Server.__module__, layers.ClientQuicLayer.__module__, 'mitmproxy.dns' in sys.modules)"
    )
    real = "mitmproxy.proxy.layers.http._http3 mitmproxy.proxy.layers.quic._stream_layers"
    assert said == f"True True {real} False\n"
