"""The runs of a sweep as processes, some at a time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import TYPE_CHECKING

from cli.screen import announce, say
from core.errors import Failure

if TYPE_CHECKING:
    from runs.sweeps import Run

STOP_S = 120.0  # until interrupted runs have finished their round and saved it
END_S = 20.0  # until runs that were interrupted twice have ended the processes that they started


@dataclass(frozen=True)
class Job:
    """A run with its process. ``log_start`` is the length of its log before the process wrote to it."""

    run: Run
    process: Popen[bytes]
    log: Path
    log_start: int

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def last_line(self) -> str:
        """Return why the process failed: the signal that ended it, or the last line that it printed."""
        if self.process.returncode < 0:
            return f"it was ended by {signal.Signals(-self.process.returncode).name}"
        text = self.log.read_bytes()[self.log_start :].decode(errors="replace")
        lines = [line.strip() for line in text.split("\n") if line.strip()] or ["it printed nothing"]
        return lines[-1].removeprefix("fedrl: ")


class Jobs:
    """The processes of a sweep: at most ``most`` at a time."""

    def __init__(self, todo: Sequence[Run], done: int, most: int, directory: Path, lock: int) -> None:
        self.waiting, self.running = list(todo), list[Job]()
        self.done, self.total, self.most = done, done + len(todo), most
        self.failed: dict[str, str] = {}
        self._directory, self._lock, self._line = directory, lock, ""

    def step(self) -> None:
        """Collect the jobs that have ended, and start others in their place."""
        for job in [job for job in self.running if not job.is_running]:
            self.running.remove(job)
            kill_session(job.process)  # a run that was killed may have left processes
            if job.process.returncode:
                self.failed[job.run.name] = job.last_line()
            else:
                self.done += 1
        while self.waiting and len(self.running) < self.most:
            self.running.append(start(self.waiting.pop(0), self._directory, self._lock))
        self._show()

    def interrupt(self) -> None:
        """Ask all jobs to stop after their round, and wait for them."""
        from flower.launch import wait

        end_line()
        announce(f"stopping {len(self.running)} runs after their round; press Ctrl-C again to stop them at once")
        for job in self.running:
            job.process.send_signal(signal.SIGINT)
        wait(lambda: not any(job.is_running for job in self.running), STOP_S)

    def end(self) -> None:
        """Interrupt the jobs that still run (a second time: they stop at once), wait for them, and kill the rest."""
        from flower.launch import wait

        try:
            for job in self.running:
                job.process.send_signal(signal.SIGINT)
            wait(lambda: not any(job.is_running for job in self.running), END_S)
        finally:
            for job in self.running:
                kill_session(job.process)
                job.process.wait()

    def _show(self) -> None:
        """Show progress: one live line on a terminal, a line per change elsewhere."""
        line = f"done {self.done}/{self.total}"
        for word, names in (("running", [job.run.name for job in self.running]), ("failed", list(self.failed))):
            if names:
                line += f"  {word} {len(names)}: {', '.join(names)}"
        if line != self._line and say.is_terminal:
            # Spaces overwrite the rest of a longer line.
            say.print(f"{line:<{say.width - 1}}", end="\r", overflow="ellipsis", no_wrap=True, markup=False)
        elif line != self._line:
            announce(line)
        self._line = line


def run_all(todo: Sequence[Run], done: int, most: int, directory: Path, lock: int) -> tuple[dict[str, str], bool]:
    """Run all runs; returns why each failed run failed, and whether the user interrupted."""
    from server.stop import interruptible

    jobs = Jobs(todo, done, most, directory, lock)
    with interruptible() as stop, ended(jobs):
        while jobs.waiting or jobs.running:
            if stop():
                jobs.interrupt()
                return jobs.failed, True
            jobs.step()
            time.sleep(0.05)
    if todo:
        end_line()
    return jobs.failed, False


@contextmanager
def ended(jobs: Jobs) -> Iterator[None]:
    """End all jobs, however the block ends."""
    try:
        yield
    finally:
        jobs.end()


def start(run: Run, directory: Path, lock: int) -> Job:
    """Start a run in a session of its own, so that Ctrl-C in the terminal reaches only the sweep, and once."""
    from runs.directory import LOG

    words = [sys.executable, "-m", "cli.main", "run"]
    if run.has_begun():
        words += ["--resume", str(run.path), "--json"]
    else:
        words += [str(directory / "sweep.toml"), "--seed", str(run.seed), "--out", str(run.path), "--json"]
        words += [word for setting in run.combination.settings for word in ("--set", setting)]
    # One thread each: processes whose BLAS threads spin beside each other are slower than one.
    environ = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    run.path.mkdir(parents=True, exist_ok=True)
    log = run.path / LOG
    with log.open("ab") as out:
        log_start = out.tell()
        try:
            process = Popen(
                words, env=environ, start_new_session=True, pass_fds=(lock,), stdin=DEVNULL, stdout=DEVNULL, stderr=out
            )
        except OSError as error:
            raise Failure(f"the run {run.name} cannot be started: {error.strerror}") from None
        return Job(run, process, log, log_start)


def kill_session(process: Popen[bytes]) -> None:
    """Kill a run and all processes in its session."""
    with suppress(ProcessLookupError, PermissionError):  # none is left
        os.killpg(process.pid, signal.SIGKILL)


def end_line() -> None:
    """Keep the live line, and let the next text start below it."""
    if say.is_terminal:
        say.print()
