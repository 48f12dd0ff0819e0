"""What a diverter could be at best: every packet taken, turned round and put back, and nothing else done with it.

The library's two calls that windivert makes for each batch, in the same loop, on packets that make the same way::

     curl ──► C:c ──► O:80 ──► egress ══► receive ── direction of the whole batch ──► send ══► ingress ──► nginx
     curl ◄── the same way back                                                                          ──┘

Nothing is looked up or rewritten, for both ends are here: in `host.mirror` an address is somebody else's to whoever
sends to it, and ours once a packet has come in. So nobody decides, and no gate relays. What windivert spares the
library, the sum of packets that are divided later, is spared here as well.
"""

from __future__ import annotations

import os
import sys

from mitmsec.service.diverter import NICENESS, SWITCH_S
from mitmsec_redirect.divert_library import Batch, Handle, HandleShut, open_handle
from mitmsec_redirect.divert_path import PRIORITY_FIRST, WAIT_S
from mitmsec_redirect.divert_records import FLAGS_AT, RECORD_BYTES, Layer, RecordFlag
from mitmsec_redirect.windivert import RING_BYTES

MTU_BYTES = 1_500  # of the link
FILTER = "outbound and tcp and !loopback"
COMING_IN = bytes(flags & ~RecordFlag.OUTBOUND & 0xFF for flags in range(256))


def turn(handle: Handle) -> None:
    """Until the handle is shut."""
    batch = Batch()
    while True:
        try:
            count, length = handle.receive(batch, WAIT_S)
        except HandleShut:
            return
        if count:
            flags = slice(FLAGS_AT, count * RECORD_BYTES, RECORD_BYTES)
            batch.addresses[flags] = batch.addresses[flags].translate(COMING_IN)
            if length > count * MTU_BYTES:
                spare(batch, count, handle.divided_above)
            handle.send(batch, count, length)


def spare(batch: Batch, count: int, divided_above: int) -> None:
    """The library computes no sum of packets that are longer, as it believes theirs. IPv4 only."""
    offset = 0
    for index in range(count):
        size = int.from_bytes(batch.view[offset + 2 : offset + 4])
        if size > divided_above:
            batch.addresses[index * RECORD_BYTES + FLAGS_AT] |= RecordFlag.TCP_CHECKSUM
        offset += size


def main() -> None:
    """Until killed, in the network namespace that it was started in."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    sys.setswitchinterval(SWITCH_S)
    turn(open_handle(FILTER, Layer.NETWORK, priority=PRIORITY_FIRST, ring_bytes=RING_BYTES))


if __name__ == "__main__":
    main()
