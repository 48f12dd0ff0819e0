"""A subject has the one common name that it says, however it is quoted, and nothing else has any."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.selector import signer_matches
from mitmsec.core.signers import common_name, is_of_a_subject

MOZILLA = "CN=Mozilla Corporation, OU=Firefox Engineering Operations, O=Mozilla Corporation, L=San Francisco, C=US"
KEYS = st.sampled_from(["CN", "O", "OU", "C", "E", "SERIALNUMBER", "OID.1.2.3", "2.5.4.15"])
NAMES = st.lists(st.tuples(KEYS, st.text(min_size=1, max_size=20), st.sampled_from([", ", " + "])), max_size=6)


def written(names: list[tuple[str, str, str]]) -> str:
    """As CertNameToStr writes them: in quotes what needs it."""
    text = ""
    for number, (key, value, join) in enumerate(names):
        needs = re.search(r'[,+="\n<>#;]', value) or value != value.strip()
        said = '"' + value.replace('"', '""') + '"' if needs else value
        text += (join if number else "") + f"{key}={said}"
    return text


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (MOZILLA, "Mozilla Corporation"),
        ('CN="A, ""B"" = C", O=D', 'A, "B" = C'),
        ("O=A, CN=B", "B"),
        ("O=A + CN=B, C=US", "B"),
        ("CN=", ""),
        ("CN=A, CN=B", None),
        ("O=A", None),
        ('O="x, CN=A"', None),  # it is within another name
        ("CN=A,O=B", None),
        ("CN=A, ", None),
        ('CN="A', None),
        ("A", None),
        ("", None),
    ],
)
def test_common_names(subject: str, name: str | None) -> None:
    assert common_name(subject) == name


@given(NAMES)
def test_whoever_has_one_common_name_has_that(names: list[tuple[str, str, str]]) -> None:
    own = [value for key, value, _ in names if key == "CN"]
    assert common_name(written(names)) == (own[0] if len(own) == 1 else None)


@given(st.text())
def test_no_text_is_too_much(text: str) -> None:
    found = common_name(text)
    assert found is None or "CN=" in text


def test_an_entry_with_an_equals_sign_is_about_the_whole_subject() -> None:
    assert is_of_a_subject("CN=A*")
    assert not is_of_a_subject("A Corporation")
    assert signer_matches("Mozilla*", MOZILLA)
    assert signer_matches("CN=Mozilla Corporation, *, O=Mozilla Corporation, *", MOZILLA)
    assert not signer_matches("San Francisco", MOZILLA)
    assert not signer_matches("CN=Mozilla Corporation", MOZILLA)
