"""`[engine] mitmproxy_addons`: which files, and what is wrong with them, found without executing any."""

from __future__ import annotations

import hashlib

import pytest

from mitmsec.config import PolicyErrors, parse_policy
from mitmsec.core.mitmproxy_addon import FILE_LIMIT_CHARACTERS
from mitmsec.core.policy import Policy

FILES = {
    "a.py": "raise SystemExit  # not executed here\n",
    "addons/b.py": "x = 1\n",
    "broken.py": "x = (\n",
    "zero.py": "x = '\0'\n",
    "deep.py": "-" * 100_000 + "1",
    "long.py": "#" * (FILE_LIMIT_CHARACTERS + 1),
    **{f"{number}.py": "" for number in range(17)},
}


def parsed(files: list[str]) -> Policy:
    def read(name: str) -> str:
        if name not in FILES:
            raise FileNotFoundError(2, "No such file or directory", name)
        return FILES[name]

    return parse_policy(f"version = 1\n[engine]\nmitmproxy_addons = {files!r}\n", file="f.toml", read_list=read)


def test_files_are_taken_in_their_order_with_their_text() -> None:
    policy = parsed(["@addons/b.py", "a.py"])
    assert [(addon.name, addon.text) for addon in policy.mitmproxy_addons] == [
        ("addons/b.py", FILES["addons/b.py"]),
        ("a.py", FILES["a.py"]),
    ]
    hashed = hashlib.sha256(FILES["a.py"].encode()).hexdigest()
    assert policy.mitmproxy_addons[1].told == f"a.py, sha256 {hashed}"
    assert parsed(["a.py"]).fingerprint != parsed(["addons/b.py"]).fingerprint


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["none.py"], "cannot read none.py: No such file or directory"),
        (["broken.py"], "broken.py is no Python: line 1: '(' was never closed"),
        (["zero.py"], "zero.py is no Python"),
        (["deep.py"], "deep.py is no Python"),
        (["long.py"], "long.py is longer than 262144 characters"),
        (["a.py", "@a.py"], "a.py is named twice"),
        ([f"{number}.py" for number in range(17)], "16 addons at most"),
    ],
)
def test_what_is_no_addon_is_an_error_of_the_policy(files: list[str], told: str) -> None:
    with pytest.raises(PolicyErrors) as caught:
        parsed(files)
    assert told in str(caught.value)
    assert "f.toml:3" in str(caught.value)
