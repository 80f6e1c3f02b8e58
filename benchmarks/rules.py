"""What rules cost: beside the bare product of all rows with one another, and beside plain torch.

No rule that compares all rows does with less than ``X @ X.T``. The torch contenders are the same formulas as one would
write them, or find them in a library; for Krum twice, as ``torch.cdist`` multiplies matrices by default, which is noise
when the rows are close, but can be avoided. ``torch.median`` takes the lower of two middle values, which is less
work than their mean. Where byzfl is installed (``pip install --no-deps byzfl``), its own rules are beside ours as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tracemalloc
from collections.abc import Callable
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Rates, Row, interleaved, one_thread, report
from strategies.rules.fedpg import fedpg_filter
from strategies.rules.geometry import F32
from strategies.rules.krum import krum
from strategies.rules.medians import geometric_median, median

WIDTH = 100_000
STEPS = 100
Contender = Callable[[], object]


def updates(n: int) -> F32:
    """Gradients of n parties that agree on a direction, a tenth of it apart."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(WIDTH, dtype=np.float32) + 0.1 * rng.standard_normal((n, WIDTH), dtype=np.float32)


def torch_krum(x: Tensor, f: int, mode: str) -> Tensor:
    squared = torch.cdist(x, x, compute_mode=mode).square()
    nearest = squared.fill_diagonal_(torch.inf).sort(dim=1).values[:, : len(x) - f - 2]
    return x[nearest.sum(dim=1).argmin()]


def torch_median(x: Tensor) -> Tensor:
    ordered = x.sort(dim=0).values
    return (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2


def torch_geometric_median(x: Tensor, nu: float) -> Tensor:
    z = x.median(dim=0).values
    for _ in range(STEPS):
        shares = 1 / (x - z).norm(dim=1).clamp(min=nu)
        z = shares @ x / shares.sum()
    return z


def byzfl() -> ModuleType | None:
    """The rules of byzfl. Its package loads torchvision, which they need not and which may not fit this torch."""
    if importlib.util.find_spec("byzfl") is None:
        return None
    for name in ("torchvision", "torchvision.datasets", "torchvision.models", "torchvision.transforms"):
        sys.modules.setdefault(name, MagicMock())
    return importlib.import_module("byzfl.aggregators.aggregators")


def measured(contenders: dict[str, Contender], rounds: int) -> Rates:
    def once(contender: Contender) -> Callable[[], float]:
        def run() -> float:
            contender()
            return 1.0

        return run

    return interleaved({name: once(contender) for name, contender in contenders.items()}, rounds, least=0.2)


def copies(contender: Contender, rows: F32) -> float:
    """The most memory that a rule holds at once, in copies of its input."""
    tracemalloc.start()
    contender()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / rows.nbytes


def beside_the_product(n: int, f: int, rounds: int) -> list[Row]:
    rows = updates(n)
    forged = rows.copy()
    forged[:f] *= 1e30
    ours: dict[str, Contender] = {
        "FedPG filter": lambda: fedpg_filter(rows, n, 16, 40.0),
        "Krum": lambda: krum(rows, f),
        "Krum, attackers at 1e30": lambda: krum(forged, f),
        "geometric median": lambda: geometric_median(rows, f, STEPS),
        "median": lambda: median(rows, f),
    }
    rates = measured({"X @ X.T": lambda: rows @ rows.T} | ours, rounds)
    return [
        {
            "rule": name,
            "n": n,
            "ms": 1000 / rates.of(name).median,
            "X @ X.T, ms": 1000 / rates.of("X @ X.T").median,
            "of X @ X.T": str(rates.ratio("X @ X.T", name)),
            "memory, copies of the input": copies(contender, rows),
        }
        for name, contender in ours.items()
    ]


def beside_torch(n: int, f: int, rounds: int) -> list[Row]:
    rows = updates(n)
    x = torch.from_numpy(rows)
    nu = geometric_median(rows, f, 1).notes["nu"]
    table: dict[str, tuple[Contender, dict[str, Contender]]] = {
        "geometric median": (
            lambda: geometric_median(rows, f, STEPS),
            {f"{STEPS} steps on the rows": lambda: torch_geometric_median(x, nu)},
        ),
        "median": (
            lambda: median(rows, f),
            {"sort": lambda: torch_median(x), "torch.median": lambda: x.median(dim=0)},
        ),
        "Krum": (
            lambda: krum(rows, f),
            {
                "cdist": lambda: torch_krum(x, f, "use_mm_for_euclid_dist_if_necessary"),
                "cdist, exact": lambda: torch_krum(x, f, "donot_use_mm_for_euclid_dist"),
            },
        ),
    }
    if rules := byzfl():
        table["geometric median"][1]["byzfl"] = lambda: rules.GeometricMedian(nu=nu, T=STEPS)(x)
        table["median"][1]["byzfl"] = lambda: rules.Median()(x)
        table["Krum"][1]["byzfl"] = lambda: rules.Krum(f)(x)
    found: list[Row] = []
    for name, (ours, theirs) in table.items():
        rates = measured({"ours": ours} | theirs, rounds)
        found += [
            {
                "rule": name,
                "n": n,
                "ours, ms": 1000 / rates.of("ours").median,
                "torch": other,
                "torch, ms": 1000 / rates.of(other).median,
                "ours / torch, speed": str(rates.ratio("ours", other)),
            }
            for other in theirs
        ]
    return found


def main() -> None:
    one_thread()
    report("rules", f"Rules on n rows of {WIDTH:,} numbers, beside torch", beside_torch(100, 20, rounds=5))
    rows = [row for n, f in ((100, 20), (1000, 200)) for row in beside_the_product(n, f, rounds=5)]
    report("rules_product", f"Rules on n rows of {WIDTH:,} numbers, beside the bare product", rows)


if __name__ == "__main__":
    main()
