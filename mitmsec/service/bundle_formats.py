"""Further files of the console's bundles: the formats of `audit export`."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from mitmsec import __version__
from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import Format
from mitmsec.audit.export.formats import header, in_file
from mitmsec.audit.export.reading import Source
from mitmsec.core.model import Value


class BundleFormat(Value, frozen=True):
    """One of them, as the pages know formats (mitmsec.audit.console.ground)."""

    name: str
    file: str
    form: Format

    def written(self, events: Sequence[Fields]) -> bytes:
        """All of them, as one file."""
        writes, source = in_file(self.form), Source(host=socket.gethostname(), version=__version__)
        return header(self.form) + b"".join(writes(event, source) for event in events)


FORMATS = (
    BundleFormat(name="csv", file="events.csv", form=Format.CSV),
    BundleFormat(name="ocsf", file="events.ocsf.jsonl", form=Format.OCSF),
    BundleFormat(name="ecs", file="events.ecs.jsonl", form=Format.ECS),
)
