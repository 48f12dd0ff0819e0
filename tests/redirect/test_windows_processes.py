"""On Windows a process is known by what it was when it was met, and is never taken for who has its pid later."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mitmsec.core.model import Confidence, Fact, ParentProcess, Process
from mitmsec_redirect import windows_processes
from mitmsec_redirect.divert_owner import Owners
from mitmsec_redirect.windows_processes import (
    ANCESTORS_LIMIT,
    ENDED_LIMIT,
    ENDED_S,
    HELD_LIMIT,
    NEW_LIMIT,
    SERVICES_S,
    TICK_NS,
    Began,
    Ended,
    Now,
    WindowsProcesses,
    now,
)

BOOT_NS = 1_800_000_000 * 10**9  # Unix time at which the clock of events stood at 0
SECOND_NS = 10**9


@dataclass(eq=False)
class Ran:
    """A process of the machine below; what is open of it stays readable."""

    pid: int
    began_ns: int
    path: str | None = "C:\\Program Files\\X\\x.exe"
    parent_pid: int | None = 0
    of: str | None = None  # its package
    lives: bool = True
    held: int = 0
    file: int | None = None  # the number of its executable's, where Windows tells whether a file is it

    def has_ended(self) -> bool:
        return not self.lives

    def exe(self) -> str | None:
        return self.path

    def parent(self) -> int | None:
        return self.parent_pid

    def user(self) -> str | None:
        return "HOME\\joe"

    def package(self) -> str | None:
        if self.of == "?":
            raise OSError("GetPackageFullName: error 6")
        return self.of

    def runs(self, descriptor: int) -> bool | None:
        return None if self.file is None else os.fstat(descriptor).st_ino == self.file

    def close(self) -> None:
        self.held -= 1


@dataclass
class Machine:
    """Windows, as far as it is asked; `now_ns` since its boot."""

    now_ns: int = 1000 * SECOND_NS
    running: dict[int, Ran] = field(default_factory=dict)
    by_service: Mapping[int, tuple[str, ...]] | None = field(default_factory=dict)
    asked_services: int = 0
    files: dict[str, Path] = field(default_factory=dict)
    signed: dict[bytes, str | None] = field(default_factory=dict)  # who signed a content

    def clock(self) -> Now:
        return Now(self.now_ns, BOOT_NS + self.now_ns)

    def begins(self, pid: int, **facts: object) -> Ran:
        """It begins now."""
        assert pid not in self.running or not self.running[pid].lives
        self.running[pid] = Ran(pid, BOOT_NS + self.now_ns, **facts)  # type: ignore[arg-type]
        return self.running[pid]

    def ends(self, pid: int) -> None:
        self.running[pid].lives = False

    # -- as it is asked ------------------------------------------------------------------------------------------------
    def pids(self) -> list[int]:
        return [pid for pid, one in self.running.items() if one.lives]

    def open(self, pid: int) -> Ran | None:
        one = self.running.get(pid)
        if one is None or not one.lives:
            return None
        one.held += 1
        return one

    def services(self) -> Mapping[int, tuple[str, ...]]:
        self.asked_services += 1
        if self.by_service is None:
            raise OSError("the services cannot be asked for: error 5")
        return self.by_service

    def open_file(self, path: str) -> int:
        return os.open(self.files[path], os.O_RDONLY) if path in self.files else os.open("/nowhere", os.O_RDONLY)

    def signer(self, path: str, descriptor: int) -> str | None:
        content = os.read(descriptor, 100)
        if content not in self.signed:
            raise OSError(f"{path}: WinVerifyTrust: 0x2")
        return self.signed[content]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def table(machine: Machine) -> WindowsProcesses:
    return WindowsProcesses(machine, clock=machine.clock)


def whose(table: WindowsProcesses, pid: int, connected_ns: int | None = None, comm: str = "") -> Process:
    return table.whose(pid, 0, comm, connected_ns).process


def passes(machine: Machine, seconds: float) -> None:
    machine.now_ns += int(seconds * SECOND_NS)


# --- who it is --------------------------------------------------------------------------------------------------------
def test_all_that_is_known_of_a_process_is_told(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(4, path="C:\\Windows\\services.exe")
    passes(machine, 1)
    machine.begins(7, parent_pid=4, of="P_1.0_x64__id")
    machine.by_service = {7: ("Dnscache", "lmhosts")}
    passes(machine, 1)
    assert whose(table, 7) == Process(
        pid=7,
        started="2027-01-15T08:16:41.00Z",
        exe="C:\\Program Files\\X\\x.exe",
        name="x.exe",
        user="HOME\\joe",
        parent=ParentProcess(pid=4, exe="C:\\Windows\\services.exe"),
        services=("Dnscache", "lmhosts"),
        package="P_1.0_x64__id",
        unread=(Fact.SIGNER,),
        source="windivert",
        confidence=Confidence.KERNEL,
    )


def test_of_a_process_that_cannot_be_asked_only_the_pid_is_known(table: WindowsProcesses) -> None:
    nothing = Process(pid=9, name="x", source="windivert", confidence=Confidence.INFERRED, unread=tuple(Fact))
    assert whose(table, 9, comm="x") == nothing


def test_without_its_executable_a_process_is_inferred(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(4, path=None, parent_pid=None, of="?")
    machine.by_service = None
    process = whose(table, 4)
    assert (process.exe, process.name, process.confidence) == (None, None, Confidence.INFERRED)
    assert process.parent == ParentProcess(pid=0), "it may have one"
    assert set(process.unread) == set(Fact)


def test_a_path_that_is_no_text_is_told_and_matches_no_other(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(7, path="C:\\x\\\ud800.exe")
    assert whose(table, 7).exe == "C:\\x\\?.exe"


def test_what_was_met_is_asked_for_once(
    machine: Machine, table: WindowsProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.begins(7)
    passes(machine, 1)
    first = whose(table, 7)
    monkeypatch.setattr(machine, "open", None)
    monkeypatch.setattr(machine, "services", None)
    assert whose(table, 7) == first


# --- when -------------------------------------------------------------------------------------------------------------
def test_a_process_that_was_held_already_is_whose_the_connection_is(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(7)
    table.refresh()
    assert whose(table, 7, machine.now_ns).confidence is Confidence.KERNEL, "in the very tick in which it began"
    machine.ends(7)
    passes(machine, 1)
    ended = whose(table, 7, machine.now_ns - SECOND_NS)
    assert (ended.name, ended.confidence) == ("x.exe", Confidence.KERNEL)


@pytest.mark.parametrize(
    ("after_ns", "confidence", "name"),
    [
        (TICK_NS, Confidence.KERNEL, "x.exe"),
        (TICK_NS - 1, Confidence.INFERRED, "x.exe"),
        (0, Confidence.INFERRED, "x.exe"),
        (-1, Confidence.INFERRED, None),  # it was somebody else's pid then
    ],
)
def test_who_is_met_afterwards_had_to_begin_before(
    machine: Machine, table: WindowsProcesses, after_ns: int, confidence: Confidence, name: str | None
) -> None:
    machine.begins(7)
    connected_ns = machine.now_ns + after_ns
    passes(machine, 1)
    told = whose(table, 7, connected_ns)
    assert (told.confidence, told.name) == (confidence, name)


def test_a_pid_that_is_used_again_is_somebody_else(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(7, path="C:\\first.exe")
    table.refresh()
    connected_ns = machine.now_ns
    machine.ends(7)
    table.refresh()
    passes(machine, ENDED_S)
    table.refresh()  # lets go of it, so that Windows may give the pid away
    machine.begins(7, path="C:\\second.exe")
    passes(machine, 1)
    assert whose(table, 7, machine.now_ns).exe == "C:\\second.exe"
    assert whose(table, 7, connected_ns).exe is None


def test_a_diverter_asks_it_as_it_asks_linux(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(7)
    passes(machine, 1)
    owners = Owners(table)
    told = owners.owner(7, 0, machine.now_ns, Confidence.KERNEL).process
    assert (told.name, told.user, told.confidence) == ("x.exe", "HOME\\joe", Confidence.KERNEL)
    for named in (Confidence.TABLE, Confidence.INFERRED):
        assert owners.owner(7, 0, None, named).process.confidence is named, "a table named it"
    assert owners.owner(8, 0, None, Confidence.TABLE).process.confidence is Confidence.INFERRED
    owners.close()
    assert machine.running[7].held == 0


# --- parents ----------------------------------------------------------------------------------------------------------
def test_parents_are_told_as_far_as_events_tell_them(machine: Machine, table: WindowsProcesses) -> None:
    for pid in range(1, 10):
        machine.begins(pid, path=f"C:\\{pid}.exe", parent_pid=pid - 1)
        passes(machine, 1)
    chain, parent = [], whose(table, 9).parent
    while parent is not None:
        chain.append((parent.pid, parent.exe))
        parent = parent.parent
    assert chain == [(pid, f"C:\\{pid}.exe") for pid in (8, 7, 6, 5, 4)]
    assert len(chain) == ANCESTORS_LIMIT


def test_who_has_a_parents_pid_and_is_younger_is_not_the_parent(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(7, parent_pid=4)
    machine.begins(8, parent_pid=5)
    passes(machine, 1)
    machine.begins(4, path="C:\\other.exe")
    assert whose(table, 7).parent == ParentProcess(pid=4)
    assert whose(table, 8).parent == ParentProcess(pid=5), "nobody has it any more"


def test_a_parent_that_ends_is_still_the_parent(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(4, path="C:\\parent.exe")
    passes(machine, 1)
    machine.begins(7, parent_pid=4)
    table.refresh()
    machine.ends(4)
    assert whose(table, 7).parent == ParentProcess(pid=4, exe="C:\\parent.exe")


# --- services ---------------------------------------------------------------------------------------------------------
def test_services_are_asked_for_again_after_a_while_and_for_who_is_younger(
    machine: Machine, table: WindowsProcesses
) -> None:
    machine.begins(7)
    passes(machine, 1)
    assert [whose(table, 7).services for _ in range(3)] == [()] * 3
    assert machine.asked_services == 1
    machine.begins(8)
    machine.by_service = {7: ("a",), 8: ("b",)}
    assert (whose(table, 8).services, machine.asked_services) == (("b",), 2)
    passes(machine, SERVICES_S)
    machine.by_service = {7: ("c",)}
    assert whose(table, 7).services == ("a",)
    passes(machine, 0.1)
    assert whose(table, 7).services == ("c",)


def test_for_a_program_that_no_service_manager_started_they_are_not_asked_for_anew(
    machine: Machine, table: WindowsProcesses
) -> None:
    machine.begins(4, path="C:\\Windows\\System32\\services.exe")
    passes(machine, 1)
    machine.begins(5, path="C:\\Windows\\explorer.exe")
    machine.by_service = {6: ("ended",)}
    passes(machine, 1)
    whose(table, 5)
    asked = machine.asked_services
    machine.begins(6, parent_pid=5)
    assert (whose(table, 6).services, machine.asked_services) == ((), asked), "another had its pid then"
    machine.begins(7, parent_pid=4)
    machine.by_service = {7: ("new",)}
    assert (whose(table, 7).services, machine.asked_services) == (("new",), asked + 1)
    machine.begins(8, parent_pid=None)
    assert (whose(table, 8).services, machine.asked_services) == ((), asked + 2), "who knows"


def test_where_they_cannot_be_asked_for_that_is_told(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(7)
    machine.by_service = None
    told = whose(table, 7)
    assert (told.services, told.unread) == ((), (Fact.SIGNER, Fact.SERVICES))


# --- its hash ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def program(machine: Machine, tmp_path: Path) -> Path:
    file = tmp_path / "x.exe"
    file.write_bytes(b"MZ")
    machine.files["C:\\x.exe"] = file
    machine.now_ns = max(file.stat().st_mtime_ns, file.stat().st_ctime_ns) - BOOT_NS
    return file


def test_an_executable_is_hashed_while_its_process_lives(
    machine: Machine, table: WindowsProcesses, program: Path
) -> None:
    machine.begins(7, path="C:\\x.exe")
    whose(table, 7)
    begun = table._lives[7].sha256
    assert begun is not None
    begun.result(timeout=30)
    assert whose(table, 7).sha256 == hashlib.sha256(b"MZ").hexdigest()


def test_a_file_that_was_changed_since_is_not_what_runs(
    machine: Machine, table: WindowsProcesses, program: Path
) -> None:
    machine.now_ns -= SECOND_NS
    machine.begins(7, path="C:\\x.exe")
    owner = table.whose(7, 0, "")
    assert owner.sha256 is not None
    assert owner.sha256.result(timeout=30) is None


def test_a_program_that_was_renamed_lends_nobodys_hash_and_nobodys_signer(
    machine: Machine, table: WindowsProcesses, program: Path
) -> None:
    """Whoever owns a file sets its times; by its handle Windows knows it all the same."""
    machine.signed[b"MZ"] = "CN=A"
    machine.begins(7, path="C:\\x.exe", file=program.stat().st_ino + 1)
    told = settles(table, 7)
    assert (told.sha256, told.signer, told.unread) == (None, None, (Fact.SIGNER,))


def test_what_surely_runs_may_have_any_times(machine: Machine, table: WindowsProcesses, program: Path) -> None:
    machine.signed[b"MZ"] = "CN=A"
    machine.now_ns -= SECOND_NS
    machine.begins(7, path="C:\\x.exe", file=program.stat().st_ino)
    assert settles(table, 7).signer == "CN=A"


@pytest.mark.parametrize("path", ["C:\\gone.exe", None])
def test_what_cannot_be_opened_has_no_hash(machine: Machine, table: WindowsProcesses, path: str | None) -> None:
    machine.begins(7, path=path)
    assert table.whose(7, 0, "").sha256.result(timeout=0) is None  # type: ignore[union-attr]


def test_another_machine_is_not_asked_for_its_file(machine: Machine, table: WindowsProcesses, program: Path) -> None:
    """We would log on there, as whoever we are."""
    path = "\\\\203.0.113.9\\share\\x.exe"
    machine.files[path] = program
    machine.begins(7, path=path)
    owner = table.whose(7, 0, "")
    assert owner.process.exe == path
    assert owner.sha256 is not None
    assert owner.sha256.result(timeout=30) is None


def test_who_has_ended_may_have_had_another_file(machine: Machine, table: WindowsProcesses, program: Path) -> None:
    machine.begins(7, path="C:\\x.exe")
    table.refresh()
    machine.ends(7)
    assert table.whose(7, 0, "").sha256.result(timeout=0) is None  # type: ignore[union-attr]


# --- its signer -------------------------------------------------------------------------------------------------------
def settles(table: WindowsProcesses, pid: int) -> Process:
    """What is told once everything that is under way is done."""
    whose(table, pid)
    life = table._lives[pid]
    if life.signature is not None:
        life.signature.result(timeout=30)
    return whose(table, pid)


@pytest.mark.parametrize("signer", ["CN=A", None])
def test_who_signed_it_is_told_once_that_is_known(
    machine: Machine, table: WindowsProcesses, program: Path, signer: str | None
) -> None:
    machine.signed[b"MZ"] = signer
    machine.begins(7, path="C:\\x.exe")
    told = settles(table, 7)
    assert (told.signer, told.unread) == (signer, ())


def test_a_signature_that_cannot_be_verified_stays_unread(
    machine: Machine, table: WindowsProcesses, program: Path
) -> None:
    machine.begins(7, path="C:\\x.exe")
    told = settles(table, 7)
    assert (told.signer, told.unread) == (None, (Fact.SIGNER,))


def test_nor_is_another_files_signature_told(machine: Machine, table: WindowsProcesses, program: Path) -> None:
    machine.signed[b"MZ"] = "CN=A"
    machine.now_ns -= SECOND_NS
    machine.begins(7, path="C:\\x.exe")
    assert settles(table, 7).unread == (Fact.SIGNER,)


# --- who begins and ends ----------------------------------------------------------------------------------------------
def test_who_begins_and_who_ends_is_told_once(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(7)
    machine.begins(8)
    assert [(type(one), one.process.pid) for one in table.refresh()] == [(Began, 7), (Began, 8)]
    assert table.refresh() == []
    machine.ends(7)
    machine.begins(9)
    whose(table, 9)
    assert [(type(one), one.process.pid) for one in table.refresh()] == [(Began, 9), (Ended, 7)]
    assert table.refresh() == []


def test_a_parent_that_is_met_on_the_way_is_told_too(machine: Machine, table: WindowsProcesses) -> None:
    machine.begins(9)
    passes(machine, 1)
    machine.begins(7, parent_pid=9)
    whose(table, 7)
    assert {one.process.pid for one in table.refresh()} == {7, 9}


def test_who_lives_between_two_looks_is_missed(machine: Machine, table: WindowsProcesses) -> None:
    table.refresh()
    machine.begins(7)
    machine.ends(7)
    assert table.refresh() == []
    assert whose(table, 7).name is None


def test_of_many_that_begin_at_once_some_are_told_later(machine: Machine, table: WindowsProcesses) -> None:
    """Whoever asks about others meanwhile waits for a bounded time."""
    ran = [machine.begins(pid) for pid in range(1, NEW_LIMIT + 11)]
    assert (len(table.refresh()), len(table.refresh()), table.refresh()) == (NEW_LIMIT, 10, [])
    assert all(one.held == 1 for one in ran)


def test_who_cannot_be_asked_takes_nobodys_place(
    machine: Machine, table: WindowsProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine.begins(7)
    monkeypatch.setattr(machine, "pids", lambda: [*range(1000, 1000 + 2 * NEW_LIMIT), 7])
    assert [each.process.pid for each in table.refresh()] == [7]
    assert one.held == 1


# --- bounds -----------------------------------------------------------------------------------------------------------
def refreshed(table: WindowsProcesses, processes: int) -> None:
    """As often as it takes to meet so many."""
    for _ in range(processes // NEW_LIMIT + 1):
        table.refresh()


def test_an_ended_process_is_let_go_of_after_a_while(machine: Machine, table: WindowsProcesses) -> None:
    one = machine.begins(7)
    table.refresh()
    machine.ends(7)
    table.refresh()
    passes(machine, ENDED_S - 1)
    table.refresh()
    assert one.held == 1
    passes(machine, 1)
    table.refresh()
    assert one.held == 0
    assert whose(table, 7).name is None


def test_of_ended_ones_a_number_is_kept_the_last(machine: Machine, table: WindowsProcesses) -> None:
    ran = [machine.begins(pid) for pid in range(1, ENDED_LIMIT + 11)]
    refreshed(table, len(ran))
    for one in ran:
        machine.ends(one.pid)
    table.refresh()
    assert [one.held for one in ran] == [0] * 10 + [1] * ENDED_LIMIT


def test_of_living_ones_a_number_is_held_those_asked_about_last(machine: Machine, table: WindowsProcesses) -> None:
    ran = [machine.begins(pid) for pid in range(1, HELD_LIMIT + 1)]
    refreshed(table, len(ran))
    whose(table, 1)
    more = machine.begins(HELD_LIMIT + 1)
    assert whose(table, more.pid).name == "x.exe"
    assert (ran[0].held, ran[1].held, more.held) == (1, 0, 1)
    assert [one.process.pid for one in table.refresh()] == [more.pid], "who was let go of is not told of again"
    assert sum(one.held for one in ran) == HELD_LIMIT - 1


def test_who_was_let_go_of_while_it_lived_is_told_once_all_the_same(machine: Machine, table: WindowsProcesses) -> None:
    for pid in range(1, HELD_LIMIT + 1):
        machine.begins(pid)
    refreshed(table, HELD_LIMIT)
    machine.begins(HELD_LIMIT + 1)
    whose(table, HELD_LIMIT + 1)  # for whom the first is let go of
    table.refresh()
    for pid in (2, 3):
        machine.ends(pid)
    table.refresh()
    machine.ends(1)  # which nobody holds: so its pid may be another's at once
    assert table.refresh() == []
    machine.now_ns += 1
    machine.begins(1)
    assert [type(one) for one in table.refresh()] == [Began]


def test_who_is_met_again_is_not_told_again(machine: Machine, table: WindowsProcesses) -> None:
    for pid in range(1, HELD_LIMIT + 1):
        machine.begins(pid)
    refreshed(table, HELD_LIMIT)
    machine.begins(HELD_LIMIT + 1)
    whose(table, HELD_LIMIT + 1)
    table.refresh()
    machine.ends(3)
    assert [type(one) for one in table.refresh()] == [Ended]
    assert table.refresh() == [], "there is room for the first now"
    assert 1 in table._lives


def test_nothing_is_held_in_the_end(machine: Machine, table: WindowsProcesses) -> None:
    one = machine.begins(7)
    table.refresh()
    table.close()
    table.close()
    assert one.held == 0


def test_the_clocks_are_the_systems() -> None:
    first, second = now(), now()
    assert first.event_ns <= second.event_ns
    assert abs(first.unix_ns - windows_processes.time.time_ns()) < 60 * SECOND_NS
