"""Recordings are files that others can play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from core.errors import Failure, Mistake
from core.streams import agent_seeds
from envs import WorldConfig, Worlds, make_worlds, record


def worlds(world: str, render: bool = True, **given: Any) -> Worlds:
    return make_worlds(WorldConfig(id=world, **{"horizon": 12} | given), agent_seeds(1, range(2)), render=render)


def still(batch: Worlds) -> Any:
    one = np.zeros(() if isinstance(batch.action_space, spaces.Discrete) else batch.action_space.shape, np.int64)
    return lambda obs: np.broadcast_to(one, (*obs.shape[:2], *one.shape))


@pytest.mark.parametrize(
    ("world", "size"),
    [
        ("CartPole-v1", (600, 400)),
        ("Pendulum-v1", (500, 500)),
        ("BipedalWalker-v3", (600, 400)),
        ("Acrobot-v1", (500, 500)),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_file_that_can_be_played(world: str, size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    batch, path = worlds(world), tmp_path / "new" / f"film{suffix}"
    returns = record(batch, still(batch), path, agent=1, episodes=2)
    assert len(returns) == 2
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if suffix == ".mp4":
        frames = imageio_ffmpeg.read_frames(str(path))
        about = next(frames)
        assert about["size"] == size
        assert about["fps"] == batch.fps
        pictures = [np.frombuffer(frame, np.uint8) for frame in frames]
        assert len(pictures) == batch.steps[1]
        assert batch.steps[0] == 0
    else:
        with Image.open(path) as film:
            assert film.size == size
            pictures = []
            for j in range(film.n_frames):  # type: ignore[attr-defined]
                film.seek(j)
                pictures.append(np.asarray(film.convert("RGB")))
    assert len(pictures) > 5
    assert (pictures[0] != pictures[-1]).any()
    batch.close()


def test_physics_are_seen() -> None:
    short, long = (worlds("CartPole-v1", physics={"length": length}).render() for length in (0.2, 1.0))
    assert (short != long).any()


def test_a_world_that_draws_nothing(tmp_path: Path) -> None:
    batch = worlds("Acrobot-v1", render=False)
    with pytest.raises(Mistake, match="draw no pictures"):
        record(batch, still(batch), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


def test_without_a_codec_a_film_is_a_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.video.find_spec", lambda name: None)
    batch = worlds("CartPole-v1")
    with pytest.raises(Mistake, match=r"needs imageio-ffmpeg, which is not installed here: take \.gif"):
        record(batch, still(batch), tmp_path / "film.mp4")
    assert record(batch, still(batch), tmp_path / "film.gif")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("film.avi", {}, "a recording ends in .mp4 or .gif, 'film.avi' does not"),
        ("film", {}, "a recording ends in .mp4 or .gif, 'film' does not"),
        ("film.gif", {"agent": 2}, "there is no agent 2 to film; there are 2, numbered from 0"),
        ("film.gif", {"episodes": 0}, "at least 1 episode, not 0"),
    ],
)
def test_refusals(name: str, given: dict[str, Any], message: str, tmp_path: Path) -> None:
    batch = worlds("CartPole-v1")
    with pytest.raises(Mistake) as raised:
        record(batch, still(batch), tmp_path / name, **given)
    assert message in str(raised.value)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    batch = worlds("CartPole-v1")
    with pytest.raises(Failure, match="cannot be written"):
        record(batch, still(batch), tmp_path / "file" / "film.gif")
