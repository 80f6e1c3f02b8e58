"""TD3 (Fujimoto 2018) for K agents: twin critics, target policy smoothing, delayed actor.

Actions are in [-1, 1] inside, and are scaled to the range of the world when it is stepped. An update is critic,
actor, targets, in this order. It may pause after the critic's or the actor's step, where a federation exchanges that
part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.adam import SGD, Adam, polyak
from agents.equations import td3_losses
from agents.fleet import Fleet, Worlds, action_range, agent
from agents.networks import MLP, Tape
from agents.replay import Batch, Replay
from agents.report import Bounds, Meter, Report
from agents.td3_config import TD3Config
from core import registry
from core.errors import Mistake
from core.streams import Streams

F32 = NDArray[np.float32]


@agent("td3")
class TD3Fleet(Fleet):
    """K TD3 learners. Parts: ``actor``, and ``critic`` (both twins in one row). Work is counted in steps."""

    Config = TD3Config

    ROWS = (
        "actor", "critic", "actor_target", "critic_target", "optimisers", "replay", "meter", "worlds",
        "acting", "sampling", "noise", "progress", "updates", "owed", "drawn", "stage", "anchors",
    )  # fmt: skip
    spare = ("critic",)
    # The stage of an update that pauses at the exchange of a part; 0: no update is in progress.
    STAGES: ClassVar[dict[str, int]] = {"critic": 1, "actor": 2}

    @classmethod
    def check(cls, run: Any) -> None:
        if run.learner.pull != "none" and not registry.get("strategy", run.strategy).value.anchors:
            raise Mistake(
                f"'td3.pull' needs the last weights that all agents shared, and the strategy {run.strategy} "
                "keeps none: take fedavg-td3, or set it to none"
            )

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
        kind = Adam if config.optimiser == "adam" else SGD
        self.optimisers = {part: kind(K, W.shape[1]) for part, W in self.parts.items()}
        self.replay = Replay(K, config.capacity, obs_width, action_width)
        self.meter = Meter(K, n)
        self.acting = Streams(seeds, "acting", lanes=n)
        self.sampling = Streams(seeds, "sampling")
        self.noise = Streams(seeds, "smoothing")
        self.progress = np.zeros(K, np.int64)
        self.updates = np.zeros(K, np.int64)
        self.owed = np.zeros(K)
        # The batch and the stage of the update in progress.
        self.drawn = np.zeros((K, config.batch), np.int64)
        self.stage = np.zeros(K, np.int64)
        self.anchors: dict[str, F32] = {}
        self.one = False
        self._tapes = {name: Tape() for name in ("actor", "critic", "targets", "anchor")}
        if config.pull == "kl" and config.beta_actor and not config.exploration:
            raise Mistake(
                "'td3.pull' kl measures actions in deviations of 'td3.exploration', which is 0: set it, or l2"
            )

    @property
    def usual_work(self) -> int:
        """1,000 steps of every copy, or the longest episode where rounds end it."""
        return self.worlds.copies * (1000 if self.worlds.exact else max(1000, self.worlds.horizon))

    def steps_of(self, work: int) -> float:
        return work

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

    @property
    def standing(self) -> NDArray[np.int64]:
        return np.stack([self.progress, self.stage], axis=1)

    def begin_alike(self, seed: int, one: bool = False) -> None:
        """Give all agents the initial weights of the agent with this seed, and remember these as shared.

        As ``one``, agents keep equal weights: every step follows their mean gradient, as one learner with all batches.
        """
        self.one = one
        self.actor[...] = self.actor_net.initial(Streams([seed], "actor"))
        self.critic[...] = self.critic_net.initial(Streams([seed], "critic", lanes=2)).reshape(1, -1)
        self.actor_target[...], self.critic_target[...] = self.actor, self.critic
        self.anchors = {part: W.copy() for part, W in self.parts.items()}

    def shared(self, part: str) -> F32:
        return self.anchors.get(part, self.parts[part])

    def share(self, part: str, rows: Any) -> None:
        if self.anchors:
            self.anchors[part][rows] = self.parts[part][rows]

    def shared_step(self, part: str, G: F32, rows: Any) -> None:
        going = np.zeros(self.agents, np.bool_)
        going[rows] = True
        going &= self.stage == self.STAGES[part]
        alike = np.repeat(G[None], self.agents, axis=0)
        self.optimisers[part].step(self.parts[part], alike, self.config.learning_rate, active=going)
        self.share(part, going)

    def bounds(self, work: int, measured: bool = False) -> Bounds:
        steps = -(-work // self.worlds.copies) * self.worlds.copies
        # An agent may owe part of an update from before.
        return Bounds(steps, steps, int(steps * self.config.updates_per_step) + 1)

    def _train(self, work: int) -> Report:
        return self._train_to("", work)[1]

    def train_to(self, part: str, work: int) -> Report:
        return self.in_groups(lambda group, rows: group._train_to(part, work)[1])

    def measure(self, part: str, work: int) -> tuple[F32, Report]:
        """Train as ``train_to`` does, but return the gradient of the part's last step and do not take that step.

        The gradient is zero for agents whose work ends without an update.
        """
        whole = np.zeros_like(self.parts[part])

        def act(group: TD3Fleet, rows: Any) -> Report:
            G, report = group._train_to(part, work, measure=True)
            if G is not None:
                whole[rows] = G
            return report

        return whole, self.in_groups(act)

    def _train_to(self, part: str, work: int, measure: bool = False) -> tuple[F32 | None, Report]:
        """Finish the update in progress, take ``work`` steps, and pause the last update where ``part`` is exchanged."""
        report = Report(np.zeros(self.agents, np.int64), np.zeros(self.agents, np.int64))
        begun, goal = self.updates.copy(), int(self.progress[0]) + work
        losses: dict[str, list[F32]] = {}
        G = None
        if self.stage[0]:
            with report.learning():
                G = self.update(losses, "" if work else part, measure)
        while self.progress[0] < goal:
            with report.acting():
                self._step(report)
            with report.learning():
                while self.owed[0] >= 1.0:
                    self.owed -= 1.0
                    last = self.progress[0] >= goal and self.owed[0] < 1.0
                    G = self.update(losses, part if last else "", measure)
        report.updates[:] = self.updates - begun
        report.metrics = {name: np.mean(values, axis=0, dtype=np.float64) for name, values in losses.items()}
        return G, report

    def _step(self, report: Report) -> None:
        """Step every copy once, and store the transitions."""
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

    def update(self, losses: dict[str, list[F32]] | None = None, pause: str = "", measure: bool = False) -> F32 | None:
        """One critic update and, every ``policy_delay``-th time, an actor update that moves the targets as well.

        It pauses after the step of the part ``pause``, or (``measure``) before that step, and then returns the part's
        gradient. The next call goes on from there, with the same batch.
        """
        if not self.stage[0]:
            self.drawn[...] = self.sampling.integers(self.replay.size, self.config.batch)
        batch = self.replay.gather(self.drawn)
        for part, stage in self.STAGES.items():
            if self.stage[0] >= stage:
                continue
            if part == "actor" and self.updates[0] % self.config.policy_delay:
                break
            metrics, G = (self.critic_gradient if part == "critic" else self.actor_gradient)(batch)
            if losses is not None:
                for name, value in metrics.items():
                    losses.setdefault(name, []).append(value)
            if self.one:
                G[...] = G.mean(axis=0)
            if not (measure and part == pause):
                self.apply(part, G)
            self.updates += part == "critic"
            self.stage[...] = stage
            if part == pause:
                return G if measure else None
        if self.stage[0] == self.STAGES["actor"]:
            self.move_targets()
        self.stage[...] = 0
        return None

    def critic_gradient(self, batch: Batch) -> tuple[dict[str, F32], F32]:
        """Return the twin loss and the penalty, (K,) each, and their gradient (K, d) on a batch."""
        K = len(batch.reward)
        target = self._tapes["targets"]
        action = self.actor_net.forward(self.actor_target, batch.next_obs, target)
        noise = self.config.smoothing * self.noise.normal(*action.shape[1:])
        smoothed = td3_losses.smoothed_action(action, noise, self.config.smoothing_clip)
        twins = self._twins(self.critic_target)
        q_next = self.critic_net.forward(twins, self._pairs("next", batch.next_obs, smoothed), self._tapes["critic"])
        y = td3_losses.twin_target(batch.reward, batch.terminated, q_next[..., 0], self.config.gamma)
        twins, tape = self._twins(self.critic), self._tapes["critic"]
        pairs = self._pairs("now", batch.obs, batch.action)
        q = self.critic_net.forward(twins, pairs, tape)
        loss, slope = td3_losses.twin_loss(q[..., 0], y)
        pull = None
        if self._pulled("critic", "kl"):
            then = self.critic_net.forward(self._twins(self.anchors["critic"]), pairs, self._tapes["anchor"])
            pull, more = td3_losses.value_pull(q[..., 0], then[..., 0])
            slope += np.float32(self.config.beta_critic) * more
        G = tape.buffer("G", self.critic.shape)
        self.critic_net.backward(twins, tape, slope[..., None], G.reshape(K, 2, -1))
        return self._losses("critic", loss, pull, G), G

    def actor_gradient(self, batch: Batch) -> tuple[dict[str, F32], F32]:
        """Return -mean Q1(s, mu(s)) and the penalty, (K,) each, and their gradient (K, d) on a batch."""
        b = batch.reward.shape[1]
        tape, first = self._tapes["actor"], self._twins(self.critic)[:, 0]
        action = self.actor_net.forward(self.actor, batch.obs, tape)
        pairs = self._pairs("policy", batch.obs, action)[:, 0]
        critic_tape = self._tapes["targets"]
        q = self.critic_net.forward(first, pairs, critic_tape)
        loss = -q[..., 0].mean(-1)
        dx = self.critic_net.backward(first, critic_tape, np.full_like(q, -1.0 / b), None, want_dx=True)
        assert dx is not None
        slope, pull = np.ascontiguousarray(dx[..., batch.obs.shape[-1] :]), None
        if self._pulled("actor", "kl"):
            then = self.actor_net.forward(self.anchors["actor"], batch.obs, self._tapes["anchor"])
            pull, more = td3_losses.action_pull(action, then, self.config.exploration)
            slope += np.float32(self.config.beta_actor) * more
        G = tape.buffer("G", self.actor.shape)
        self.actor_net.backward(self.actor, tape, slope, G)
        return self._losses("actor", loss, pull, G), G

    def _pulled(self, part: str, kind: str) -> bool:
        return bool(self.anchors) and self.config.pull == kind and self.config.beta(part) > 0

    def _losses(self, part: str, loss: F32, pull: F32 | None, G: F32) -> dict[str, F32]:
        """Return the metrics of a loss. An L2 penalty on the weights is added to the gradient here."""
        if pull is not None:
            pull = np.float32(self.config.beta(part)) * pull
        elif self._pulled(part, "l2"):
            pull, more = td3_losses.l2_pull(self.parts[part], self.anchors[part], self.config.beta(part))
            G += more
        found = {f"{part}-loss": loss}
        if pull is not None:
            whole = np.maximum(np.abs(loss) + pull, np.float32(1e-30))
            found |= {f"{part}-pull": pull, f"share-{part}-pull": (pull / whole).astype(np.float32)}
        return found

    def move_targets(self) -> None:
        """Move the targets towards the local networks. Targets are never averaged between agents."""
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
        self.optimisers[part].step(self.parts[part], G, self.config.learning_rate)

    def _twins(self, critic: F32) -> F32:
        return critic.reshape(len(critic), 2, -1)

    def _pairs(self, name: str, obs: F32, action: F32) -> F32:
        """Return the input of the critics, (K, 1, b, obs + action). The twins share it."""
        width = obs.shape[-1]
        x = self._tapes["critic"].buffer(("pairs", name), (*obs.shape[:-1], width + action.shape[-1]))
        x[..., :width] = obs
        x[..., width:] = action
        return x[:, None]
