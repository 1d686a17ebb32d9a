"""Several nodes, simulated by launchers on one machine that communicate over loopback; and Slurm."""

import contextlib
from pathlib import Path

import torch

from tests.programs.launch import BIN, ROOT, agent_of, fabric, free_port, started, succeeded

FLAGS = ["--num-envs", "2", "--num-steps", "32", "--hidden-sizes", "16", "16", "--eval-episodes", "1"]
FLAGS += ["--total-timesteps", "640", "--execution", "eager", "--checkpoint-every", "2"]


def together(*programs: tuple[list[str], dict[str, str]]) -> None:
    """Runs commands at once, each with its environment variables; all must succeed."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(*command, **variables)) for command, variables in programs]
        errors = [program.end(within=90) for program in running]
    assert [program.process.returncode for program in running] == [0] * len(programs), errors


def fabric_on_two_nodes(program: str, *flags: str) -> None:
    port = free_port()
    options = ["--devices=1", "--num-nodes=2", "--main-address=127.0.0.1", f"--main-port={port}"]
    commands = ([str(BIN / "fabric"), "run", *options, f"--node-rank={node}", str(ROOT / program)] for node in (0, 1))
    together(*(([*command, *FLAGS, *flags], {}) for command in commands))


def newest_agent() -> dict[str, torch.Tensor]:
    return agent_of(max(Path().glob("logs/*/*"), key=lambda folder: folder.stat().st_mtime_ns))


def test_two_nodes_of_either_launcher_and_of_slurm_end_with_the_same_parameters() -> None:
    fabric_on_two_nodes("train_fabric.py")
    agents = [newest_agent()]

    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=x"]
    command = [str(BIN / "torchrun"), "--nnodes=2", "--nproc-per-node=1", *rendezvous, str(ROOT / "train_torch.py")]
    together(([*command, *FLAGS], {}), ([*command, *FLAGS], {}))
    agents.append(newest_agent())

    slurm = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": str(free_port() - 15000),
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "localhost,node[1-3]",
        "SLURM_LOCALID": "0",
        "MASTER_PORT": str(free_port()),
    }
    command = [str(BIN / "python"), str(ROOT / "train_fabric.py"), *FLAGS]
    together(*((command, slurm | {"SLURM_PROCID": str(n), "SLURM_NODEID": str(n)}) for n in (0, 1)))
    agents.append(newest_agent())

    assert len(list(Path().glob("logs/*/*/last.ckpt"))) == 3
    for name, value in agents[0].items():
        assert all(torch.equal(value, agent[name]) for agent in agents[1:])


def test_a_player_on_one_node_and_a_trainer_on_the_other_learn_as_on_one_node() -> None:
    fabric_on_two_nodes("train_fabric_decoupled.py")
    agents = [newest_agent()]
    succeeded(fabric(*FLAGS, ranks=1))
    agents.append(newest_agent())
    assert all(torch.equal(value, agents[1][name]) for name, value in agents[0].items())
