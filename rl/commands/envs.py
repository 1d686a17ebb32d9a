"""`rl envs`: which environments can be trained here, in which forms, and what is missing for the others."""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import gymnasium as gym
import tyro

from rl.commands.of_run import read
from rl.commands.text import table
from rl.envs.families import FAMILIES, register_family
from rl.envs.tensor_envs import TENSOR_ENVS
from rl.errors import UserError, install
from rl.recipes import recipe_for

MOST_OF_A_FAMILY = 30  # that are listed unless one asks for them
NEEDS = {  # of Gymnasium's families: a package, and the extra that installs it
    "box2d": ("Box2D", "box2d"),
    "mujoco": ("mujoco", "mujoco"),
    "phys2d": ("jax", "jax"),
    "tabular": ("jax", "jax"),
}


@dataclass(frozen=True)
class Envs:
    """Lists the environments that this Python knows, in their newest versions.

    An environment of your own is trained by its id, as module:id.
    """

    name: tyro.conf.Positional[str] = ""
    """Only those whose id or family contains this."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Known:
    """An environment, and what can be done with it."""

    env_id: str
    family: str
    single: bool = False  # --vectorization sync, async
    batched: bool = False  # --vectorization native
    tensor: bool = False  # --vectorization tensor
    recipe: str | None = None
    missing: str | None = None  # the command that installs what it needs


def command(words: Sequence[str]) -> None:
    """Prints a table of the environments of each family."""
    flags = read(Envs, "envs", words)
    found = [known for known in all_known() if flags.name.lower() in f"{known.family} {known.env_id}".lower()]
    if not found:
        raise UserError(f"{flags.name}: is in no id that is registered; an id of your module is given as module:id")
    if flags.json:
        print(json.dumps([asdict(known) for known in found]))
        return
    numbers = Counter(known.family for known in found)
    shown = [known for known in found if flags.name or numbers[known.family] <= MOST_OF_A_FAMILY]
    header, *lines = table(("environment", "forms", "recipe"), [cells(known) for known in shown])
    print(header)
    for family, number in numbers.items():
        members = [(known, line) for known, line in zip(shown, lines, strict=True) if known.family == family]
        if not members:
            print(f"\n{family}: {number} environments; rl envs {family} lists them")
            continue
        missing = members[0][0].missing
        print(f"\n{family}{f' (missing: {missing})' if missing else ''}", *(line for _, line in members), sep="\n")


def all_known() -> Iterator[Known]:
    """Every environment, by family and id; a family that is not installed has one entry."""
    before = {*gym.registry}
    absent = [
        Known(f"{start}…", start[:-1], missing=install(family.extra))
        for start, family in FAMILIES.items()
        if not is_installed(start)
    ]
    newest: dict[tuple[str | None, str], gym.envs.registration.EnvSpec] = {}
    for spec in gym.registry.values():
        other = newest.get((spec.namespace, spec.name))
        # Old versions that raise an error have a function in place of a module's name.
        is_real = isinstance(spec.entry_point or spec.vector_entry_point, str)
        # Packages may also register ids by which nobody could know where they are from.
        is_found = spec.id in before or spec.id.startswith(tuple(FAMILIES))
        if is_real and is_found and (other is None or (other.version or 0) < (spec.version or 0)):
            newest[spec.namespace, spec.name] = spec
    specs = {spec.id: spec for spec in newest.values()}
    known = [known_of(env_id, specs.get(env_id)) for env_id in {*specs, *TENSOR_ENVS}]
    return iter(sorted([*known, *absent], key=lambda known: (known.family.lower(), known.env_id)))


def is_installed(start: str) -> bool:
    """Whether the package whose ids begin like this is there; its environments are then registered."""
    try:
        register_family(start)
    except UserError:
        return False
    return True


def known_of(env_id: str, spec: gym.envs.registration.EnvSpec | None) -> Known:
    """What can be done with an environment, which has no spec if it exists in tensors only."""
    family = family_of(spec) if spec else env_id.rpartition("/")[0] or "tensor"
    package, extra = NEEDS.get(family, ("", ""))
    is_there = not package or importlib.util.find_spec(package) is not None
    recipe = recipe_for(env_id)
    return Known(
        env_id,
        family,
        single=bool(spec and spec.entry_point),
        batched=bool(spec and spec.vector_entry_point),
        tensor=env_id in TENSOR_ENVS,
        recipe=recipe.name if recipe else None,
        missing=None if is_there else f"pip install 'gymnasium[{extra}]'",
    )


def family_of(spec: gym.envs.registration.EnvSpec) -> str:
    """The namespace, or else the package that has the environment; of Gymnasium's own, the part of it."""
    parts = str(spec.entry_point or spec.vector_entry_point).partition(":")[0].split(".")
    return spec.namespace or (parts[2] if parts[:2] == ["gymnasium", "envs"] else parts[0])


def cells(known: Known) -> list[str]:
    """A row of the table."""
    forms = [form for form in ("single", "batched", "tensor") if getattr(known, form)]
    return [f"  {known.env_id}", ", ".join(forms), known.recipe or ""]
