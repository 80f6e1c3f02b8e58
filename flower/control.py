"""Flower's Control API, as `flwr run`, `flwr ls` and `flwr stop` use it: submit a run, its status, stop it."""

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
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.control_pb2_grpc import ControlStub
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.grpc import create_channel

from core.errors import Failure, Mistake

CALL_S = 20.0


class Status(NamedTuple):
    """The status of a run.

    ``status`` is pending, starting, running or finished. ``sub_status`` of a finished run is completed, stopped or
    failed, and ``details`` says why.
    """

    status: str
    sub_status: str
    details: str

    @property
    def over(self) -> bool:
        return self.status == "finished"


class Control:
    """The Control API of a SuperLink, as a context manager. Its errors are one sentence."""

    def __init__(self, address: str, root_certificates: Path | None = None) -> None:
        self.address = address
        self.mode = "without TLS" if root_certificates is None else "with TLS"
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
        """Raise ``Failure`` unless the SuperLink answers."""
        with self._errors():
            self.stub.ListRuns(ListRunsRequest(limit=1), timeout=CALL_S)

    def submit(self, project: Path, config: Mapping[str, bool | int | float | str]) -> int:
        """Submit the Flower app in ``project``; ``config`` overrides its configuration. Returns the id of the run."""
        content = bundle(project)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)))
        with self._errors():
            reply = self.stub.StartRun(request, timeout=CALL_S)
        if not reply.HasField("run_id"):
            raise Failure(f"the SuperLink at {self.address} did not accept the run; its log says why")
        return int(reply.run_id)

    def status(self, run_id: int) -> Status:
        """Return the status of a run."""
        with self._errors():
            run = self.stub.ListRuns(ListRunsRequest(run_id=run_id), timeout=CALL_S).run_dict[run_id]
        return Status(run.status.status, run.status.sub_status, run.status.details)

    def stop(self, run_id: int) -> None:
        """Stop a run, unless it has ended. Its ServerApp notices at its next call, and has about 6 s to end."""
        try:
            with self._errors():
                self.stub.StopRun(StopRunRequest(run_id=run_id), timeout=CALL_S)
        except Failure:
            if not self.status(run_id).over:
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn an error of the network or of Flower into a ``Failure`` of one sentence."""
        try:
            yield
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Failure(f"no SuperLink answers at {self.address} ({self.mode})") from None
            known = FlowerError.from_json(error.details())
            reason = known.public_details or known.message if known else error.details()
            raise Failure(f"the SuperLink at {self.address} refused: {reason}") from None


def bundle(project: Path) -> bytes:
    """Return the Flower app bundle of a project: the bytes that `flwr build` writes.

    Flower walks through all files, also those of a virtual environment (40,000 files, 5 s), and drops them
    afterwards. This walk does not enter ignored folders.
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
