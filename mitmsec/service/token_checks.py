"""What `doctor` says of a CA whose issuing key is in a token: whether the signer can find what it needs.

Nobody logs in to the token for that: a look around uses up no PIN.
"""

from __future__ import annotations

import os
import time

from mitmsec.core.token_module import TokenModule
from mitmsec.service import token_ground
from mitmsec.service.called import program, with_state
from mitmsec.service.state import State
from mitmsec_certs.ca_facts import facts
from mitmsec_certs.ca_folder import KeystoreRefused
from mitmsec_certs.token_uri import BadUri, parse
from mitmsec_redirect.probe import Check

NAME = "token"


def token_checks(state: State) -> list[Check]:
    """One for the CA that serves, where its key is in a token; else none."""
    try:
        found = facts(state.ca, int(time.time())) if os.access(state.ca, os.X_OK) else None
    except KeystoreRefused as error:
        return [Check(name="CA", ok=False, detail=str(error))]
    try:
        if found is None or not found.token:
            return []
        module = token_ground.modules_of(state).of(parse(found.token).module)
    except (token_ground.ModulesRefused, BadUri) as error:
        return [Check(name=NAME, ok=False, detail=str(error))]
    flaw = f"no module is allowed for {found.token}" if module is None else _flaw(module)
    again = f"bring it back; `{program()} ca show{with_state(state)}` shows which token is meant"
    return [Check(name=NAME, ok=flaw is None, detail=flaw or found.token, remedy="" if flaw is None else again)]


def _flaw(module: TokenModule) -> str | None:
    from mitmsec_certs.token_session import TokenRefused, require_roots

    missing = [path for path in module.shows if not os.path.exists(path)]
    if missing:
        return f"the issuing key's module reads {', '.join(missing)}, which is not there"
    try:
        require_roots(module.path)
    except TokenRefused as error:
        return str(error)
    return None
