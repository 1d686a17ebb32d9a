"""Random streams: what they depend on."""

import numpy as np
import torch
from torch import Tensor

from rl.seeding import ACTION, INITIAL, Noise, Shuffle, environment_seed, split_mix

GAMMA = 0x9E3779B97F4A7C15


def test_split_mix_gives_the_published_outputs() -> None:
    # The first outputs of the reference implementation (Vigna, splitmix64.c) for the state 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    first_counter = 1234567 * pow(GAMMA, -1, 2**64)
    counters = [(first_counter + n + 2**63) % 2**64 - 2**63 for n in range(1, 5)]
    assert [output % 2**64 for output in split_mix(torch.tensor(counters)).tolist()] == published


def noise(seed: int = 3, stream: int = ACTION, first_env: int = 0, num_envs: int = 8, size: int = 2) -> Noise:
    return Noise(seed, stream, first_env, num_envs, size)


def step(number: int) -> Tensor:
    return torch.tensor(number)


def test_noise_depends_on_the_environment_and_not_on_the_rank() -> None:
    whole = noise().at(step(0), 5)
    halves = [noise(first_env=first, num_envs=4).at(step(0), 5) for first in (0, 4)]
    assert torch.equal(torch.cat(halves, dim=1), whole)


def test_noise_depends_on_the_step_and_not_on_the_rollout() -> None:
    parts = [noise().at(step(0), 2), noise().at(step(2), 3)]
    assert torch.equal(torch.cat(parts), noise().at(step(0), 5))


def test_noise_of_other_seeds_steps_and_environments_differs() -> None:
    numbers = torch.stack([noise(seed=seed, num_envs=64).at(step(0), 64) for seed in range(8)])
    # 65,536 draws of 2**23 values: 256 pairs coincide by chance.
    assert len(numbers.unique()) > numbers.numel() - 2 * 256


def test_noise_of_another_stream_differs() -> None:
    assert not torch.isin(noise(stream=INITIAL).at(step(0), 5), noise().at(step(0), 5)).any()


def test_noise_is_uniform() -> None:
    numbers = noise(seed=1, num_envs=100, size=1).at(step(0), 1000).flatten()
    assert numbers.min() > 0 and numbers.max() < 1
    counts = torch.histc(numbers, bins=50, min=0, max=1)
    chi_square = ((counts - 2000) ** 2 / 2000).sum().item()
    assert 24 < chi_square < 90  # 49 degrees of freedom: outside with a probability below 0.1 %


def test_environment_seeds_differ_over_all_ranks() -> None:
    seeds = {environment_seed(1, env_index) for env_index in range(4096)}
    assert len(seeds) >= 4095  # of 2**31: one coincidence is already unlikely
    assert seeds.isdisjoint({environment_seed(2, env_index) for env_index in range(4)})


def test_ranks_shuffle_their_own_rows_in_orders_of_their_own() -> None:
    first, second = (Shuffle(1, rank, 2, shared=False).order(100) for rank in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(100))
    assert not torch.equal(first, second)


def test_ranks_share_rows_without_overlap_or_loss_in_every_epoch() -> None:
    shuffles = [Shuffle(1, rank, 3, shared=True) for rank in range(3)]
    epochs = [torch.cat([shuffle.order(99) for shuffle in shuffles]).tolist() for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(99))
    assert epochs[0] != epochs[1] != epochs[2]


def test_nothing_touches_the_global_generators() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    noise().at(step(0), 3)
    Shuffle(1, 0, 1, shared=False).order(10)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
