"""Which modules root has allowed."""

from __future__ import annotations

from mitmsec.core.token_module import TokenModule, TokenModules

ONE = TokenModule(path="/usr/lib/one.so", shows=("/etc/one", "/var/tokens"))
TWO = TokenModule(path="/opt/two.so", shows=("/var/tokens",), environment=(("TWO", "2"),))


def test_what_was_not_allowed_is_not_there() -> None:
    assert TokenModules().of(ONE.path) is None
    both = TokenModules().plus(ONE).plus(TWO)
    assert both.of(ONE.path) == ONE
    assert both.of(TWO.path) == TWO
    assert both.of("/usr/lib/three.so") is None


def test_the_later_word_about_a_module_is_the_one_that_counts() -> None:
    again = TokenModule(path=ONE.path, shows=("/etc/other",))
    assert TokenModules().plus(ONE).plus(TWO).plus(again).modules == (TWO, again)


def test_the_signer_sees_modules_and_what_they_need_each_once() -> None:
    both = TokenModules().plus(ONE).plus(TWO)
    assert both.shows == ("/usr/lib/one.so", "/etc/one", "/var/tokens", "/opt/two.so")
