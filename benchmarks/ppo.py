"""PPO on CartPole with the usual settings, beside Stable-Baselines3 with the same ones."""

from __future__ import annotations

from collections.abc import Callable

from agents.ppo import PPOConfig, PPOFleet
from benchmarks.timing import Row, interleaved, one_thread, report
from core.streams import agent_seeds
from envs import WorldConfig, make_worlds

COPIES = 4
CONFIG = PPOConfig(hidden=(64, 64), activation="tanh", rollout=128, minibatches=4, epochs=4)


def ours(agents: int) -> Callable[[], float]:
    seeds = agent_seeds(0, range(agents))
    fleet = PPOFleet(CONFIG, make_worlds(WorldConfig(copies=COPIES), seeds), seeds)
    return lambda: float(fleet.train(2).steps.sum())


def theirs() -> Callable[[], float]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    batch = COPIES * CONFIG.rollout // CONFIG.minibatches
    model = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", COPIES), device="cpu", seed=0,
        n_steps=CONFIG.rollout, batch_size=batch, n_epochs=CONFIG.epochs, learning_rate=CONFIG.learning_rate,
        gamma=CONFIG.gamma, gae_lambda=CONFIG.gae_lambda, clip_range=CONFIG.clip, clip_range_vf=CONFIG.clip,
        ent_coef=CONFIG.entropy_coef, vf_coef=CONFIG.value_coef, max_grad_norm=CONFIG.max_grad_norm,
        policy_kwargs={"net_arch": list(CONFIG.hidden)},
    )  # fmt: skip

    def run() -> float:
        before = model.num_timesteps
        model.learn(2 * COPIES * CONFIG.rollout, reset_num_timesteps=False)
        return float(model.num_timesteps - before)

    return run


def main() -> None:
    one_thread()
    rates = interleaved({"one": ours(1), "four": ours(4), "sb3": theirs()})
    rows: list[Row] = [
        {"learner": label, "steps/s, all agents": str(rates.of(name)), "ratio": str(rates.ratio(name, "sb3"))}
        for label, name in (("ours, one agent", "one"), ("ours, a fleet of four", "four"), ("Stable-Baselines3", "sb3"))
    ]
    report("ppo", "PPO on CartPole: 4 x 128 steps, 4 minibatches, 4 epochs, 64-64 tanh", rows)


if __name__ == "__main__":
    main()
