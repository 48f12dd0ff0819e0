"""What all tests have in common: they can be interrupted, and none fails because the machine is busy."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from security_checklist import MARK, Results
from softhsm import SoftHsm

hypothesis.settings.register_profile("mitmsec", deadline=None)  # time is measured in benchmarks
hypothesis.settings.load_profile("mitmsec")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Who started the suite in the background of a shell has SIGINT ignored, and so would all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def softhsm() -> Iterator[SoftHsm]:
    """A token of the test's own, below a folder that the signer's user can reach."""
    with tempfile.TemporaryDirectory(prefix="mitmsec-softhsm-") as folder:
        os.chmod(folder, 0o755)
        yield SoftHsm(Path(folder))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--checklist", metavar="FILE", help="write the security checklist and what its tests came to")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected lives to the end, so that nobody looks through it for garbage, now or in a test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a test is marked with goes with its report, from whichever process runs it."""
    for item in items:
        test = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
        for mark in item.iter_markers(MARK):
            item.user_properties += [(MARK, (identity, test)) for identity in mark.args]


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if (path := config.getoption("--checklist")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Checklist(Path(path)))


class Checklist:
    """Writes the document when the run is over."""

    def __init__(self, path: Path) -> None:
        self.path, self.results = path, Results()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:  # set-up and clean-up only count where they go wrong
            for name, value in report.user_properties:
                if name == MARK:
                    self.results.add(*value, report.outcome)

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(self.results.markdown(), encoding="utf-8")
