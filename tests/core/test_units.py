"""What people write for units and containers: mistakes are told, and nothing that a process can have is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.selector import container_matches
from mitmsec.core.units import (
    container_mistake,
    container_pattern,
    container_pattern_mistake,
    is_glob,
    service_mistake,
    unit_mistake,
    windows_services,
)
from mitmsec_redirect.cgroup_path import names_of

TYPES = "that programs run in: those end in .service, .scope, .socket, .mount or .swap"
ID = "0123456789ab" + "cd" * 26


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        ("nginx.service", None),
        ("session-3.scope", None),
        ("user@1000.service/app.service", None),
        ("nginx", f'"nginx" is no unit {TYPES}; did you mean "nginx.service"?'),
        (r"a\x2db.mount", None),
        ("service", f'"service" is no unit {TYPES}; did you mean "service.service"?'),
        (".service", f'".service" is no unit {TYPES}'),
        (" a.service", f'" a.service" is no unit {TYPES}'),
        ("system.slice", f'"system.slice" is no unit {TYPES}'),
    ],
)
def test_units(unit: str, says: str | None) -> None:
    assert unit_mistake(unit) == says


@pytest.mark.parametrize("service", ["windows:Dnscache", "windows:a b.c", f"windows:{'x' * 256}", "nginx.service"])
def test_services_of_windows_have_nearly_any_name(service: str) -> None:
    assert service_mistake(service) is None
    assert windows_services(service) == ((service[8:],) if service.startswith("windows:") else ())


@pytest.mark.parametrize("service", ["windows:", "windows:a/b", "windows:a\\b", f"windows:{'x' * 257}"])
def test_but_not_these(service: str) -> None:
    assert service_mistake(service) == (
        f'"{service}" names no service: a name has 1 to 256 characters, / and \\ not among them'
    )


def test_what_is_no_service_of_windows_is_a_unit_or_a_mistake() -> None:
    assert service_mistake("Dnscache") == unit_mistake("Dnscache")
    assert windows_services(None) == ()


@pytest.mark.parametrize(
    ("container", "says"),
    [
        (f"docker:{ID}", None),
        (f"user@1000.service/podman:{ID}", None),
        ("lxc:web", None),
        ("machine:a", None),
        ("docker:web", "containers of docker are known by an id of 64 digits, not by a name"),
        (f"docker:{ID[:12]}", "containers of docker are known by an id of 64 digits"),
        (ID, f'"{ID}" is no container: write "runtime:id"'),
        (":x", '":x" is no container'),
        ("lxc:", '"lxc:" is no container'),
    ],
)
def test_containers_in_full(container: str, says: str | None) -> None:
    mistake = container_mistake(container)
    assert mistake is None if says is None else mistake is not None and mistake.startswith(says)


@pytest.mark.parametrize("pattern", [ID, ID[:12], f"docker:{ID[:12]}", "lxc:web", "*", "docker:*", "web?", "runc:x"])
def test_what_may_stand_for_containers(pattern: str) -> None:
    assert container_pattern_mistake(pattern) is None


@pytest.mark.parametrize("pattern", ["web", "0123456789a", f"{ID}0", "docker:web", "docker:", "0123456789AB"])
def test_what_stands_for_no_container(pattern: str) -> None:
    assert container_pattern_mistake(pattern) == (
        f'"{pattern}" names no container: write 12 or more digits of its id, or a glob over "runtime:id"'
    )


def test_digits_are_compared_in_lower_case_and_names_as_they_are() -> None:
    written = ["0123456789AB", "Docker:0123456789AB", "lxc:FEEDFEEDFEED", "docker:A*"]
    assert list(map(container_pattern, written)) == ["0123456789ab", "docker:0123456789ab", *written[2:]]


def test_globs() -> None:
    assert [is_glob(text) for text in ("a*", "a?", "a[b]")] == [True, True, False]


parts = st.sampled_from(
    [
        "system.slice",
        "nginx.service",
        "a\\x2db.scope",
        f"docker-{ID}.scope",
        "docker",
        ID,
        "lxc",
        "kubepods",
        f"pod{ID[:36]}",
        "user@1000.service",
        f"libpod-{ID}",
        "machine-a.scope",
        "lxc.payload.web",
        f"slice:runc:{ID}",
    ]
)


@given(st.lists(parts, max_size=4))
def test_whatever_a_cgroup_names_can_be_written(path: list[str]) -> None:
    names = names_of("/".join(path))
    assert names.unit is None or unit_mistake(names.unit) is None
    if names.container is not None:
        assert container_mistake(names.container) is None
        assert container_pattern_mistake(names.container) is None
        assert container_matches(container_pattern(names.container), names.container)
