"""Named random streams: nothing that a run draws depends on the global generators.

An environment's noise depends only on the seed, the environment's index over all ranks and its step. The same actions
therefore lead to bitwise the same steps, however the environments are spread over ranks.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood 2014, figure 14), its constants as signed 64-bit integers.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64

ACTION, INITIAL, TRANSITION = 2, 5, 6  # the streams of `Noise`
_ENVIRONMENT, _SHUFFLE, _EVALUATION, _EPISODE = 1, 3, 4, 7


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Leaves the global generators as they were: environments that use them learn nothing of what happens inside."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


def derive(seed: int, *path: int) -> int:
    """A 63-bit seed of the stream named by `path`; streams of different paths are independent."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def environment_seed(seed: int, env_index: int) -> int:
    """The 31-bit seed (what Gymnasium takes) of one environment; `env_index` counts over all ranks."""
    return derive(seed, _ENVIRONMENT, env_index) >> 32


def episode_seed(environment: int, episode: int) -> int:
    """The 31-bit seed of one episode, given the environment's seed, which is also the seed of episode 0."""
    return derive(environment, _EPISODE, episode) >> 32 if episode else environment


def evaluation_seed(seed: int) -> int:
    """The 31-bit seed of the evaluation episodes, none of which the run trained on."""
    return derive(seed, _EVALUATION) >> 32


def split_mix(counter: Tensor) -> Tensor:
    """SplitMix64's output (int64, all bits random) for each counter (int64), in any order of the counters."""
    z = counter * _GOLDEN_GAMMA
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch copies the sign bit when it shifts; SplitMix64 shifts zeros in.
    return (z >> bits).bitwise_and(2 ** (64 - bits) - 1)


class Noise:
    """Uniform numbers in the open interval (0, 1) for N environments, `size` per step, in any order of the steps.

    `first_env` is the index over all ranks of the first environment.
    """

    def __init__(
        self, seed: int, stream: int, first_env: int, num_envs: int, size: int, device: torch.device | str = "cpu"
    ) -> None:
        env_index = torch.arange(first_env + 1, first_env + num_envs + 1, device=device)
        self.env_key = split_mix(split_mix(env_index) + derive(seed, stream))
        self.size = size

    def at(self, step: Tensor, num_steps: int) -> Tensor:
        """The noise [T, N, size] (float32) of `num_steps` steps, the first of which is `step` (int64 [], from 0)."""
        offset = torch.arange(1, num_steps * self.size + 1, device=self.env_key.device).view(num_steps, 1, self.size)
        bits = _shift_right(split_mix(step * self.size + offset + self.env_key[:, None]), 41)
        # 23 random bits plus one half: exact in float32, never 0 or 1.
        return (bits.to(torch.float32) + 0.5) * 2.0**-23


class Shuffle:
    """Draws the order in which an epoch visits the rows, from a generator of its own on the device of the rows.

    Ranks that train on the same rows (`shared`) draw the same order, and each takes its part of it.
    """

    def __init__(
        self, seed: int, rank: int = 0, world_size: int = 1, *, shared: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        self.generator = torch.Generator(device).manual_seed(derive(seed, _SHUFFLE, 0 if shared else rank))
        self.part, self.num_parts = (rank, world_size) if shared else (0, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def order(self, num_rows: int) -> Tensor:
        """The indices (int64) of this rank's rows in the next epoch; over all parts, each row occurs once."""
        order = torch.randperm(num_rows, generator=self.generator, device=self.generator.device)
        return order[self.part :: self.num_parts]
