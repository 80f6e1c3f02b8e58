"""A recording of a policy, as mp4 or gif."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.errors import Failure, Mistake
from envs.worlds import F32, Worlds

Picture = NDArray[np.uint8]
_FEWEST_GIF_MS = 20  # what browsers show: a shorter pause is taken for a mistake and becomes 100 ms


def record(
    worlds: Worlds, act: Callable[[F32], NDArray[Any]], path: str | Path, agent: int = 0, episodes: int = 1
) -> list[float]:
    """Film whole episodes of one agent's first copy; returns what each of them paid.

    ``act`` is asked for the actions of all agents, (K, n, o) -> (K, n[, a]). The worlds begin anew and move on: give a
    recording worlds of its own.
    """
    path = Path(path)
    write = writer(path)
    if not 0 <= agent < worlds.agents:
        raise Mistake(f"there is no agent {agent} to film; there are {worlds.agents}, numbered from 0")
    if episodes < 1:
        raise Mistake(f"a recording has at least 1 episode, not {episodes}")
    returns: list[float] = []
    partial = path.with_name(f".{os.getpid()}-{path.name}")  # a recording that fails leaves no half of a file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial, _pictures(worlds, act, agent, episodes, returns), worlds.fps)
        partial.replace(path)
    except OSError as error:
        raise Failure(f"the recording '{path}' cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return returns


def writer(path: Path) -> Callable[[Path, Iterator[Picture], int], None]:
    """Return the function that writes a recording of this name; refuse a name or a codec that does not work here."""
    write = {".mp4": _mp4, ".gif": _gif}.get(path.suffix.lower())
    if write is None:
        raise Mistake(f"a recording ends in .mp4 or .gif, '{path.name}' does not")
    if write is _mp4 and find_spec("imageio_ffmpeg") is None:
        raise Mistake("a recording in .mp4 needs imageio-ffmpeg, which is not installed here: take .gif, or install it")
    return write


def _pictures(
    worlds: Worlds, act: Callable[[F32], NDArray[Any]], agent: int, episodes: int, returns: list[float]
) -> Iterator[Picture]:
    """A picture before every step. The one after an episode's last step is gone: the world has already begun anew."""
    active = np.zeros((worlds.agents, worlds.copies), np.bool_)
    active[agent, 0] = True
    obs = worlds.reset()
    for _ in range(episodes):
        paid, over = 0.0, False
        while not over:
            yield worlds.render(agent)
            step = worlds.step(act(obs), active)
            obs, over = step.obs, bool(step.terminated[agent, 0] or step.truncated[agent, 0])
            paid += float(step.reward[agent, 0])
        returns.append(paid)


def _mp4(path: Path, pictures: Iterator[Picture], fps: int) -> None:
    import imageio_ffmpeg  # type: ignore[import-untyped]  # large: containers go without

    first = next(pictures)
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2  # the codec takes even sides only
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, macro_block_size=1, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        writer.send(np.ascontiguousarray(first[:height, :width]))
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture[:height, :width]))
    finally:
        writer.close()


def _gif(path: Path, pictures: Iterator[Picture], fps: int) -> None:
    every = max(1, round(_FEWEST_GIF_MS * fps / 1000))  # a fast world is shown in fewer pictures, not in slow motion
    kept = (_few_colours(picture) for j, picture in enumerate(pictures) if j % every == 0)
    first = next(kept)
    first.save(
        path, save_all=True, append_images=kept, duration=round(1000 * every / fps / 10) * 10, loop=0, optimize=False
    )


def _few_colours(picture: Picture) -> Image.Image:
    return Image.fromarray(picture).quantize(64, Image.Quantize.FASTOCTREE)
