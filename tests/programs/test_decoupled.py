"""The decoupled program."""

from pathlib import Path

import pytest
import torch

from tests.programs.launch import (
    agent_of,
    decoupled,
    fabric,
    fabric_command,
    run_folder,
    scalars,
    started,
    succeeded,
)
from tests.programs.test_programs import SMALL, TAGS

FOLDER = "fabric_decoupled_logs"
EXCHANGE_TAGS = {
    "Time/player_wait_seconds",
    "Time/trainer_wait_seconds",
    "Time/transfer_seconds",
    "Info/transfer_bytes",
}


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--share-data --env-id CartPole-v1",
        "--allow-import --env-id tests.seeing:Everything-v0 --normalize-obs --total-timesteps 768",
        "--allow-import --env-id tests.seeing:Frames-v0 --total-timesteps 384 --update-epochs 2",
        "--env-id Pendulum-v1 --target-kl 0.001 --normalize-obs --normalize-reward --squash"
        " --schedule adaptive --desired-kl 0.001",
        "--env-id tests.masked:TreeOfDoors-v0 --allow-import",
        "--env-id CartPole-v1 --memory gru --memory-size 8 --sequence-length 8 --total-timesteps 1000",
    ],
)
def test_one_player_and_one_trainer_end_with_the_parameters_of_one_coupled_rank(flags: str) -> None:
    arguments = [*SMALL, "--total-timesteps", "3000", "--eval-every", "1024", *flags.split()]
    succeeded(decoupled(*arguments, ranks=2))
    succeeded(fabric(*arguments, ranks=1))
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (agent_of(run_folder(program), name) for program in (FOLDER, "fabric_logs"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    first, second = scalars(run_folder(FOLDER)), scalars(run_folder("fabric_logs"))
    for tag in second:
        assert tag.startswith("Time/") or first[tag] == second[tag]


@pytest.mark.parametrize(
    ("ranks", "flags", "options"),
    [
        (3, "", ()),
        (3, "--share-data --overlap", ("--precision=bf16-mixed", "--strategy=ddp")),
    ],
)
def test_it_learns_custom_env(ranks: int, flags: str, options: tuple[str, ...]) -> None:
    learning = ["--num-envs", "32", "--total-timesteps", "150000", *flags.split()]
    output = succeeded(decoupled(*learning, ranks=ranks, options=options))
    assert output.count("greedy policy") == 1
    logged = scalars(run_folder(FOLDER))
    assert set(logged) == TAGS | EXCHANGE_TAGS
    assert logged["Rewards/rew_avg"][-1][1] >= 190
    # Nine numbers travel a row: observation (2), action (twice the bytes), five of the learner's.
    num_copies = (ranks - 1) if "--share-data" in flags else 1
    rows = -(-1024 // (ranks - 1)) * (ranks - 1)
    assert {value for _, value in logged["Info/transfer_bytes"]} == {rows * 36 * num_copies}
    num_updates = 150_000 // 1024
    assert len(logged["Loss/policy_loss"]) == num_updates - ("--overlap" in flags)
    assert len(logged["Time/collect_seconds"]) == num_updates


def test_overlap_changes_the_weights_that_a_rollout_is_collected_with_and_nothing_before() -> None:
    for name, flags in (("apart", ()), ("together", ("--overlap",))):
        succeeded(decoupled(*SMALL, "--total-timesteps", "512", "--exp-name", name, *flags, ranks=2))
    apart, together = (scalars(run) for run in sorted(Path("logs", FOLDER).iterdir()))
    first, second, third = (
        apart["Info/explained_variance"][i] == together["Info/explained_variance"][i] for i in range(3)
    )
    # The second rollout is collected before the first update with overlap, after it without.
    assert first and not second and not third


def test_uneven_parts_end_with_finite_weights() -> None:
    flags = "--num-envs 5 --num-steps 1 --per-rank-batch-size 2 --total-timesteps 100 --hidden-sizes 16 16"
    succeeded(decoupled(*flags.split(), "--eval-episodes", "2", ranks=3))
    assert all(parameter.isfinite().all() for parameter in agent_of(run_folder(FOLDER)).values())


def test_bad_input_is_answered_once(tmp_path: Path) -> None:
    result = decoupled(options=("--strategy=fsdp",))
    assert result.returncode != 0
    assert result.stderr.count("error: --strategy fsdp: gradients are averaged by ddp here") == 1, result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("victim", [0, 2])
def test_the_death_of_any_rank_ends_all(victim: int) -> None:
    endless = ("--total-timesteps", "100000000", "--execution", "eager")
    with started(*fabric_command("train_fabric_decoupled.py", *SMALL, *endless, ranks=3)) as program:
        program.train()
        program.rank(victim).kill()
        program.end(within=60)  # some seconds, unless other tests take them
        assert program.process.returncode != 0
