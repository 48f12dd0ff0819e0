"""Where the kernel that runs keeps what our programs read of processes and TCP sockets, found by its own types."""

from __future__ import annotations

from mitmsec.core.model import Value
from mitmsec_redirect.btf import Btf, NoSuchMember

# Field → struct and member. Where Linux has renamed a member, the newest name is first.
_PLACES: dict[str, tuple[tuple[str, str], ...]] = {
    "task_tgid": (("task_struct", "tgid"),),
    "task_pid": (("task_struct", "pid"),),
    "task_leader": (("task_struct", "group_leader"),),
    "task_parent": (("task_struct", "real_parent"),),
    "task_start": (("task_struct", "start_boottime"),),
    "task_cred": (("task_struct", "cred"),),
    "task_signal": (("task_struct", "signal"),),
    "task_comm": (("task_struct", "comm"),),
    "task_mm": (("task_struct", "mm"),),
    "task_css_set": (("task_struct", "cgroups"),),
    "cred_uid": (("cred", "uid.val"),),
    "signal_live": (("signal_struct", "live.counter"),),
    "css_set_cgroup": (("css_set", "dfl_cgrp"),),
    "cgroup_node": (("cgroup", "kn"),),
    "node_id": (("kernfs_node", "id"),),
    "mm_file": (("mm_struct", "exe_file"),),
    "file_inode": (("file", "f_inode"),),
    "file_mount": (("file", "f_path.mnt"),),
    "file_dentry": (("file", "f_path.dentry"),),
    "inode_super": (("inode", "i_sb"),),
    "inode_number": (("inode", "i_ino"),),
    "inode_ctime_s": (("inode", "i_ctime_sec"), ("inode", "__i_ctime.tv_sec"), ("inode", "i_ctime.tv_sec")),
    "inode_ctime_ns": (("inode", "i_ctime_nsec"), ("inode", "__i_ctime.tv_nsec"), ("inode", "i_ctime.tv_nsec")),
    "super_device": (("super_block", "s_dev"),),
    "dentry_parent": (("dentry", "d_parent"),),
    "dentry_name": (("dentry", "d_name.name"),),
    "mount_parent": (("mount", "mnt_parent"),),
    "mount_point": (("mount", "mnt_mountpoint"),),
    "mount_inner": (("mount", "mnt"),),
    "mount_root": (("mount", "mnt.mnt_root"),),
    "mount_namespace": (("mount", "mnt_ns"),),
    "namespace_number": (("mnt_namespace", "ns.inum"),),
    "program_name": (("linux_binprm", "filename"),),
    "sock_flags": (("sock_common", "skc_flags"),),
    "sock_error": (("sock", "sk_err"),),
    "tcp_received": (("tcp_sock", "bytes_received"),),
    "tcp_sent": (("tcp_sock", "bytes_sent"),),
    "tcp_resent": (("tcp_sock", "bytes_retrans"),),
}


_BITS = {"sock_v6only_bit": ("sock_common", "skc_ipv6only")}


class Offsets(Value, frozen=True):
    """Bytes from the start of each struct."""

    task_tgid: int
    task_pid: int
    task_leader: int
    task_parent: int
    task_start: int
    task_cred: int
    task_signal: int
    task_comm: int
    task_mm: int
    task_css_set: int
    cred_uid: int
    signal_live: int
    css_set_cgroup: int
    cgroup_node: int
    node_id: int
    mm_file: int
    file_inode: int
    file_mount: int
    file_dentry: int
    inode_super: int
    inode_number: int
    inode_ctime_s: int
    inode_ctime_ns: int
    super_device: int
    dentry_parent: int
    dentry_name: int
    mount_parent: int
    mount_point: int
    mount_inner: int
    mount_root: int
    mount_namespace: int
    namespace_number: int
    program_name: int
    sock_flags: int  # a tcp_sock begins with its sock, a sock with what is common to all
    sock_error: int
    tcp_received: int
    tcp_sent: int
    tcp_resent: int
    sock_v6only_bit: int  # in bits: no IPv4 is meant for an IPv6 socket
    task_type: int = 0  # the id of task_struct, for
    cast: int = 0  # the id of bpf_rdonly_cast (Linux 6.2), where our programs may call it; 0: not

    @classmethod
    def of(cls, types: Btf) -> Offsets:
        """Raises NoSuchMember for a kernel that is built otherwise, MalformedBtf."""
        members = {name: _offset(types, places) for name, places in _PLACES.items()}
        bits = {name: types.bit(*place) for name, place in _BITS.items()}
        return cls(**members, **bits, **_cast(types))


def _offset(types: Btf, places: tuple[tuple[str, str], ...]) -> int:
    for struct, path in places[:-1]:
        try:
            return types.member(struct, path).offset
        except NoSuchMember:
            continue
    return types.member(*places[-1]).offset


def _cast(types: Btf) -> dict[str, int]:
    try:
        return {"task_type": types.struct_id("task_struct"), "cast": types.function_id("bpf_rdonly_cast")}
    except NoSuchMember:
        return {}
