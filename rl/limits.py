"""What a machine must have for a run: memory, GPUs, and instructions for a precision."""

import math
import os
from dataclasses import replace

import numpy as np
import torch

from rl.compilers import cpu_flags
from rl.dist.launch import local_world_size
from rl.envs.spaces import Spaces
from rl.errors import UserError, counted
from rl.learners.learner import LearnerConfig
from rl.models.agent import Agent, Network
from rl.reporting import note

# Instruction sets of x86 and ARM with products of 16-bit numbers, by their names in /proc/cpuinfo.
INSTRUCTIONS = {"bf16": {"amx_bf16", "avx512_bf16", "bf16"}, "16": {"amx_fp16", "avx512_fp16", "asimdhp"}}


def check_memory(network: Network, learner: LearnerConfig, spaces: Spaces, *, num_envs: int) -> None:
    """Raises `UserError` for rollouts, a replay buffer or a network larger than a rank's part of the memory."""
    action_size = 2 * spaces.actions.noise_size  # an int64, or less
    obs_bytes = sum(math.prod(key.shape) * np.dtype(key.dtype).itemsize for key in spaces.obs)
    with torch.device("meta"):  # takes no memory itself
        agent = Agent(spaces, replace(network, ortho_init=False))
    num_weights = sum(parameter.numel() for parameter in agent.parameters())
    memory_size = agent.memory.num_numbers if agent.memory else 0
    row_bytes = obs_bytes * (2 if learner.keeps_next_obs(spaces) else 1) + 4 * (action_size + memory_size + 8)
    num_steps = learner.num_steps
    buffer_size = getattr(learner, "buffer_size", 0)
    num_bytes = {
        f"--num-envs {num_envs} × --num-steps {num_steps}": row_bytes * num_envs * num_steps,
        f"--buffer-size {buffer_size}": row_bytes * buffer_size,
        # Weights, their gradients, and Adam's two moments.
        "--hidden-sizes": 4 * 4 * num_weights,
    }
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / local_world_size()
    for flags, takes in num_bytes.items():
        if takes >= has:
            gib, has_gib = f"{takes / 2**30:,.1f} GiB", f"{has / 2**30:,.1f} GiB"
            raise UserError(f"{flags}: takes {gib} of memory, but a rank has {has_gib}")


def require_gpus(number: int, user: str) -> None:
    """Raises `UserError` if this machine has fewer GPUs."""
    if (found := torch.cuda.device_count()) < number:
        users = f"{counted(number, user)} on this machine {'needs a GPU' if number == 1 else 'need a GPU each'}"
        raise UserError(f"--cuda: {users}, and torch finds {found} here")


def note_slow_precision(precision: str) -> None:
    """Says so if this CPU has no instructions for a precision (by Lightning's names), which torch then emulates."""
    _, listed, flags = cpu_flags().partition(":")
    needed = INSTRUCTIONS.get(precision.partition("-")[0])
    if listed and needed and not needed & set(flags.split()):
        note(f"--precision {precision}: this CPU has no instructions for it; 32-true will be several times as fast")
