"""Learners as a textbook writes them: torch modules, autograd, one agent at a time, in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.distributions import Categorical, Normal, kl_divergence


def t64(x: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(x), dtype=torch.float64)


def linear(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [layer for layer in module if isinstance(layer, torch.nn.Linear)]


def mlp(sizes: tuple[int, ...], activation: str, squash: bool, row: np.ndarray) -> torch.nn.Sequential:
    """A network from a row: layer by layer the weights (inputs x outputs), then the biases."""
    kind = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[activation]
    layers: list[torch.nn.Module] = []
    at = 0
    for a, b in pairwise(sizes):
        layer = torch.nn.Linear(a, b).double()
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(row[at : at + a * b].reshape(a, b).T))
            layer.bias.copy_(torch.tensor(row[at + a * b : at + a * b + b]))
        at += (a + 1) * b
        layers += [layer, kind()]
    assert at == len(row)
    layers.pop()
    return torch.nn.Sequential(*layers, *([torch.nn.Tanh()] if squash else []))


def row_of(module: torch.nn.Sequential, gradient: bool = False) -> np.ndarray:
    """The weights of a network, or their gradient, as a row."""
    parts = [p for layer in linear(module) for p in (layer.weight, layer.bias)]
    found = [(p.grad if gradient else p.detach()) for p in parts]
    return np.concatenate([(p.T if p.dim() == 2 else p).reshape(-1).numpy() for p in found])


class Actor:
    """A stochastic policy from a row of its weights."""

    def __init__(self, sizes: tuple[int, ...], activation: str, squash: bool, discrete: bool, row: np.ndarray) -> None:
        width = len(row) - (0 if discrete else sizes[-1])
        self.net = mlp(sizes, activation, squash, row[:width])
        self.log_std = None if discrete else t64(row[width:]).requires_grad_()

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [*self.net.parameters(), *([] if self.log_std is None else [self.log_std])]

    def __call__(self, obs: Any) -> Any:
        out = self.net(torch.as_tensor(obs, dtype=torch.float64))
        return Categorical(logits=out) if self.log_std is None else Normal(out, self.log_std.exp().expand_as(out))

    def row(self, gradient: bool = False) -> np.ndarray:
        if self.log_std is None:
            return row_of(self.net, gradient)
        tail = self.log_std.grad if gradient else self.log_std.detach()
        return np.concatenate([row_of(self.net, gradient), tail.numpy()])


def per_state(d: Any, x: torch.Tensor) -> torch.Tensor:
    """Log-probabilities, entropies and KLs of several actions add up."""
    return x if isinstance(d, Categorical) else x.sum(-1)


class SlowPPO:
    """One agent's PPO, from what a world showed and was told."""

    def __init__(self, config: Any, fleet: Any, k: int) -> None:
        self.config, (low, sizes) = config, (fleet.shape.discrete, fleet.shape.net.sizes)
        self.actor = Actor(sizes, config.activation, False, low, fleet.policy[k])
        self.make = lambda row: Actor(sizes, config.activation, False, low, row)
        self.critic = mlp((*sizes[:-1], 1), config.activation, False, fleet.value[k])
        both = [*self.actor.parameters, *self.critic.parameters()]
        self.adam = torch.optim.Adam(both, lr=config.learning_rate, eps=1e-5)
        self.keys, self.counts = fleet.shuffles.keys[k : k + 1].copy(), fleet.shuffles.counts[k : k + 1].copy()
        self.raw: list[np.ndarray] = []
        self.discounted: list[float] = []
        self.running: np.ndarray | None = None
        self.beta, self.iterations, self.updates = config.beta, 0, 0
        self.pull: list[tuple[float, Actor]] = []

    def order(self, size: int) -> np.ndarray:
        from core.streams import Streams

        streams = Streams([0], "any")
        streams.keys, streams.counts = self.keys, self.counts
        return streams.permutation(size)[0]

    def seen(self, obs: np.ndarray) -> np.ndarray:
        if not self.config.normalise_observations or not self.raw:
            return np.clip(obs, -10, 10) if self.config.normalise_observations else obs
        every = np.concatenate(self.raw)
        return np.clip((obs - every.mean(0)) / np.maximum(every.std(0), 1e-4), -10, 10)

    def iterate(self, seen: Any, done: Any, reward: Any, terminated: Any, truncated: Any, after: Any) -> None:
        """Arrays (T, n, ...) of one rollout."""
        c, (T, n) = self.config, reward.shape
        obs, successor = self.seen(seen.astype(np.float64)), self.seen(after.astype(np.float64))
        with torch.no_grad():
            value = self.critic(t64(obs))[..., 0].numpy()
            next_value = self.critic(t64(successor))[..., 0].numpy()
            old = self.actor(obs)
            action = torch.tensor(done) if isinstance(old, Categorical) else t64(done)
            old_log = per_state(old, old.log_prob(action))
        reward = reward.astype(np.float64)
        ended = terminated | truncated
        if c.scale_rewards:
            self.running = np.zeros(n) if self.running is None else self.running
            for t in range(T):
                self.running = reward[t] + c.gamma * self.running
                self.discounted += self.running.tolist()
                self.running = np.where(ended[t], 0.0, self.running)
            reward = np.clip(reward / max(np.std(self.discounted), 1e-4), -10, 10)
        if c.normalise_observations:
            self.raw.append(seen.reshape(T * n, -1).astype(np.float64))
        advantage = np.zeros((T, n))
        for i in range(n):
            for t in range(T):
                for s in range(t, T):
                    delta = reward[s, i] - value[s, i] + (0 if terminated[s, i] else c.gamma * next_value[s, i])
                    advantage[t, i] += (c.gamma * (c.gae_lambda if c.gae else 1.0)) ** (s - t) * delta
                    if ended[s, i]:
                        break
        target = advantage + value
        flat = [t64(x).reshape(T * n, *np.shape(x)[2:]) for x in (obs, advantage, target, value)]
        self.learn(flat[0], action.reshape(T * n, *action.shape[2:]), old_log.reshape(-1), *flat[1:])
        if c.objective == "kl":
            with torch.no_grad():
                now = self.actor(flat[0])
                kl = per_state(old, kl_divergence(self.frozen, now)).mean().item()
            self.beta *= 2.0 if kl > 1.5 * c.target_kl else 0.5 if kl < c.target_kl / 1.5 else 1.0
        self.iterations += 1

    def learn(self, obs: Any, action: Any, old_log: Any, advantage: Any, target: Any, value: Any) -> None:
        c, B = self.config, len(obs)
        with torch.no_grad():
            self.frozen = self.actor(obs)
            near = [(weight, other(obs)) for weight, other in self.pull]
        rate = c.learning_rate
        if c.anneal_over:
            rate *= max(0.0, 1.0 - self.iterations * B / c.anneal_over)
        self.adam.param_groups[0]["lr"] = rate
        edges = [B * j // c.minibatches for j in range(c.minibatches + 1)]
        for order in [self.order(B) for _ in range(c.epochs)]:
            drifts = []
            for begin, end in pairwise(edges):
                mine = torch.tensor(order[begin:end])
                drifts.append(self.update(obs, action, old_log, advantage, target, value, near, mine))
            if c.objective == "clip" and c.target_kl and torch.cat(drifts).mean() > 1.5 * c.target_kl:
                break

    def update(
        self, obs: Any, action: Any, old_log: Any, advantage: Any, target: Any, value: Any, near: Any, mine: Any
    ) -> Any:
        c = self.config
        now = self.actor(obs[mine])
        log_ratio = per_state(now, now.log_prob(action[mine])) - old_log[mine]
        rho, A = log_ratio.exp(), advantage[mine]
        if c.normalise_advantage:
            A = (A - A.mean()) / (A.std() + 1e-8)
        if c.objective == "clip":
            policy_loss = -torch.min(rho * A, rho.clamp(1 - c.clip, 1 + c.clip) * A).mean()
        else:
            policy_loss = (
                -(rho * A).mean() + self.beta * per_state(now, kl_divergence(part(self.frozen, mine), now)).mean()
            )
        V = self.critic(obs[mine])[:, 0]
        value_loss = (V - target[mine]) ** 2
        if c.clip_value:
            held = value[mine] + (V - value[mine]).clamp(-c.clip, c.clip)
            value_loss = torch.max(value_loss, (held - target[mine]) ** 2)
        loss = (
            policy_loss + c.value_coef * 0.5 * value_loss.mean() - c.entropy_coef * per_state(now, now.entropy()).mean()
        )
        if c.penalty:
            for weight, other in near:
                pair = (part(other, mine), now) if c.penalty_direction == "forward" else (now, part(other, mine))
                loss = loss + c.penalty_coef * weight * per_state(now, kl_divergence(*pair)).mean()
        self.adam.zero_grad()
        loss.backward()
        if c.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], c.max_grad_norm)
        self.adam.step()
        self.updates += 1
        return (rho - 1 - log_ratio).detach()


def part(d: Any, mine: torch.Tensor) -> Any:
    """A distribution on some of its states."""
    return Categorical(logits=d.logits[mine]) if isinstance(d, Categorical) else Normal(d.loc[mine], d.scale[mine])
