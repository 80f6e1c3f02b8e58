"""Checkpoints: named arrays and a little JSON in one npz, written atomically. Nothing in them is ever executed."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import Failure, Mistake
from core.rows import Array

_META = "__meta__"


def save(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write next to ``path`` and move into place: a crash while writing leaves the previous file good."""
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
    """The arrays and the JSON of a checkpoint; an unreadable file is one clear sentence."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != _META}
            meta = json.loads(file[_META].tobytes())
    except FileNotFoundError:
        raise Mistake(f"there is no checkpoint {path}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Failure(f"the checkpoint {path} cannot be read: {error}") from None
    return arrays, meta
