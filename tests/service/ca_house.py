"""A state with a CA, and `mitmsec ca` on it, for the tests of the commands that change it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import MintQuestion, Role
from mitmsec.service.accounts import account_of
from mitmsec.service.ca_commands import ca
from mitmsec.service.state import State
from mitmsec_certs import ceremony
from mitmsec_certs.keystore import Keystore, open_keystore
from mitmsec_certs.leaf_keys import LeafKeys
from mitmsec_certs.profile import Name
from mitmsec_certs.signer import Mint

WORD = "correct horse battery"


class CaHouse:
    """One folder with a state, a root's file and a passphrase in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, State(folder / "state")
        self.word = folder / "word"
        self.write_word(WORD)

    def write_word(self, word: str) -> None:
        self.word.write_text(word)
        self.word.chmod(0o600)

    def mitmsec(self, *words: str) -> Result:
        return CliRunner().invoke(ca, [*words, "--state", str(self.state.folder)], env={"COLUMNS": "160"})

    def with_word(self, command: str, *words: str, root_file: str = "root.p12") -> Result:
        """`command` with the passphrase and the root's file."""
        brought = ("--passphrase-file", str(self.word), "--root-file", str(self.folder / root_file))
        return self.mitmsec(command, *brought, *words)

    def shown(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.mitmsec("show", "--json").stdout)
        return told

    def issuing_key(self) -> bytes:
        """The public half, once the signer's user has opened the CA as the signer does."""
        return self._as_signer(lambda keystore: [keystore.authority.public_key])[0]

    def leaf(self, name: str) -> list[bytes]:
        """The chain of a leaf for `name`, as the signer would issue it now."""

        def work(keystore: Keystore) -> list[bytes]:
            now_s = int(time.time())
            pair = LeafKeys().of(LeafKeyKind.P256, now_s)
            question = MintQuestion(number=1, flow="f")
            return [*Mint(keystore.authority).leaf(Name.of(name), pair, question, now_s).chain]

        return self._as_signer(work)

    def _as_signer(self, work: Callable[[Keystore], list[bytes]]) -> list[bytes]:
        account = account_of(Role.SIGNER)

        def opened() -> list[bytes]:
            return work(open_keystore(Path(), "host", int(time.time())))

        return ceremony.in_child(opened, user=(account.uid, account.gid), folder=self.state.ca)

    def make_automatic(self) -> None:
        """As the first run does."""
        self.state.make()
        os.chown(self.state.ca, 0, 0)
        open_keystore(self.state.ca, "host", int(time.time()))
        self.state.make()
        for path in self.state.ca.iterdir():
            os.chown(path, account_of(Role.SIGNER).uid, account_of(Role.SIGNER).gid)
