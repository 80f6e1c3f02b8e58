"""The environments of a batch in processes of their own.

Everything random is drawn by the caller and sent along, so the worlds are the same in one process or in ten. A worker
that dies, raises or does not answer in time ends the batch with one ``Failure`` that names it; no wait is without end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.errors import Failure, Mistake

_START_S = 120.0
_DEADLINE_S = 120.0
_ALIGN = 64
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
Numbers = NDArray[np.int64]


class Board(NamedTuple):
    """What a step takes and gives, a row per environment, in memory that all processes see."""

    asked: NDArray[np.bool_]
    actions: NDArray[Any]
    obs: NDArray[np.float32]
    reward: NDArray[np.float32]
    ends: NDArray[np.bool_]


class Crew:
    """Numbered environments, in blocks of neighbours over worker processes; see ``envs.gym.Stage``.

    ``stage`` makes the environments with given numbers: it is called in the workers, which are started afresh (spawn),
    as a fork would copy locks that other threads hold. ``obs`` and ``actions`` are empty arrays as all environments
    together see and take them. Steps go through shared memory, whatever is rare through a pipe.
    """

    def __init__(
        self,
        stage: Callable[[Sequence[int]], Any],
        obs: NDArray[np.float32],
        actions: NDArray[Any],
        workers: int,
        world: str,
        deadline_s: float = _DEADLINE_S,
    ) -> None:
        self._world, self._limit_s, count = world, _START_S, len(obs)
        workers = min(workers, count)
        self._owner = np.arange(count) * workers // count
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        context = multiprocessing.get_context("spawn")
        rows = [np.empty(count, np.bool_), actions, obs, np.empty(count, np.float32), np.empty((count, 2), np.bool_)]
        layout = [(array.shape, array.dtype.str) for array in rows]
        memory = context.RawArray("B", sum(array.nbytes + _ALIGN for array in rows))
        self._board = _board(memory, layout)
        try:
            with _one_thread():
                for w in range(workers):
                    ours, theirs = context.Pipe()
                    self._pipes.append(ours)
                    mine = np.flatnonzero(self._owner == w).tolist()
                    process = context.Process(
                        target=_serve, args=(theirs, stage, mine, memory, layout), name=f"world-worker-{w}", daemon=True
                    )
                    process.start()
                    self._processes.append(process)
                    theirs.close()  # only the worker holds it now, so its death is the end of the pipe
            self._limit(_START_S)
            for w in range(workers):
                self._answer(w)
            self._limit(deadline_s)
        except BaseException:
            self.close()
            raise

    def begin(
        self, which: Numbers, seeds: Sequence[int], options: Sequence[dict[str, Any] | None]
    ) -> NDArray[np.float32]:
        shares = [(w, np.flatnonzero(self._owner[which] == w).tolist()) for w in self._owners(which)]
        self._ask({w: ("begin", which[at], [seeds[j] for j in at], [options[j] for j in at]) for w, at in shares})
        return self._board.obs[which]

    def step(
        self, which: Numbers, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        board = self._board
        board.asked[:] = False
        board.asked[which], board.actions[which] = True, actions
        self._ask(dict.fromkeys(self._owners(which), ("step",)))
        return board.obs[which], board.reward[which], board.ends[which].T

    def renew(self, which: Numbers) -> None:
        self._ask({w: ("renew", which[self._owner[which] == w]) for w in self._owners(which)})

    def render(self, number: int) -> NDArray[np.uint8] | None:
        owner = int(self._owner[number])
        picture: NDArray[np.uint8] | None = self._ask({owner: ("render", number)})[owner]
        return picture

    def close(self) -> None:
        """End the workers; those that do not go by themselves are killed."""
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
            pipe.close()
        for process in self._processes:
            process.join(2.0)
            if process.is_alive():
                process.kill()
                process.join(2.0)
        self._pipes, self._processes = [], []

    def _owners(self, which: Numbers) -> list[int]:
        owners: list[int] = np.unique(self._owner[which]).tolist()
        return owners

    def _ask(self, asked: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Ask these workers at once, then wait for each of them."""
        if not self._pipes:
            raise Failure(f"the workers of '{self._world}' are closed")
        try:
            for w, question in asked.items():
                try:
                    self._pipes[w].send(question)
                except OSError as error:
                    raise self._lost(w, error) from None
            return {w: self._answer(w) for w in asked}
        except BaseException:
            self.close()  # an answer that was not read would be taken for the next one
            raise

    def _limit(self, seconds: float) -> None:
        """No read or write of a pipe blocks for longer, not even in the middle of a message."""
        self._limit_s = seconds
        span = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        for pipe in self._pipes:
            with socket.socket(fileno=os.dup(pipe.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)

    def _answer(self, w: int) -> Any:
        try:
            kind, value = self._pipes[w].recv()
        except (EOFError, OSError) as error:
            raise self._lost(w, error) from None
        if kind == "mistake":
            raise Mistake(value)
        if kind == "raised":
            raise Failure(f"{self._name(w)} raised {value}; world.workers=0 shows where")
        return value

    def _lost(self, w: int, error: Exception) -> Failure:
        if isinstance(error, BlockingIOError):
            return Failure(f"{self._name(w)} did not answer within {self._limit_s:g} s")
        self._processes[w].join(2.0)
        return Failure(f"{self._name(w)} died (exit code {self._processes[w].exitcode})")

    def _name(self, w: int) -> str:
        return f"worker {w} of {len(self._pipes)} of '{self._world}' (process {self._processes[w].pid})"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit libraries to one thread. They read these variables when loaded, so set them before a worker starts."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _board(memory: Any, layout: Sequence[tuple[tuple[int, ...], str]]) -> Board:
    """Return arrays over shared memory, each at an aligned offset."""
    arrays, place = [], 0
    for shape, kind in layout:
        arrays.append(np.ndarray(shape, np.dtype(kind), memory, place))
        place += -(-arrays[-1].nbytes // _ALIGN) * _ALIGN
    return Board(*arrays)


def _serve(
    pipe: Connection, make_stage: Callable[[Sequence[int]], Any], mine: Sequence[int], memory: Any, layout: Any
) -> None:
    """Serve requests in a worker process, until the caller stops it or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller too, and the caller ends us
    board, block = _board(memory, layout), np.array(mine)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the caller is gone
        try:
            stage = make_stage(mine)
            pipe.send(("done", None))
            while (asked := pipe.recv()) is not None:
                pipe.send(("done", _done(stage, board, block, *asked)))
            stage.close()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Mistake as mistake:
            pipe.send(("mistake", str(mistake)))
        except Exception as error:  # the world may be anyone's code; report whatever it raises in one sentence
            pipe.send(("raised", f"{type(error).__name__}: {error}"))


def _done(stage: Any, board: Board, block: Numbers, call: str, *given: Any) -> Any:
    if call == "step":
        which = block[board.asked[block]]
        board.obs[which], board.reward[which], ends = stage.step(which, board.actions[which])
        board.ends[which] = ends.T
        return None
    if call == "begin":
        board.obs[given[0]] = stage.begin(*given)
        return None
    return getattr(stage, call)(*given)
