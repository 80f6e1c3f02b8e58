"""Flower's control API, as `flwr run`, `flwr ls` and `flwr stop` use it: submit a run, watch it, stop it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import grpc
from flwr.cli.build import build_fab_from_files
from flwr.cli.utils import build_pathspec, load_gitignore_patterns
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest, StreamLogsRequest
from flwr.proto.control_pb2_grpc import ControlStub
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.grpc import create_channel

from core.errors import Failure, Mistake

CALL_S = 20.0


class Status(NamedTuple):
    """How a run stands: pending, starting, running or finished; if finished: completed, stopped or failed, and why."""

    status: str
    sub_status: str
    details: str

    @property
    def over(self) -> bool:
        return self.status == "finished"


class Control:
    """The control API of a SuperLink. An error is one sentence; use it as a context manager."""

    def __init__(self, address: str, root_certificates: Path | None = None) -> None:
        self.address = address
        self.how = "without TLS" if root_certificates is None else "with TLS"
        roots = None if root_certificates is None else root_certificates.read_bytes()
        self.channel = create_channel(address, insecure=roots is None, root_certificates=roots)
        self.stub = ControlStub(self.channel)

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def reach(self) -> None:
        """Raise ``Failure`` unless the SuperLink answers us."""
        with self.answered():
            self.stub.ListRuns(ListRunsRequest(limit=1), timeout=CALL_S)

    def submit(self, project: Path, config: Mapping[str, bool | int | float | str]) -> int:
        """Submits the Flower app in ``project`` with values put over its configuration. Returns the run's number."""
        content = bundle(project)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)))
        with self.answered():
            reply = self.stub.StartRun(request, timeout=CALL_S)
        if not reply.HasField("run_id"):
            raise Failure(f"the SuperLink at {self.address} did not take the run; its log says why")
        return int(reply.run_id)

    def status(self, run_id: int) -> Status:
        """How the run stands."""
        with self.answered():
            run = self.stub.ListRuns(ListRunsRequest(run_id=run_id), timeout=CALL_S).run_dict[run_id]
        return Status(run.status.status, run.status.sub_status, run.status.details)

    def stop(self, run_id: int) -> None:
        """Ends the run, unless it has ended. Its ServerApp hears of it when it next speaks, and has some 6 s to end."""
        try:
            with self.answered():
                self.stub.StopRun(StopRunRequest(run_id=run_id), timeout=CALL_S)
        except Failure:
            if not self.status(run_id).over:
                raise

    def logs(self, run_id: int) -> Iterator[str]:
        """What the ServerApp prints, from the beginning and as it comes, until the run is over."""
        with self.answered():
            for reply in self.stub.StreamLogs(StreamLogsRequest(run_id=run_id)):
                yield reply.log_output

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Turns an error of the network, or of Flower, into one sentence."""
        try:
            yield
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Failure(f"no SuperLink answers at {self.address} ({self.how})") from None
            known = FlowerError.from_json(error.details())
            said = known.public_details or known.message if known else error.details()
            raise Failure(f"the SuperLink at {self.address} refused: {said}") from None


def bundle(project: Path) -> bytes:
    """The Flower app bundle of a project: the bytes that `flwr build` writes.

    Flower walks through everything, a virtual environment of 40,000 files too (5 s), and leaves it out afterwards. This
    walk turns round where nothing can be found.
    """
    root = project.resolve()
    ignored = build_pathspec([*load_gitignore_patterns(root / ".gitignore"), ".git/", ".venv/", "__pycache__/"])
    files: dict[str, bytes | Path] = {}
    for folder, names, inside in os.walk(root):
        here = Path(folder).relative_to(root)
        names[:] = sorted(name for name in names if not ignored.match_file((here / name).as_posix() + "/"))
        paths = [here / name for name in inside if not (root / here / name).is_symlink()]
        files |= {path.as_posix(): root / path for path in paths}
    try:
        return build_fab_from_files(files)[0]
    except ValueError as error:
        raise Mistake(f"{root} cannot be bundled as a Flower app: {error}") from None
