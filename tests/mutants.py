"""Seeds known bugs one by one into a copy of the program; the tests must detect each: python -m tests.mutants.

Most are mistakes that well-known programs have made. Each names the tests that must fail with it; without a bug they
must all pass.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    """A bug: code in a file, its replacement, and the tests that must detect it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant(
        "statistics count rows that no loss may see",
        "rl/models/normalizer.py",
        "rows = weight.flatten().double()",
        "rows = torch.ones_like(weight.flatten().double())",
        "tests/models/test_normalizer.py -k rows_that_count",
    ),
    Mutant(
        "statistics change before the rollout that they were measured in is learned from",
        "rl/statistics.py",
        "        return total[: len(values)]",
        "        self.update()\n        return total[: len(values)]",
        "tests/models/test_normalizer.py -k policy_that_acted",
    ),
    Mutant(
        "discounted returns run on after an episode",
        "rl/returns.py",
        "return Running(now * ~ended), Running(now)",
        "return Running(now), Running(now)",
        "tests/models/test_normalizer.py -k go_on_where",
    ),
    Mutant(
        "advantages are recomputed with the values of the policy that acted",
        "rl/session.py",
        "rollout._replace(value=value, next_value=next_value)",
        "rollout._replace(next_value=next_value)",
        "tests/test_session.py -k later_epochs",
    ),
    Mutant(
        "an episode that begins inside a piece remembers the one before it",
        "rl/models/memory.py",
        "[forgotten(part, begins) for part in parts]",
        "parts",
        "tests/models/test_memory.py -k begin_inside",
    ),
    Mutant(
        "an episode that is played remembers the one before it",
        "rl/collector.py",
        "self.memory = forgotten(decision.memory, seen.reset)",
        "self.memory = decision.memory",
        "tests/models/test_memory.py -k played_again",
    ),
    Mutant(
        "rollouts start with nothing remembered",
        "rl/collector.py",
        "        rows: list[Taken] = []",
        "        self.memory = self.policy.initial_memory(self.envs.num_envs)\n        rows: list[Taken] = []",
        "tests/models/test_memory.py -k played_again",
    ),
    Mutant(
        "pieces start with what the rollout started with",
        "rl/learners/learner.py",
        "past=(memory[:, 0], start)",
        "past=(memory[:1, 0].expand(len(memory), -1), start)",
        "tests/models/test_memory.py -k policy_that_learns",
    ),
    Mutant(
        "the value of a last observation lacks the step that led there",
        "rl/collector.py",
        "(seen.next_obs, decision.memory)",
        "(seen.next_obs, self.memory)",
        "tests/models/test_memory.py -k played_again",
    ),
    Mutant(
        "memory is not restored",
        "rl/collector.py",
        'forgotten(state["envs"]["memory"].to(goes_on.device), ~goes_on)',
        "collector.memory",
        "tests/run/test_resume.py -k memory",
    ),
    Mutant(
        "the same environments on all ranks",
        "rl/session.py",
        "first_env = ranks.rank * envs.num_envs",
        "first_env = 0",
        "tests/run/test_resume.py -k two_that_have_as_many_environments",
    ),
    Mutant(
        "environments of ranks overlap but for one",
        "rl/session.py",
        "first_env = ranks.rank * envs.num_envs",
        "first_env = ranks.rank",
        "tests/run/test_resume.py -k two_that_have_as_many_environments",
    ),
    Mutant(
        "normalized advantages are not used",
        "rl/learners/ppo.py",
        "            advantage,\n            estimates.target,",
        "            estimates.advantage,\n            estimates.target,",
        "tests/learners/test_ppo.py",
    ),
    Mutant(
        "truncation taken for termination",
        "rl/returns.py",
        "* next_value * ~terminated",
        "* next_value * ~(terminated | truncated)",
        "tests/test_returns.py",
    ),
    Mutant(
        "bootstrap from the observation after the reset",
        "rl/envs/gym_envs.py",
        "array[ended] = final",
        "pass",
        "tests/envs/test_gym_envs.py",
    ),
    Mutant(
        "the step of a reset is learned from",
        "rl/envs/ledger.py",
        "(~self.resetting[rows]).astype(np.float32)",
        "np.ones_like(reward)",
        "tests/envs/test_gym_envs.py",
    ),
    Mutant(
        "the same order every epoch",
        "rl/seeding.py",
        "torch.randperm(num_rows, generator=self.generator,",
        "torch.randperm(num_rows, generator=torch.Generator().manual_seed(1),",
        "tests/test_seeding.py tests/learners/test_ppo.py",
    ),
    Mutant(
        "rows that pad a part are learned from",
        "rl/exchange.py",
        "longer.weight[num_rows:] = 0",
        "longer.weight[num_rows:] = 1",
        "tests/test_exchange.py",
    ),
    Mutant(
        "episodes end without a return",
        "rl/envs/ledger.py",
        "self.running_return * ended, length",
        "0 * self.running_return, length",
        "tests/envs/test_gym_envs.py",
    ),
    Mutant(
        "the learning rate is annealed one update ahead",
        "rl/run/run.py",
        "(done := self.fraction_done())",
        "(done := self.fraction_done(self.config.steps_per_update()))",
        "tests/programs/test_programs.py -k bare_command",
    ),
    Mutant(
        "an adapted learning rate is not saved",
        "rl/run/state.py",
        '{"learning_rate": optimizer.param_groups[0]["lr"], **optimizer.state[weights]}',
        "dict(optimizer.state[weights])",
        "tests/run/test_resume.py -k continuous",
    ),
    Mutant(
        "squashing adds the slope of tanh to the density, instead of dividing by it",
        "rl/models/distributions.py",
        "log_prob(action) - log_slope(action)",
        "log_prob(action) + log_slope(action)",
        "tests/models/test_distributions.py",
    ),
    Mutant(
        "a step in which an environment only resets counts",
        "rl/envs/gym_envs.py",
        "self.num_ignored += int(self.resetting.sum())",
        "self.num_ignored += 0",
        "tests/test_rollout.py -k real_steps",
    ),
    Mutant(
        "the loss scale is not saved",
        "rl/run/state.py",
        'return parts if scaler is None else parts | {"scaler": scaler}',
        "return parts",
        "tests/run/test_resume.py -k fp16",
    ),
    Mutant(
        "advantages flow past the end of an episode",
        "rl/returns.py",
        "~(terminated | truncated)",
        "~terminated",
        "tests/test_returns.py",
    ),
    Mutant(
        "entropy with the wrong sign",
        "rl/learners/ppo.py",
        "entropy_loss = -weighted_mean(",
        "entropy_loss = weighted_mean(",
        "tests/learners/test_ppo.py",
    ),
    Mutant(
        "the larger of both surrogates",
        "rl/learners/ppo.py",
        "return -torch.minimum(",
        "return -torch.maximum(",
        "tests/learners/test_ppo.py",
    ),
    Mutant(
        "the target of the critic is learned from too",
        "rl/learners/actor_critic.py",
        "values[num_rows:].detach()",
        "values[num_rows:]",
        "tests/learners/test_actor_critic.py",
    ),
    Mutant(
        "advantages are normalized on every rank by itself",
        "rl/learners/ppo.py",
        "total, *moments = totals.unbind()",
        "total, *moments = estimates.sums.unbind()",
        "tests/dist/test_ranks.py",
    ),
    Mutant(
        "rows are weighed by rank",
        "rl/learners/learner.py",
        "return weight * (weight.numel() * num_ranks / total.clamp(min=1)).float()",
        "return weight",
        "tests/learners tests/dist/test_ranks.py",
    ),
    Mutant(
        "the order of rows is not restored",
        "rl/seeding.py",
        'self.generator.set_state(state["generator"])',
        "pass",
        "tests/run/test_resume.py -k same_bits",
    ),
    Mutant(
        "actions are played again in another precision",
        "rl/envs/gym_envs.py",
        "torch.from_numpy(np.array(actions))",
        "torch.from_numpy(np.array(actions, np.float64))",
        "tests/run/test_resume.py -k same_bits",
    ),
    Mutant(
        "a digest that nobody compares",
        "rl/run/checkpoint.py",
        "if comment != _comment(archive):",
        "if len(comment) < 5:",
        "tests/run/test_checkpoint.py",
    ),
    Mutant(
        "a checkpoint is loaded with all that pickle can do",
        "rl/run/checkpoint.py",
        'map_location="cpu", weights_only=True)',
        'map_location="cpu", weights_only=False)',
        "tests/run/test_checkpoint.py tests/test_security.py",
    ),
    Mutant(
        "a checkpoint is written over the one before it",
        "rl/run/checkpoint.py",
        'unfinished = path.with_name(f".{path.name}.tmp")',
        "unfinished = path",
        "tests/run/test_checkpoint.py",
    ),
    Mutant(
        "the ranks of a second attempt find what the first left",
        "rl/dist/launch.py",
        'return attempt / "ranks"',
        'return attempt.parent / "ranks"',
        "tests/programs/test_faults.py -k started_again",
    ),
    Mutant(
        "a terminal's interrupt ends the environments' processes",
        "rl/envs/workers.py",
        "signal.signal(asked, signal.SIG_IGN)",
        "pass",
        "tests/programs/test_faults.py -k ends_the_update",
    ),
    Mutant(
        "gradients are clipped before they are unscaled",
        "train_torch.py",
        "        scaler.unscale_(optimizer)\n        norm = clip_grad_norm_([weights.vector], max_norm)\n",
        "        norm = clip_grad_norm_([weights.vector], max_norm)\n        scaler.unscale_(optimizer)\n",
        "tests/programs/test_executions.py tests/programs/test_learners.py -k fp16",
    ),
    Mutant(
        "steps of one rank are counted",
        "rl/run/metrics.py",
        "values = iter(self.sum_over_ranks(totals).tolist())",
        "values = iter(totals.tolist())",
        "tests/dist/test_ranks.py",
    ),
    Mutant(
        "noise starts again after a resume",
        "rl/collector.py",
        'self.num_steps.fill_(state["num_steps"])\n        self.envs.load',
        "self.envs.load",
        "tests/run/test_resume.py -k same_bits",
    ),
    Mutant(
        "running returns start again after a resume",
        "rl/envs/gym_envs.py",
        'state["running_return"].numpy() * ~forgotten',
        "0",
        "tests/run/test_resume.py -k same_bits",
    ),
    Mutant(
        "TensorBoard shows updates twice",
        "rl/run/loggers.py",
        "SummaryWriter(str(self.folder.path), purge_step=self.folder.purge_step)",
        "SummaryWriter(str(self.folder.path))",
        "tests/run/test_resume.py -k same_bits",
    ),
    Mutant(
        "Adam starts again after a resume",
        "rl/run/state.py",
        "                tensor.copy_(state[name])",
        "                pass",
        "tests/run/test_resume.py -k same_bits",
    ),
    Mutant(
        "weights that differ go unnoticed",
        "rl/run/control.py",
        "self.diverged |= any(",
        "self.diverged |= False and any(",
        "tests/run/test_faults.py",
    ),
    Mutant(
        "a rank outlives its launcher",
        "rl/dist/launch.py",
        "threading.Thread(target=stop_with_launcher, daemon=True).start()",
        "pass",
        "tests/dist/test_launch.py -k asked_to_stop",
    ),
    Mutant(
        "an episode's gradient is divided by its length",
        "rl/learners/reinforce.py",
        "samples.rows_per_episode.mean() * policy_loss",
        "policy_loss",
        "tests/learners/test_reinforce.py",
    ),
    Mutant(
        "a checksum that does not mind places",
        "rl/run/control.py",
        "value = zlib.crc32(part, value)",
        "value += sum(part)",
        "tests/run/test_faults.py -k sum_would_miss",
    ),
    Mutant(
        "an abandoned future stays in the way",
        "rl/run/folder.py",
        '_set_aside_later(self.path, self.file, self.checkpoint["run"]["update"])',
        "pass",
        "tests/run/test_resume.py -k aside",
    ),
    Mutant(
        "a stop of one rank is its own affair",
        "rl/run/control.py",
        "received = self.sent if self.received is None else self.received.tolist()",
        "received = self.sent + [0.0] * 4",
        "tests/run/test_faults.py",
    ),
)


def passes(folder: Path, tests: str) -> bool:
    """Whether these tests pass in the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests.split()]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    return result.returncode == 0


def main() -> None:
    """Runs the tests of one mutant after the other, and prints which bugs were detected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="those whose name holds this")
    parser.add_argument("--skip-check", action="store_true", help="trust that the tests pass without a bug")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if arguments.only in mutant.name]
    survivors = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "copy")
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "logs", "__pycache__"))
        for tests in sorted({mutant.tests for mutant in mutants} if not arguments.skip_check else ()):
            assert passes(folder, tests), f"{tests} fails without a bug"
        for mutant in mutants:
            path = folder / mutant.file
            source = path.read_text()
            assert mutant.old in source, f"{mutant.name}: {mutant.file} has changed"
            path.write_text(source.replace(mutant.old, mutant.new))
            caught = not passes(folder, mutant.tests)
            path.write_text(source)
            print(f"{'caught ' if caught else 'MISSED '} {mutant.name}", flush=True)
            if not caught:
                survivors.append(mutant.name)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} bugs caught")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
