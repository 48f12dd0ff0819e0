"""All flows of one worker."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from mitmsec.core.messages import FlowEnded, HandOver, Plaintext, Upgrading
from mitmsec.core.mitmproxy_addon import MitmproxyAddon
from mitmsec.core.model import Action
from mitmsec.engine import openssl
from mitmsec.engine.contexts import Leaves, OriginContext, log_keys
from mitmsec.engine.conversation import Conversation
from mitmsec.engine.embedded import Embedded
from mitmsec.engine.identities import Identities
from mitmsec.engine.notice import Notice
from mitmsec.engine.prelude import Prelude
from mitmsec.engine.quarantine import Quarantine
from mitmsec.engine.resumption import Resumptions
from mitmsec.engine.seams import Collaborators, EngineSettings
from mitmsec.engine.services import Services
from mitmsec.engine.side import faulty

if TYPE_CHECKING:
    from mitmsec.engine.plain_addons import PlainAddons

STOP_S = 5.0


class Served(Protocol):
    """A flow that is being served."""

    async def run(self) -> FlowEnded | Upgrading:
        """Serve it; how it ended. Never raises but for cancellation, which cuts it."""


type Begins = Callable[[Engine, HandOver, socket.socket, socket.socket], Served]


class Engine:
    """Make it inside a running loop."""

    def __init__(self, settings: EngineSettings, collaborators: Collaborators) -> None:
        self.settings, self.collaborators = settings, collaborators
        self.embedded = Embedded()
        self.origins = OriginContext(collaborators.roots_pem)
        on_key_log = log_keys(collaborators.recorder.record) if settings.capture else None
        self.leaves = Leaves(collaborators.certifier, on_key_log=on_key_log)
        keys_pem = collaborators.keys_pem
        self.identities = Identities(collaborators.identities, keys_pem, collaborators.roots_pem)
        self.services = Services(collaborators.services, keys_pem[self.identities.size_bytes :], on_key_log)
        self.resumptions = Resumptions()
        self.quarantine = (
            None if collaborators.sealing is None else Quarantine(collaborators.sealing, collaborators.recorder)
        )
        self.addons = _plain(collaborators.addons) if collaborators.addons else None
        self._flows: dict[str, asyncio.Task[None]] = {}
        self._kinds: dict[Plaintext, Begins] = {
            Plaintext.DIALOGUE: Prelude,
            Plaintext.HTTP: Conversation,
            Plaintext.TLS: Conversation,
        }
        self.root_certificates = openssl.certificates_of_pem(collaborators.roots_pem) if settings.quic else []
        if settings.quic:
            self._kinds[Plaintext.QUIC] = _of_quic()
        if collaborators.inspectors:
            import_module("mitmsec.engine.mail")  # before a flow waits for it

    def settle(self) -> None:
        """What is loaded by now stays for good: the collector need not look at it again."""
        gc.collect()
        gc.freeze()

    @property
    def live(self) -> int:
        """Flows that have not ended."""
        return len(self._flows)

    def take(self, hand_over: HandOver, client: socket.socket, origin: socket.socket | None) -> None:
        """Serve a flow; both sockets are the engine's from now on. Its end goes to the gate.

        Without `origin` it is one that is blocked, and nothing else can become of it.
        """
        try:
            conversation = self._begin(hand_over, client, origin)
        except Exception as error:
            client.close()
            if origin is not None:
                origin.close()
            ended = faulty(error, hand_over.flow, self.collaborators.recorder)
            return self.collaborators.gate.ended(
                FlowEnded(
                    flow=hand_over.flow,
                    bytes_sent=0,
                    bytes_received=0,
                    outcome=ended.outcome,
                    error=ended.error,
                    reset=True,
                )
            )
        task = asyncio.get_running_loop().create_task(self._serve(conversation))
        self._flows[hand_over.flow] = task
        task.add_done_callback(lambda done: self._forget(hand_over.flow, done))

    def _begin(self, hand_over: HandOver, client: socket.socket, origin: socket.socket | None) -> Served:
        if hand_over.decision.action is Action.BLOCK or origin is None:
            return Notice(self, hand_over, client)
        return self._kinds[hand_over.kind](self, hand_over, client, origin)

    async def _serve(self, conversation: Served) -> None:
        match await conversation.run():
            case Upgrading() as upgrading:
                self.collaborators.gate.upgrading(upgrading)
            case FlowEnded() as ended:
                self.collaborators.gate.ended(ended)

    def _forget(self, flow: str, task: asyncio.Task[None]) -> None:
        if self._flows.get(flow) is task:
            del self._flows[flow]

    def cut(self) -> list[asyncio.Task[None]]:
        """Reset every live flow; the tasks that end with them."""
        tasks = list(self._flows.values())
        for task in tasks:
            task.cancel()
        return tasks

    async def stop(self) -> None:
        """Cut what still lives; its ends have gone to the gate afterwards."""
        tasks = self.cut()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)
        if self.quarantine is not None:
            with contextlib.suppress(TimeoutError):  # the recorder says what of it has not come
                await asyncio.wait_for(self.quarantine.settled(), STOP_S)


def _plain(addons: Sequence[MitmproxyAddon]) -> PlainAddons:
    """Loaded where a policy names some."""
    from mitmsec.engine.plain_addons import PlainAddons

    return PlainAddons(addons)


def _of_quic() -> Begins:
    """It takes a third more of a worker's start, and is code for hostile bytes: loaded where it is wanted."""
    from mitmsec.engine.quic.conversation import QuicConversation

    return QuicConversation
