"""`rl export`: what is written acts as the agent does, without this package."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import rl
import rl.models.deployed
from rl.commands.export import gives_masks
from rl.config import CONFIGS
from rl.envs.config import EnvConfig
from rl.envs.spaces import Spaces
from rl.errors import UserError
from rl.models.agent import Agent, Network
from rl.models.deployed import Deployed
from rl.run.checkpoint import content_of, read_checkpoint, write_checkpoint
from rl.run.evaluation import Actor, act
from rl.run.export import agent_in, write_policy
from rl.seeding import environment_seed, evaluation_seed

POSITION: Any = {"update": 1, "step": 7, "fraction": 0.0, "complete": True, "best_return": 0.0}
OBS = Dict(
    {
        "arm": Tuple([Box(-1, 1, (2,)), Discrete(3, start=2)]),
        "camera": Box(0, 255, (12, 12, 3), np.uint8),
        "keys": MultiBinary((2, 2)),
    }
)
ACTIONS = Dict({"aim": Box(-0.1, 0.3, (2,), np.float64), "door": Discrete(4, start=1), "many": MultiDiscrete([2, 3])})


def written(spaces: Spaces, path: Path, *, masked: bool = False, **network: Any) -> Agent:
    """An agent with large random weights, which has been exported."""
    config = replace(CONFIGS["ppo"], network=Network(hidden_sizes=(16,), **network))
    agent = Agent(spaces, config.network)
    for parameter in agent.parameters():
        parameter.data.normal_(0, 0.2)
    if agent.obs_normalizer is not None:
        agent.obs_normalizer.update(
            agent.obs_normalizer.sums(50 + 20 * torch.randn(64, len(agent.obs_normalizer.mean)), torch.ones(64))
        )
    write_policy(agent, content_of(agent, config, POSITION, []), path, masked=masked)
    return agent


def test_onnxruntime_alone_plays_the_episodes_that_are_evaluated(
    run: Path, rl_: Callable[..., str], evaluated: Callable[..., dict[str, Any]]
) -> None:
    assert "policy.onnx: obs -> actions\n" in rl_("export", run, "policy.onnx")
    session = onnxruntime.InferenceSession("policy.onnx")
    env, totals = gym.make("CartPole-v1"), []
    seed = evaluation_seed(json.loads((run / "config.json").read_text())["seed"])
    for episode in range(4):
        obs, ended = env.reset(seed=environment_seed(seed, episode))[0], False
        totals.append(0.0)
        while not ended:
            (action,) = session.run(["actions"], {"obs": obs[None]})
            obs, reward, terminated, truncated, _ = env.step(action[0])
            totals[-1], ended = totals[-1] + float(reward), terminated or truncated
    assert totals == evaluated("--episodes", 4)["returns"]
    about = {entry.key: entry.value for entry in onnx.load("policy.onnx").metadata_props}
    assert (about["env_id"], about["step"]) == ("CartPole-v1", str(evaluated("--episodes", 1)["step"]))
    assert json.loads(about["spaces"])["actions"] == {"num_actions": 2, "start": 0}


def test_every_kind_of_space_is_exported_with_a_mask() -> None:
    agent = written(Spaces.of("x", OBS, ACTIONS), Path("policy.onnx"), masked=True, normalize_obs=False)
    session = onnxruntime.InferenceSession("policy.onnx")
    names = [each.name for each in session.get_inputs()]
    assert names == ["arm/0", "arm/1", "camera", "keys", "action_mask"]
    assert [each.name for each in session.get_outputs()] == ["actions/aim", "actions/door", "actions/many"]
    OBS.seed(1)
    for number in (1, 7):
        seen = [OBS.sample() for _ in range(number)]
        mask = np.random.default_rng(number).random((number, 9)) < 0.5
        mask[:, [0, 4, 6]] = True
        batch = {
            "arm/0": np.stack([obs["arm"][0] for obs in seen]),
            "arm/1": np.stack([obs["arm"][1] for obs in seen]),
            "camera": np.stack([obs["camera"] for obs in seen]),
            "keys": np.stack([obs["keys"] for obs in seen]).astype(np.uint8),
        }
        outputs = session.run(None, batch | {"action_mask": mask})
        for n, obs in enumerate(seen):
            action = dict(zip(("aim", "door", "many"), (output[n] for output in outputs), strict=True))
            assert ACTIONS.contains(action)
            expected = act(agent, obs, mask[n])
            assert action["door"] == expected["door"] and (action["many"] == expected["many"]).all()
            np.testing.assert_allclose(action["aim"], expected["aim"], atol=1e-6)


@pytest.mark.parametrize("squash", [False, True])
def test_a_pt2_file_has_the_statistics_and_the_bounds_inside(squash: bool) -> None:
    bounds = np.array([0.25, 2.0], np.float32)
    spaces = Spaces.of("x", Box(-np.inf, np.inf, (3,)), Box(-bounds, bounds))
    agent = written(spaces.squashed("x") if squash else spaces, Path("policy.pt2"), normalize_obs=True)
    files = {"metadata.json": ""}
    module = torch.export.load("policy.pt2", extra_files=files).module()
    assert json.loads(files["metadata.json"])["env_id"] == "CustomEnv-v0"
    for number in (1, 5):
        obs = 50 + 20 * torch.randn(number, 3)
        actions = module(obs).numpy()
        assert (np.abs(actions) <= bounds).all() and (np.abs(actions) > 0.05).any()
        np.testing.assert_allclose(actions, act(agent, obs.numpy()), rtol=1e-5)


@pytest.mark.parametrize("name", ["policy.pt2", "policy.safetensors"])
def test_what_is_remembered_is_an_input_and_an_output(name: str) -> None:
    agent = written(Spaces.of("x", Box(-9, 9, (3,)), Discrete(4)), Path(name), memory="lstm", memory_size=6)
    if name.endswith(".pt2"):
        module: Any = torch.export.load(name).module()
    else:
        module = Deployed(agent_in(Path(name).read_bytes()), masked=False)
        assert (module.input_names(), module.output_names()) == (["obs", "memory_in"], ["actions", "memory_out"])
    memory, actor = torch.zeros(2, 24), Actor(agent)
    for obs in 3 * torch.randn(9, 2, 3):
        actions, memory = module(obs, memory)
        assert actions.tolist() == actor(obs.numpy()).tolist()
    assert torch.equal(memory, actor.memory) and memory.abs().min() > 0


def test_safetensors_have_what_makes_the_agent_anew() -> None:
    agent = written(Spaces.of("x", OBS, ACTIONS), Path("policy.safetensors"), normalize_obs=True)
    again = agent_in(Path("policy.safetensors").read_bytes())
    assert again.spaces == agent.spaces and again.state_dict().keys() == agent.state_dict().keys()
    OBS.seed(2)
    for obs in (OBS.sample() for _ in range(5)):
        assert str(act(again, obs)) == str(act(agent, obs))


def test_a_file_that_acts_otherwise_is_refused_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = rl.models.deployed.tensors_for_env
    monkeypatch.setattr(rl.models.deployed, "tensors_for_env", lambda *args: exact(*args) + 1e-4)
    spaces = Spaces.of("x", Box(-1, 1, (3,)), Box(-9, 9, (2,)))
    with pytest.raises(UserError, match=r"not written, since its actions differ by 1\.0e-04 from those here"):
        written(spaces, Path("policy.safetensors"))
    assert not Path("policy.safetensors").exists()


def test_an_export_knows_which_environments_have_action_masks() -> None:
    ids = {"Taxi-v4": True, "CartPole-v1": False, "NoSuch-v0": False}
    assert {env_id: gives_masks(EnvConfig(env_id)) for env_id in ids} == ids


def test_weights_in_half_precision_are_exported_in_single(run: Path) -> None:
    content = read_checkpoint(run / "last.ckpt")
    content["config"]["precision"] = "bf16-true"
    halves = {name: value.bfloat16() for name, value in content["agent"].items() if "normalizer" not in name}
    content["agent"] |= halves
    write_checkpoint(Path("half.ckpt"), content)
    rl.export_policy("half.ckpt", "policy.safetensors")
    state = agent_in(Path("policy.safetensors").read_bytes()).state_dict()
    assert all(state[name].dtype == torch.float32 and torch.equal(state[name], halves[name].float()) for name in halves)
