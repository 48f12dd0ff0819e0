"""What waits for the disk does so in a thread that was there before, and the loop does not wait with it."""

from __future__ import annotations

import asyncio
import threading

from mitmsec.service.disk_thread import DiskThread


def test_the_loop_turns_while_the_disk_takes_its_time() -> None:
    async def main() -> None:
        before, may = threading.active_count(), threading.Event()
        disk, told = DiskThread("disk"), list[OSError | None]()
        assert threading.active_count() == before + 1
        error = OSError(28, "No space left on device")

        def full() -> None:
            raise error

        def slow() -> None:
            assert may.wait(10)

        disk(slow, told.append)
        disk(full, told.append)
        await disk.idle(0.01)
        assert told == []
        may.set()
        await disk.idle(10)
        assert told == [None, error]
        await disk.idle(10)
        assert threading.active_count() == before + 1
        disk.close()

    asyncio.run(main())


def test_what_has_not_begun_when_it_is_closed_is_left() -> None:
    async def main() -> None:
        disk, told, may = DiskThread("disk"), list[str](), threading.Event()
        disk(lambda: told.append("did" if may.wait(10) else "waited"), lambda _: told.append("done"))
        disk(lambda: told.append("never"), lambda _: told.append("never"))
        disk.close()
        may.set()
        await disk.idle(10)
        assert told == ["did", "done"]

    asyncio.run(main())
