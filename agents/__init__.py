"""How it is learned: fleets of agents as matrices. Knows torch and numpy, neither Flower nor the worlds."""

from agents.policy_gradient import PolicyGradientFleet
from agents.ppo import PPOFleet
from agents.td3 import TD3Fleet

FLEETS = {"policy-gradient": PolicyGradientFleet, "ppo": PPOFleet, "td3": TD3Fleet}
"""The fleets by the name that a conf gives them."""
