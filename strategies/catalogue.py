"""All strategies, rules and graphs that are built in: importing this registers them."""

from strategies import alone, central, dec_byz_pg, fedavg, fedavg_td3, fedpg_br, fedpg_dec, kl_ppo, push_sum
from strategies.graphs import topology
from strategies.rules import robust

__all__ = [
    "alone", "central", "dec_byz_pg", "fedavg", "fedavg_td3", "fedpg_br", "fedpg_dec", "kl_ppo", "push_sum", "robust",
    "topology",
]  # fmt: skip
