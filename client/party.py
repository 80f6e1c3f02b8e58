"""One agent of one run: its session in memory, and its snapshot on disk."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import Message, MessageType, RecordDict

from attacks.plan import Silence
from client.answers import answer
from client.session import Session
from core.errors import Mistake
from runs import checkpoints
from runs.config import NAME, Flat, from_flower
from runs.peers import PEERS
from strategies import messages

# How many runs a machine keeps snapshots of; the oldest are deleted when a new run begins.
KEPT = 20
# A snapshot, also one that was incomplete when its process was killed.
_SNAPSHOT = re.compile(r"agent-\d+\.npz|\.agent-\d+\.npz\.\d+")


def run_name(flat: Flat, run_id: int) -> str:
    """Return the name of a run. It is the same on every machine, and after a resume under another id of Flower."""
    name = str(flat.get(NAME) or f"run-{run_id}")
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise Mistake(f"a run's name holds letters, digits, '-', '_' and '.', not {name!r}")
    return name


class Party:
    """One agent of one run. With an ``attack`` it attacks, whatever the run's configuration says.

    ``modules`` are the modules whose worlds a run may name (``module:Id-v0``), ``plugins`` the plugins that it may use.
    Both are imported. None allows any.
    """

    def __init__(
        self,
        number: int,
        flat: Flat,
        run: str,
        state: Path,
        attack: str = "",
        modules: Sequence[str] | None = None,
        plugins: Sequence[str] | None = None,
    ) -> None:
        self.config, self.number = from_flower(flat, plugins), number
        if not 0 <= number < self.config.agents:
            raise Mistake(f"agent {number} is not in this run: it has the agents 0 to {self.config.agents - 1}")
        module, named, _ = self.config.world.id.rpartition(":")
        if named and modules is not None and module not in modules:
            raise Mistake(
                f"the run asks to import '{module}' for its world, and this node imports nothing that it was not told "
                f"to: --worlds {module}"
            )
        if attack:
            alone = replace(self.config.attack, kind=attack, agents=(number,), byzantine=0)
            self.config = replace(self.config, attack=alone)
        self.path = state / run / f"agent-{number}.npz"
        if not self.path.parent.exists():
            _forget_old_runs(state)
        self._open()

    def answer(self, message: Message, keep: bool = False) -> RecordDict:
        """Return the answer to a message. After training a snapshot is saved if the message or ``keep`` asks for one.

        An attack may delay the answer, or raise ``Silence`` instead.
        """
        self._refresh()
        (reply,) = answer(self.session, [(0, message)])
        if message.metadata.message_type == MessageType.TRAIN and (keep or messages.order(message).save):
            self.save()
        if math.isinf(reply.after):
            raise Silence(f"agent {self.number} attacks by not answering")
        time.sleep(reply.after)
        return reply.content

    def save(self) -> None:
        """Save a snapshot, from which another process can go on."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save(self.path, self.session.state(), {"agent": self.number})
        self._stamp = self._on_disk()

    def close(self) -> None:
        self.session.close()

    def _open(self) -> None:
        self.session = Session(self.config, numbers=[self.number])
        self._stamp = self._on_disk()
        if self._stamp is not None:
            self.session.load_state(checkpoints.load(self.path)[0])

    def _refresh(self) -> None:
        """Reload the snapshot if another process wrote a newer one. Flower's simulation moves agents about."""
        if self._on_disk() != self._stamp:
            self.session.close()
            self._open()

    def _on_disk(self) -> tuple[int, int] | None:
        """Return what identifies the version of the snapshot; None if there is none."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


def _forget_old_runs(state: Path) -> None:
    """Delete the snapshots of the oldest runs."""
    runs = [path for path in state.glob("*") if _is_ours(path)] if state.is_dir() else []
    for path in sorted(runs, key=lambda path: path.stat().st_mtime)[: -KEPT + 1]:
        shutil.rmtree(path, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    """Return whether a folder holds snapshots of a run only: --state may name a folder with a user's files."""
    try:
        inside = list(path.iterdir()) if path.is_dir() and not path.is_symlink() else []
        peers = list((path / PEERS).iterdir()) if (path / PEERS).is_dir() else []
    except OSError:
        return False
    return (
        bool(inside)
        and all(_SNAPSHOT.fullmatch(entry.name) or entry.name == PEERS for entry in inside)
        and all(peer.name.isdecimal() and (peer / "metrics.jsonl").is_file() for peer in peers)
    )
