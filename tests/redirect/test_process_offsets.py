"""Each name that Linux has had for a member leads to its place."""

from __future__ import annotations

import pytest
from btf_writer import BtfWriter
from msgspec.structs import fields

from mitmsec_redirect.btf import Btf, Kind, NoSuchMember
from mitmsec_redirect.process_offsets import _PLACES, Offsets

BIT = 157


def kernel(choose: int) -> BtfWriter:
    """A kernel with every member as a struct's own, under the name with this index, or the last that it has had."""
    writer = BtfWriter()
    eight = writer.integer(8)
    members: dict[str, dict[str, int]] = {}
    for number, places in enumerate(_PLACES.values()):
        struct, path = places[min(choose, len(places) - 1)]
        members.setdefault(struct, {})[path] = number * 64
    bits = writer.integer(1)
    for struct, paths in members.items():
        outer: dict[str, list[tuple[str, int, int]]] = {}
        for path, bit in paths.items():
            first, _, rest = path.partition(".")
            outer.setdefault(first, []).append((rest, eight, bit))
        own = []
        for first, inner in outer.items():
            named = [member for member in inner if member[0]]
            bit = 0 if named else inner[0][2]
            own.append((first, writer.struct("", 8, *named) if named else eight, bit))
        if struct == "sock_common":
            own.append(("skc_ipv6only", bits, 1 << 24 | BIT))
        writer.struct(struct, 999, *own, flag=struct == "sock_common")
    return writer


@pytest.mark.parametrize("choose", [0, 1, 2])
def test_members_are_found_by_any_name_they_have_had(choose: int) -> None:
    found = Offsets.of(Btf(kernel(choose).bytes()))
    numbers = {name: number * 8 for number, name in enumerate(_PLACES)} | {"sock_v6only_bit": BIT}
    numbers |= {"task_type": 0, "cast": 0}
    differing = {field.name for field in fields(found) if getattr(found, field.name) != numbers[field.name]}
    assert differing == {"mount_inner"}  # the struct around mount_root


def test_a_kernel_that_can_cast_is_known() -> None:
    """Functions that are found by their whole name, whoever may call them from where."""
    writer = kernel(0)
    returns = writer.add(Kind.FUNC_PROTO, "", 0)
    writer.add(Kind.FUNC, "not_bpf_rdonly_cast", returns, count=1)
    assert Offsets.of(Btf(writer.bytes())).cast == 0
    cast = writer.add(Kind.FUNC, "bpf_rdonly_cast", returns, count=1)
    found = Offsets.of(Btf(writer.bytes()))
    assert found.cast == cast
    assert Btf(writer.bytes()).struct_id("task_struct") == found.task_type > 0
    writer.add(Kind.FUNC, "bpf_rdonly_cast", returns, count=0)
    assert Offsets.of(Btf(writer.bytes())).cast == 0, "which of the two is meant, nobody can say"


def test_where_two_structs_have_the_name_nothing_is_cast_to_it() -> None:
    writer = BtfWriter()
    for _ in range(2):
        writer.struct("task_struct", 8)
    with pytest.raises(NoSuchMember, match="there are 2 structs task_struct"):
        Btf(writer.bytes()).struct_id("task_struct")


def test_a_kernel_that_lacks_one_is_told() -> None:
    writer = BtfWriter()
    writer.struct("task_struct", 8)
    with pytest.raises(NoSuchMember, match="tgid"):
        Offsets.of(Btf(writer.bytes()))
