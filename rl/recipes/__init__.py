"""Recipes: files of flags, of which this folder has some for environments that many people train.

A recipe is put in front of the command line as flags. Types, checks and messages are therefore those of the flags, and
what the user gives holds. All values are read as text, since YAML writes numbers in another way than flags do: to it,
1e-4 is a string.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from rl.arguments import flag_of, in_new_spelling, learner_of, value_of
from rl.config import CONFIGS, LEARNER_NAME, Config, DecoupledConfig, flat
from rl.envs.options import yaml_text, yaml_types
from rl.errors import UserError, described, require
from rl.parsing import help_wanted
from rl.reporting import note
from rl.spelling import unknown

SHIPPED = files("rl.recipes")
GROUPS = {"env", "network", "keep", "learner"}  # of a run's config.json
COMMAND_LINE_ONLY = {"allow_import", "resume", "config"}
OF_ONE_PROGRAM = DecoupledConfig().flags().keys() - CONFIGS["ppo"].flags().keys()
NOTHING = ("", "~", "null")
SWITCHES = {"true": "", "false": "no-"}


class Recipe(NamedTuple):
    """The content of a file."""

    name: str
    learner: str | None
    env_ids: list[str]  # the first is the one to train if the command line names none
    values: dict[str, Any]  # by field of `Config`: text, or a list or a dictionary of it


def with_recipe(arguments: list[str], choices: Mapping[str, Config[Any]], *, own: bool) -> list[str]:
    """A command line with the flags of a recipe in front: that of --config, or if `own`, that of its environment.

    Raises:
        UserError: There is no such recipe, or it has flags that the learner does not have.
    """
    name = learner_of(arguments, choices)
    if help_wanted(arguments):
        return arguments
    rest = arguments[arguments[:1] == [name] :]
    wanted = value_of("--config", arguments)
    recipe = None
    if wanted is None and own and name == "ppo":
        recipe = recipe_for(value_of("--env-id", arguments) or choices[name].env.env_id)
    elif wanted not in (None, "none"):
        recipe = find_recipe(wanted)
    if recipe is None:
        return arguments
    if recipe.learner not in (None, name):
        if rest != arguments:
            raise UserError(f"--config {recipe.name}: is for {recipe.learner}, not for {name}; leave one of them out")
        name = learner_of([str(recipe.learner)], choices)
    given, _ = in_new_spelling(rest, choices[name].network.hidden_sizes)
    flags = {field: words for field, words in flags_of(recipe, name, choices).items() if not is_given(field, given)}
    if wanted is None:
        flags["config"] = [f"--config={recipe.name}"]
    elif recipe.env_ids and not is_given("env_id", given):
        flags["env_id"] = [f"--env-id={recipe.env_ids[0]}"]
    leading = [] if rest == arguments and recipe.learner is None else [name]
    return [*leading, *(word for words in flags.values() for word in words), *rest]


def note_recipe(config: Config[Any], arguments: list[str]) -> None:
    """Tells the user of a new run which flags come from a recipe, or that one is left out."""
    env_id, wanted = config.env.env_id, value_of("--config", arguments)
    own = recipe_for(env_id) if config.learner_name() == "ppo" else None
    if wanted not in (None, "none"):
        if own and own.name != wanted:
            note(f"--config {wanted} takes the place of the recipe {own.name}, and is not added to it")
    elif config.config and wanted is None:
        given, _ = in_new_spelling(arguments, config.network.hidden_sizes)
        flags = flags_of(find_recipe(config.config), "ppo", {"ppo": config})
        words = [" ".join(flags[field]).removeprefix("--") for field in flags if not is_given(field, given)]
        if said := ", ".join(words).replace("=", " "):
            note(f"recipe {config.config}: {said}; --config none for the plain defaults")
    elif wanted is None and config.learner_name() == "ppo" and (other := recipe_of_another_version(env_id)):
        others = f"the recipe {other.name} is for {other.env_ids[0]}"
        note(f"no recipe for {env_id}, so it takes plain defaults; {others}, and --config {other.name} takes it here")


def recipe_of_another_version(env_id: str) -> Recipe | None:
    """The recipe for an environment whose id differs in the version alone; the first of its ids is that one."""
    stem = env_id.rpartition("-v")[0]
    for name in shipped():
        text = (SHIPPED / f"{name}.yaml").read_text()
        if stem and f"{stem}-v" in text:
            recipe = recipe_of(text, name)
            if like := [known for known in recipe.env_ids if known.rpartition("-v")[0] == stem and known != env_id]:
                return recipe._replace(env_ids=like)
    return None


@contextlib.contextmanager
def naming_recipes(arguments: list[str], wanted: Callable[[], str | None]) -> Iterator[None]:
    """Names the recipe in errors about a flag that the command line does not have; `wanted` is its name, if any."""
    try:
        yield
    except UserError as error:
        flag, _, rest = str(error).partition(" ")
        field = flag.strip("-:").replace("-", "_")
        name = wanted()
        if not name or name == "none" or is_given(field, arguments) or field not in find_recipe(name).values:
            raise
        raise type(error)(f"--config {name}: {flag.removeprefix('--')} {rest}") from None


def is_given(field: str, arguments: list[str]) -> bool:
    """Whether a command line says what a field of `Config` is."""
    flag = field.replace("_", "-")
    flags = {f"--{flag}", f"--no-{flag}"}
    if field == "per_rank_batch_size":
        flags.add("--num-minibatches")  # which it would override
    return any(flag_of(word) in flags for word in arguments)


def shipped() -> list[str]:
    """The names of the recipes of this package."""
    return sorted(file.name.removesuffix(".yaml") for file in SHIPPED.iterdir() if file.name.endswith(".yaml"))


def recipe_for(env_id: str) -> Recipe | None:
    """The recipe of this package for an environment, if there is one."""
    for name in shipped():
        text = (SHIPPED / f"{name}.yaml").read_text()
        if env_id in text and env_id in (recipe := recipe_of(text, name)).env_ids:  # parsing takes longer than looking
            return recipe
    return None


def find_recipe(wanted: str) -> Recipe:
    """The recipe that --config names.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    if wanted in shipped():
        return recipe_of((SHIPPED / f"{wanted}.yaml").read_text(), wanted)
    try:
        return recipe_of(Path(wanted).expanduser().read_text(), wanted)
    except FileNotFoundError:
        right = f"must be a file, none, or one of {', '.join(shipped())}"
        raise UserError(f"--config {wanted}: does not exist; {right}") from None
    except OSError as error:
        raise UserError(f"--config {wanted}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8
        raise UserError(f"--config {wanted}: is not YAML: {described(error)}") from None


def recipe_of(text: str, name: str) -> Recipe:
    """The recipe in the text of a file, or in that of a run's config.json.

    Raises:
        UserError: It is neither.
    """
    import yaml  # when it is needed, since it takes as long to import as a small module of the package

    try:
        values = yaml.load(text, Loader=yaml.BaseLoader)
        typed = yaml.load(text, Loader=yaml_types()[0])  # for arguments of environments, which have types
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--config {name}: is not YAML: {described(error)}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"--config {name}: must hold flags and their values, such as `learning-rate: 1e-4`")
    if all(isinstance(values.get(group), dict) for group in GROUPS):
        learner = values.pop(LEARNER_NAME, None) or learner_with(values["learner"].keys(), name)
        if learner not in CONFIGS:
            raise UserError(f"--config {name}: is of a learner that this program does not have ({learner})")
        left_out = {*COMMAND_LINE_ONLY, "log_dir"}  # as for a resumed run
        values = {field: value for field, value in flat(values).items() if field not in left_out}
    else:
        named = {key.replace("-", "_"): value for key, value in values.items()}
        if len(named) < len(values):
            raise UserError(f"--config {name}: has a key twice, once with - and once with _; leave one of them out")
        values = named
        arguments = typed.get("env-kwargs", typed.get("env_kwargs"))
        if isinstance(arguments, dict):
            values["env_kwargs"] = [f"{argument}={yaml_text(value)}" for argument, value in arguments.items()]
        learner = values.pop("learner", None)
        if learner is not None and str(learner) not in CONFIGS:
            raise UserError(f"--config {name}: learner {learner}: must be one of {', '.join(CONFIGS)}")
    env_ids = values.pop("env_id", [])
    return Recipe(name, learner, env_ids if isinstance(env_ids, list) else [env_ids], values)


def learner_with(fields: Any, name: str) -> str:
    """The learner whose flags these are; that with the fewest others, if several have them.

    Raises:
        UserError: There is none.
    """
    flags = {learner: vars(config.learner).keys() for learner, config in CONFIGS.items()}
    fitting = [learner for learner in flags if fields <= flags[learner]]
    if not fitting:
        raise UserError(f"--config {name}: is of a learner that this program does not have")
    return min(fitting, key=lambda learner: len(flags[learner]))


def flags_of(recipe: Recipe, learner: str, choices: Mapping[str, Config[Any]]) -> dict[str, list[str]]:
    """The words of each flag of a recipe, by field of `Config`.

    Raises:
        UserError: The learner has no such flag.
    """
    defaults = choices[learner].flags()
    flags = {}
    for field, value in recipe.values.items():
        where = f"--config {recipe.name}: {field.replace('_', '-')}"
        if isinstance(value, str) and value.lower() in NOTHING:
            continue
        if field in COMMAND_LINE_ONLY:
            raise UserError(f"{where}: only the command line can say this; leave it out")
        if field in defaults:
            flags[field] = words_of(field, value, defaults[field], where)
        elif field not in OF_ONE_PROGRAM:
            raise UserError(f"{where}: {unknown(field, learner)}")
        elif str(value).lower() != "false":
            note(f"{where}: this program has no such flag")
    return flags


def words_of(field: str, value: Any, default: Any, where: str) -> list[str]:
    """A flag as words of a command line."""
    flag = field.replace("_", "-")
    if isinstance(default, bool):
        switch = str(value).lower()
        require(switch in SWITCHES, where, value, "must be true or false")
        return [f"--{SWITCHES[switch]}{flag}"]
    require(not isinstance(value, dict), where, value, "must be a value, or a list of values")
    if not isinstance(value, list):
        return [f"--{flag}={value}"]
    words = list(map(str, value))
    if any(word.startswith("--") for word in words):
        raise UserError(f"{where}: must be values, not flags")
    return [f"--{flag}", *words]
