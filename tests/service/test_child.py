"""A child takes its settings first, answers questions about itself, and ends with its channel."""

from __future__ import annotations

import asyncio
from typing import Any

from mitmsec.channel import Channel, pair
from mitmsec.core.messages import Drain, Message, ModulesAnswer, ModulesQuestion, Ready, RecorderSettings
from mitmsec.service import child


class Diary:
    """A program that writes down what happens to it."""

    def __init__(self, lines: list[object], answer: Message | None = None) -> None:
        self._lines, self._answer = lines, answer

    async def start(self, settings: Any, fds: list[int]) -> Message | None:
        self._lines.append(settings)
        return self._answer

    def told(self, message: Any, fds: list[int]) -> None:
        self._lines.append(message)

    async def stop(self) -> None:
        self._lines.append("stopped")


def serve(said: list[Message], answers: int) -> tuple[list[object], list[object]]:
    """Run a child that hears `said` and, after so many answers, the end; what it wrote down, and what it answered."""
    lines: list[object] = []
    heard: list[object] = []

    async def story() -> None:
        ours, theirs = pair()
        supervisor = Channel(ours, [Ready, ModulesAnswer])
        control = Channel(theirs, [RecorderSettings, Drain, ModulesQuestion])
        serving = asyncio.create_task(
            child._serve(control, lambda control: Diary(lines), lambda: lines.append("sealed"))
        )

        def answered(message: object, fds: list[int]) -> None:
            heard.append(message)
            if len(heard) == answers:
                supervisor.close()

        supervisor.attach(asyncio.get_running_loop(), answered, lambda: None)
        for message in said:
            supervisor.send(message)
        await asyncio.wait_for(serving, 10)

    asyncio.run(story())
    return lines, heard


def test_settings_come_first_and_the_end_stops_it() -> None:
    settings, drain = RecorderSettings(folder="/x"), Drain(grace_s=1.0)
    lines, heard = serve([settings, drain, ModulesQuestion()], answers=2)
    assert lines == [settings, "sealed", drain, "stopped"]
    assert heard[0] == Ready()


def test_it_names_its_modules_even_before_it_has_settings() -> None:
    lines, heard = serve([ModulesQuestion()], answers=1)
    assert lines == []
    assert isinstance(heard[0], ModulesAnswer)
    assert "mitmsec.service.child" in heard[0].modules
