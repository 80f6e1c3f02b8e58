"""Where two linked agents go in a round of kl-ppo: towards each other, or past each other.

python -m benchmarks.kl_swap

Two agents of conf/kl_ppo_cartpole.toml, each pulled towards the policy that the other had at the start of the round.
All KLs are forward, KL(from || to), means over the states of a fresh rollout of each agent before the round.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from agents.ppo import PPOFleet
from agents.report import Report
from benchmarks.timing import Row, one_thread, report
from client.session import Session
from core.options import override
from runs.config import configure
from runs.directory import read_toml
from strategies.graphs.matrix import communication

CONF = Path("conf/kl_ppo_cartpole.toml")
COEFFICIENTS = (1, 10, 100)
# Rounds that are left out: agents begin apart.
FIRST = 10


def rounds(coefficient: float, seed: int, number: int) -> list[list[float]]:
    """A row per round and agent: KL between the two before and after, to its own old policy, to the other's."""
    settings = [f"ppo.penalty-coef={coefficient}", "agents=2", f"seed={seed}", "evaluate-episodes=0"]
    session = Session(configure(override(read_toml(CONF), settings)))
    fleet, found = session.fleet, []
    assert isinstance(fleet, PPOFleet)
    for index in range(number):
        states = fleet.collect(Report(np.zeros(2, np.int64), np.zeros(2, np.int64))).obs
        old = fleet.policy.copy()
        # Nobody has sent a policy before the first round.
        fleet.link(old, communication("pairs", 2, normalise=False).astype(np.float32) * (index > 0))
        session.train(session.round_work)
        was, now = fleet.shape.outputs(old, states), fleet.shape.outputs(fleet.policy, states)
        others_was = fleet.shape.outputs(old[::-1].copy(), states)
        others_now = fleet.shape.outputs(fleet.policy[::-1].copy(), states)
        kls = (others_was.kl(was), others_now.kl(now), was.kl(now), others_was.kl(now))
        found += [list(agent) for agent in zip(*(kl.mean(-1).tolist() for kl in kls), strict=True)]
    session.close()
    return found[2 * FIRST :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    given, _ = parser.parse_known_args()
    one_thread()
    rows: list[Row] = []
    for coefficient in COEFFICIENTS:
        kls = np.array([row for seed in range(given.seeds) for row in rounds(coefficient, seed, given.rounds)])
        before, after, own, other = (f"{value:.2g}" for value in kls.mean(axis=0))
        rows.append(
            {
                "coefficient": coefficient,
                "KL between the two, before": before,
                "after": after,
                "to its own old policy": own,
                "to the other's old policy": other,
                "agents and rounds that end nearer to the other's": f"{100 * (kls[:, 3] < kls[:, 2]).mean():.0f}%",
            }
        )
    what = f"rounds {FIRST + 1} to {given.rounds}, {given.seeds} seeds"
    report("kl_swap", f"kl-ppo: two agents on CartPole, each pulled to the other's old policy ({what})", rows)


if __name__ == "__main__":
    main()
