"""What others say that secrets look like: rules in packages of theirs, asked for when the benchmark runs.

    kingfisher-bin (Apache-2.0)   the catalogue of `kingfisher rules list`, where it names what gitleaks has a rule for
    credsweeper (MIT)             its rules for services that gitleaks knows, with a form of their own; since they take
                                  more than there is, what is drawn from them counts where kingfisher has a rule for it

Nothing of them is kept in this repository. Whoever wrote them is nobody who wrote the rules that are measured, but
for those of the first that are gitleaks' own to the letter: those are left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path

import yaml

from mitmsec.core.model import Value
from mitmsec_addons.go_expressions import for_re, ported

PACKAGES = ("kingfisher-bin==2.14.0", "credsweeper==1.19.5")
CREDSWEEPER = (
    "AWS Client ID", "Alibaba Access Key ID", "Dynatrace API Token", "Doppler API Key", "Google API Key",
    "JSON Web Token", "SendGrid API Key", "Clojars Deploy Token", "Shopify Token", "Slack Webhook", "PyPi API Token",
    "NPM Token", "Github App Installation Token", "Github Classic Token", "Github Fine-granted Token",
    "Digital Ocean Token", "Gitlab Prefix Token", "Grafana Service Account Token", "Grafana Access Policy Token",
    "Linear API Key", "Age Secret Key", "Hashicorp Terraform Token", "Airtable API Key", "OpenAI Token",
    "Anthropic API Key", "Perplexity API Key", "Pulumi Personal Access Token", "Sentry User Auth Token",
    "RubyGems API Key", "Databricks Access Token", "Postman Credentials", "Typeform API Personal Token",
)  # fmt: skip


class Others(Value, frozen=True):
    """Expressions by who says them and how they are called there; those that confirm, of any service."""

    drawn_from: dict[str, str]
    confirming: tuple[str, ...]


def others() -> Others:
    """Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder, *PACKAGES]
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], check=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        catalogue = _catalogue(Path(folder))
        return Others(
            drawn_from={**dict(_kingfisher(catalogue)), **dict(_credsweeper(Path(folder)))},
            confirming=tuple(_ported(catalogue)),
        )


def _gitleaks() -> Mapping[str, str]:
    text = resources.files("mitmsec_addons").joinpath("rules/gitleaks.toml").read_text()
    return {one["id"]: one.get("regex", "") for one in tomllib.loads(text)["rules"]}


def _catalogue(folder: Path) -> list[dict[str, str]]:
    program = folder / "kingfisher" / "bin" / "kingfisher"
    program.chmod(0o755)
    words = [str(program), "rules", "list", "--no-update-check", "--format", "json"]
    told = subprocess.run(words, check=True, capture_output=True, env={"HOME": str(folder)}).stdout
    rules: list[dict[str, str]] = json.loads(told)
    return rules


def _ported(catalogue: list[dict[str, str]]) -> Iterator[str]:
    """Those that can be."""
    for rule in catalogue:
        with suppress(ValueError):
            yield for_re(ported(rule["pattern"]))


def _kingfisher(catalogue: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    known = _gitleaks()
    for rule in catalogue:
        _, name, *_ = rule["id"].split(".")
        if name in known and rule["pattern"] != known[name]:
            yield f"kingfisher {name}", for_re(ported(rule["pattern"]))


def _credsweeper(folder: Path) -> Iterator[tuple[str, str]]:
    rules = yaml.safe_load((folder / "credsweeper" / "rules" / "config.yaml").read_text())
    for rule in rules:
        if rule["name"] in CREDSWEEPER:
            yield f"credsweeper {rule['name']}", rule["values"][0]
