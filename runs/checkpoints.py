"""Checkpoints: named arrays and a little JSON in one npz, written atomically. Nothing in them is ever executed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED

import numpy as np
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile

from core.errors import Failure, Mistake
from core.rows import Array

_META = "__meta__"


def save(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint beside ``path`` and move it into place, so that a crash leaves the previous file intact."""
    text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            np.savez(file, allow_pickle=False, **{_META: text}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise Failure(f"the checkpoint {path} could not be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays and the JSON of a checkpoint; an unreadable file raises ``Failure``."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, NpzFile):
            raise ValueError("it is a single array")
        with archive as file:
            _bound(path, file)
            arrays = {name: file[name] for name in file.files if name != _META}
            meta = json.loads(file[_META].tobytes())
        if not isinstance(meta, dict):
            raise ValueError("its description is not a table")
    except FileNotFoundError:
        raise Mistake(f"there is no checkpoint {path}") from None
    except Exception as error:  # a damaged archive raises one of many exceptions
        raise Failure(f"the checkpoint {path} cannot be read: {error}") from None
    return arrays, meta


def _bound(path: Path, file: NpzFile) -> None:
    """Refuse an archive that is compressed, or that would need more memory than the size of its file."""
    archive = file.zip
    assert archive is not None
    members = archive.infolist()
    if any(member.compress_type != ZIP_STORED for member in members):
        raise ValueError("it is compressed, and checkpoints never are")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("it claims to hold more data than the file has")
    for member in members:
        with archive.open(member) as content:
            if npy.read_magic(content) != (1, 0):
                raise ValueError(f"'{member.filename}' is not an array that fedrl writes")
            shape, _, dtype = npy.read_array_header_1_0(content)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"'{member.filename}' claims to hold more data than the file has")
