"""What HTTPS and SVCB records offer, taken out. dnspython, which shares nothing with us, writes and reads."""

from __future__ import annotations

import base64
import struct

import dns.edns
import dns.flags
import dns.message
import dns.rrset
import dns.tsig
import pytest
from dns_writer import HTTPS, Record, query, response
from hypothesis import example, given
from hypothesis import strategies as st

from mitmsec.core.dns_frames import MESSAGE_LIMIT_BYTES
from mitmsec.core.dns_offers import Offers, asks_for_offers, limited

NO_ECH, NO_H3, NEITHER = Offers(ech=False), Offers(h3=False), Offers(ech=False, h3=False)
CONFIG = "AEX+DQBBFAAgACAtqj8ArT/NcYEMlC4nJJIXKRZx0h2jQ4ctAgdJqXvGRgAEAAEAAQASY2xvdWRmbGFyZS1lY2guY29tAAA="
ESCAPED = "".join(f"\\{byte:03}" for byte in base64.b64decode(CONFIG))
HINTED = f'1 . alpn="h3,h2" ipv4hint="192.0.2.1" ech="{CONFIG}" ipv6hint="2001:db8::1"'


def message(*records: str, flags: str = "QR RD RA") -> dns.message.Message:
    """An answer with these lines of a zone."""
    made = dns.message.make_query("a.test.", "HTTPS", id=7)
    made.flags = dns.flags.from_text(flags)
    for record in records:
        owner, kind, data = record.split(" ", 2)
        made.answer.append(dns.rrset.from_text(owner, 300, "IN", kind, data))
    return made


def told(wire: bytes) -> list[str]:
    """The data of all that is answered, as text; escapes of bytes as numbers."""
    return [one.to_text() for rrset in dns.message.from_wire(wire).answer for one in rrset]


def changed(offers: Offers, *data: str, kind: str = "HTTPS") -> list[str]:
    """What becomes of these records."""
    wire = message(*(f"a.test. {kind} {one}" for one in data)).to_wire()
    after = limited(wire, offers)
    assert len(after) == len(wire)
    return told(after)


def same(offers: Offers, *data: str) -> bool:
    return changed(offers, *data) == [*data]


def key_values(*parameters: tuple[int, bytes]) -> bytes:
    return b"\0\1\0" + b"".join(struct.pack("!HH", key, len(value)) + value for key, value in parameters)


def raw(*parameters: tuple[int, bytes]) -> bytes:
    """An answer whose record has these, in this order."""
    return response("a.test", Record("a.test", HTTPS, key_values(*parameters)), kind=HTTPS)


# --- ECH --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["HTTPS", "SVCB"])
def test_the_key_of_ech_becomes_one_for_private_use_behind_the_others(kind: str) -> None:
    (now,) = changed(NO_ECH, HINTED, kind=kind)
    before, _, after = now.partition(" key65534=")
    assert before == '1 . alpn="h3,h2" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"'
    assert after, "the same bytes, which nobody looks for there"
    assert base64.b64decode(CONFIG) in limited(raw((5, base64.b64decode(CONFIG))), NO_ECH)
    assert "ech=" not in now


def test_a_key_that_is_in_use_is_not_taken() -> None:
    taken = ((1, b"\2h2"), (5, b"e"), (65533, b"x"), (65534, b"y"))
    assert limited(raw(*taken), NO_ECH) == raw((1, b"\2h2"), (65532, b"e"), (65533, b"x"), (65534, b"y"))
    all_taken = raw((5, b"e"), *((key, b"") for key in range(65280, 65535)))
    assert limited(all_taken, NO_ECH) == all_taken


def test_a_record_that_is_only_for_who_knows_ech_becomes_one_for_nobody() -> None:
    """RFC 9460 §8: a program passes over a record with a mandatory key that it does not know."""
    before = raw((0, b"\0\1\0\5\0\6"), (1, b"\2h2"), (5, b"e"), (6, bytes(16)))
    after = raw((0, b"\0\1\0\6\xff\xfe"), (1, b"\2h2"), (6, bytes(16)), (65534, b"e"))
    assert limited(before, NO_ECH) == after
    odd = raw((0, b"\0\5\0"), (5, b"e"))
    assert limited(odd, NO_ECH) == raw((0, b"\0\5\0"), (65534, b"e"))


# --- HTTP/3 -----------------------------------------------------------------------------------------------------------
def test_http3_becomes_a_protocol_that_is_nobodys() -> None:
    before = raw((1, b"\2h3\5h3-29\2h2\3h3x\x08http/1.1"))
    assert limited(before, NO_H3) == raw((1, b"\2\n\n\5\n\n-29\2h2\3h3x\x08http/1.1"))
    assert changed(NO_H3, '1 . alpn="h2"', HINTED)[0] == '1 . alpn="h2"'
    assert same(NO_H3, '1 . alpn="h2,http/1.1"', "0 b.test.")


@pytest.mark.parametrize("alpn", [b"\2h3\3h2", b"\2h3\xff"])
def test_protocols_that_are_broken_stay(alpn: bytes) -> None:
    assert limited(raw((1, alpn)), NO_H3) == raw((1, alpn))


def test_both_go_together_and_the_rest_of_the_message_stays() -> None:
    other = message(
        "a.test. CNAME b.test.", f"b.test. HTTPS {HINTED}", "b.test. A 192.0.2.1", "b.test. TXT \\000A\\000\\001"
    )
    after = limited(other.to_wire(), NEITHER)
    alias, service, address, text = told(after)
    assert (alias, address) == ("b.test.", "192.0.2.1")
    assert text == told(other.to_wire())[3]
    assert service.startswith('1 . alpn="\\010\\010,h2" ipv4hint')
    assert "ech=" not in service


def test_nothing_changes_where_all_may_be_offered() -> None:
    wire = message(f"a.test. HTTPS {HINTED}").to_wire()
    assert limited(wire, Offers()) is wire


# --- what stays as it is ----------------------------------------------------------------------------------------------
def test_what_says_that_it_was_verified_says_so_no_more_once_it_is_changed() -> None:
    verified = message(f"a.test. HTTPS {HINTED}", flags="QR RD RA AD").to_wire()
    assert dns.message.from_wire(verified).flags & dns.flags.AD
    assert not dns.message.from_wire(limited(verified, NO_ECH)).flags & dns.flags.AD
    untouched = message('a.test. HTTPS 1 . alpn="h2"', flags="QR RD RA AD").to_wire()
    assert limited(untouched, NEITHER) == untouched


def test_an_answer_for_somebody_who_verifies_signatures_stays() -> None:
    asked = message(f"a.test. HTTPS {HINTED}")
    asked.use_edns(0, 0, 1232)
    assert limited(asked.to_wire(), NO_ECH) != asked.to_wire()
    asked.use_edns(0, dns.flags.DO, 1232)
    assert limited(asked.to_wire(), NO_ECH) == asked.to_wire()


def test_an_answer_that_is_signed_stays() -> None:
    signature = "a.test. RRSIG HTTPS 13 2 300 20300101000000 20260101000000 1 a.test. AAAA"
    with_record = message(f"a.test. HTTPS {HINTED}", signature).to_wire()
    assert limited(with_record, NO_ECH) == with_record
    with_key = message(f"a.test. HTTPS {HINTED}")
    with_key.use_tsig(dns.tsig.Key("k.test.", b"secret"))
    assert limited(with_key.to_wire(), NO_ECH) == with_key.to_wire()


@pytest.mark.parametrize(
    "data",
    [
        raw((5, b"e"), (1, b"\2h3")),  # keys that do not ascend: no program may take such a record
        raw((5, b"e"), (5, b"e")),
        response("a.test", Record("a.test", HTTPS, key_values((5, b"e")) + b"\0\6\0"), kind=HTTPS),
        response("a.test", Record("a.test", HTTPS, key_values((5, b"e")) + b"\0\6\0\4abc"), kind=HTTPS),
        response("a.test", Record("a.test", HTTPS, b"\0\1\x3f" + bytes(9)), kind=HTTPS),
        response("a.test", Record("a.test", HTTPS, b"\0\1\x80"), kind=HTTPS),
        response("a.test", Record("a.test", HTTPS, key_values((5, b"e")), of=3), kind=HTTPS),
        response("a.test", Record(b"\x01a" * 200 + b"\0", HTTPS, key_values((5, b"e"))), kind=HTTPS),
        raw((5, b"e"))[:-1],
        raw((5, b"e"))[:40],
        raw((5, b"e"))[:20],
        raw((5, b"e"))[:30],
        response("a.test", Record("a.test", HTTPS, key_values((5, b"e"))), kind=HTTPS, flags=0x0100),
        response("a.test", Record("a.test", HTTPS, key_values((5, b"e"))), kind=HTTPS, flags=0xA800),
        raw((5, bytes(MESSAGE_LIMIT_BYTES))),
    ],
)  # fmt: skip
def test_what_is_no_sound_answer_stays(data: bytes) -> None:
    assert limited(data, NEITHER) == data


# --- any bytes --------------------------------------------------------------------------------------------------------
KEYS = st.sampled_from([0, 2, 3, 4, 5, 6, 7, 65280, 65533])


@given(st.dictionaries(KEYS, st.binary(max_size=40)), st.binary(max_size=9))
def test_of_a_sound_record_the_key_of_ech_changes_and_nothing_else(found: dict[int, bytes], behind: bytes) -> None:
    renamed = {65534 if key == 5 else key: value for key, value in found.items() if key}
    if 0 in found:  # of one byte more than pairs, so that it is no list
        renamed[0] = found[0] = found[0] + b"x" * (1 - len(found[0]) % 2)
    assert limited(raw(*sorted(found.items())) + behind, NO_ECH) == raw(*sorted(renamed.items())) + behind


@given(st.binary(max_size=300))
@example(raw((1, b"\2h3"), (5, b"e")))
def test_no_message_grows_or_changes_twice(data: bytes) -> None:
    after = limited(data, NEITHER)
    assert (len(after), after[:2], after[4:12]) == (len(data), data[:2], data[4:12])
    assert limited(after, NEITHER) == after


@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_a_byte_that_is_wrong_anywhere_makes_no_message_longer(tail: bytes, at: int, byte: int) -> None:
    data = bytearray(message(f"a.test. HTTPS {HINTED}").to_wire() + tail)
    data[at] = byte
    assert len(limited(bytes(data), NEITHER)) == len(data)


# --- questions --------------------------------------------------------------------------------------------------------
def test_a_question_for_such_records_is_told_from_others() -> None:
    assert asks_for_offers(query("a.test", HTTPS))
    assert asks_for_offers(query("a.test", 64))
    assert not asks_for_offers(query("a.test", 1))
    assert not asks_for_offers(message(f"a.test. HTTPS {HINTED}").to_wire())
    assert not asks_for_offers(b"\0" * 11)
