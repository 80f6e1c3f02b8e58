"""The options of TD3."""

from __future__ import annotations

from dataclasses import dataclass

from core.options import option


@dataclass(frozen=True)
class TD3Config:
    """TD3, in environment steps of one agent."""

    hidden: tuple[int, ...] = option((256, 256), "Hidden layers of actor and critics.", low=1)
    optimiser: str = option("adam", "Optimiser of actor and critics.", choices=("adam", "sgd"))
    learning_rate: float = option(1e-3, "Step size of the optimiser, for actor and critics.", above=0)
    gamma: float = option(0.99, "Discount.", low=0, high=1)
    tau: float = option(0.005, "Share of the local network in each update of a target.", above=0, high=1)
    batch: int = option(256, "Transitions per update.", low=1)
    policy_delay: int = option(2, "M: critic updates per actor update.", low=1)
    exploration: float = option(0.1, "Standard deviation of the acting noise, in halves of the action range.", low=0)
    smoothing: float = option(0.2, "Standard deviation of the noise on target actions.", low=0)
    smoothing_clip: float = option(0.5, "Limit of the noise on target actions.", low=0)
    learning_starts: int = option(1000, "Steps at the start with random actions and without updates.", low=0)
    updates_per_step: float = option(1.0, "Critic updates per environment step.", above=0)
    capacity: int = option(1_000_000, "Capacity of an agent's replay buffer, in transitions.", low=1)
    precision: str = option(
        "float32",
        "Matrix products in float32, or with factors rounded to bf16: faster on processors with units for it.",
        choices=("float32", "bf16"),
    )
    pull: str = option(
        "none",
        "Penalty on the distance from the last shared weights. l2: squared distance of weights; kl: that of "
        "actions (over twice the variance of the exploration) and of the critics' values on the batch.",
        choices=("none", "l2", "kl"),
    )
    beta_actor: float = option(0.0, "Weight of the penalty in the actor's loss.", low=0)
    beta_critic: float = option(0.0, "Weight of the penalty in the critics' loss.", low=0)

    def beta(self, part: str) -> float:
        """Return the weight of the penalty on a part."""
        return 0.0 if self.pull == "none" else self.beta_actor if part == "actor" else self.beta_critic
