"""What docs/worlds.md shows is what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from envs.bipedal import QUANTITIES
from envs.classic import CartPole, Pendulum

PAGE = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_build(example: str) -> None:
    for text in (example, example.replace("\n# ", "\n").replace("gravity = 9.8 ", "# ")):
        world = tomllib.loads(text)["world"]
        make_worlds(WorldConfig(**world), agent_seeds(0, range(3))).reset()


def test_every_quantity_is_explained() -> None:
    assert len(EXAMPLES) == 2
    for name, quantity in (QUANTITIES | CartPole.QUANTITIES | Pendulum.QUANTITIES).items():
        assert f"`{name}`" in PAGE
        assert re.search(rf"`{name}`.*\| .*{quantity.default:g}", PAGE), name
