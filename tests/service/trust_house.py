"""A state with a CA and a tree with stores, for the tests of what `ca trust`, `ca untrust` and `clean` do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ca_house import CaHouse
from click.testing import Result
from trust_stage import debian_tree, nss_home

from mitmsec_certs.truststore.found import stores
from mitmsec_certs.truststore.plan import Store

FIREFOX, CHROMIUM = ".mozilla/firefox/abc.default", ".pki/nssdb"


class TrustHouse(CaHouse):
    """With the stores of a tree of its own instead of the machine's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tree = folder / "tree"
        self.make_automatic()
        debian_tree(self.tree)
        self.home = nss_home(self.tree / "home/tester", FIREFOX, CHROMIUM)

    def stores(self) -> list[Store]:
        return stores([self.home], str(self.tree))

    def trusting(self) -> dict[str, str]:
        """Store → what the list says of it."""
        return {row["store"]: row["state"] for row in self.rows("trust", "--list")}

    def rows(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.mitmsec(*words, "--json").stdout.splitlines()]

    def policy(self, *paths: str, text: str = "") -> str:
        """A file with a policy whose one application these programs are."""
        file = self.folder / "policy.toml"
        selected = text or f"path = {json.dumps(paths)}"
        file.write_text(f'version = 1\n[[application]]\nname = "they"\n{selected}\n')
        return str(file)


def said(result: Result) -> str:
    """Everything, for a message."""
    return result.stdout + result.stderr
