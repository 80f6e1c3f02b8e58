"""Federated reinforcement learning from Python: run, look at what was learned, and add things of your own.

import fedrl

run = fedrl.run("conf/fedavg_cartpole.toml", seed=1, rounds=20)
run.metrics                      # a record per round; a pandas frame where pandas is installed
run.policy(0).act(observation)   # numpy in, numpy out
run.evaluate(episodes=50)        # returns (agents, episodes)

@fedrl.rule("my-rule")           # then: fedrl.run(..., federation={"rule": "my-rule"})
def my_rule(rows, given):
    return rows.mean(axis=0)
"""

from agents.fleet import Fleet, agent
from agents.report import Bounds, Episode, Report
from attacks.attack import About, attack
from attacks.false_worlds import FalseWorlds
from core.errors import Failure, Mistake
from core.options import option
from core.streams import Streams
from envs import Step, WorldConfig, Worlds, world
from fedrl.run import Policy, Run, evaluate, load, resume, run
from strategies.fedavg import FedAvg
from strategies.federation import Federation
from strategies.graphs.topology import topology
from strategies.method import strategy
from strategies.peers import Peers
from strategies.push_sum import Gossip
from strategies.rules.rule import Given, TooFewError, Verdict, rule

__all__ = [
    "About", "Bounds", "Episode", "Failure", "FalseWorlds", "FedAvg", "Federation", "Fleet", "Given", "Gossip",
    "Mistake", "Peers", "Policy", "Report", "Run", "Step", "Streams", "TooFewError", "Verdict", "WorldConfig", "Worlds",
    "agent", "attack", "evaluate", "load", "option", "resume", "rule", "run", "strategy", "topology", "world",
]  # fmt: skip
