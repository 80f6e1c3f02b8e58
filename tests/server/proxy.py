"""A line between two hosts as it may be: ``python -m tests.server.proxy PORT HOST:PORT FILE``.

FILE says in JSON how the line is, and is read for every chunk: ``delay`` and ``jitter`` in seconds, ``rate`` in bytes a
second (0: without a limit), ``stalled`` (nothing passes, nothing is lost).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

CHUNK = 16384
QUEUED = 64  # chunks on the way in one direction; whoever sends more waits, as a sender does


class Line:
    def __init__(self, path: Path) -> None:
        self.path = path

    def now(self) -> dict[str, Any]:
        """How the line is; as before while the file is being written."""
        return {"delay": 0.0, "jitter": 0.0, "rate": 0.0, "stalled": False} | json.loads(self.path.read_text())

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction of one connection: in order, each chunk when its time has come."""
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED)

        async def arrive() -> None:
            due = 0.0
            while True:
                chunk = await reader.read(CHUNK)
                line = self.now()
                due = max(due, time.monotonic() + line["delay"] + random.uniform(0, line["jitter"]))
                due += len(chunk) / line["rate"] if line["rate"] else 0.0
                await way.put((due, chunk))
                if not chunk:
                    return

        arriving = asyncio.create_task(arrive())
        try:
            while True:
                due, chunk = await way.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                while self.now()["stalled"]:
                    await asyncio.sleep(0.05)
                if not chunk:
                    return
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        finally:
            arriving.cancel()
            writer.close()


async def main(port: int, target: str, path: Path) -> None:
    line, (host, _, there) = Line(path), target.rpartition(":")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward_writer = await asyncio.open_connection(host, int(there))
        except OSError:
            writer.close()
            return
        await asyncio.gather(line.carry(reader, onward_writer), line.carry(onward_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
