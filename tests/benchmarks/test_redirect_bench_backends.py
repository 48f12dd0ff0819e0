"""Rows of the redirect benchmark: where clients call, and which backends mitmsec offers."""

from pathlib import Path

import pytest

from benchmarks.cgroups import Cgroup
from benchmarks.host import CLIENT_ADDRESS, ORIGIN_ADDRESS
from benchmarks.redirect import backends
from benchmarks.redirect.backends import NAMES, Absent, Surroundings, address, bystander, made, offered
from benchmarks.redirect.figures import BARE, DIRECT, EXPLICIT, HOOK, LOCAL, WINDIVERT
from benchmarks.variants import Variant

HELP = """Options:
  --policy FILE             The policy.
  --backend [connect_hook|nftables|
            windivert]      How connections are led here.
  --workers INTEGER         Of replay, how many.
"""


@pytest.mark.parametrize(("backend", "is_offered"), [("connect_hook", True), ("windivert", True), ("replay", False)])
def test_a_backend_is_offered_by_the_option_and_not_by_words_elsewhere(backend, is_offered):
    assert offered(HELP, backend) is is_offered
    assert not offered("  --workers  How many, without --policy.\n", backend)


def test_only_explicit_proxies_are_called_by_their_own_address():
    called = {name: address(name) for name in NAMES}
    assert called[DIRECT] == called[HOOK] == called[LOCAL] == (ORIGIN_ADDRESS, 80)
    assert {called[EXPLICIT][0], called[BARE][0]} == {CLIENT_ADDRESS}
    assert called[EXPLICIT] != called[BARE]


def test_a_bystander_shares_the_cgroup_of_clients_that_are_selected_by_name():
    clients = Cgroup(Path("/sys/fs/cgroup/some"))
    assert bystander(LOCAL, Variant(LOCAL, "", clients=clients)).clients == clients
    assert bystander(HOOK, Variant(HOOK, "")).clients is None


def test_what_is_not_there_says_so(tmp_path):
    around = Surroundings(tmp_path, Cgroup(tmp_path), tmp_path / "ca.pem", tmp_path / "no-mitmdump")
    with pytest.raises(Absent, match="mitmdump could not be installed"):
        made(LOCAL, around)


def test_a_backend_is_asked_for_where_it_is_offered_and_absent_where_it_is_not(tmp_path, monkeypatch):
    around = Surroundings(tmp_path, Cgroup(tmp_path), tmp_path / "ca.pem", tmp_path)
    monkeypatch.setattr(backends, "run", lambda argv: HELP)
    assert made(WINDIVERT, around).diverts[-3:] == ("--backend", "windivert", "--")
    monkeypatch.setattr(backends, "run", lambda argv: "Options:\n")
    with pytest.raises(Absent, match="no such backend"):
        made(WINDIVERT, around)


def test_the_hook_is_what_a_run_takes_that_offers_no_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "run", lambda argv: "Options:\n")
    hook = made(HOOK, Surroundings(tmp_path, Cgroup(tmp_path), tmp_path / "ca.pem", tmp_path))
    assert hook.diverts[-1] == "--"
    assert "--backend" not in hook.diverts
    assert hook.is_ours
