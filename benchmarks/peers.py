"""The peers, each set up as a competent operator would: a P-256 authority, no access log, bodies streamed, no cache.

Transparent peers share one nftables table: their clients' shells run in a group of their own, whose connections to port
443 the kernel redirects to that peer, so nothing has to be switched between measurements. The peers themselves are in
other groups, and so cannot be led back to themselves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import trustme

from benchmarks.cgroups import Cgroup
from benchmarks.host import run
from benchmarks.variants import Variant

_LOCAL_MOUNT = 'mount --bind "$0" /sys/fs/cgroup && exec "$@"'
_PORTS = {"mitmdump transparent": 8081, "squid": 8082, "sslsplit": 8083}
_FIRST_CLIENT_GID = 61000
_MITMDUMP_GID = 61100

_SQUID = """
https_port 127.0.0.1:{port} intercept ssl-bump tls-cert={folder}/ca.pem tls-key={folder}/ca.key \\
  generate-host-certificates=on dynamic_cert_mem_cache_size=16MB
http_port 127.0.0.1:{forward_port}
sslcrtd_program {certgen} -s {folder}/certificates -M 16MB
sslcrtd_children 4 startup=1
ssl_bump bump all
tls_outgoing_options cafile={origin_ca}
http_access allow all
cache deny all
cache_mem 8 MB
access_log none
cache_log {folder}/cache.log
cache_store_log none
pid_filename none
netdb_filename none
pinger_enable off
hosts_file /etc/hosts
dns_nameservers 127.0.0.1
visible_hostname bench
shutdown_lifetime 0 seconds
coredump_dir {folder}
"""


def redirect_clients(dport: str = "443") -> None:
    """Load the table that leads each transparent peer's clients to it; it lives and dies with the namespace."""
    rules = "".join(
        f"    meta skgid {_client_gid(name)} tcp dport {dport} redirect to :{port}\n" for name, port in _PORTS.items()
    )
    chain = f"  chain output {{\n    type nat hook output priority -100; policy accept;\n{rules}  }}\n"
    run(["nft", "-f", "-"], stdin=f"table ip mitmsec-bench-{os.getpid()} {{\n{chain}}}\n")


def mitmdump_transparent(program: Path, folder: Path, origin_ca: Path, *options: str) -> Variant:
    """mitmdump in transparent mode behind the redirect, with further options."""
    name = "mitmdump transparent"
    ca_file = _write_authority(folder, name)
    argv = _mitmdump(program, folder, origin_ca, f"transparent@127.0.0.1:{_PORTS[name]}", *options)
    return Variant(name, _authority(name), diverts=_as_client_of(name), proxy=argv, environment=_trust(ca_file))


def mitmdump_local(program: Path, folder: Path, origin_ca: Path, cgroup: Cgroup, *options: str) -> Variant:
    """mitmdump's own eBPF redirector, which matches program names on the cgroup root.

    It gets a mount namespace in which its clients' cgroup is that root, so no other program of the machine is touched,
    and its clients are called by links with names of their own.
    """
    name = "mitmdump local"
    ca_file = _write_authority(folder, name)
    programs = _links(folder, ("wrk", "curl", "h2load", "python3"))
    mode = "local:" + ",".join(Path(link).name for link in programs.values())
    clients = cgroup.child("clients-of-mitmdump-local")
    argv = _mitmdump(program, folder, origin_ca, mode, *options)
    proxy = ("unshare", "--mount", "sh", "-c", _LOCAL_MOUNT, str(clients.path), *argv)
    return Variant(name, _authority(name), (), proxy, _trust(ca_file), clients, programs)


def squid(folder: Path, origin_ca: Path) -> Variant:
    """Squid, intercepting, caching nothing; client-first SslBump, several times faster than peeking first."""
    name = "squid"
    ca_file = _write_authority(folder, name)
    certgen = next(path for path in _CERTGEN if path.exists())
    port = _PORTS[name]
    (folder / "squid.conf").write_text(
        _SQUID.format(port=port, forward_port=port + 100, folder=folder, certgen=certgen, origin_ca=origin_ca)
    )

    def prepare() -> None:
        run([str(certgen), "-c", "-s", str(folder / "certificates"), "-M", "16MB"])
        run(["chown", "-R", "proxy:proxy", str(folder)])

    argv = ("squid", "-N", "-n", f"mitmsecbench{os.getpid()}", "-f", str(folder / "squid.conf"))
    return Variant(name, _authority(name), _as_client_of(name), argv, _trust(ca_file), http2=False, prepare=prepare)


def sslsplit(folder: Path) -> Variant:
    """sslsplit in its `ssl` mode: both TLS legs, HTTP not read; it does not verify the origin."""
    name = "sslsplit"
    ca_file = _write_authority(folder, name)
    run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", str(folder / "leaf.key")])
    keys = ("-k", str(folder / "ca.key"), "-c", str(ca_file), "-K", str(folder / "leaf.key"))
    argv = ("sslsplit", *keys, "ssl", "127.0.0.1", str(_PORTS[name]))
    return Variant(name, _authority(name), _as_client_of(name), argv, _trust(ca_file), http2=False)


_CERTGEN = tuple(Path("/usr", where, "squid", "security_file_certgen") for where in ("lib", "lib64", "libexec"))


def _mitmdump(program: Path, folder: Path, origin_ca: Path, mode: str, *options: str) -> tuple[str, ...]:
    values = {
        "confdir": folder,
        "stream_large_bodies": "1m",
        "ssl_verify_upstream_trusted_ca": origin_ca,
    }
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    return (
        "setpriv",
        "--regid",
        str(_MITMDUMP_GID),
        "--clear-groups",
        str(program),
        "-q",
        "--mode",
        mode,
        *settings,
        *options,
    )


def _as_client_of(name: str) -> tuple[str, ...]:
    return ("setpriv", "--regid", str(_client_gid(name)), "--clear-groups")


def _client_gid(name: str) -> int:
    return _FIRST_CLIENT_GID + _PORTS[name]


def _trust(ca_file: Path) -> Mapping[str, str]:
    return {"CURL_CA_BUNDLE": str(ca_file)}


def _authority(name: str) -> str:
    return f"Bench {name} CA"


def _write_authority(folder: Path, name: str) -> Path:
    """The peer's own authority, in the three shapes that the peers read."""
    authority = trustme.CA(organization_name=_authority(name))
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (folder / "ca.key").write_bytes(authority.private_key_pem.bytes())
    (folder / "mitmproxy-ca.pem").write_bytes(authority.private_key_pem.bytes() + authority.cert_pem.bytes())
    return folder / "ca.pem"


def _which(name: str) -> str:
    return run(["sh", "-c", f"command -v {name}"]).strip()


def _links(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The programs under names of their own, short enough (15) for the kernel to keep whole."""
    links = {}
    for name in names:
        link = folder / f"mb{os.getpid() % 1_000_000}-{name}"
        link.symlink_to(os.path.realpath(sys.executable) if name == "python3" else _which(name))
        links[name] = str(link)
    return links
