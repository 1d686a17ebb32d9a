"""Recording an update's metrics and taking their means: `rl.run.metrics.Averages` beside torchmetrics, in turn.

python benchmarks/averages.py
"""

import statistics
import subprocess
import sys
import time

import torch
from torchmetrics import MeanMetric, MetricCollection

from rl.dist.ranks import Ranks
from rl.run.metrics import Averages

NUM_STEPS, ROUNDS = 160, 20  # gradient steps of an update of PPO
NAMES = ("policy_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction", "grad_norm")


def main() -> None:
    """Prints microseconds of a gradient step's record, with the means at the end of the update, and their ratio."""
    torch.set_num_threads(1)
    steps = [{name: torch.rand(()) for name in NAMES} for _ in range(NUM_STEPS)]
    averages = Averages(torch.device("cpu"), Ranks().sum)
    collection = MetricCollection({name: MeanMetric() for name in NAMES})

    def ours() -> dict[str, float]:
        for metrics in steps:
            averages.add(metrics)
        return averages.take()

    def theirs() -> dict[str, float]:
        for metrics in steps:
            for name, value in metrics.items():
                collection[name].update(value)
        means = {name: value.item() for name, value in collection.compute().items()}
        collection.reset()
        return means

    first, second = ours(), theirs()
    assert all(abs(first[name] - second[name]) < 1e-6 for name in NAMES)
    seconds: dict[str, list[float]] = {"ours": [], "torchmetrics": []}
    for _ in range(ROUNDS):
        for name, run in (("ours", ours), ("torchmetrics", theirs)):
            began_at = time.process_time()
            run()
            seconds[name].append(time.process_time() - began_at)
    micro = {name: statistics.median(times) / NUM_STEPS * 1e6 for name, times in seconds.items()}
    print(f"{NUM_STEPS} gradient steps of {len(NAMES)} metrics, medians of {ROUNDS} rounds in turn, CPU time")
    print(f"Averages      {micro['ours']:8.1f} µs a step")
    print(f"torchmetrics  {micro['torchmetrics']:8.1f} µs a step, {micro['torchmetrics'] / micro['ours']:.0f} times")
    code = "import torch, time; t = time.process_time(); import torchmetrics; print(time.process_time() - t)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    print(f"importing torchmetrics after torch takes {float(output):.2f} s")


if __name__ == "__main__":
    main()
