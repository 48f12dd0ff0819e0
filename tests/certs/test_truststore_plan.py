"""Plans: what is done to a store stands in them, and every kind of store has one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mitmsec_certs.truststore.nss_stores import FLAGS, nss, nss_plan
from mitmsec_certs.truststore.plan import Root, Store, StoreName, certificate_entry, nickname_entry, nss_rows

TABLE = """
Certificate Nickname                                         Trust Attributes
                                                             SSL,S/MIME,JAR/XPI

Our Corp, Root 2                                             CT,C,c
mitmsec-0123456789abcdef                                     C,,
a server's                                                   ,,
"""
ROOT = Root(pem="PEM", sha256="ab" * 32, subject="CN=x", not_after="2027-01-01T00:00:00Z")


def test_rows_of_a_table_are_nicknames_with_their_flags() -> None:
    assert nss_rows(TABLE) == {
        nickname_entry("Our Corp, Root 2", "CT,C,c"),
        nickname_entry("mitmsec-0123456789abcdef", "C,,"),
        nickname_entry("a server's", ",,"),
    }


@given(st.text())
def test_any_text_can_be_read_as_a_table(text: str) -> None:
    assert all(entry.startswith("nickname ") for entry in nss_rows(text))


NICKNAMES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1)


@given(st.dictionaries(NICKNAMES, st.sampled_from([",,", "C,,", "CT,C,c", "u,u,u"])))
def test_what_certutil_would_print_is_read_back(rows: dict[str, str]) -> None:
    text = "\n".join(f"{nickname:<60} {flags:<5}" for nickname, flags in rows.items())
    assert nss_rows(text) == {nickname_entry(nickname, flags) for nickname, flags in rows.items()}


def test_a_label_is_the_roots_own() -> None:
    other = Root(pem="PEM", sha256="cd" * 32, subject="CN=x", not_after="2027-01-01T00:00:00Z")
    assert ROOT.label != other.label
    assert ROOT.label == "mitmsec-abababababababab"


def test_others_are_told_from_ours_whatever_flags_ours_has() -> None:
    plan = nss_plan(nss(StoreName.FIREFOX, "/home/a/profile", uid=1000, user="a"), ROOT)
    theirs = {certificate_entry("cd" * 32), nickname_entry("theirs", FLAGS), nickname_entry(f"{ROOT.label}x", FLAGS)}
    ours = {certificate_entry(ROOT.sha256), nickname_entry(ROOT.label, ",,"), nickname_entry(ROOT.label, FLAGS)}
    assert plan.others(frozenset(theirs | ours)) == theirs


def test_parts_of_a_store_are_told_apart() -> None:
    assert certificate_entry("ab", "java") != certificate_entry("ab")


def test_a_store_is_told_with_its_owner() -> None:
    mine = Store(name=StoreName.FIREFOX, layout=nss(StoreName.FIREFOX, "/p", uid=0, user="x").layout, place="/p")
    assert str(mine) == "firefox (/p)"
    assert str(nss(StoreName.CHROMIUM, "/p", uid=7, user="ann")) == "chromium (/p, of ann)"
