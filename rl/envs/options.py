"""What --env-kwargs and --env-wrapper ask for: arguments of environments' constructors, and wrappers around them."""

import functools
import importlib
import math
import re
import sys
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from rl.envs.failures import progress
from rl.envs.families import register_family
from rl.envs.masks import MaskInInfo
from rl.errors import UserError, described, require
from rl.reporting import note

KWARG = re.compile(r"[A-Za-z_]\w*=.*", re.ASCII | re.DOTALL)
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", re.ASCII)
WRAPPER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
# Arguments of Gymnasium's `make` and `make_vec` that this program gives itself.
OWN = {"num_envs", "render_mode", "vectorization_mode", "vector_kwargs", "wrappers"}


def check_options(kwargs: Iterable[str], wrappers: Iterable[str], *, allow_import: bool) -> None:
    """Raises `UserError` for a value of --env-kwargs or --env-wrapper that cannot work; imports nothing."""
    for kwarg in kwargs:
        require(KWARG.fullmatch(kwarg) is not None, "--env-kwargs", repr(kwarg), "must look like continuous=true")
        name = kwarg.partition("=")[0]
        require(name not in OWN, "--env-kwargs", kwarg, f"{name} follows from other flags; leave it out")
    for wrapper in wrappers:
        looks = WRAPPER.fullmatch(wrapper) is not None
        require(looks, "--env-wrapper", repr(wrapper), "must look like module:Class")
        runs = f"imports, and so runs, the module {wrapper.partition(':')[0]}; add --allow-import to permit it"
        require(allow_import, "--env-wrapper", wrapper, runs)
    kwargs_of(kwargs)


def kwargs_of(words: Iterable[str]) -> dict[str, Any]:
    """The arguments in words such as gravity=-9.8, whose values are read as YAML.

    Raises:
        UserError: A value is not YAML.
    """
    kwargs = {}
    for word in words:
        name, _, text = word.partition("=")
        kwargs[name] = yaml_value(text, word)
    return kwargs


def yaml_value(text: str, word: str) -> Any:
    """A value in YAML, except that 1e-4 is a number, as it is in Python.

    Raises:
        UserError: It is not YAML.
    """
    import yaml  # when it is needed, since few runs do

    try:
        return yaml.load(text, Loader=yaml_types()[0])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--env-kwargs {word}: {described(error)}") from None


def yaml_text(value: Any) -> str:
    """The text whose `yaml_value` this is, in one line."""
    import yaml

    text: str = yaml.dump(value, Dumper=yaml_types()[1], default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


@functools.cache
def yaml_types() -> tuple[Any, Any]:
    """Reads and writes YAML; unlike PyYAML's own, which are of YAML 1.1, they take 1e-4 for a number."""
    import yaml

    # Classes of their own, so that nobody else's YAML changes.
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    dumper: Any = type("Dumper", (yaml.SafeDumper,), {})
    for kind in (loader, dumper):
        kind.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
    return loader, dumper


def wrappers_of(names: Iterable[str]) -> list[type[gym.Wrapper[Any, Any, Any, Any]]]:
    """Imports the wrappers that module:Class names.

    Raises:
        UserError: There is no such class, or it is no wrapper of Gymnasium's.
    """
    wrappers = []
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            wrapper = getattr(importlib.import_module(module), attribute, None)
        except ImportError as error:
            raise UserError(f"--env-wrapper {name}: {error}") from error
        progress()
        if not isinstance(wrapper, type) or not issubclass(wrapper, gym.Wrapper):
            raise UserError(f"--env-wrapper {name}: must be a class derived from gymnasium.Wrapper")
        wrappers.append(wrapper)
    return wrappers


def make_env(env_id: str, kwargs: Iterable[str] = (), wrappers: Iterable[str] = (), **more: Any) -> gym.Env[Any, Any]:
    """A single environment of Gymnasium's, with its wrappers, given `more` arguments of `gymnasium.make`."""
    register_family(env_id)
    _hear_mujoco(env_id.rpartition(":")[2])
    env = gym.make(env_id, **kwargs_of(kwargs), **more)
    for wrapper in wrappers_of(wrappers):
        env = wrapper(env)
    return MaskInInfo(env) if MaskInInfo.is_for(env.observation_space) else env


def _hear_mujoco(env_id: str) -> None:
    """Has MuJoCo print each warning once; by itself it repeats some for every environment, and logs them to a file."""
    spec = gym.registry.get(env_id)
    entry_point = spec.entry_point if spec else None
    if isinstance(entry_point, str):
        load_env_creator(entry_point)  # imports the environment's module, and so MuJoCo if it needs it
    mujoco = sys.modules.get("mujoco")
    if mujoco and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


@functools.cache
def _warn(text: str) -> None:
    if "settotalmass" not in text:  # which is about Gymnasium's own HalfCheetah, and for Gymnasium to change
        note(f"MuJoCo: {text}")
