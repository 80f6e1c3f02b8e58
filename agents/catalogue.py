"""All learners that are built in: importing this registers them."""

from agents import policy_gradient, ppo, td3

__all__ = ["policy_gradient", "ppo", "td3"]
