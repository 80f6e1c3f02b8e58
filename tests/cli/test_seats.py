"""Which agent a node is, where nodes are started alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.node import key_files
from cli.seats import claimed
from core.errors import Mistake

ROOT = Path(__file__).parents[2]


def home(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return folder


def test_each_has_another_number_and_who_comes_back_has_its_own(tmp_path: Path) -> None:
    claims, one, two, three = (home(tmp_path, name) for name in ("claims", "one", "two", "three"))
    with claimed(claims, one) as first:
        with claimed(claims, two) as second:
            assert (first, second) == (0, 1)
        with claimed(claims, three) as third, claimed(claims, two) as back:
            assert third == 1  # nobody held it
            assert back == 2  # its own was taken
    with claimed(claims, two) as back:
        assert back == 2  # and so it stays, although 0 is free
    (one / "agent").write_text("no number")
    with claimed(claims, one) as first:
        assert first == 0
    with pytest.raises(Mistake, match=r"--claim: .*nowhere"), claimed(tmp_path / "nowhere", one):
        pass


def test_a_number_is_free_when_its_holder_was_killed(tmp_path: Path) -> None:
    claims, one, two = (home(tmp_path, name) for name in ("claims", "one", "two"))
    hold = "from cli.seats import claimed; from pathlib import Path; import sys\n"
    hold += "with claimed(Path(sys.argv[1]), Path(sys.argv[2])) as n: print(n, flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(claims), str(one)], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "0\n"
        with claimed(claims, two) as second:
            assert second == 1
        holder.kill()
        holder.wait()
        with claimed(claims, one) as first:
            assert first == 0
    finally:
        holder.kill()
        holder.communicate()


def test_a_key_file_per_agent() -> None:
    assert key_files("keys/node-{}", [0, 2]) == [Path("keys/node-0"), Path("keys/node-2")]
    assert key_files("a,b", [0, 2]) == [Path("a"), Path("b")]
    with pytest.raises(Mistake, match="names a file twice"):
        key_files("a,a", [0, 1])
