"""TD3 (Fujimoto 2018) for K agents: twin critics, target policy smoothing, delayed actor.

Actions are kept in [-1, 1] inside and scaled to the world's range at its door.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import equations
from agents.adam import Adam, polyak
from agents.fleet import Fleet, Meter, Report, Worlds, action_range
from agents.networks import MLP, Tape
from agents.replay import Batch, Replay
from core.config import option
from core.streams import Streams

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class TD3Config:
    """TD3, in environment steps of one agent."""

    hidden: tuple[int, ...] = option((256, 256), "Hidden layers of actor and critics.", low=1)
    learning_rate: float = option(1e-3, "Step size of Adam, for actor and critics.", above=0)
    gamma: float = option(0.99, "Discount.", low=0, high=1)
    tau: float = option(0.005, "Share of the local network that a target takes over at each move.", above=0, high=1)
    batch: int = option(256, "Transitions per update.", low=1)
    policy_delay: int = option(2, "M: critic updates per actor update.", low=1)
    exploration: float = option(0.1, "Standard deviation of the acting noise, in halves of the action range.", low=0)
    smoothing: float = option(0.2, "Standard deviation of the noise on target actions.", low=0)
    smoothing_clip: float = option(0.5, "Bound of the noise on target actions.", low=0)
    learning_starts: int = option(1000, "Steps with random actions, and without updates, at the start.", low=0)
    updates_per_step: float = option(1.0, "Critic updates per environment step.", above=0)
    capacity: int = option(1_000_000, "Transitions that an agent remembers.", low=1)
    precision: str = option(
        "float32",
        "Matrix products in float32, or of factors rounded to bf16: faster with units for it.",
        choices=("float32", "bf16"),
    )


class TD3Fleet(Fleet):
    """K TD3 learners. Parts: ``actor``, and ``critic`` (both twins in one row). Work is counted in steps."""

    ROWS = (
        "actor", "critic", "actor_target", "critic_target", "actor_adam", "critic_adam", "replay", "meter", "worlds",
        "acting", "sampling", "noise", "progress", "updates", "owed",
    )  # fmt: skip
    unit = "steps"

    def __init__(self, config: TD3Config, worlds: Worlds, seeds: Sequence[int]) -> None:
        self.config, self.worlds, self.seeds = config, worlds, seeds
        K, n = worlds.agents, worlds.copies
        self.centre, self.half = action_range(worlds.action_space)
        obs_width, action_width = worlds.observation_space.shape[0], len(self.centre)
        self.actor_net = MLP((obs_width, *config.hidden, action_width), "relu", squash=True, precision=config.precision)
        self.critic_net = MLP((obs_width + action_width, *config.hidden, 1), "relu", precision=config.precision)
        self.actor = self.actor_net.initial(Streams(seeds, "actor"))
        self.critic = self.critic_net.initial(Streams(seeds, "critic", lanes=2)).reshape(K, -1)
        self.actor_target, self.critic_target = self.actor.copy(), self.critic.copy()
        self.actor_adam = Adam(K, self.actor.shape[1])
        self.critic_adam = Adam(K, self.critic.shape[1])
        self.replay = Replay(K, config.capacity, obs_width, action_width)
        self.meter = Meter(K, n)
        self.acting = Streams(seeds, "acting", lanes=n)
        self.sampling = Streams(seeds, "sampling")
        self.noise = Streams(seeds, "smoothing")
        self.progress = np.zeros(K, np.int64)
        self.updates = np.zeros(K, np.int64)
        self.owed = np.zeros(K)
        self._tapes = {name: Tape() for name in ("actor", "critic", "targets")}

    @property
    def parts(self) -> dict[str, F32]:
        return {"actor": self.actor, "critic": self.critic}

    def end_episodes(self) -> None:
        self.meter.clear()

    def act(self, obs: F32, streams: Streams | None = None) -> NDArray[Any]:
        return self.centre + self.half * self._command(obs, streams)

    def _command(self, obs: F32, streams: Streams | None) -> F32:
        action = self.actor_net.infer(self.actor, obs, np.ones(obs.shape[:2], np.bool_))
        if streams is not None:
            action += (self.config.exploration * streams.normal(action.shape[-1])).astype(np.float32)
            np.clip(action, -1.0, 1.0, out=action)
        return action

    def _train(self, work: int) -> Report:
        report = Report(np.zeros(self.agents, np.int64), np.zeros(self.agents, np.int64))
        begun = self.updates.copy()
        losses: dict[str, list[F32]] = {}
        goal = int(self.progress[0]) + work
        while self.progress[0] < goal:
            with report.acting():
                self._step(report)
            with report.learning():
                while self.owed[0] >= 1.0:
                    self.update(losses)
                    self.owed -= 1.0
        report.updates[:] = self.updates - begun
        report.metrics = {name: np.mean(values, axis=0, dtype=np.float64) for name, values in losses.items()}
        return report

    def _step(self, report: Report) -> None:
        """Every copy acts once; what happened is remembered."""
        obs, n = self.worlds.obs, self.worlds.copies
        starting = self.progress[0] < self.config.learning_starts
        if starting:
            action = (2.0 * self.acting.uniform(len(self.centre)) - 1.0).astype(np.float32)
        else:
            action = self._command(obs, self.acting)
        step = self.worlds.step(self.centre + self.half * action)
        self.replay.add(obs, action, step.reward, step.terminated, step.truncated, step.next_obs)
        self.progress += n
        report.steps += n
        ended = (step.terminated | step.truncated)[None]
        self.meter.add(step.reward[None], ended, self.progress, report)
        if not starting:
            self.owed += n * self.config.updates_per_step

    def update(self, losses: dict[str, list[F32]] | None = None) -> None:
        """One critic update and, every ``policy_delay``-th time, an actor update that moves the targets as well."""
        batch = self.replay.gather(self.sampling.integers(self.replay.size, self.config.batch))
        loss, G = self.critic_gradient(batch)
        self.apply("critic", G)
        found = {"critic-loss": loss}
        self.updates += 1
        if self.updates[0] % self.config.policy_delay == 0:
            loss, G = self.actor_gradient(batch)
            self.apply("actor", G)
            found["actor-loss"] = loss
            self.move_targets()
        if losses is not None:
            for name, value in found.items():
                losses.setdefault(name, []).append(value)

    def critic_gradient(self, batch: Batch) -> tuple[F32, F32]:
        """The twin loss (K,) and its gradient (K, d) on a batch."""
        K = len(batch.reward)
        target = self._tapes["targets"]
        action = self.actor_net.forward(self.actor_target, batch.next_obs, target)
        noise = self.config.smoothing * self.noise.normal(*action.shape[1:])
        smoothed = equations.smoothed_action(action, noise, self.config.smoothing_clip)
        twins = self._twins(self.critic_target)
        q_next = self.critic_net.forward(twins, self._pairs("next", batch.next_obs, smoothed), self._tapes["critic"])
        y = equations.twin_target(batch.reward, batch.terminated, q_next[..., 0], self.config.gamma)
        twins, tape = self._twins(self.critic), self._tapes["critic"]
        q = self.critic_net.forward(twins, self._pairs("now", batch.obs, batch.action), tape)
        loss, slope = equations.twin_loss(q[..., 0], y)
        G = tape.buffer("G", self.critic.shape)
        self.critic_net.backward(twins, tape, slope[..., None], G.reshape(K, 2, -1))
        return loss, G

    def actor_gradient(self, batch: Batch) -> tuple[F32, F32]:
        """-mean Q1(s, mu(s)) (K,) and its gradient (K, d) on a batch."""
        b = batch.reward.shape[1]
        tape, first = self._tapes["actor"], self._twins(self.critic)[:, 0]
        action = self.actor_net.forward(self.actor, batch.obs, tape)
        pairs = self._pairs("policy", batch.obs, action)[:, 0]
        judge = self._tapes["targets"]
        q = self.critic_net.forward(first, pairs, judge)
        loss = -q[..., 0].mean(-1)
        dx = self.critic_net.backward(first, judge, np.full_like(q, -1.0 / b), None, want_dx=True)
        assert dx is not None
        G = tape.buffer("G", self.actor.shape)
        self.actor_net.backward(self.actor, tape, np.ascontiguousarray(dx[..., batch.obs.shape[-1] :]), G)
        return loss, G

    def move_targets(self) -> None:
        """The targets follow the local networks; they are never averaged."""
        polyak(self.actor_target, self.actor, self.config.tau)
        polyak(self.critic_target, self.critic, self.config.tau)

    def gradient(self, part: str) -> F32:
        if part not in self.parts:
            return super().gradient(part)
        batch = self.replay.gather(self.sampling.integers(self.replay.size, self.config.batch))
        return (self.critic_gradient if part == "critic" else self.actor_gradient)(batch)[1].copy()

    def apply(self, part: str, G: F32) -> None:
        if part not in self.parts:
            super().apply(part, G)
        adam = self.critic_adam if part == "critic" else self.actor_adam
        adam.step(self.parts[part], G, self.config.learning_rate)

    def _twins(self, critic: F32) -> F32:
        return critic.reshape(len(critic), 2, -1)

    def _pairs(self, name: str, obs: F32, action: F32) -> F32:
        """(K, 1, b, obs + action): what a critic looks at; the twins share it."""
        width = obs.shape[-1]
        x = self._tapes["critic"].buffer(("pairs", name), (*obs.shape[:-1], width + action.shape[-1]))
        x[..., :width] = obs
        x[..., width:] = action
        return x[:, None]
