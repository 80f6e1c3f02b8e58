"""The six verbs of flower/ against a real SuperLink: who is there, send, receive, reply, submit a run, its status.

The server is our ServerApp. The nodes are connections whose every step the test takes itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict

from client.party import Party
from flower.control import Control
from flower.fleet import NodeConnection
from flower.keys import Address
from flower.launch import SuperLink, superlink, wait
from runs import digest
from runs.directory import RunDirectory
from strategies import messages

# Flower asks pathspec for a pattern by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROOT = Path(__file__).parents[2]
LONG_S = 120.0  # far more than a run takes
TINY: dict[str, bool | int | float | str] = {
    "algorithm": "policy-gradient", "strategy": "fedavg", "agents": 2, "rounds": 2, "work": 1, "world.copies": 1,
    "world.id": "CartPole-v1", "evaluate-episodes": 1, "run": "tiny",
}  # fmt: skip


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with superlink(tmp_path_factory.mktemp("home")) as running:
        yield running


class NodeByHand:
    """A node with one agent. ``forge`` replaces the content of a reply."""

    def __init__(self, link: SuperLink, forge: Callable[[Message, RecordDict], RecordDict] | None = None) -> None:
        self.connection = NodeConnection(Address(link.fleet, insecure=True), None, lambda: False, time.sleep)
        self.connection.connect()
        self.forge = forge
        self.kinds: list[str] = []
        self._unconfirmed: Message | None = None

    def config(self, run_id: int) -> tuple[dict[str, Any], str]:
        """Return the configuration of a run, and the digest of the code that it carries."""
        run = self.connection.run(run_id)
        app = self.connection.app(run)
        return self.connection.config(app, run), digest.of_bundle(app.content)

    def step(self, agent: Party) -> None:
        """Receive a message if there is one, and reply to it."""
        self.connection.heartbeat()
        received = self.connection.receive()
        if received is None:
            return
        message = self.connection.fetch(*received)
        content = agent.answer(message)
        if self.forge is not None:
            content = self.forge(message, content)
        self.kinds.append(message.metadata.message_type)
        assert self.connection.reply(Message(content, reply_to=message), 0.1)
        # Of a message the server may still be sending what the node does not need: confirm the message before.
        if self._unconfirmed is not None:
            self.connection.confirm(self._unconfirmed)
        self._unconfirmed = message


def until_running(control: Control, run_id: int) -> None:
    """Wait until a run is running: a node has no access to it before."""
    assert wait(lambda: control.status(run_id).status == "running", LONG_S), control.status(run_id)


def nan_in_the_first_round(message: Message, content: RecordDict) -> RecordDict:
    if message.metadata.message_type != MessageType.TRAIN or messages.order(message).round != 1:
        return content
    entries = messages.entries(content)
    nan = {
        name: np.full(size // 4, np.nan, np.float32)
        for name, size in messages.arrays(content).items()
        if name == "policy"
    }
    return messages.content(entries, messages.pack(nan))


def test_the_six_verbs(link: SuperLink, tmp_path: Path) -> None:
    nodes = [NodeByHand(link), NodeByHand(link, nan_in_the_first_round)]
    assert nodes[0].connection.node_id != nodes[1].connection.node_id
    with Control(link.control) as control:
        run = control.submit(ROOT, TINY | {"directory": str(tmp_path / "out")})
        seen = [control.status(run).status]
        until_running(control, run)
        seen.append("running")
        flat, carried = nodes[0].config(run)
        assert (flat["rounds"], flat["directory"], carried) == (2, str(tmp_path / "out"), digest.installed())
        agents = [Party(number, flat, "tiny", tmp_path / "state") for number in range(2)]
        with closing(agents[0]), closing(agents[1]):
            deadline = time.monotonic() + LONG_S
            while not nodes[0].connection.is_over(run):
                assert time.monotonic() < deadline, (control.status(run), [node.kinds for node in nodes])
                for node, agent in zip(nodes, agents, strict=True):
                    node.step(agent)
                time.sleep(0.02)
        seen.append(control.status(run).status)
        assert control.status(run) == ("finished", "completed", "")
        assert (seen[0] in ("pending", "starting"), seen[1:]) == (True, ["running", "finished"])
    for node in nodes:
        assert node.kinds[0] == MessageType.QUERY
        orders = [kind for kind in node.kinds if kind != MessageType.QUERY]  # a slow server may query again
        assert orders == [MessageType.TRAIN, MessageType.EVALUATE] * 2
    first, second = RunDirectory.open(tmp_path / "out").read_metrics()
    assert (first["kept.policy"], first["refused"], first["reasons"]) == ([1, None], [0, 1], {"not-finite": 1})
    assert (second["kept.policy"], second["refused"], second["missed"]) == ([1, 1], [0, 0], [0, 0])
    assert all(value is not None for value in second["return"])
    for node in nodes:
        node.connection.leave()


def test_a_run_that_is_stopped_is_over_for_its_nodes(link: SuperLink, tmp_path: Path) -> None:
    node = NodeByHand(link)
    with Control(link.control) as control:
        run = control.submit(ROOT, TINY | {"directory": str(tmp_path / "out")})
        until_running(control, run)
        assert not node.connection.is_over(run)
        control.stop(run)
        assert wait(lambda: control.status(run).over, LONG_S)
        assert control.status(run).sub_status == "stopped"
        assert node.connection.is_over(run)
    node.connection.leave()
    assert not node.connection.connected
