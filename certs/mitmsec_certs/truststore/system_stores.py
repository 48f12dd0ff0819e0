"""The system's own store, which OpenSSL, GnuTLS and what is built on them read: Debian's layout and RHEL's.

    Debian  /usr/local/share/ca-certificates/*.crt ── update-ca-certificates ──► /etc/ssl/certs
    RHEL    /etc/pki/ca-trust/source/anchors/*     ── update-ca-trust ─────────► /etc/pki/ca-trust/extracted

Debian's tool forgets: once the .crt file has gone, it leaves the links of /etc/ssl/certs dangling, and Java's store,
which its hook fills, keeps the root (ca-certificates 20230311, ca-certificates-java 20230710). Both are seen to here.
"""

from __future__ import annotations

from mitmsec_certs.truststore.java_stores import deleting, listing
from mitmsec_certs.truststore.plan import (
    Drop,
    Layout,
    PemFile,
    Plan,
    Put,
    Root,
    Run,
    Store,
    StoreName,
    certificate_entry,
)

DEBIAN_SOURCES = "/usr/local/share/ca-certificates"
DEBIAN_CERTS = "/etc/ssl/certs"
DEBIAN_JAVA = f"{DEBIAN_CERTS}/java/cacerts"
DEBIAN_JAVA_HOOK = "/etc/ca-certificates/update.d/jks-keystore"
DEBIAN_TOOL = "update-ca-certificates"
JAVA = "java"  # the part of Debian's store that its hook fills
RHEL_TRUST = "/etc/pki/ca-trust"
RHEL_TOOL = "update-ca-trust"


def debian(prefix: str = "", *, keytool: str = "") -> Store:
    """`keytool`: where Java's store is filled from the system's, the tool that reads it."""
    place = prefix + DEBIAN_CERTS
    return Store(name=StoreName.SYSTEM, layout=Layout.DEBIAN, place=place, prefix=prefix, keytool=keytool)


def rhel(prefix: str = "") -> Store:
    return Store(name=StoreName.SYSTEM, layout=Layout.RHEL, place=prefix + RHEL_TRUST, prefix=prefix)


def debian_plan(store: Store, root: Root) -> Plan:
    """Of a store of Debian's layout."""
    sources, certs = store.prefix + DEBIAN_SOURCES, store.place
    source, java = f"{sources}/{root.label}.crt", store.prefix + DEBIAN_JAVA
    update = Run(argv=(DEBIAN_TOOL, *_elsewhere(store.prefix)))
    parts = ("", JAVA) if store.keytool else ("",)
    look_into_java = (listing(store.keytool, java, JAVA),) if store.keytool else ()
    forget_in_java = (deleting(store.keytool, java, f"debian:{root.label}.pem"),) if store.keytool else ()
    return Plan(
        looks=(PemFile(path=f"{certs}/ca-certificates.crt"), *look_into_java),
        own=frozenset(certificate_entry(root.sha256, part) for part in parts),
        watched=(sources, certs),
        made=(f"{certs}/ca-certificates.crt", f"{certs}/ca-certificates.crt.new", java),
        adding=(Put(path=source, content=root.pem), update),
        removing=(
            Drop(path=source),
            Drop(path=f"{certs}/{root.label}.pem"),
            update,
            Run(argv=("openssl", "rehash", certs)),
            *forget_in_java,
        ),
    )


def rhel_plan(store: Store, root: Root) -> Plan:
    """Of a store of RHEL's layout."""
    anchors, extracted = f"{store.place}/source/anchors", f"{store.place}/extracted"
    anchor, update = f"{anchors}/{root.label}.pem", Run(argv=(RHEL_TOOL, "extract"))
    return Plan(
        looks=(PemFile(path=f"{extracted}/pem/tls-ca-bundle.pem"),),
        own=frozenset({certificate_entry(root.sha256)}),
        watched=(anchors, extracted),
        made=(extracted,),
        adding=(Put(path=anchor, content=root.pem), update),
        removing=(Drop(path=anchor), update),
    )


def _elsewhere(prefix: str) -> tuple[str, ...]:
    """The tool's own options for another tree than the machine's."""
    if not prefix:
        return ()
    places = {
        "certsconf": "/etc/ca-certificates.conf",
        "certsdir": "/usr/share/ca-certificates",
        "localcertsdir": DEBIAN_SOURCES,
        "etccertsdir": DEBIAN_CERTS,
        "hooksdir": "/etc/ca-certificates/update.d",
    }
    return tuple(word for option, path in places.items() for word in (f"--{option}", prefix + path))
