"""JA4 against published fingerprints whose unhashed form is published too."""

from __future__ import annotations

import pytest

from mitmsec.core.ja4 import GREASE, fingerprint


def codes(text: str) -> list[int]:
    return [int(code, 16) for code in text.split(",")] if text else []


CIPHERS = "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035"
ALGORITHMS = "0403,0804,0401,0503,0805,0501,0806,0601"


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (
            "001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015",
            "t13d1516h2_8daaf6152771_e5627efa2ab1",
        ),
        (
            "002d,0033,0010,fe0d,0017,44cd,0000,000b,000a,002b,ff01,0023,0012,0005,000d,001b",
            "t13d1516h2_8daaf6152771_d8a2da3f94cd",
        ),
    ],
)
@pytest.mark.parametrize("grease", ["", "1a1a"])
def test_fingerprints_of_a_browser_with_and_without_grease(extensions: str, expected: str, grease: str) -> None:
    more = codes(grease)
    found = fingerprint(
        versions=[*more, 0x0304, 0x0303],
        ciphers=[*more, *codes(CIPHERS)],
        extensions=[*more, *codes(extensions)],
        signature_algorithms=[*more, *codes(ALGORITHMS)],
        alpn=b"h2",
    )
    assert found == expected


def test_nothing_offered_is_written_as_zeroes() -> None:
    found = fingerprint(versions=[], ciphers=[], extensions=[], signature_algorithms=[])
    assert found == "t00i000000_000000000000_000000000000"


def test_the_order_of_ciphers_and_extensions_does_not_matter_but_that_of_algorithms_does() -> None:
    def of(ciphers: list[int], extensions: list[int], algorithms: list[int]) -> str:
        return fingerprint(versions=[0x0303], ciphers=ciphers, extensions=extensions, signature_algorithms=algorithms)

    assert of([1, 2], [10, 13], [3, 4]) == of([2, 1], [13, 10], [3, 4])
    assert of([1, 2], [10, 13], [3, 4]) != of([1, 2], [10, 13], [4, 3])


def test_counts_stop_at_99() -> None:
    many = list(range(0x100, 0x100 + 120))
    assert fingerprint(versions=[0x0301], ciphers=many, extensions=many, signature_algorithms=[])[:8] == "t10i9999"


@pytest.mark.parametrize(
    ("alpn", "shown"),
    [
        (b"http/1.1", "h1"),
        (b"h2", "h2"),
        (b"a", "aa"),
        (b"\xab", "ab"),
        (b"\xab\xcd", "ad"),
        (b"h\xcd", "6d"),
        (b"\x20z", "2a"),
        (b"", "00"),
    ],
)
def test_the_ends_of_the_first_alpn_value(alpn: bytes, shown: str) -> None:
    assert fingerprint(versions=[0x0303], ciphers=[], extensions=[], signature_algorithms=[], alpn=alpn)[8:10] == shown


def test_grease_values_are_the_sixteen_reserved_ones() -> None:
    assert {value for value in range(0x10000) if value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF} == GREASE
