"""The kernel's table of mounts."""

from __future__ import annotations

from pathlib import Path

from mitmsec_redirect.mounts import Mount, mounts

TABLE = r"""24 1 0:22 / / rw - ext4 /dev/vda rw
31 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
32 24 0:27 /sub /mnt/with\040space rw - bpf none rw,mode=700
rubbish
33 24 - x
"""


def test_lines_are_read_with_their_escapes_and_bad_ones_are_skipped() -> None:
    assert list(mounts(TABLE)) == [
        Mount(kind="ext4", point=Path("/"), root="/"),
        Mount(kind="cgroup2", point=Path("/sys/fs/cgroup/unified"), root="/"),
        Mount(kind="bpf", point=Path("/mnt/with space"), root="/sub"),
    ]


def test_this_machine_has_a_root() -> None:
    assert any(mount.point == Path("/") for mount in mounts())
