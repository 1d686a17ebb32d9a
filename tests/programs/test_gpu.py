"""The programs on a GPU."""

import pytest
import torch

import rl
from tests.programs.launch import agent_of, fabric_command, run_folder, scalars, start, succeeded, torchrun_command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("flags", ["", "--vectorization tensor"])
@pytest.mark.parametrize("execution", ["eager", "compile", "cudagraphs"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_gpu_learns_custom_env_in_every_precision_and_way_of_running(
    precision: str, execution: str, flags: str
) -> None:
    arguments = ["--cuda", "--num-envs", "128", "--execution", execution, *flags.split()]
    succeeded(start(*fabric_command("train_fabric.py", *arguments, ranks=1, options=(f"--precision={precision}",))))
    logged = scalars(run_folder("fabric_logs"))
    assert logged["Test/cumulative_reward"][0][1] == pytest.approx(198.970171, abs=1e-2)
    assert logged["Rewards/rew_avg"][-1][1] >= 190


def test_torch_learns_it_too_and_its_agent_can_be_read_without_a_gpu() -> None:
    succeeded(start(*torchrun_command("--cuda", "--num-envs", "128", ranks=1)))
    assert scalars(run_folder("torch_logs"))["Rewards/rew_avg"][-1][1] >= 190
    assert {parameter.device.type for parameter in agent_of(run_folder("torch_logs")).values()} == {"cpu"}
    assert rl.load_policy(run_folder("torch_logs") / "last.ckpt")([0.5, 0.0]) == 0


@pytest.mark.parametrize("flags", [("--cuda",), ("--cuda", "--player-on-gpu"), ("--cuda", "--overlap")])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_player_feeds_a_trainer_on_a_gpu(flags: tuple[str, ...], precision: str) -> None:
    # For fabric run, more ranks than GPUs are ranks on the CPU; the program then puts its trainer where --cuda says.
    options = ("--accelerator=cpu", f"--precision={precision}")
    succeeded(
        start(*fabric_command("train_fabric_decoupled.py", "--num-envs", "128", *flags, ranks=2, options=options))
    )
    assert scalars(run_folder("fabric_decoupled_logs"))["Rewards/rew_avg"][-1][1] >= 190


@pytest.mark.parametrize(("flags", "device"), [("--cuda", "cuda"), ("--cuda", "cpu"), ("", "cuda")])
def test_a_batched_class_of_tensors_may_be_on_the_device_of_the_run_or_not(flags: str, device: str) -> None:
    env = "--env-id tests.simulated:Simulator-v0 --allow-import --num-envs 8 --total-timesteps 2048"
    arguments = [*env.split(), "--env-kwargs", f"device={device}", *flags.split()]
    result = start(*fabric_command("train_fabric.py", *arguments, ranks=1))
    assert "return 1" in succeeded(result)
    assert ("each step copies them" in result.stderr) == (device != ("cuda" if flags else "cpu"))
