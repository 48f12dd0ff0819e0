"""How those are without whom the gate must not go on as if nothing were: the recorder and the signer."""

from __future__ import annotations

from mitmsec.audit.producer import Producer


class Colleagues:
    """How the recorder and the signer are (Health)."""

    def __init__(self, recorder: Producer) -> None:
        self.signing = True
        self.off = False
        self._recorder = recorder
        self._lost = 0  # events given up in earlier times of trouble

    @property
    def recording(self) -> bool:
        """False when the recorder has gone or its disk takes nothing, and from a lost event until it has caught up."""
        if self._recorder.lost != self._lost:
            if self._recorder.congested:
                return False
            self._lost = self._recorder.lost
        return not self._recorder.gone and not self._recorder.failing
