"""A checkpoint that ends episodes: their returns are forgotten, not added to the next one's."""

from __future__ import annotations

import pytest

from client.session import Session
from envs import WorldConfig
from runs.config import assembled


@pytest.mark.parametrize("algorithm", ["ppo", "td3"])
def test_a_return_never_spans_a_checkpoint_that_ends_its_episode(algorithm: str) -> None:
    world = WorldConfig(id="Acrobot-v1" if algorithm == "ppo" else "MountainCarContinuous-v0", horizon=100)
    session = Session(assembled()(algorithm=algorithm, world=world, evaluate_episodes=0))
    work = 1 if algorithm == "ppo" else 130
    session.train(work)
    session.state()
    lengths = [episode.length for _ in range(2) for episode in session.train(work).episodes]
    assert lengths
    assert max(lengths) <= 100
