"""The programs with learners other than PPO, with low precision, and with numbers that are not finite."""

import re

import torch

from tests.programs.launch import agent_of, fabric, run_folder, scalars, succeeded, torchrun


def test_the_actor_critic_learns_custom_env_on_two_ranks_and_reports_by_episodes() -> None:
    flags = "actor-critic --vectorization tensor --total-episodes 800 --updates-per-collection 4 --execution eager"
    output = succeeded(fabric(*flags.split()))
    reports = [int(n.replace(",", "")) for n in re.findall(r"^([\d,]+) episodes, ", output, re.MULTILINE)]
    assert [number // 100 for number in reports] == [1, 2, 3, 4, 5, 6, 7, 8] and reports[-1] < 820
    logged = scalars(run_folder("fabric_logs"))
    assert logged["Rewards/last_100_episodes"][-1][1] > 150  # a random policy's is 18
    assert sum(value for _, value in logged["Count/episodes"]) == reports[-1]


def test_reinforce_with_a_baseline_learns_cart_pole_on_two_ranks() -> None:
    flags = "reinforce --baseline --no-shared-encoder --vectorization tensor --num-envs 4 --total-timesteps 60000"
    output = succeeded(torchrun(*flags.split()))
    logged = scalars(run_folder("torch_logs"))
    assert logged["Rewards/rew_avg"][-1][1] > 150  # a random policy's is 22
    assert {value for _, value in logged["Count/episodes"]} == {8.0}  # each environment's, and no other
    last_step = logged["Count/episodes"][-1][0]
    assert 60_000 <= last_step < 60_000 + 8 * 512
    assert f"CartPole-v1 after {last_step:,} steps" in output


def test_fp16_on_two_ranks_scales_the_loss_and_counts_what_it_skips() -> None:
    flags = "--precision 16-mixed --vectorization tensor --num-envs 32 --num-steps 32 --total-timesteps 40000"
    output = succeeded(torchrun(*flags.split()))
    logged = scalars(run_folder("torch_logs"))
    skipped = sum(value for _, value in logged["Count/skipped_steps"])
    # Every overflow halves the scale; it starts at 65,536, and grows again only after 2,000 steps.
    assert skipped >= 1 and logged["Info/loss_scale"][-1][1] == 65_536 / 2**skipped
    assert f"skipped          {skipped:.0f} steps whose gradient overflowed" in output
    # Gradients are brought back to their scale before they are measured and clipped.
    assert max(value for _, value in logged["Info/grad_norm"]) < 1000


def test_float8_goes_with_other_precision_on_two_ranks() -> None:
    flags = "--fp8 --vectorization tensor --num-envs 16 --num-steps 32 --total-timesteps 8192 --execution eager"
    result = fabric(*flags.split(), options=("--precision=bf16-true",))
    succeeded(result)
    assert result.stderr.count("note: --fp8: in float8 (emulated") == 1
    agent = agent_of(run_folder("fabric_logs"))
    assert {parameter.dtype for parameter in agent.values()} == {torch.bfloat16}
    assert all(parameter.isfinite().all() for parameter in agent.values())


def test_an_observation_that_is_not_finite_on_one_rank_stops_all_with_one_message() -> None:
    flags = "--env-id tests.probes:NotANumber-v0 --allow-import --num-envs 2 --num-steps 8 --total-timesteps 4000"
    result = torchrun(*flags.split())
    message = (
        "error: --env-id tests.probes:NotANumber-v0: environment 1 gave an observation or a reward that is not finite:"
        " [nan], 1, at step 3 of the episode that"
    )
    assert result.stderr.count(message) == 1 and result.returncode == 71
