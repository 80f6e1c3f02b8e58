"""All benchmarks, one after the other: `python -m benchmarks [--json]`."""

from benchmarks import (
    fedpg,
    gossip,
    memory,
    mixing,
    policy_gradient,
    ppo,
    rounds,
    rules,
    td3,
    td3_exchange,
    threads,
    worlds,
)

for benchmark in (
    policy_gradient, fedpg, ppo, td3, worlds, memory, threads, rules, rounds, td3_exchange, mixing, gossip,
):  # fmt: skip
    benchmark.main()
