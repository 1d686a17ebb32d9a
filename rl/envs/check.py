"""Plays some steps with an environment, and says in one line what is wrong with it."""

import copy
import functools
import traceback
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import env_checker
from gymnasium.vector.utils import batch_space
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rl import tree
from rl.envs.action_spaces import actions_of
from rl.envs.masks import without_halves
from rl.envs.observations import ObsKey, part_of
from rl.envs.spaces import Spaces
from rl.envs.tensor_envs import TensorEnv, TensorEnvs, rows_of
from rl.errors import UserError, described

NUM_ENVS, NUM_EPISODES, NUM_STEPS = 5, 4, 10
LOOKS = {"item", "tolist", "numpy", "equal", "allclose", "nonzero", "unique", "masked_select"}
LOOKS |= {f"__{name}__" for name in ("bool", "float", "int", "index", "contains", "array")}
TORCH = f"{Path(torch.__file__).parent}/"


def check_env(
    env: TensorEnv | gym.Env[Any, Any] | Callable[[], TensorEnv | gym.Env[Any, Any]], device: torch.device | str = "cpu"
) -> None:
    """Raises `UserError`, in one line, for an environment, or a class of one, that cannot work.

    The functions of a `TensorEnv` are tried on some random steps: shapes, types and device of their results, values
    that are not finite or not in the space, `if` on values, randomness of their own, arguments changed in place, and
    environments that depend on their neighbors. Any other environment goes through Gymnasium's own checker.
    """
    name = getattr(env, "__name__", type(env).__name__)
    if not isinstance(env, TensorEnv | gym.Env) and callable(env):
        try:
            env = env()
        except Exception as error:
            raise UserError(f"{name}: cannot be made: {described(error)}") from error
    try:
        if isinstance(env, TensorEnv):
            _check_tensor_env(env, name, torch.device(device))
        elif isinstance(env, gym.Env):
            _check_gymnasium_env(env, name)
        else:
            raise UserError(f"{name}: is {type(env).__name__}; must be an rl.TensorEnv or a gymnasium.Env")
    except UserError as error:
        raise UserError(str(error).removeprefix("--env-id ")) from error.__cause__


def _check_gymnasium_env(env: gym.Env[Any, Any], name: str) -> None:
    try:
        env_checker.check_env(env.unwrapped, skip_render_check=True)
    except Exception as error:
        raise UserError(f"{name}: gymnasium.utils.env_checker finds: {described(error)}") from error
    Spaces.of(name, env.observation_space, env.action_space)


def _check_tensor_env(env: TensorEnv, name: str, device: torch.device) -> None:
    for attribute in ("observation_space", "action_space"):
        if not isinstance(given := getattr(env, attribute, None), gym.Space):
            raise UserError(f"{name}.{attribute}: is {given}; must be a space of Gymnasium's")
    for attribute, least in (("max_episode_steps", 1), ("initial_noise_size", 0), ("transition_noise_size", 0)):
        given = getattr(env, attribute, None)
        if attribute == "max_episode_steps" and hasattr(env, attribute) and given is None:
            continue  # no limit
        if not isinstance(given, Integral) or given < least:
            raise UserError(f"{name}.{attribute}: is {given}; must be a whole number, at least {least}")
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("meta")  # tensors without values, which do not mix with the CPU's either
    envs = TensorEnvs(_Watched(env, name).stepped(), NUM_ENVS, name).to(device)
    actions = batch_space(copy.deepcopy(env.action_space), NUM_ENVS)
    actions.seed(0)
    with torch.no_grad():
        envs.reset(seed=0)
        for _ in range(NUM_EPISODES):
            for _ in range(NUM_STEPS):
                envs.legal(envs.state)
                row = rows_of(env.action_space, actions.sample(), NUM_ENVS, torch.device("cpu")).to(device)
                envs.step(row[:, 0] if isinstance(env.action_space, gym.spaces.Discrete) else row)
            envs.restart()


class _LookedError(Exception):
    """A function read a tensor's values."""


class _Blind(TorchFunctionMode):
    """Raises `_LookedError` for operations of torch that read values, which compilation and capture cannot do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is Tensor.__getitem__ and getattr(args[1], "dtype", None) == torch.bool
        if getattr(func, "__name__", "") in LOOKS or by_mask:
            raise _LookedError(func.__name__)
        return func(*args, **(kwargs or {}))


class _Watched:
    """Checks each call of a tensor environment's functions, wherever it is stepped."""

    def __init__(self, env: TensorEnv, name: str) -> None:
        self.env, self.name = env, name
        self.actions = actions_of(name, env.action_space)
        self.keys = Spaces.of(name, env.observation_space, env.action_space).obs

    def stepped(self) -> TensorEnv:
        """The environment, with functions that are checked."""
        env = copy.copy(self.env)
        own_mask = ["mask"] if type(env).mask is not TensorEnv.mask else []
        for function in ("initial", "transition", "observation", "reward", "terminal", *own_mask):
            setattr(env, function, functools.partial(self._call, function))
        return env

    def _call(self, name: str, *args: Any) -> Any:
        """What a function returns, if it returns the same a second time, and for an environment alone."""
        whole = self._once(name, *args)
        results, again = self._tensors(name, whole), self._tensors(name, self._once(name, *args))
        if results[0].is_meta:
            return whole
        if not all(map(torch.equal, map(torch.nan_to_num, results), map(torch.nan_to_num, again))):
            raise self._wrong(name, "gives something else the second time; what is random must come from the noise")
        for n in (0, NUM_ENVS - 1):
            alone = self._tensors(name, self._once(name, *tree.index(args, slice(n, n + 1))))
            for one, result in zip(alone, results, strict=True):
                if not torch.allclose(one[0].double(), result[n].double(), rtol=1e-3, atol=1e-5, equal_nan=True):
                    given = f"{one[0].tolist()} for an environment alone and {result[n].tolist()} among {NUM_ENVS}"
                    raise self._wrong(name, f"gives {given}; must treat each environment by itself")
        if name == "observation":
            for key, result in zip(self.keys, results, strict=True):
                self._check_within(key, result)
        if name == "mask" and not without_halves(whole, self.actions.sizes).any(-1).all():
            raise self._wrong(name, "gives a row without a legal action; must allow one in every state")
        if name == "reward" and not results[0].isfinite().all():
            raise self._wrong(name, f"gives {results[0][~results[0].isfinite()][0]:g}; must be finite numbers")
        return whole

    def _tensors(self, name: str, result: Any) -> list[Any]:
        """The tensors of what a function returned."""
        if name != "observation":
            return [result]
        try:
            return [part_of(result, key) for key in self.keys]
        except (LookupError, TypeError):
            raise self._wrong(name, f"gives {type(result).__name__}; must be a dict as its space has it") from None

    def _once(self, name: str, *args: Any) -> Any:
        kept, generator = tree.map(torch.clone, args), torch.get_rng_state()
        try:
            with _Blind():
                result = getattr(self.env, name)(*args)
        except Exception as error:
            looked = isinstance(error, _LookedError)
            what = f"reads values ({error}); use torch.where instead of if" if looked else f"raised {described(error)}"
            raise self._wrong(name, f"{what}, at {_place(error)}") from error
        if not torch.equal(torch.get_rng_state(), generator):
            raise self._wrong(name, "draws from torch's generator; what is random must come from the noise")
        for number, both in enumerate(zip(args, kept, strict=True), 1):
            for arg, before in zip(*map(tree.leaves, both), strict=True):
                if not arg.is_meta and not torch.equal(arg.nan_to_num(), before.nan_to_num()):
                    raise self._wrong(name, f"changes its argument {number} in place; must leave it as it is")
        for key, tensor in zip(
            self.keys if name == "observation" else [None], self._tensors(name, result), strict=True
        ):
            self._check_form(name, tensor, args[0], key)
        return result

    def _check_form(self, name: str, result: Any, like: Tensor, key: ObsKey | None) -> None:
        if not isinstance(result, Tensor):
            raise self._wrong(name, f"gives {type(result).__name__}; must be a tensor")
        of_one = {"initial": result.shape[1:], "transition": like.shape[1:]}
        of_one["mask"] = torch.Size([sum(self.actions.sizes)])
        if key is not None:
            of_one["observation"] = torch.Size(key.shape)
        shape = (len(like), *of_one.get(name, ()))
        if result.shape != shape:
            raise self._wrong(name, f"gives shape {tuple(result.shape)}; must be {shape} with {len(like)} environments")
        dtypes = {"initial": like.dtype, "transition": like.dtype, "terminal": torch.bool, "mask": torch.bool}
        dtype = dtypes.get(name)
        any_kind = key is not None and key.dtype != "float32"  # whole numbers, which are cast
        if result.dtype != dtype if dtype else not (result.is_floating_point() or any_kind):
            raise self._wrong(name, f"gives {result.dtype}; must be {dtype or 'floating-point'}")
        if result.device != like.device:
            right = f"must be on {like.device}, as its arguments are"
            raise self._wrong(name, f"gives a tensor on {result.device}; {right}")

    def _check_within(self, key: ObsKey, obs: Tensor) -> None:
        low, high = (torch.as_tensor(bound, device=obs.device).double() for bound in _bounds(self.env, key))
        exact = obs.double()
        within = (exact >= low - 1e-5 * (1 + low.abs())) & (exact <= high + 1e-5 * (1 + high.abs())) & exact.isfinite()
        if not within.all():
            place = tuple((~within).nonzero()[0].tolist())
            low, high = (bound.expand(key.shape)[place[1:]] for bound in (low, high))
            number = " ".join(map(str, (*([key.name] if key.name else []), *place[1:])))
            what = f"gives {exact[place]:g} as number {number}"
            raise self._wrong("observation", f"{what}; must be finite and within {low:g} and {high:g}")

    def _wrong(self, name: str, what: str) -> UserError:
        return UserError(f"{self.name}.{name}: {what}")


def _bounds(env: TensorEnv, key: ObsKey) -> tuple[Any, Any]:
    """The lowest and the highest values of a part of an observation."""
    space = part_of(env.observation_space, key)
    if isinstance(space, gym.spaces.Box):
        return space.low, space.high
    if key.num_values:
        start = np.reshape(key.start, key.shape)
        return start, start + np.reshape(key.num_values, key.shape) - 1
    return 0, 1


def _place(error: Exception) -> str:
    """The last line of the environment's own code that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith(TORCH)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else "its first line"
