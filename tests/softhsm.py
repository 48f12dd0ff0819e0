"""A token of SoftHSM's, the test's own, where the signer's user can read it and nobody else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mitmsec.core.messages import Role
from mitmsec.core.token_module import TokenModule
from mitmsec.service.accounts import account_of

MODULES = (Path("/usr/lib/softhsm/libsofthsm2.so"), Path("/usr/lib64/softhsm/libsofthsm2.so"))
MODULE = os.path.realpath(next((path for path in MODULES if path.exists()), MODULES[0]))
PIN, SO_PIN = "2468-correct", "so-13579"
LABEL = "mitmsec test"
needs_softhsm = pytest.mark.skipif(
    shutil.which("softhsm2-util") is None, reason="softhsm2-util is not installed (Debian: softhsm2)"
)


class SoftHsm:
    """One token, with a configuration that names it. `folder` is one that the signer's user can reach."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokens, self.configuration = folder, folder / "tokens", folder / "softhsm2.conf"
        self.pin_file = folder / "pin"
        self.tokens.mkdir(mode=0o700)
        account = account_of(Role.SIGNER)
        os.chown(self.tokens, account.uid, account.gid)
        self.configuration.write_text(f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\n")
        self.configuration.chmod(0o644)
        self.write_pin(PIN)
        self.util("--init-token", "--free", "--label", LABEL, "--so-pin", SO_PIN, "--pin", PIN)

    def write_pin(self, pin: str) -> None:
        self.pin_file.write_text(pin + "\n")
        self.pin_file.chmod(0o600)

    def util(self, *words: str) -> None:
        """softhsm2-util, as the signer's user: what it makes is theirs."""
        account = account_of(Role.SIGNER)
        subprocess.run(
            ["softhsm2-util", *words],
            env={"SOFTHSM2_CONF": str(self.configuration), "PATH": os.environ["PATH"]},
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            check=True,
            capture_output=True,
        )

    def bring(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, label: str, identifier: str = "a1") -> None:
        """`key` is in the token from now on, and can leave it no more."""
        file = self.folder / "brought.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        os.chown(file, account_of(Role.SIGNER).uid, account_of(Role.SIGNER).gid)
        self.util("--import", str(file), "--token", LABEL, "--label", label, "--id", identifier, "--pin", PIN)
        file.unlink()

    def change_pin(self, new: str) -> None:
        """As whoever has it may."""
        code = (
            "import pkcs11, sys\nmodule, label, old, new = sys.argv[1:]\n"
            "pkcs11.lib(module).get_token(token_label=label).open(rw=True, user_pin=old).set_pin(old, new)\n"
        )
        environment = {"SOFTHSM2_CONF": str(self.configuration)}
        subprocess.run([sys.executable, "-c", code, MODULE, LABEL, PIN, new], env=environment, check=True)
        account = account_of(Role.SIGNER)
        for path in self.tokens.rglob("*"):
            os.chown(path, account.uid, account.gid)

    @property
    def module(self) -> TokenModule:
        shows = (str(self.tokens), str(self.configuration))
        return TokenModule(path=MODULE, shows=shows, environment=(("SOFTHSM2_CONF", str(self.configuration)),))

    def uri(self, label: str, *, token: str = LABEL) -> str:
        return f"pkcs11:token={token.replace(' ', '%20')};object={label}?module-path={MODULE}"

    def options(self, label: str) -> tuple[str, ...]:
        """For `ca init` and `ca import`."""
        paths = ("--pkcs11-path", str(self.tokens), "--pkcs11-path", str(self.configuration))
        environment = ("--pkcs11-env", f"SOFTHSM2_CONF={self.configuration}")
        return ("--pkcs11", f"{self.uri(label)}&pin-source=file:{self.pin_file}", *paths, *environment)
