"""The rules of the house, as tests. What a rule excuses stands in a short table here, with the reason."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {  # package → where it lies, where its tests lie
    "mitmsec": ("mitmsec", "tests"),
    "mitmsec_addons": ("addons/mitmsec_addons", "tests/addons"),
    "mitmsec_certs": ("certs/mitmsec_certs", "tests/certs"),
    "mitmsec_redirect": ("redirect/mitmsec_redirect", "tests/redirect"),
}
FOLDERS_THAT_ARE_NO_PACKAGES = {"addons", "certs", "redirect"}
# Without a word like that, alone or within quotation marks, nothing is imported from there; to parse takes its time.
_MAY_IMPORT = re.compile(rb"(?m)(?:^|[\s,(]|['\"])(?:addons|certs|redirect)(?=[\s.,;)#'\"\\]|$)")
LINES_USUAL = 400
LINES_LIMIT = 600

# Modules without a test file of their own, and what tests them instead.
TESTED_ELSEWHERE = {
    "addons/mitmsec_addons/containers.py": "types only; tests/addons/container_stage.py reads them",
    "mitmsec/__main__.py": "one line; tests/end_to_end starts it",
    "mitmsec/audit/bundling.py": "tests/audit/test_audit_bundle.py makes bundles by it",
    "mitmsec/audit/console/cookies.py": "tests/audit/console/test_entry_pages.py looks at it",
    "mitmsec/audit/console/duty.py": "tests/audit/console/test_desk.py and test_web.py hold its table",
    "mitmsec/audit/console/ground.py": "tests/console_stage.py stands on it",
    "mitmsec/audit/console/visits.py": "tests/audit/console/test_web.py sends what it reads",
    "mitmsec/core/learning_section.py": "tests/core/test_learning.py reads policies by it",
    "mitmsec/core/mitmproxy_addon.py": "tests/core/test_engine_section.py reads them",
    "mitmsec/core/origin_proof.py": "types only; tests/certs/test_upstream.py judges them",
    "mitmsec/core/content_orders.py": "types only; tests/service/test_content_desk.py orders by them",
    "mitmsec/core/quarantine_section.py": "tests/core/test_quarantine.py reads policies by it",
    "mitmsec/core/retention.py": "a value; tests/core/test_retention_section.py reads it",
    "mitmsec/core/upgrade_lines.py": "tests/core/test_upgrade.py plays dialogues of every protocol",
    "mitmsec/core/upgrade_packets.py": "tests/core/test_upgrade.py plays dialogues of every protocol",
    "mitmsec/core/upgrade_step.py": "tests/core/test_upgrade.py plays dialogues of every protocol",
    "mitmsec/core/upgrade_xmpp.py": "tests/core/test_upgrade.py plays dialogues of every protocol",
    "mitmsec/engine/client_handshake.py": "tests/engine/test_engine_conversation.py and test_engine_notice.py",
    "mitmsec/engine/relay.py": "tests/engine/test_engine_mail.py has ends wait, test_engine_dialogue.py has them pass",
    "mitmsec/engine/further.py": "tests/engine/test_engine_dialogue.py asks for further connections",
    "mitmsec/engine/heads.py": "tests/engine/test_engine_exchange.py begins with them",
    "mitmsec/engine/quic/http3.py": "tests/engine/quic/test_engine_quic_dialogue.py speaks it, and breaks it",
    "mitmsec/engine/seams.py": "types only; tests/engine uses them",
    "mitmsec/gate/colleagues.py": "tests/gate/test_gate_loop.py and tests/end_to_end take them away",
    "mitmsec/gate/quic_account.py": "tests/gate/test_gate_quic_flow.py reads its records",
    "mitmsec/gate/quic_ground.py": "tests/gate/test_gate_quic_relay.py stands on it",
    "mitmsec/gate/quic_signals.py": "values only; tests/gate/test_gate_quic_flow.py reads them",
    "mitmsec/gate/surroundings.py": "types; tests/gate_house.py makes them",
    "mitmsec/gate/descriptors.py": "tests/gate/test_gate_loop_limits.py runs out of them",
    "redirect/mitmsec_redirect/divert_seams.py": "types only; tests/redirect/test_windivert.py uses them",
    "mitmsec/audit/export/ocsf_objects.py": "tests/audit/export/test_ocsf.py validates events made of them",
    "mitmsec/service/audit_filters.py": "tests/service/test_audit_commands.py and test_audit_export_command.py filter",
    "mitmsec/service/account_commands.py": "tests/end_to_end/test_console_life.py calls them",
    "mitmsec/service/audit_bundle.py": "tests/end_to_end/test_console_life.py calls it",
    "mitmsec/service/console.py": "composition root; tests/end_to_end/test_console_life.py",
    "mitmsec/service/console_evidence.py": "tests/end_to_end/test_uploads.py has evidence shown by it",
    "mitmsec/service/console_command.py": "tests/end_to_end/test_console_life.py calls it",
    "mitmsec/service/console_messages.py": "types only; tests/end_to_end/test_console_life.py",
    "mitmsec/service/review_record.py": "tests/end_to_end/test_console_life.py has it record",
    "mitmsec/service/notices.py": "tests/end_to_end/test_console_life.py reads them",
    "mitmsec/service/broker_messages.py": "types only; tests/service/test_broker.py sends them",
    "mitmsec/service/children_ground.py": "types only; tests/end_to_end",
    "mitmsec/service/content_ground.py": "tests/service/test_content_desk.py stands a recorder on it",
    "mitmsec/service/log_lock.py": "tests/service/test_content_desk.py takes a log over from one that was killed",
    "mitmsec/service/demo_command.py": "tests/end_to_end runs the demo",
    "mitmsec/service/demo_origins.py": "tests/end_to_end runs the demo",
    "mitmsec/service/demo_tour.py": "tests/end_to_end runs the demo",
    "mitmsec/service/divert_messages.py": "types only; tests/service/test_divert_backend.py sends them",
    "mitmsec/service/diverter.py": "composition root; tests/service/test_divert_backend.py and tests/end_to_end",
    "mitmsec/service/__main__.py": "tests/service/test_importing.py, and every process of ours",
    "mitmsec/service/explained.py": "tests/service/test_policy_commands.py and test_audit_explain_command.py read it",
    "mitmsec/service/log_reading.py": "tests/service/test_audit_commands.py reads a log by it",
    "mitmsec/service/ground.py": "tests/service/test_leftovers.py moves survivors; tests/end_to_end the rest",
    "mitmsec/service/replay_sources.py": "tests/service/test_replay_command.py takes flows from them",
    "mitmsec/service/joining.py": "a front-end's way to the supervisor; tests/end_to_end",
    "mitmsec/service/run.py": "front-end's connection to the supervisor; tests/end_to_end",
    "mitmsec/service/run_command.py": "front-end; tests/end_to_end",
    "mitmsec/service/scanner_messages.py": "types only; tests/service/test_scanner.py sends them",
    "mitmsec/service/session.py": "composition root; tests/end_to_end",
    "mitmsec/service/seal_keeper.py": "types only; tests/service/test_sealing.py and test_dpapi.py use them",
    "mitmsec/service/udp_flows.py": "joins datagrams.py to the kernel; tests/end_to_end/test_udp.py",
    "redirect/mitmsec_redirect/name_steps.py": "instructions; tests/redirect/test_programs.py and test_connect_hook.py",
    "redirect/mitmsec_redirect/route_steps.py": "instructions; tests/redirect/test_connect_hook_routes.py",
    "redirect/mitmsec_redirect/served_steps.py": "instructions; tests/redirect/test_steering.py",
}
# Files beyond LINES_USUAL, and why they are one thing.
LONG: dict[str, str] = {
    "mitmsec/core/messages.py": "one list: what the processes say to each other",
    "mitmsec/gate/flow.py": "one state machine: its ladder is read from top to bottom",
    "mitmsec/gate/quic_flow.py": "likewise",
}

# Written apart so that this file does not name them itself.
REGISTRY_HOSTS = [r"\.".join(host) for host in (
    ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"), ("deb", "debian", "org"),
    ("security", "debian", "org"), ("crates", "io"), ("proxy", "golang", "org"),
)]  # fmt: skip
MACHINE_PATHS = [
    "/" + path for path in (r"work/(?:main|shared|\.library)", r"opt/(?:pypi|wheels)", r"root/\.", r"tmp/b/")
]


@cache
def committed() -> tuple[Path, ...]:
    """Files that are or will be in a commit."""
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    names = subprocess.run([*git, "--exclude-standard"], check=True, capture_output=True, text=True).stdout
    return tuple(path for name in names.split("\0") if name and (path := ROOT / name).is_file())


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules() -> Iterator[tuple[str, Path]]:
    """Every source module with the folder of its tests' package."""
    for folder, tests in PACKAGES.values():
        for path in committed():
            if path.suffix == ".py" and path.is_relative_to(ROOT / folder):
                yield tests, path


def assert_none(what: str, found: Iterable[str]) -> None:
    """Nothing was found; otherwise all of it is told, not what fits in an assertion's line."""
    listed = sorted(found)
    assert not listed, f"{what}:\n  " + "\n  ".join(listed)


def documents() -> str:
    return "\n".join(
        path.read_text() for path in committed() if path.suffix == ".md" and named(path).startswith(("README", "docs/"))
    )


# --- modules and tests ------------------------------------------------------------------------------------------------
def names_of_tests(tests: str, path: Path) -> set[str]:
    """What the test file of a module may be called: `test_flow.py`, or `test_gate_flow.py` where the name is taken."""
    folder = next(ROOT / folder for folder, _ in PACKAGES.values() if path.is_relative_to(ROOT / folder))
    *inner, module = path.relative_to(folder).with_suffix("").parts
    parts = [*tests.split("/")[1:], *inner, module]
    where = "/".join([tests, *inner]) if tests == "tests" else tests
    return {f"{where}/test_{'_'.join(parts[at:])}.py" for at in range(len(parts))}


def test_every_module_has_its_test_file_or_an_excuse_but_not_both() -> None:
    present = {named(path) for path in committed()}
    untested = {
        named(path)
        for tests, path in modules()
        if path.stem != "__init__" and not names_of_tests(tests, path) & present
    }
    assert_none("no test file", untested - set(TESTED_ELSEWHERE))
    assert_none("excused, but gone or tested", set(TESTED_ELSEWHERE) - untested)


def test_test_files_have_unique_names() -> None:
    """There are no packages in tests/, so pytest knows a file by its name alone."""
    names = Counter(path.name for path in committed() if path.is_relative_to(ROOT / "tests") and path.suffix == ".py")
    assert [name for name, count in names.items() if count > 1 and name != "conftest.py"] == []


def test_files_are_short_or_say_why_not() -> None:
    lengths = {named(path): len(path.read_text().splitlines()) for _, path in modules()}
    assert_none(f"over {LINES_LIMIT} lines", (name for name, lines in lengths.items() if lines > LINES_LIMIT))
    long = {name for name, lines in lengths.items() if lines > LINES_USUAL}
    assert_none(f"over {LINES_USUAL} lines", long - set(LONG))
    assert_none("excused, but short", set(LONG) - long)


# --- imports ----------------------------------------------------------------------------------------------------------
def test_the_dependency_contracts_hold() -> None:
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr


def test_folders_are_never_imported_as_packages() -> None:
    """An editable install makes them importable as empty namespaces; their packages have prefixed names."""
    found = [
        f"{named(path)}:{getattr(node, 'lineno', 0)}"
        for path in committed()
        if path.suffix == ".py" and _MAY_IMPORT.search(text := path.read_bytes())
        for node in ast.walk(ast.parse(text))
        if FOLDERS_THAT_ARE_NO_PACKAGES & _imported(node)
    ]
    assert_none("found", found)


def _imported(node: ast.AST) -> set[str]:
    match node:
        case ast.Import(names=names):
            return {alias.name.partition(".")[0] for alias in names}
        case ast.ImportFrom(module=str(module), level=0):
            return {module.partition(".")[0]}
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module)), *_]):
            return {module.partition(".")[0]}
    return set()


@pytest.mark.parametrize("source", ["import certs", "from redirect.x import y", "importlib.import_module('addons.x')"])
def test_the_scan_sees_each_way_to_import_a_folder(source: str) -> None:
    assert _MAY_IMPORT.search(source.encode())
    assert any(FOLDERS_THAT_ARE_NO_PACKAGES & _imported(node) for node in ast.walk(ast.parse(source)))


# --- protocols --------------------------------------------------------------------------------------------------------
def protocol_cells() -> Iterator[tuple[str, str]]:
    """What is spoken, and each cell of its row in the first table of docs/protocols.md."""
    rows = (ROOT / "docs/protocols.md").read_text().partition("| what is spoken |")[2].split("\n\n")[0].splitlines()
    for row in rows[2:]:
        spoken, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        assert len(cells) == 4, row
        yield from ((spoken, cell) for cell in cells)


def test_product_code_makes_no_dataclass() -> None:
    """To make one takes 1 ms at import, a msgspec Struct 0.02. Excused are those that leave a field out of equality."""
    excused = {"redirect/mitmsec_redirect/sockdiag.py", "redirect/mitmsec_redirect/socket_table.py"}
    made = set()
    for folder, _ in PACKAGES.values():
        for path in (ROOT / folder).rglob("*.py"):
            if re.search(r"@(dataclasses\.)?dataclass\b|\bmake_dataclass\b", path.read_text()):
                made.add(str(path.relative_to(ROOT)))
    assert made == excused


def test_each_cell_of_the_protocols_table_names_tests_that_exist_or_says_why_not() -> None:
    there = set(re.findall(r"^(?:async )?def (test_\w+)", "\n".join(_tests_source()), re.MULTILINE))
    cells = [*protocol_cells()]
    named_ones = {name for _, cell in cells for name in re.findall(r"`(test_\w+)`", cell)}
    assert len(named_ones) > 10
    assert_none("named, but no test", named_ones - there)
    words = ("`test_", "as TLS", "never", "not: captured instead", "not by a rule: `test_", "no test yet")
    assert_none(
        "neither a test nor a reason", (f"{spoken}: {cell!r}" for spoken, cell in cells if not cell.startswith(words))
    )


def _tests_source() -> Iterator[str]:
    for path in committed():
        if path.suffix == ".py" and path.is_relative_to(ROOT / "tests") and path.name.startswith("test_"):
            yield path.read_text()


# --- what users read --------------------------------------------------------------------------------------------------
def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))


def test_every_command_and_option_has_help_and_every_command_is_documented() -> None:
    from mitmsec.cli import cli

    text = documents()
    flaws = []
    for path, command in commands(cli):
        name = " ".join(path)
        if not command.help:
            flaws.append(f"{name}: no help")
        flaws += [
            f"{name}: {option.opts[-1]} has no help"
            for option in command.params
            if isinstance(option, click.Option) and not option.help and not option.hidden
        ]
        if path and not re.search(rf"(?:mitmsec |`){re.escape(name)}\b", text):
            flaws.append(f"{name}: not in README.md or docs/")
    assert_none("commands", flaws)


READERS = (
    "core/policyfile", "core/yara_section", "core/policytest_section", "core/inbound_section", "core/engine_section",
    "core/quarantine_section", "core/retention_section", "config",
)  # fmt: skip


def policy_keys() -> set[str]:
    """The keys that the policy's reader asks its tables for."""
    readers = {"choice", "flag", "items", "raw", "table", "tables", "text", "texts"}
    keys = set()
    for path in (ROOT / f"mitmsec/{name}.py" for name in READERS):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr=attr), args=[ast.Constant(value=str(key)), *_]) if (
                    attr in readers
                ):
                    keys.add(key)
    return keys


def test_every_policy_key_is_documented() -> None:
    assert {"action", "on_failure", "host", "expect"} <= policy_keys()
    text = (ROOT / "docs/policy.md").read_text()
    assert [
        key for key in sorted(policy_keys()) if not re.search(rf"`{key}`|^{key} *=|\[\[?{key}[\].]", text, re.M)
    ] == []


# --- what is committed ------------------------------------------------------------------------------------------------
def test_no_registry_host_and_no_path_of_a_developers_machine_is_committed() -> None:
    pattern = re.compile("|".join([*REGISTRY_HOSTS, *MACHINE_PATHS]).encode())
    found = []
    for path in committed():
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if hit := pattern.search(line):
                found.append(f"{named(path)}:{number}: {hit[0].decode()}")
    assert_none("found", found)


def test_hooks_before_a_commit_are_local_and_run_what_make_lint_runs() -> None:
    """No hook comes from elsewhere: each is a tool of the locked .venv, called as the Makefile calls it."""
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert "://" not in text
    linted = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    (source,) = yaml.safe_load(text)["repos"]
    assert source["repo"] == "local"
    assert {hook["language"] for hook in source["hooks"]} == {"system"}
    entries = [hook["entry"].split() for hook in source["hooks"]]
    tools = [Path(entry[0]) for entry in entries]
    assert_none("not in .venv/bin", (str(tool) for tool in tools if tool.parent != Path(".venv/bin")))
    beside = Path(sys.executable).parent
    assert_none("not installed", (tool.name for tool in tools if not (beside / tool.name).exists()))
    calls = [
        " ".join([tool.name, *(word for word in entry[1:2] if word.isalpha())])
        for tool, entry in zip(tools, entries, strict=True)
    ]
    assert_none("not in `make lint`", (call for call in calls if f"$(BIN)/{call}" not in linted))
    assert len(calls) == len(re.findall(r"\$\(BIN\)/(?!\.)", linted))
    checked = subprocess.run(
        [beside / "pre-commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
LOCKED = [path for path in REQUIREMENTS if not path.stem.endswith("override")]


def pins(text: str) -> dict[str, str]:
    """Package → version (with its marker), of a locked file. Raises AssertionError for any other kind of line."""
    found = {}
    logical = re.sub(r" \\\n\s*", " ", text)
    for line in logical.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pin = re.fullmatch(
            r"([a-z0-9._-]+)==([^\s;]+)((?: ;[^-]*?(?=\s--hash))?)((?: --hash=sha256:[0-9a-f]{64})+)", line
        )
        assert pin, f"neither a pin with hashes nor a comment: {line[:120]}"
        found[pin[1]] = pin[2] + pin[3]
    return found


@pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.name)
def test_requirements_are_pins_with_hashes_and_nothing_else(path: Path) -> None:
    text = path.read_text()
    assert pins(text)
    assert "://" not in text


def test_an_override_names_packages_only() -> None:
    lines = (ROOT / "requirements/windows-override.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"#.*|[a-z0-9-]+", line)] == []


@pytest.mark.parametrize(
    "line",
    ["a==1", "a>=1 --hash=sha256:" + "0" * 64, "--index-url x", "a @ file:///x", "-e ."],
    ids=lambda line: line[:9],
)
def test_the_reader_of_requirements_refuses_other_lines(line: str) -> None:
    with pytest.raises(AssertionError):
        pins(line)


RESOLUTIONS = {  # as CONTRIBUTING.md says
    "linux.txt": ["--group", "build", "--python-version", "3.12", "--python-platform", "linux"],
    "dev.txt": ["--group", "dev", "--python-version", "3.12", "--python-platform", "linux"],
    "fuzz.txt": ["--group", "fuzz", "--python-version", "3.12", "--python-platform", "linux"],
    "windows.txt": [
        *("--override", "requirements/windows-override.txt"),
        *("--python-version", "3.13", "--python-platform", "x86_64-pc-windows-msvc"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESOLUTIONS)
def test_the_locked_requirements_are_what_pyproject_resolves_to(name: str, tmp_path: Path) -> None:
    """Also for Windows, which no machine here runs. A committed pin is kept as long as it fits."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not installed beside this Python (it is in requirements/dev.txt)")
    resolved = tmp_path / name
    shutil.copy(ROOT / "requirements" / name, resolved)
    command = [str(uv), "pip", "compile", "pyproject.toml", *RESOLUTIONS[name], "--generate-hashes", "--no-header"]
    command += ["--no-emit-index-url", "--quiet", "--no-python-downloads", "--output-file", str(resolved)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert pins(resolved.read_text()) == pins((ROOT / "requirements" / name).read_text())


def test_windows_gets_the_pair_of_mitmproxy_and_pydivert_that_works_there() -> None:
    """docs/decisions/0001: mitmproxy 12.3 wants the newer pydivert; 12.2 would bring one without the SOCKET layer."""
    locked = pins((ROOT / "requirements/windows.txt").read_text())
    assert re.match(r"12\.([3-9]|\d\d)", locked["mitmproxy"])
    assert re.match(r"3\.1(\.[0-3])?( |$)", locked["pydivert"])
