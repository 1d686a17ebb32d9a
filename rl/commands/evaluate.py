"""`rl evaluate`: how good a trained policy is, in many episodes that are played at once."""

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from rl import tree
from rl.commands.of_run import OfRun, Trained, described, read, trained
from rl.commands.text import number
from rl.envs.make import make_envs
from rl.errors import require
from rl.run.evaluation import Evaluation, evaluate
from rl.seeding import evaluation_seed

MOST_AT_ONCE = 100


@dataclass(frozen=True)
class Evaluate(OfRun):
    """Plays whole episodes with a trained policy; the same seed gives the same figures."""

    episodes: int = 100
    """Number of episodes."""
    seed: int | None = None
    """Seed of the episodes; by default the run's, so that the first are those of the run's own evaluation."""
    sampled: bool = False
    """Sample actions, as in training; otherwise take the most likely ones."""
    num_envs: int | None = None
    """Number of environments at once; by default one for each episode, at most 100. Figures do not depend on it."""
    json: bool = False
    """Print JSON, with the return and length of every episode."""


def command(words: Sequence[str]) -> None:
    """Prints statistics of the returns."""
    flags = read(Evaluate, "evaluate", words)
    require(flags.episodes >= 1, "--episodes", flags.episodes, "must be at least 1")
    require(flags.num_envs is None or flags.num_envs >= 1, "--num-envs", flags.num_envs, "must be at least 1")
    require(flags.seed is None or 0 <= flags.seed < 2**32, "--seed", flags.seed, "must lie between 0 and 4294967295")
    policy = trained(flags)
    evaluation = played(policy, flags)
    results = statistics(evaluation)
    if flags.json:
        lists = {"returns": evaluation.total_return.tolist(), "lengths": evaluation.length.tolist()}
        about = {"checkpoint": str(policy.file), "env_id": policy.env.env_id, "step": policy.content["run"]["step"]}
        asked = {"seed": seed_of(policy, flags.seed), "sampled": flags.sampled}
        print(json.dumps(about | asked | results | lists))
    else:
        print(text(policy, results, sampled=flags.sampled))


def seed_of(policy: Trained, seed: int | None) -> int:
    """The seed that a flag gives, or else the run's."""
    return policy.seed if seed is None else seed


def played(policy: Trained, flags: Evaluate) -> Evaluation:
    """The episodes, in rounds of as many as there are environments."""
    num_envs = min(flags.episodes, flags.num_envs or MOST_AT_ONCE)
    seed, rounds = evaluation_seed(seed_of(policy, flags.seed)), range(0, flags.episodes, num_envs)
    with closing(make_envs(policy.env.for_evaluation(num_envs))) as envs:
        parts = [
            evaluate(policy.agent, envs, seed=seed, max_steps=policy.max_steps, first_env=first, sampled=flags.sampled)
            for first in rounds
        ]
    together = tree.cat([(part.total_return, part.unfinished, part.length) for part in parts])
    return Evaluation(*tree.index(together, slice(flags.episodes)))


def statistics(evaluation: Evaluation) -> dict[str, Any]:
    """Statistics of returns and lengths; standard deviations are those of the episodes, not estimates."""
    returns, lengths = evaluation.total_return, evaluation.length.double()
    mean, std, num_episodes = returns.mean().item(), returns.std(correction=0).item(), len(returns)
    margin = t_quantile(num_episodes - 1) * std / math.sqrt(num_episodes - 1) if num_episodes > 1 else math.inf
    return {
        "episodes": num_episodes,
        "mean": mean,
        "std": std,
        "median": torch.quantile(returns, 0.5).item(),
        "confidence_95": [mean - margin, mean + margin] if num_episodes > 1 else None,
        "min": returns.min().item(),
        "max": returns.max().item(),
        "mean_length": lengths.mean().item(),
        "min_length": int(lengths.min()),
        "max_length": int(lengths.max()),
        "unfinished": int(evaluation.unfinished.sum()),
    }


def t_quantile(freedom: int) -> float:
    """Student's 97.5 % quantile (Abramowitz & Stegun 26.7.5): off by 1 % for 3 degrees of freedom, by less for more."""
    if freedom < 3:
        return {1: 12.706205, 2: 4.302653}[freedom]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))


def text(policy: Trained, results: dict[str, Any], *, sampled: bool) -> str:
    """The statistics for a person."""
    mean, interval = results["mean"], results["confidence_95"]
    lines = [
        described(policy),
        f"  {'sampled' if sampled else 'greedy'} policy, {results['episodes']:,} episodes",
        f"  return   {number(mean)} ± {number(results['std'], mean)} (standard deviation),"
        f" from {number(results['min'], mean)} to {number(results['max'], mean)}, median"
        f" {number(results['median'], mean)}",
        f"  length   {results['mean_length']:,.1f}, from {results['min_length']:,} to {results['max_length']:,} steps",
    ]
    if interval:
        low, high = (number(bound, mean) for bound in interval)
        lines.insert(3, f"  mean     between {low} and {high} with 95 % confidence")
    if results["unfinished"]:
        lines.append(f"  {results['unfinished']:,} episodes were cut after {policy.max_steps:,} steps")
    return "\n".join(lines)
