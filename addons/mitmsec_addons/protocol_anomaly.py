"""The inspector `protocol_anomaly`: what is not as its protocol says, or is known as a way to hide something.

    [inspector.protocol_anomaly]
    words = ["tunnels", "names"]     some of the four; without: all

    heads      of HTTP: names, values, repetitions, number of fields
    tunnels    bodies, messages and streams that begin as another protocol does
    names      of files: what turns their letters round, or leads out of a folder
    contents   JSON that is none, requests to be sent back

What two readers could take for different messages (lengths, codings of transfer, bare line breaks in a head) the engine
refuses before any inspector sees it. SIGNS says of each sign where it stands that this must not be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import unquote_to_bytes

from mitmsec.core.inspection import Part, PartKind, place
from mitmsec.core.model import Finding, Severity, Value
from mitmsec_addons.unpacking import NAME_OF

HEADS, TUNNELS, NAMES, CONTENTS = "heads", "tunnels", "names", "contents"
ALL = (HEADS, TUNNELS, NAMES, CONTENTS)
HEAD_BYTES = 2048  # of a body
FIELDS_LIMIT = 200  # cookies apart, which browsers divide
VALUE_LIMIT_BYTES = 32 << 10


class Sign(Value, frozen=True):
    """One thing that is found. `source`: what says that it must not be, or what it is known from."""

    word: str
    summary: str
    severity: Severity
    confidence: float
    source: str


FIELD_NAME = Sign(HEADS, "a field whose name is no token", Severity.MEDIUM, 0.9, "RFC 9110 §5.6.2")
CONTROLS = Sign(HEADS, "a field with control characters", Severity.MEDIUM, 0.9, "RFC 9110 §5.5")
REPEATED = Sign(HEADS, "a field twice that can have one value", Severity.MEDIUM, 0.8, "RFC 9110 §5.3")
TOO_MANY = Sign(HEADS, f"more than {FIELDS_LIMIT} fields, or one of 32 KiB", Severity.LOW, 0.7, "RFC 9110 §5.4")
TLS = Sign(TUNNELS, "a TLS client hello where content should be", Severity.HIGH, 0.95, "RFC 8446 §4.1.2, §5.1")
SSH = Sign(TUNNELS, "the beginning of SSH where content should be", Severity.HIGH, 0.95, "RFC 4253 §4.2")
HTTP2 = Sign(TUNNELS, "the beginning of HTTP/2 where content should be", Severity.MEDIUM, 0.9, "RFC 9113 §3.4")
HTTP1 = Sign(TUNNELS, "an HTTP request as the content of another", Severity.MEDIUM, 0.8, "RFC 9112 §3, §11.2")
TURNED = Sign(NAMES, "a file name with letters that turn others round", Severity.HIGH, 0.9, "UTR #36 §3.1, UAX #9")
PATH = Sign(NAMES, "a file name that leads out of its folder", Severity.MEDIUM, 0.9, "RFC 6266 §4.3, RFC 7578 §4.2")
NO_JSON = Sign(CONTENTS, "JSON that is none", Severity.LOW, 0.8, "RFC 8259 §7, §8.1")
TRACE = Sign(CONTENTS, "a request to be sent back what was sent", Severity.LOW, 0.9, "RFC 9110 §9.3.8")
SIGNS = (FIELD_NAME, CONTROLS, REPEATED, TOO_MANY, TLS, SSH, HTTP2, HTTP1, TURNED, PATH, NO_JSON, TRACE)

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ONCE = frozenset({b"authorization", b"content-length", b"content-range", b"content-type", b"host", b"location"})
_CLIENT_HELLO = re.compile(rb"\x16\x03[\x00-\x04]..\x01\x00..\x03[\x00-\x04]", re.DOTALL)
_SSH = re.compile(rb"SSH-(?:1\.99|2\.0)-[ -~]")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_REQUEST = re.compile(rb"[A-Z]{3,16} [!-~]{1,1024} HTTP/1\.[01]\r\n(?:[!-9;-~]+:[^\r\n]*\r\n)*?host:", re.IGNORECASE)
_HTTP_TYPES = ("message/http", "application/http")  # RFC 9112 §10: whose content is a message
_FILE_NAME = re.compile(rb'(?i)[;\s]filename(\*?)="?((?:[^"\\\r\n;]|\\[^\r\n])*)')
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_LEADS_OUT = re.compile(r"(?:\A|[/\\])\.\.[/\\]|\A[/\\]|\A[A-Za-z]:[/\\]")
_NO_JSON = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


class ProtocolAnomaly:
    """Looks at everything. Raises ValueError for words that are none of the four."""

    name = "protocol_anomaly"

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        if unknown := [word for word in words if word not in ALL]:
            raise ValueError(f"{', '.join(map(repr, unknown))}: protocol_anomaly finds {', '.join(ALL)}")
        self._wanted = frozenset(words or ALL)

    def open(self, part: Part) -> AnomalyInspection:
        """An inspection of any part."""
        return AnomalyInspection(part, self._wanted)


class AnomalyInspection:
    """One part being read. Holds the first HEAD_BYTES of it, or a whole head."""

    __slots__ = ("_held", "_part", "_wanted")

    def __init__(self, part: Part, wanted: frozenset[str]) -> None:
        self._part, self._wanted = part, wanted
        self._held: bytes | None = b""

    def feed(self, data: bytes) -> Sequence[Finding]:
        """What the beginning of a body makes certain."""
        if self._held is None:
            return ()
        self._held += data
        is_head = self._part.kind is PartKind.HEADERS
        return () if is_head or len(self._held) < HEAD_BYTES else self._look()

    def close(self) -> Sequence[Finding]:
        """What a head is, or something short."""
        return () if self._held is None else self._look()

    def _look(self) -> list[Finding]:
        held, self._held = self._held or b"", None
        shown = held if self._part.kind is PartKind.HEADERS else held[:HEAD_BYTES]
        signs = _LOOKS[self._part.kind](self._part, shown)
        return [self._finding(sign) for sign in dict.fromkeys(signs) if sign.word in self._wanted]

    def _finding(self, sign: Sign) -> Finding:
        return Finding(
            detector=ProtocolAnomaly.name,
            severity=sign.severity,
            confidence=sign.confidence,
            summary=f"{sign.summary} ({sign.source})",
            evidence="",
            location=place(self._part, 0),
        )


def _in_url(part: Part, _url: bytes) -> Iterator[Sign]:
    if part.method.upper() in ("TRACE", "TRACK"):
        yield TRACE


def _in_head(part: Part, head: bytes) -> Iterator[Sign]:
    """Of a message, or of a part of one (which has a name): there only the names of files are looked at."""
    yield from (sign for found in _FILE_NAME.finditer(head) for sign in _in_name(_meant(found[1], found[2])))
    if part.name:
        return
    seen, count = dict[bytes, bytes](), 0
    for line in head.removesuffix(b"\r\n").split(b"\r\n") if head else ():
        name, _, value = line.partition(b": ")
        if _TOKEN.match(name) is None:
            yield FIELD_NAME
        if _CONTROL.search(value) is not None:
            yield CONTROLS
        lower = name.lower()
        if lower in _ONCE and seen.setdefault(lower, value) != value:
            yield REPEATED
        count += lower not in (b"cookie", b"set-cookie")
        if count > FIELDS_LIMIT or len(value) > VALUE_LIMIT_BYTES:
            yield TOO_MANY


def _meant(is_extended: bytes, said: bytes) -> str:
    """The name that a field `filename` or `filename*` (RFC 8187) says."""
    if is_extended:
        return unquote_to_bytes(said.rpartition(b"'")[2]).decode("utf-8", "replace")
    return said.replace(b"\\\\", b"\\").decode("utf-8", "replace")


def _in_body(part: Part, content: bytes) -> Iterator[Sign]:
    if part.path.endswith(NAME_OF):  # of a file in an archive, shown by itself
        return (yield from _in_name(content.decode("utf-8", "replace")))
    yield from _in_stream(part, content)
    media_type, _, parameters = part.content_type.lower().partition(";")
    is_json = media_type.strip() == "application/json" or media_type.strip().endswith("+json")
    if is_json and "utf-16" not in parameters and _is_no_json(content):
        yield NO_JSON


def _in_stream(part: Part, content: bytes) -> Iterator[Sign]:
    if _CLIENT_HELLO.match(content):
        yield TLS
    elif _SSH.match(content):
        yield SSH
    elif content.startswith(_PREFACE):
        yield HTTP2
    elif not part.name and not part.content_type.lower().startswith(_HTTP_TYPES) and _REQUEST.match(content):
        yield HTTP1


def _in_name(name: str) -> Iterator[Sign]:
    if _TURNS.search(name):
        yield TURNED
    if _LEADS_OUT.search(name):
        yield PATH


def _is_no_json(content: bytes) -> bool:
    """Control characters, or no UTF-8; a letter may be cut in two at the end."""
    if _NO_JSON.search(content) is not None:
        return True
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return False


_LOOKS: Mapping[PartKind, Callable[[Part, bytes], Iterator[Sign]]] = {
    PartKind.BODY: _in_body,
    PartKind.HEADERS: _in_head,
    PartKind.STREAM: _in_stream,
    PartKind.URL: _in_url,
}
