"""Texts of which it is known what is in them, in two halves: one to look at while rules are tuned, one never.

Which half a text is in its SHA-256 decides, so a text that is made again is in the half where it was. Positives are
drawn from what others say of secrets (`others`) and from python-stdnum; negatives are what looks like them: numbers of
orders, UUIDs, hashes, base64, time stamps, coordinates, placeholders, source code and minified JavaScript from what is
installed on this machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import string
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

from benchmarks.inspect.others import Others
from benchmarks.inspect.sampling import drawn
from mitmsec.core.model import Value

SEED = 20261130
EACH = 6  # texts of each kind of secret
NUMBERS = 300  # of each kind of number
SOURCE_BYTES, SOURCES = 2000, 3000
_CODE = ("**/*.py", "**/*.js", "**/*.json", "**/*.css", "**/*.html", "**/*.md")


class Text(Value, frozen=True):
    """`detector` ought to find something in it; without one, nobody ought to."""

    text: str
    kind: str
    detector: str | None = None

    @property
    def is_held_out(self) -> bool:
        return bool(hashlib.sha256(self.text.encode()).digest()[0] & 1)


SAID = (
    "{}", "export TOKEN={}\n", 'TOKEN="{}"\n', "token: {}\n", '{{"user":"jd","token":"{}","ttl":3600}}',
    "curl -H 'X-Api: {}' https://api.example.test/", 'client = Client("{}")\n', "note=please+use&token={}&id=7",
    "<token>{}</token>", "2026-11-30T10:00:01Z INFO using {} for upload\n",
)  # fmt: skip
CARDS = ("Visa: {}", "Please charge my card {} exp 09/27 cvv 123.", '{{"pan":"{}","holder":"J. Doe"}}',
         "name,card\nJohn,{}\n", "Meine Kreditkarte lautet {}, danke", "card_number={}&exp=0927")  # fmt: skip
IBANS = ("IBAN: {}", "pay to {} please", '{{"account":"{}"}}', "{}", "<iban>{}</iban>")
IDS: Mapping[str, tuple[str, Callable[[random.Random], str], tuple[str, ...]]] = {
    "us.ssn": ("ssn", lambda r: f"{r.randint(100, 665)}-{r.randint(10, 99)}-{r.randint(1000, 9999)}",
               ("SSN: {}", "my social security number is {}.")),
    "es.dni": ("dni", lambda r: f"{(n := r.randint(10**7, 10**8 - 1))}{'TRWAGMYFPDXBNJZSQVHLCKE'[n % 23]}",
               ("DNI: {}", "documento de identidad {}")),
    "pl.pesel": ("pesel", lambda r: f"{r.randint(50, 99)}0{r.randint(1, 9)}{r.randint(10, 28)}{_digits(r, 5)}",
                 ("PESEL: {}", '{{"pesel":"{}"}}')),
    "br.cpf": ("cpf", lambda r: f"{_digits(r, 3)}.{_digits(r, 3)}.{_digits(r, 3)}-{_digits(r, 2)}",
               ("CPF: {}", "{}")),
    "nl.bsn": ("bsn", lambda r: f"{r.randint(10**8, 10**9 - 1)}", ("BSN {}", "burgerservicenummer: {}")),
    "gb.nhs": ("nhs", lambda r: f"{r.randint(4 * 10**9, 5 * 10**9 - 1)}", ("NHS number {}",)),
    "de.idnr": ("idnr", lambda r: f"{r.randint(10**10, 10**11 - 1)}", ("Steuer-ID: {}",)),
}  # fmt: skip


def corpus(others: Others, code: list[Path]) -> list[Text]:
    """Both halves. `code`: folders with the sources of programs."""
    rng = random.Random(SEED)
    return [*_secrets(others, rng), *_numbers(rng), *_none(rng), *_sources(code, rng)]


def _secrets(others: Others, rng: random.Random) -> Iterator[Text]:
    confirming = [re.compile(one) for one in others.confirming if _compiles(one)]
    for kind, expression in sorted(others.drawn_from.items()):
        for _ in range(EACH):
            secret = drawn(expression, rng)
            if secret is not None and any(one.search(secret) for one in confirming):
                yield Text(rng.choice(SAID).format(secret.strip()), kind, "secrets")


def _compiles(expression: str) -> bool:
    try:
        re.compile(expression)
    except re.error:
        return False
    return True


def _numbers(rng: random.Random) -> Iterator[Text]:
    luhn, iban = import_module("stdnum.luhn"), import_module("stdnum.iban")
    for _ in range(NUMBERS):
        card = _card(luhn, rng)
        spaced = " ".join(card[at : at + 4] for at in range(0, 16, 4))
        yield Text(
            rng.choice(CARDS).format(rng.choice([card, spaced, spaced.replace(" ", "-")])), "card", "payment_card"
        )
    for _ in range(NUMBERS):
        country, basic = rng.choice(
            [("DE", _digits(rng, 18)), ("NL", "ABNA" + _digits(rng, 10)), ("PL", _digits(rng, 24))]
        )
        number = f"{country}{iban.calc_check_digits(f'{country}00{basic}')}{basic}"
        if iban.is_valid(number, check_country=False):
            yield Text(rng.choice(IBANS).format(rng.choice([number, iban.format(number)])), "iban", "iban")
    for module, (kind, make, said) in IDS.items():
        is_valid = import_module(f"stdnum.{module}").is_valid
        for _ in range(NUMBERS // 6):
            number = next(one for one in iter(lambda make=make: make(rng), None) if is_valid(one))
            yield Text(rng.choice(said).format(number), kind, "national_id")


def _none(rng: random.Random) -> Iterator[Text]:
    luhn = import_module("stdnum.luhn")
    make: Mapping[str, Callable[[], str]] = {
        "order": lambda: rng.choice(("Order number {}", "order_id={}", "tracking no. {}", "invoice {}")).format(
            rng.choice([_card(luhn, rng), _digits(rng, 16)])
        ),
        "uuid": lambda: f'{{"id":"{uuid.UUID(int=rng.getrandbits(128), version=4)}","request_token":null}}',
        "time": lambda: (
            f'{{"ts":{rng.randint(16 * 10**14, 18 * 10**14)},"t2":{rng.randint(16 * 10**11, 18 * 10**11)}}}'
        ),
        "base64": lambda: "data:image/png;base64," + base64.b64encode(rng.randbytes(900)).decode(),
        "hash": lambda: f"sha256 {rng.randbytes(32).hex()}  file.tar.gz\nmd5 {rng.randbytes(16).hex()}\n",
        "commit": lambda: f"commit {rng.randbytes(20).hex()}\nAuthor: J <j@example.test>\n",
        "lock": lambda: f'"integrity": "sha512-{base64.b64encode(rng.randbytes(64)).decode()}",\n"resolved": "x.tgz"',
        "floats": lambda: ",".join(f"{rng.random():.14f}" for _ in range(20)),
        "svg": lambda: "M" + " ".join(f"{rng.uniform(0, 999):.3f},{rng.uniform(0, 999):.3f}" for _ in range(30)),
        "phone": lambda: f"call 202-555-{_digits(rng, 4)} ref 1555-12-{_digits(rng, 4)}",
        "imei": lambda: f"IMEI {(one := '35' + _digits(rng, 12))}{luhn.calc_check_digit(one)}",
        "bad iban": lambda: f"DE{rng.choice(['00', '01', '99'])}{_digits(rng, 18)} SKU",
        "placeholder": lambda: rng.choice(PLACEHOLDERS),
        "key names": lambda: json.dumps(
            {"Key": f"{_word(rng)}/{_word(rng)}-{_word(rng)}.txt", "key": f"{_word(rng)}.{_word(rng)}"}
        ),
    }
    for kind, one in make.items():
        for _ in range(NUMBERS // 2):
            yield Text(one(), kind)


PLACEHOLDERS = (
    'token = os.environ["GITHUB_TOKEN"]', "password = getpass.getpass()", 'key="YOUR_API_KEY_HERE"',
    "password: ${DATABASE_PASSWORD}", "api_key: {{ vault.api_key }}",
    "secret=<your-secret-goes-here>",
    "AKIAIOSFODNN7" + "EXAMPLE",
    "sk_live_" + "x" * 24,
    "The meeting is confidentially handled by the secretary", "token: 'xxxxxxxxxxxxxxxxxxxx'",
    "auth_token=changeme-please",
)  # fmt: skip


def _sources(folders: list[Path], rng: random.Random) -> Iterator[Text]:
    """Pieces of files that hold no key of a test: keys in them would be found, and rightly."""
    found = ((folder, file) for folder in folders for pattern in _CODE for file in folder.glob(pattern))
    files = sorted(file for folder, file in found if "test" not in str(file.relative_to(folder)) and file.is_file())
    for file in rng.sample(files, min(SOURCES, len(files))):
        text = file.read_bytes().decode("utf-8", "replace")
        at = rng.randrange(max(len(text) - SOURCE_BYTES, 1))
        if "PRIVATE KEY" not in text:
            yield Text(text[at : at + SOURCE_BYTES], f"source {file.suffix}")


def _card(luhn: object, rng: random.Random) -> str:
    number = rng.choice(["4", "51", "55", "2221", "6011", "3528"])
    number += _digits(rng, 15 - len(number))
    return f"{number}{luhn.calc_check_digit(number)}"  # type: ignore[attr-defined]


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def _word(rng: random.Random) -> str:
    return rng.choice(("report", "invoice", "avatar", "index", "settings", "profile", "summary", "archive", "photo"))
