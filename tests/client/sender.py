"""A Flower app that sends requests and records the replies; the nodes are those of ``echo``.

The step ``{"do": "echo", "size": 3, "times": 2}`` sends an array of three floats to every node, waits for all replies,
and does so twice. Every round is a record of milliseconds and replies, and the file is written anew after each.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import grpc_grid

PROJECT = """
[project]
name = "sender"
version = "1"
[tool.flwr.app]
publisher = "fedrl"
[tool.flwr.app.components]
serverapp = "sender:app"
clientapp = "sender:none"
[tool.flwr.app.config]
name = "run"
nodes = 1
steps = "[]"
out = ""
"""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    grpc_grid.pull_objects = partial(pull_objects, initial_backoff=0.005, backoff_cap=0.1)  # type: ignore[attr-defined]
    config, records = context.run_config, []
    out = Path(str(config["out"]))
    for step in json.loads(str(config["steps"])):
        for _ in range(step.get("times", 1)):
            records.append(_round(grid, step, int(config["nodes"])))
            out.with_suffix(".new").write_text(json.dumps(records))
            os.replace(out.with_suffix(".new"), out)


def _round(grid: Grid, step: dict[str, Any], wanted: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        _pause(deadline)
    begun = time.perf_counter()
    arrays = ArrayRecord({"weights": Array(np.random.default_rng().random(step.get("size", 3), np.float32))})
    content = RecordDict({"weights": arrays, "ask": ConfigRecord({"do": step["do"]})})
    open_ = set(grid.push_messages([Message(content, node, "train") for node in nodes]))
    replies = []
    while open_:
        for reply in grid.pull_messages(list(open_)):
            open_.discard(reply.metadata.reply_to_message_id)
            entry: dict[str, Any] = {"node": reply.metadata.src_node_id}
            if reply.has_error():
                entry |= {"code": reply.error.code, "error": reply.error.reason}
            else:
                same = np.array_equal(
                    reply.content.array_records["weights"]["weights"].numpy(), arrays["weights"].numpy()
                )
                entry |= {"same": same, **reply.content.config_records["echo"]}
            replies.append(entry)
        _pause(deadline)
    return {"ms": round(1000 * (time.perf_counter() - begun), 1), "replies": replies}


def _pause(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError
    time.sleep(0.005)
