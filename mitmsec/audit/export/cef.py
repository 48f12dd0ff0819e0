r"""Common Event Format, version 0, as ArcSight and most that came after it read it.

    CEF:0|mitmsec|mitmsec|1.0|finding:keywords|a word that must not leave|8|rt=1793700000000 dhost=api.example.com …

In the header `\` and `|` are escaped, in the extension `\`, `=` and the ends of lines; a header has no end of line.
What else is not printable is shown escaped in both.
"""

from __future__ import annotations

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export.reading import (
    Source,
    address,
    host,
    is_inbound,
    made,
    number,
    port,
    program,
    summary,
    text,
    texts,
    time_ms,
    transport,
    was_blocked,
)
from mitmsec.core.printable import shown

SEVERITIES = {"info": 3, "low": 5, "medium": 7, "high": 9}
USUAL, OF_BLOCKS, OF_FAULTS = 1, 4, 6


def line(event: Fields, source: Source) -> bytes:
    """`event` in CEF, without the end of the line."""
    header = ("mitmsec", "mitmsec", source.version, signature(event), summary(event))
    extension = " ".join(f"{key}={_extended(value)}" for key, value in fields(event, source).items())
    return f"CEF:0|{'|'.join(map(_headed, header))}|{severity(event)}|{extension}".encode()


def signature(event: Fields) -> str:
    """What kind of event it is: its kind, and what tells those of one kind apart."""
    kind = text(event, "kind") or "event"
    names = ("action", "detector", "operation", "what")
    return ":".join([kind, *(word for name in names if (word := text(event, name)))])


def severity(event: Fields) -> int:
    """0..10."""
    match text(event, "kind"):
        case "finding":
            return SEVERITIES.get(text(event, "severity") or "", OF_FAULTS)
        case "fault":
            return OF_FAULTS
        case _:
            return OF_BLOCKS if was_blocked(event) else USUAL


def fields(event: Fields, source: Source) -> dict[str, str]:
    """The extension: CEF's own keys, and custom ones with their labels."""
    found: Fields = {} if text(event, "kind") != "request" else _http(event)
    found |= made(
        rt=time_ms(event, "time"),
        externalId=text(event, "id"),
        cat=text(event, "kind"),
        dvchost=source.host,
        deviceExternalId=source.log,
        act=text(event, "action") or text(event, "verdict") or text(event, "operation"),
        outcome=text(event, "outcome"),
        reason=text(event, "reason") or text(event, "error"),
        app=text(event, "protocol"),
        proto=(transport(event) or "").upper(),
        deviceDirection="0" if is_inbound(event) else "1" if text(event, "direction") else None,
        spid=number(event, "process", "pid"),
        sproc=program(event),
        suser=text(event, "process", "user") or text(event, "user"),
        suid=number(event, "process", "uid"),
        fileHash=text(event, "process", "sha256"),
        cnt=number(event, "count"),
        msg=_said(event),
        **_labelled("cn1", number(event, "seq"), "seq"),
        **_labelled("cs1", text(event, "rule"), "rule"),
        **_labelled("cs2", text(event, "policy"), "policy"),
        **_labelled("cs3", text(event, "tls", "client", "sni"), "sni"),
        **_labelled("cs4", text(event, "evidence"), "evidence"),
        **_labelled("cs5", text(event, "location"), "location"),
        **_labelled("cs6", text(event, "connection"), "connection"),
    )
    return {key: str(value) for key, value in made(**(_sides(event) | found)).items()}


def _said(event: Fields) -> str | None:
    names = " ".join(texts(event, "names"))
    return text(event, "summary") or text(event, "detail") or text(event, "path") or names or text(event, "subject")


def _sides(event: Fields) -> Fields:
    """Source and destination, as who opened the connection saw them. Of IPv6 CEF:0 has no others than custom ones."""
    sides = {"s": "remote", "d": "local"} if is_inbound(event) else {"s": "local", "d": "remote"}
    found: Fields = {} if is_inbound(event) else {"dhost": host(event)}
    for letter, side in sides.items():
        found[f"{letter}pt"] = port(event, side)
        ip = address(event, side)
        if ip is not None and ":" in ip:
            custom, label = {"s": ("c6a2", "source IPv6"), "d": ("c6a3", "destination IPv6")}[letter]
            found |= _labelled(custom, ip, label)
        else:
            found["src" if letter == "s" else "dst"] = ip
    sent, received = number(event, "bytes", "sent"), number(event, "bytes", "received")
    found["in"], found["out"] = (received, sent) if is_inbound(event) else (sent, received)  # `in`: to the destination
    return found


def _http(event: Fields) -> Fields:
    return {
        "request": text(event, "url"),
        "requestMethod": text(event, "method"),
        "in": number(event, "request_bytes"),
        "out": number(event, "response_bytes"),
        **_labelled("cn2", number(event, "status"), "status"),
    }


def _labelled(key: str, value: object, label: str) -> Fields:
    return {} if value is None else {key: value, f"{key}Label": label}


def _headed(value: str) -> str:
    return _escaped(" ".join(value.splitlines()) or "-").replace("|", r"\|")


def _extended(value: str) -> str:
    lines = value.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return r"\n".join(_escaped(one).replace("=", r"\=") for one in lines)


def _escaped(value: str) -> str:
    return shown(value).replace("\\", r"\\")
