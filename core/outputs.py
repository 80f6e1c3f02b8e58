"""Checks of output paths, made before the work instead of after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from core.errors import Mistake


def check_file(path: Path, endings: Sequence[str] = (), what: str = "--out") -> None:
    """Refuse a file that cannot be written, or whose name has none of these endings. Changes no existing file."""
    if endings and path.suffix not in endings:
        raise Mistake(f"{what} '{path}' must end in {', '.join(endings[:-1])} or {endings[-1]}: choose another name")
    try:
        if path.is_dir():
            raise Mistake(f"{what} '{path}' must be a file but is a folder: add the name of a file")
        if not path.parent.exists():
            raise Mistake(
                f"{what} '{path}' cannot be written: create the folder '{path.parent}', or choose another one"
            )
        if path.is_file():
            path.open("ab").close()
        elif not path.exists():  # neither is true of a device
            path.touch(exist_ok=False)
            path.unlink()
    except OSError as error:
        raise Mistake(f"{what} '{path}' cannot be written ({error.strerror}): choose another place") from None


def check_folder(path: Path, what: str = "--out") -> None:
    """Refuse a folder that cannot be created, or in which no file can be created. Creates neither."""
    try:
        nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not nearest.is_dir():
            raise Mistake(f"{what} '{path}' must be a folder, but '{nearest}' is a file: choose another place")
        TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise Mistake(f"{what} '{path}' cannot be written ({error.strerror}): choose another place") from None
