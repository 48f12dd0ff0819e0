"""What a cgroup's path says of units and containers, and what it must never be made to say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_redirect.cgroup_path import CgroupNames, names_of, path_in

ID = "0123456789abcdef" * 4
OTHER = "f" * 64
POD = "pod8a3f9c1e-1b2c-4d5e-8f90-0123456789ab"
USER = "/user.slice/user-1000.slice/user@1000.service"


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/", None),
        ("/system.slice", None),
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        (r"/system.slice/dev-disk-by\x2dlabel-a.swap", r"dev-disk-by\x2dlabel-a.swap"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/system.slice/nginx.service/inner.service", "nginx.service"),
        ("/init.scope", "init.scope"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        (f"{USER}/init.scope", "user@1000.service/init.scope"),
        (rf"{USER}/app.slice/app-org\x2dx-1.scope", r"user@1000.service/app-org\x2dx-1.scope"),
        (f"{USER}/app.slice", "user@1000.service"),
        ("/just/a/folder", None),
        ("/folder/nginx.service", None),
        ("/-.slice/a.service", "a.service"),
    ],
)
def test_units(path: str, unit: str | None) -> None:
    assert names_of(path) == CgroupNames(unit=unit)


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", f"docker:{ID}"),
        (f"/docker/{ID}", f"docker:{ID}"),
        (f"/docker/{ID}/system.slice/nginx.service", f"docker:{ID}"),
        (f"/machine.slice/libpod-{ID}.scope/container", f"podman:{ID}"),
        (f"/libpod_parent/libpod-{ID}", f"podman:{ID}"),
        (f"/kubepods.slice/kubepods-{POD.replace('-', '_')}.slice/cri-containerd-{ID}.scope", f"containerd:{ID}"),
        (f"/kubepods/burstable/{POD}/{ID}", f"kubernetes:{ID}"),
        (f"/kubepods/{POD}/crio-{ID}", f"crio:{ID}"),
        (f"/system.slice/containerd.service/kubepods-burstable-{POD}.slice:cri-containerd:{ID}", f"containerd:{ID}"),
        ("/lxc.payload.web", "lxc:web"),
        ("/lxc/web", "lxc:web"),
        ("/machine.slice/machine-web.scope/payload", "machine:web"),
        ("/machine.slice/systemd-nspawn@web.service/payload", "machine:web"),
        (f"/docker/{ID}/docker/{OTHER}", f"docker:{ID}"),
        (f"/elsewhere/{ID}", None),
        (f"/docker/{ID[:-1]}", None),
        (f"/docker-{ID}x.scope", None),
    ],
)  # fmt: skip
def test_containers(path: str, container: str | None) -> None:
    assert names_of(path).container == container


def test_what_a_users_manager_names_is_never_a_unit_or_container_of_the_machine() -> None:
    """Any user can make these cgroups below their own."""
    assert names_of(f"{USER}/app.slice/nginx.service").unit == "user@1000.service/nginx.service"
    assert names_of(f"{USER}/docker-{ID}.scope").container == f"user@1000.service/docker:{ID}"
    twice = names_of(f"{USER}/user@0.service/nginx.service")
    assert twice.unit == "user@1000.service/user@0.service/nginx.service"


def test_however_deep_a_process_digs_its_unit_stays() -> None:
    assert names_of("/system.slice/nginx.service" + "/d" * 5000).unit == "nginx.service"
    assert (names_of(USER + "/user@0.service" * 5000).unit or "").startswith("user@1000.service/")


def test_a_name_longer_than_any_is_none() -> None:
    assert names_of(f"/{'a' * 300}.service/docker/{ID}") == CgroupNames()


PIECES = st.sampled_from([*"/:.@-_\\0a\n", "/user@0.service/", ".slice", ".service", "docker", ID])


@given(st.lists(PIECES, max_size=60).map("".join))
def test_any_text_is_a_path(path: str) -> None:
    found = names_of(path)
    if found.unit is not None:
        assert "\n" not in found.unit
        assert found.unit.endswith((".service", ".scope", ".socket", ".mount", ".swap"))


@given(st.text(max_size=20).filter(lambda name: "/" not in name and "\0" not in name))
def test_a_user_cannot_leave_their_manager(name: str) -> None:
    found = names_of(f"{USER}/{name}/{ID}")
    assert (found.unit or "").partition("/")[0] == "user@1000.service" or len(name) > 255
    assert found.container is None or found.container.startswith("user@1000.service/")


# --- /proc/PID/cgroup -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/system.slice/a.service\n", "/system.slice/a.service"),
        ("2:name=systemd:/system.slice/a.service\n1:cpu,cpuacct:/\n0::/\n", "/system.slice/a.service"),
        ("2:name=systemd:/b\n0::/c\n", "/c"),
        ("3:memory:/docker/x\n1:name=systemd:/\n", "/docker/x"),
        ("0::/with:colon\n", "/with:colon"),
        ("1:cpu:/\n0::/\n", "/"),
        ("", None),
        ("rubbish\n0::relative\nx:y:/z\n", None),
    ],
)
def test_the_hierarchy_that_says_most_is_chosen(text: str, path: str | None) -> None:
    assert path_in(text) == path


def test_our_own_cgroup_is_read() -> None:
    assert (path_in(Path("/proc/self/cgroup").read_text()) or "").startswith("/")


@given(st.text(max_size=200))
def test_any_text_has_a_path_or_none(text: str) -> None:
    assert (path_in(text) or "/").startswith("/")
