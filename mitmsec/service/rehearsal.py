"""Would a signer in its jail be able to sign with a CA whose key is in a token? Asked before that CA serves.

A command that makes such a CA sees the whole machine; the signer sees `/usr` and what root has written down, and may
open no connection. So one is begun for a moment, on the CA that waits, with nobody to issue for: it opens the token,
signs its revocation list, and says whether it could.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from mitmsec.channel import Channel, ChannelBroken, pair
from mitmsec.core.messages import Fault, Role, SignerReady, SignerSettings
from mitmsec.service import sealing, token_ground
from mitmsec.service.accounts import account_of
from mitmsec.service.jail import Jail, spawn
from mitmsec.service.state import State

DEADLINE_S = 30.0


def flaw_of(state: State, folder: Path) -> str | None:
    """Why a signer could not serve with the CA in `folder`, which lies in the CA's own; None: it could.

    Raises SealFailed, OSError.
    """
    ours, theirs = pair()
    recorder, its_end = pair()
    jail = Jail(
        role=Role.SIGNER,
        account=account_of(Role.SIGNER),
        mountpoint=str(state.jail),
        folder=str(state.ca),
        shows=token_ground.modules_of(state).shows,
    )
    with open(os.devnull, "wb") as nobody, theirs, recorder, its_end, sealing.descriptors(state) as opens:
        pid = spawn(jail, theirs.fileno(), nobody.fileno())
        control = Channel(ours, [SignerReady, Fault])
        try:
            theirs.close()
            settings = SignerSettings(folder=str(folder))
            answer = control.exchange(settings, its_end.fileno(), *opens, timeout_s=DEADLINE_S)
        except (TimeoutError, ChannelBroken) as error:
            return f"the signer did not open it: {error}"
        finally:
            control.close()
            os.kill(pid, signal.SIGKILL)  # it has nothing to finish
            os.waitpid(pid, 0)
    if answer is None:
        return "the signer ended while it opened it"
    return answer[0].detail if isinstance(answer[0], Fault) else None
