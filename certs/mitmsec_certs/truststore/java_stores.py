"""Java's `cacerts`: one for each installation, changed with that installation's `keytool`.

The one on Debian and RHEL is filled from the system's store (see system_stores); a JDK that was unpacked somewhere has
its own. Either is public and has the password that every tool tries.
"""

from __future__ import annotations

from mitmsec_certs.truststore.plan import (
    Layout,
    PemOutput,
    Plan,
    Root,
    Run,
    Store,
    StoreName,
    certificate_entry,
)

PASSWORD = "changeit"  # noqa: S105  the one that every Java tool tries; the content is public

_QUICK = ("-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC")  # half the time of so short a life


def java(place: str, keytool: str, *, uid: int = 0, user: str = "") -> Store:
    """The store in the file `place`; of a `user`'s own JDK, or of the machine's."""
    return Store(
        name=StoreName.JAVA,
        layout=Layout.JAVA,
        place=place,
        keytool=keytool,
        uid=uid,
        user=user or "root",
        is_in_a_home=bool(user),
    )


def java_plan(store: Store, root: Root) -> Plan:
    """Of a store of Java's own."""
    words = ("-importcert", "-noprompt", "-trustcacerts", "-alias", root.label)
    return Plan(
        looks=(listing(store.keytool, store.place),),
        own=frozenset({certificate_entry(root.sha256)}),
        watched=(store.place,),
        made=(store.place,),
        adding=(Run(argv=_keytool(store.keytool, store.place, *words), stdin=root.pem),),
        removing=(deleting(store.keytool, store.place, root.label),),
    )


def listing(keytool: str, place: str, part: str = "") -> PemOutput:
    """All that the store in the file `place` holds."""
    return PemOutput(argv=_keytool(keytool, place, "-list", "-rfc"), part=part)


def deleting(keytool: str, place: str, alias: str) -> Run:
    """Take out `alias`, if it is there."""
    return Run(argv=_keytool(keytool, place, "-delete", "-alias", alias), tolerated=True)


def _keytool(keytool: str, place: str, *words: str) -> tuple[str, ...]:
    return (keytool, *_QUICK, *words, "-keystore", place, "-storepass", PASSWORD)
