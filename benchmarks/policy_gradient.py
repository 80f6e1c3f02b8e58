"""Policy-gradient work at a good policy: whole CartPole episodes of 500 steps, gradient included."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import torch

from agents.policy_gradient import PolicyGradientConfig, PolicyGradientFleet
from benchmarks.timing import Row, interleaved, one_thread, report
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds

GAMMA = 0.999


def fleet(agents: int, batch: int, balanced: bool = True) -> PolicyGradientFleet:
    seeds = agent_seeds(0, range(agents))
    made = PolicyGradientFleet(
        PolicyGradientConfig(batch=batch, gamma=GAMMA), make_worlds(WorldConfig(copies=batch), seeds), seeds
    )
    if balanced:
        balance(made)
    return made


def balance(made: PolicyGradientFleet) -> None:
    """What training arrives at, written down: push the cart to the side to which the pole falls.

    One hidden unit sees the fall to the right, one the fall to the left; all others keep their random weights inside.
    """
    (first, first_bias), (second, second_bias), (last, last_bias) = made.shape.net.layers(made.policy)
    for bias in (first_bias, second_bias, last_bias):
        bias[...] = 0.0
    fall = np.array([0.1, 0.2, 1.0, 0.6], np.float32)
    first[..., 0], first[..., 1] = fall, -fall
    second[..., :2] = 0.0
    second[..., 0, 0] = second[..., 1, 1] = 1.0
    last[...] = 0.0
    last[..., 0, 1] = last[..., 1, 0] = 100.0


def ours(made: PolicyGradientFleet) -> Callable[[], float]:
    def run() -> float:
        found = made.sample(made.policy, made.config.batch)
        made.ascent(made.policy, found)
        return float(found.used.sum())

    return run


def peer(batch: int) -> Callable[[], float]:
    """The usual way: one scalar environment, one torch forward per step, one autograd gradient per batch."""
    env = gymnasium.make("CartPole-v1")
    linear = [torch.nn.Linear(4, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 2)]
    net = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1], torch.nn.ReLU(), linear[2])
    made = fleet(1, 1)
    with torch.no_grad():
        for layer, (weight, bias) in zip(linear, made.shape.net.layers(made.policy), strict=True):
            layer.weight.copy_(torch.from_numpy(weight[0].T))
            layer.bias.copy_(torch.from_numpy(bias[0]))

    def run() -> float:
        log_probs, advantages = [], []
        for _ in range(batch):
            obs, _ = env.reset()
            rewards, over = [], False
            while not over:
                choice = torch.distributions.Categorical(logits=net(torch.as_tensor(obs)))
                action = choice.sample()
                log_probs.append(choice.log_prob(action))
                obs, reward, terminated, truncated, _ = env.step(int(action))
                rewards.append(float(reward))
                over = terminated or truncated
            returns = np.zeros(len(rewards))
            running = 0.0
            for t in reversed(range(len(rewards))):
                returns[t] = running = rewards[t] + GAMMA * running
            advantages.append((returns - returns.mean()) / (returns.std() + 1e-20))
        advantage = torch.from_numpy(np.concatenate(advantages)).float()
        net.zero_grad()
        (-(torch.stack(log_probs) * advantage).mean()).backward()
        return float(len(log_probs))

    return run


def main() -> None:
    one_thread()
    many, few = fleet(10, 16), fleet(1, 4)
    length = many.sample(many.policy, 16).lengths.mean()
    rates = interleaved(
        {
            "fleet": ours(many),
            "random": ours(fleet(10, 16, balanced=False)),
            "few": ours(few),
            "thousand": ours(fleet(100, 16)),
            "peer": peer(1),
        }
    )
    rows: list[Row] = [
        {
            "work": work,
            "steps per core-second": str(rates.of(name)),
            "ratio to the peer": str(rates.ratio(name, "peer")),
        }
        for work, name in (
            (f"10 agents x 16 trajectories, good policy ({length:.0f} steps each)", "fleet"),
            ("100 agents x 16 trajectories, good policy", "thousand"),
            ("10 agents x 16 trajectories, random policy", "random"),
            ("1 agent x 4 trajectories, good policy", "few"),
            ("peer: one scalar environment, one torch forward a step", "peer"),
        )
    ]
    report("policy_gradient", "Policy gradient on CartPole, sampling and gradient", rows)


if __name__ == "__main__":
    main()
