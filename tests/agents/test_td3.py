"""TD3 against a slow one written out in torch; and what only a fleet can get wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.td3 import TD3Fleet
from agents.td3_config import TD3Config
from core.errors import Mistake
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds
from tests.agents.slow import mlp, row_of, t64
from tests.agents.tiny import Identity, Recorder, Wide

BASE = {"hidden": (8, 7), "batch": 16, "learning_starts": 20, "capacity": 200, "learning_rate": 1e-3}


def fleet_for(numbers=(0, 1), copies=1, recorded=False, wide=True, **changes):
    """Wide's range is made that of its targets, and its episodes terminate now and then or are cut."""
    seeds = agent_seeds(4, numbers)
    worlds = (
        Wide(seeds, copies, horizon=6, truncates=True)
        if wide
        else make_worlds(WorldConfig(id="Pendulum-v1", copies=copies, horizon=15), seeds)
    )
    return TD3Fleet(TD3Config(**(BASE | changes)), Recorder(worlds) if recorded else worlds, seeds)


class Slow:
    """One agent's networks, targets and optimisers."""

    def __init__(self, fleet, k):
        self.config = fleet.config
        o, a = fleet.worlds.obs.shape[-1], len(fleet.centre)
        shapes = {"actor": (o, *self.config.hidden, a), "critic": (o + a, *self.config.hidden, 1)}

        def make(name, row):
            return mlp(shapes[name], "relu", name == "actor", row)

        self.actor, self.actor_target = make("actor", fleet.actor[k]), make("actor", fleet.actor_target[k])
        self.critics, self.targets = (
            [make("critic", row) for row in np.split(matrix[k], 2)] for matrix in (fleet.critic, fleet.critic_target)
        )
        both = [p for critic in self.critics for p in critic.parameters()]
        self.critic_adam = torch.optim.Adam(both, lr=self.config.learning_rate)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=self.config.learning_rate)
        self.updates = 0

    def update(self, obs, action, reward, terminated, truncated, next_obs, noise):
        c = self.config
        obs, action, reward, next_obs = (t64(x) for x in (obs, action, reward, next_obs))
        with torch.no_grad():
            jitter = (c.smoothing * t64(noise)).clamp(-c.smoothing_clip, c.smoothing_clip)
            after = torch.cat([next_obs, (self.actor_target(next_obs) + jitter).clamp(-1, 1)], -1)
            worst = torch.min(*(target(after)[:, 0] for target in self.targets))
            y = reward + c.gamma * ~torch.tensor(terminated) * worst
        pairs = torch.cat([obs, action], -1)
        loss = sum(((critic(pairs)[:, 0] - y) ** 2).mean() for critic in self.critics)
        self.critic_adam.zero_grad()
        loss.backward()
        self.critic_adam.step()
        self.updates += 1
        if self.updates % c.policy_delay == 0:
            loss = -self.critics[0](torch.cat([obs, self.actor(obs)], -1)).mean()
            self.actor_adam.zero_grad()
            loss.backward()
            self.actor_adam.step()
            pairs = [(self.actor_target, self.actor), *zip(self.targets, self.critics, strict=True)]
            with torch.no_grad():
                for target, source in pairs:
                    for p, q in zip(target.parameters(), source.parameters(), strict=True):
                        p += c.tau * (q - p)

    @property
    def rows(self):
        return {
            "actor": row_of(self.actor),
            "actor_target": row_of(self.actor_target),
            "critic": np.concatenate([row_of(critic) for critic in self.critics]),
            "critic_target": np.concatenate([row_of(critic) for critic in self.targets]),
        }


def filled(**changes):
    """A fleet of two whose replay holds random actions, terminations and truncations."""
    fleet = fleet_for(learning_starts=60, **changes)
    fleet.train(60)
    assert fleet.replay.terminated[:, :60].any(axis=1).all()
    assert fleet.replay.truncated[:, :60].any(axis=1).all()
    assert (fleet.updates == 0).all()
    return fleet


CHANGES = [
    {},
    {"policy_delay": 1, "tau": 0.5},
    {"policy_delay": 3, "gamma": 0.5},
    {"smoothing": 2.0, "smoothing_clip": 0.1},
    {"smoothing": 0.0, "batch": 1},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_updates_are_a_slow_learners(changes):
    """Six updates on the same batches with the same noise."""
    fleet = filled(**changes)
    slow = [Slow(fleet, k) for k in range(2)]
    for _ in range(6):
        index = fleet.sampling.take(slice(0, 2))
        index.counts = index.counts.copy()
        batch = fleet.replay.gather(index.integers(fleet.replay.size, fleet.config.batch))
        noise = fleet.noise.take(slice(0, 2))
        noise.counts = noise.counts.copy()
        drawn = noise.normal(fleet.config.batch, 2)
        fleet.update()
        for k in range(2):
            slow[k].update(*(x[k] for x in batch), drawn[k])
    for k in range(2):
        for name, row in slow[k].rows.items():
            np.testing.assert_allclose(getattr(fleet, name)[k], row, rtol=0, atol=1e-5, err_msg=name)


def test_gradients_of_the_parts():
    """On request, on fresh data, without a step; what was handed out stays what it was."""
    fleet = filled()
    before = {name: array.copy() for name, array in fleet.parts.items()}
    for part in ("critic", "actor"):
        first = fleet.gradient(part)
        kept = first.copy()
        second = fleet.gradient(part)
        np.testing.assert_array_equal(first, kept)
        assert np.abs(first - second).max() > 0
        assert first.shape == fleet.parts[part].shape
    for name, array in fleet.parts.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("delay", [1, 2, 5])
def test_actor_and_targets_wait(delay):
    fleet = filled(policy_delay=delay)
    moved = {"actor": 0, "actor_target": 0, "critic": 0, "critic_target": 0}
    for _ in range(10):
        before = {name: getattr(fleet, name).copy() for name in moved}
        fleet.update()
        for name, was in before.items():
            moved[name] += bool((getattr(fleet, name) != was).any(axis=1).all())
    assert moved == {"actor": 10 // delay, "actor_target": 10 // delay, "critic": 10, "critic_target": 10 // delay}


def test_it_starts_with_random_actions_and_without_updates():
    fleet = fleet_for(recorded=True, learning_starts=200, copies=2, capacity=400)
    before = fleet.actor.copy(), fleet.critic.copy()
    report = fleet.train(200)
    assert report.updates.tolist() == [0, 0]
    np.testing.assert_array_equal(fleet.actor, before[0])
    np.testing.assert_array_equal(fleet.critic, before[1])
    told = np.stack(fleet.worlds.done) / 100.0
    for k in range(2):
        one = told[:, k].reshape(-1)
        assert np.abs(one).max() <= 1.0
        # Uniform: mean 0, deviation 1 / sqrt 3, and as much at the edges as anywhere.
        assert abs(one.mean()) < 0.1
        assert abs(one.std() - 3**-0.5) < 0.05
        assert 0.05 < (np.abs(one) > 0.9).mean() < 0.16
    np.testing.assert_allclose(fleet.replay.action[:, :200].reshape(2, -1), np.stack(told, 1).reshape(2, -1), atol=1e-6)
    assert fleet.train(2).updates.tolist() == [2, 2]


@pytest.mark.parametrize(("ratio", "copies", "updates"), [(0.5, 1, 20), (2.0, 1, 80), (1.0, 4, 40), (0.25, 2, 10)])
def test_updates_per_step(ratio, copies, updates):
    fleet = fleet_for(updates_per_step=ratio, copies=copies)
    report = fleet.train(20)
    assert report.updates.tolist() == [0, 0]
    report = fleet.train(40)
    assert report.updates.tolist() == [updates, updates]
    assert report.steps.tolist() == [40, 40]
    assert fleet.progress.tolist() == [60, 60]


def test_exploration_is_noise_in_units_of_the_range():
    fleet = fleet_for(
        recorded=True, learning_starts=0, exploration=0.2, copies=400, updates_per_step=1e-9, capacity=2000
    )
    fleet.actor *= 0.1
    fleet.train(800)
    for step in range(2):
        clean = fleet.act(fleet.worlds.seen[step])
        noise = (fleet.worlds.done[step] - clean) / 100.0
        assert abs(noise.mean()) < 0.02
        assert abs(noise.std() - 0.2) < 0.01


def test_actions_stay_in_range():
    fleet = fleet_for(recorded=True, learning_starts=0, exploration=3.0)
    fleet.train(50)
    assert np.abs(np.stack(fleet.worlds.done)).max() == 100.0


@pytest.mark.parametrize("wide", [True, False])
def test_an_agent_learns_the_same_alone_and_in_a_fleet(wide):
    fleet = fleet_for(range(4), wide=wide)
    fleet.train(40)
    for k in (0, 3):
        alone = fleet_for((k,), wide=wide)
        alone.train(40)
        assert alone.updates[0] == fleet.updates[k] == 20
        for name in ("actor", "critic", "actor_target", "critic_target"):
            np.testing.assert_allclose(getattr(alone, name)[0], getattr(fleet, name)[k], rtol=0, atol=1e-5)


def test_the_same_seed_twice():
    one, other = fleet_for(wide=False), fleet_for(wide=False)
    for fleet in (one, other):
        fleet.train(60)
    for name, array in one.state().items():
        np.testing.assert_array_equal(array, other.state()[name], err_msg=name)


def test_work_in_pieces_is_work_at_once():
    one, other = fleet_for(updates_per_step=0.3), fleet_for(updates_per_step=0.3)
    one.train(50)
    for work in (1, 20, 29):
        other.train(work)
    np.testing.assert_array_equal(one.actor, other.actor)
    np.testing.assert_array_equal(one.critic, other.critic)


@pytest.mark.parametrize("changes", [{}, {"updates_per_step": 2.0}, {"updates_per_step": 0.25, "copies": 2}])
def test_pausing_where_a_part_is_exchanged_changes_nothing(changes):
    """However often an update stops after the critic's step, after the actor's, or before either."""
    whole, paused, measured = (fleet_for(**changes) for _ in range(3))
    whole.train(60)
    for fleet in (paused, measured):
        for work in (30, 8, 2, 4):
            for part, more in (("critic", work), ("actor", 0), ("actor", work), ("critic", work)):
                if fleet is paused:
                    fleet.train_to(part, min(more, 60 - int(fleet.progress[0])))
                    continue
                G, _ = fleet.measure(part, min(more, 60 - int(fleet.progress[0])))
                for k in range(2):  # the step that it paused before, down its own gradient
                    fleet.shared_step(part, G[k], [k])
        fleet.train(60 - int(fleet.progress[0]))
        for name, array in whole.state().items():
            if name != "drawn":  # it is drawn anew
                np.testing.assert_array_equal(array, fleet.state()[name], err_msg=name)


def test_where_it_pauses():
    fleet = filled()
    moved = {}
    for pause, work in (("critic", 2), ("actor", 0), ("", 0)):
        before = {name: getattr(fleet, name).copy() for name in ("actor", "critic", "actor_target", "critic_target")}
        fleet.train_to(pause, work)
        moved[pause] = [name for name, was in before.items() if (getattr(fleet, name) != was).any()]
    assert moved == {"critic": ["critic"], "actor": ["actor"], "": ["actor_target", "critic_target"]}
    assert fleet.updates.tolist() == [2, 2]


def test_agents_that_paused_elsewhere_go_on_from_there():
    """One has done the actor's step of an update and the other has not: they are trained apart."""
    fleet, straight = filled(), filled()
    fleet.train_to("critic", 2)
    straight.train(12)
    first = fleet.take([0])
    first.train_to("actor", 0)
    fleet.put([0], first)
    assert fleet.stage.tolist() == [2, 1]
    fleet.train(10)
    assert fleet.stage.tolist() == [0, 0]
    np.testing.assert_allclose(fleet.actor, straight.actor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", ["actor", "critic"])
@pytest.mark.parametrize("pull", ["l2", "kl"])
def test_pulls_are_added_to_the_gradient(part, pull):
    """What a pull adds is autograd's gradient of it, and its share of the loss is said."""
    plain, pulled = filled(), filled(pull=pull, beta_actor=0.7, beta_critic=0.7, exploration=0.3)
    for fleet in (plain, pulled):
        fleet.begin_alike(3)
        for W in fleet.parts.values():
            W += 0.1 * np.sin(np.arange(W.size, dtype=np.float32)).reshape(W.shape)
    batch = plain.replay.gather(np.arange(32).reshape(2, 16))
    # Rewards by the thousand would drown the difference of two gradients in rounding.
    batch = batch._replace(reward=np.zeros_like(batch.reward), terminated=np.ones_like(batch.terminated))
    found = []
    for fleet in (plain, pulled):
        fleet.noise.counts[...] = 0
        losses, G = fleet.critic_gradient(batch) if part == "critic" else fleet.actor_gradient(batch)
        found.append(G.copy())
    o, a, config = batch.obs.shape[-1], batch.action.shape[-1], pulled.config
    for k in range(2):
        if pull == "l2":
            w = torch.tensor(pulled.parts[part][k].astype(float), requires_grad=True)
            loss = 0.7 * ((w - t64(pulled.anchors[part][k])) ** 2).sum()
            wanted = torch.autograd.grad(loss, w)[0].numpy()
        elif part == "actor":
            net, then = (
                mlp((o, *config.hidden, a), "relu", True, row) for row in (pulled.actor[k], pulled.anchors["actor"][k])
            )
            gap = net(t64(batch.obs[k])) - then(t64(batch.obs[k])).detach()
            loss = 0.7 * (gap**2).sum(-1).mean() / (2 * 0.3**2)
            loss.backward()
            wanted = row_of(net, gradient=True)
        else:
            pairs, loss, nets = torch.cat([t64(batch.obs[k]), t64(batch.action[k])], -1), 0.0, []
            for row, anchor in zip(
                np.split(pulled.critic[k], 2), np.split(pulled.anchors["critic"][k], 2), strict=True
            ):
                net, then = (mlp((o + a, *config.hidden, 1), "relu", False, one) for one in (row, anchor))
                loss = loss + 0.7 * ((net(pairs) - then(pairs).detach()) ** 2).mean()
                nets.append(net)
            loss.backward()
            wanted = np.concatenate([row_of(net, gradient=True) for net in nets])
        assert np.abs(wanted).max() > 0.01
        np.testing.assert_allclose((found[1] - found[0])[k], wanted, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(losses[f"{part}-pull"][k], loss.item(), rtol=1e-4)
        share = losses[f"{part}-pull"] / (np.abs(losses[f"{part}-loss"]) + losses[f"{part}-pull"])
        np.testing.assert_allclose(losses[f"share-{part}-pull"], share, rtol=1e-6)


def test_discrete_actions_are_refused():
    seeds = agent_seeds(0, [0])
    with pytest.raises(Mistake, match="continuous"):
        TD3Fleet(TD3Config(**BASE), Identity(seeds), seeds)
