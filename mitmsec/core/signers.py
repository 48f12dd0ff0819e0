"""Who signed a program: the subject of a certificate as Windows writes it, and what an operator may say of one.

    CN=Mozilla Corporation, OU="Firefox, Engineering", O=Mozilla Corporation, C=US

CertNameToStr gives this, and `(Get-AuthenticodeSignature FILE).SignerCertificate.Subject` prints it. A value stands
in quotes where it has a character that means something else, a quote in it is doubled, and `+` joins the parts of one
name. Text that is no such subject has no common name: nothing here guesses.
"""

from __future__ import annotations

import re
from functools import lru_cache

_KEY = r"[A-Za-z][A-Za-z0-9.]*|[0-9]+(?:\.[0-9]+)+"
_VALUE = r'"(?:[^"]|"")*"|[^",+=]*'
_PART = re.compile(rf"(?P<key>{_KEY})=(?P<value>{_VALUE})(?P<then>, | \+ |$)", re.DOTALL)


@lru_cache(maxsize=1024)
def common_name(subject: str) -> str | None:
    """Its one common name. None: it has none, or several, or is no subject."""
    names, at = [], 0
    while (part := _PART.match(subject, at)) is not None:
        if part["key"] == "CN":
            names.append(_unquoted(part["value"]))
        at = part.end()
        if not part["then"]:
            return names[0] if len(names) == 1 and at == len(subject) else None
    return None


def is_of_a_subject(wanted: str) -> bool:
    """Whether a policy's entry is about the whole subject, not the common name alone."""
    return "=" in wanted


def _unquoted(value: str) -> str:
    return value[1:-1].replace('""', '"') if value.startswith('"') else value
