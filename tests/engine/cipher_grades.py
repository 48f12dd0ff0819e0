"""How suites of TLS are graded: the table of the NDSS 2017 study "The Security Impact of HTTPS Interception".

As it stands in the data of Cloudflare's mitmengine (fputil/ciphercheck.go), which added the suites of TLS 1.3.

A: as good as a browser's. B: no known attack, but no forward secrecy, or CBC. C: a known attack. F: trivially broken.
A hello has the grade F if any suite has, else C if any has, else that of its first suite.
"""

from __future__ import annotations

from collections.abc import Sequence

_TABLE = {
    "A": "00FF 1301-1303 5600 C02B-C02C C02F-C030 CC13-CC14 CCA8-CCA9",
    "B": """
        000A 000D 0010 0013 0016 002F-0033 0035-0039 003C-0040 004A-004C 0067-006B 009C-00A5 C003-C005 C008-C00A
        C00D-C00F C012-C014 C023-C02A C02D-C02E C031-C032 C04C-C04D C060-C061 C09C-C0A3 C0AC-C0AF CC15 FEFF FF83
        FFE0
    """,
    "C": """
        0004-0005 0007 001D 001F-0021 0023-0025 0041-0045 0048 0066 0080-0081 0084-0088 008A-009A 00A8-00AF
        00B2-00B3 00B6-00B7 00BA-00BE 00C0-00C4 C002 C007 C00C C011 C01B-C01C C01E-C01F C021-C022 C033-C038
        C03C-C045 C048-C04B C04E-C059 C05C-C05F C062-C083 C086-C09B C0A4-C0AB FF81 FF85
    """,
    "F": """
        0000-0003 0006 0008-0009 000B-000C 000E-000F 0011-0012 0014-0015 0017-001C 001E 0022 0026-002E 0034
        003A-003B 0046-0047 0049 0060-0065 006C-006D 0082-0083 0089 009B 00A6-00A7 00B0-00B1 00B4-00B5 00B8-00B9
        00BF 00C5 C001 C006 C00B C010 C015-C01A C01D C020 C039-C03B C046-C047 C05A-C05B C084-C085 FEFE FF03 FF80
        FF82 FFE1
    """,
}


def _numbers(words: str) -> list[int]:
    ends = [word.partition("-") for word in words.split()]
    return [number for low, _, high in ends for number in range(int(low, 16), int(high or low, 16) + 1)]


GRADES = {number: grade for grade, words in _TABLE.items() for number in _numbers(words)}


def grade_of(suites: Sequence[int]) -> str:
    """The grade of a hello with these suites; "?" where the one that decides is not in the table."""
    found = [GRADES.get(suite, "?") for suite in suites]
    for worst in ("F", "C"):
        if worst in found:
            return worst
    return next((grade for suite, grade in zip(suites, found, strict=True) if suite != 0x00FF), "?")
