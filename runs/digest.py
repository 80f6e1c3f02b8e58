"""Which code this is: one number over the Python files of our packages, on disk and in the bundle of a run.

A node runs only what it was installed with. So that it can refuse a run of other code by name, both sides reckon the
same number: over the files that Flower would ship, and of those only the packages that a run executes.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from core.errors import Failure, Mistake

PACKAGES = (
    "agents", "attacks", "client", "core", "envs", "flower", "gossip", "runs", "server", "strategies",
)  # fmt: skip
# A bundle is ours if it keeps to these; Flower's own limit is 10 MB packed.
MAX_MEMBERS, MAX_BYTES = 10_000, 64 * 2**20


@cache
def installed() -> str:
    """The digest of the code that this process runs: once read, it stays, whatever becomes of the files."""
    return of_tree(Path(__file__).resolve().parents[1])


def of_tree(root: Path) -> str:
    """The digest of a project folder."""
    try:
        ignored = GitIgnoreSpec.from_lines((root / ".gitignore").read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        ignored = GitIgnoreSpec.from_lines([])  # as in a bundle that was unpacked: what is not wanted is not there
    files = {
        path.relative_to(root).as_posix(): path
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
        if path.is_file() and not path.is_symlink()
    }
    return _digest({n: path.read_bytes() for n, path in files.items() if _counts(n) and not ignored.match_file(n)})


def of_plugins(plugins: Mapping[str, str]) -> dict[str, str]:
    """Return the digest of every plugin by its name; ``plugins`` are names and their modules, which are imported."""
    return {name: _of_module(module)[:16] for name, module in sorted(plugins.items())}


@cache
def _of_module(module: str) -> str:
    """The digest of the Python files of a module's whole package, or of a module that is a file by itself.

    Once read, it stays, as the module in memory does."""
    spec = find_spec(module.partition(".")[0])
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    files = {f"{path.relative_to(folder)}": path for folder in folders for path in folder.rglob("*.py")}
    if not files and spec is not None and spec.origin:
        files = {Path(spec.origin).name: Path(spec.origin)}
    return _digest({name: path.read_bytes() for name, path in files.items()})


def spelled(plugins: Mapping[str, str]) -> str:
    """Return digests as one text: ``lab.methods=1a2b...``, comma-separated."""
    return ",".join(f"{name}={value}" for name, value in sorted(plugins.items()))


def refuse_other_plugins(here: str, there: str, whose: str) -> None:
    """Refuse plugins that are not the same in two places, by name; ``whose`` is the other place."""
    own, other = (dict(part.split("=", 1) for part in text.split(",") if "=" in part) for text in (here, there))
    if different := [name for name in sorted(own.keys() | other.keys()) if own.get(name) != other.get(name)]:
        first, *rest = different
        as_well = f" (and so does {', '.join(rest)})" if rest else ""  # plugins of one package differ together
        raise Mistake(
            f"the plugin {first} differs{as_well}: here it is {own.get(first, 'none')}, {whose} has "
            f"{other.get(first, 'none')}; install the same on both, and start this process again"
        )


def of_bundle(content: bytes) -> str:
    """The digest of the bundle that a run carries. Nothing is unpacked to disk."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as bundle:
            members = bundle.infolist()
            names = {member.filename for member in members}
            if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES:
                raise Failure("the run's app is larger than any of ours")
            if len(names) < len(members):
                raise Failure("the run's app holds a file twice")
            # A member never yields more than the size it declares.
            return _digest({name: bundle.read(name) for name in names if _counts(name)})
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        if isinstance(error, Failure):
            raise
        raise Failure(f"the run's app cannot be read: {error}") from None


def _counts(name: str) -> bool:
    """Whether a file is code of ours. Tests are not, and Flower leaves out what is named like one."""
    path = PurePosixPath(name)
    named_like_a_test = path.name.startswith("test_") or path.name.endswith("_test.py")
    return path.suffix == ".py" and path.parts[0] in PACKAGES and not named_like_a_test


def _digest(files: Mapping[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name in sorted(files):
        # Lengths first, so that no two trees spell the same.
        for part in (name.encode(), files[name]):
            whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()
