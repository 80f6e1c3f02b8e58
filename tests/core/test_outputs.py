"""Places that cannot be written are refused, and trying leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.errors import Mistake
from core.outputs import check_file, check_folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.foo", "must end in .png or .pdf"),
        ("folder.png", "must be a file but is a folder"),
        ("nowhere/a.png", "create the folder"),
        ("file/a.png", "cannot be written"),
        ("/proc/a.png", "cannot be written"),
        (f"{'a' * 300}.png", "cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Mistake, match=words) as caught:
        check_file(tmp_path / name, (".png", ".pdf"), "--picture")
    assert str(caught.value).startswith("--picture '")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_file(tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
    old = tmp_path / "old.json"
    old.write_text("figures")
    os.utime(old, (1, 1))
    check_file(old)
    assert (old.read_text(), old.stat().st_mtime) == ("figures", 1)
    check_file(Path(os.devnull))
    monkeypatch.chdir(tmp_path)
    check_file(Path("here.json"))


@pytest.mark.parametrize(
    ("name", "words"), [("file", "is a file"), ("file/a", "is a file"), ("/proc/a/b", "cannot be written")]
)
def test_a_folder_that_cannot_be_made_is_refused(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Mistake, match=words):
        check_folder(tmp_path / name)


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
