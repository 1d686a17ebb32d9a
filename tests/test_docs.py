"""The pages of the documentation: links lead somewhere, commands can work, examples run.

Every command in an `sh` block is read here as its program would read it, unless a comment before the block says why
nobody runs it: `<!-- not run: needs GPUs -->`. Some are run as they stand, by the tests that `RUN_BY` names.
"""

import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

import train_torch
from rl.cli import command_line, parse
from rl.commands import COMMANDS
from rl.commands.of_run import read
from rl.config import CONFIGS, DecoupledConfig
from rl.recipes import with_recipe
from tests.programs.launch import run_folder

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
RUN_BY = {
    "python3 -m venv .venv": "CI runs the test command, tests/programs/test_programs.py the other one's program",
    ". .venv/bin/activate": "nobody: for people, tests name the files of .venv",
    "tensorboard": "nobody: a server of another package",
}
BLOCK = re.compile(r"(?:<!-- not run: ([^\n]*) -->\n)?```sh\n(.*?)\n```", re.DOTALL)
REASONS = r"needs|takes"  # what a comment says of a block that nobody runs


def commands() -> Iterator[Any]:
    """The commands of all pages, one a parameter; lines that end with a backslash go on."""
    for page in PAGES:
        for reason, block in BLOCK.findall(page.read_text()):
            assert not reason or re.match(REASONS, reason), f"{page}: {reason}"
            for line in block.replace("\\\n", " ").splitlines() * (not reason):
                if command := line.partition(" #")[0].strip():
                    yield pytest.param(command, id=f"{page.stem}: {command}"[:90])


@pytest.mark.parametrize("command", [*commands()])
def test_a_command_can_work(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.startswith(tuple(RUN_BY)):
        return
    command = re.sub(r"\$\(rl where (\w+)\)|-m (train_\w+)", r"\1\2.py", command.replace("python -m rl ", "rl "))
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    scripts = [word for word in words if word.endswith(".py")]
    if words[:2] == ["pip", "install"]:
        extras = ",".join(re.findall(r"\[(.*?)\]", command)).split(",")
        assert {*extras} - {""} <= extras_there_are()
    elif words[0] == "rl":
        reads_command(words[1], words[2:])
    elif scripts and scripts[0].startswith("train_"):
        assert words[0] in ("fabric", "torchrun", "python")
        reads_program(scripts[0], words[words.index(scripts[0]) + 1 :], monkeypatch)
    else:
        assert words[0] == "python" and scripts and scripts[0].startswith("benchmarks/"), "who would run it?"
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        module = importlib.import_module(Path(scripts[0]).stem)
        tyro.cli(module.Arguments, args=words[2:])


def reads_program(program: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and checks flags as a program does, with those of the recipe of its environment."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    choices: Any = {"ppo": DecoupledConfig()} if "decoupled" in program else CONFIGS
    if "--help" in flags:
        return
    parse(with_recipe(flags, choices, own=True), choices).check()


def reads_command(name: str, words: list[str]) -> None:
    """Reads flags as a command on a run does."""
    assert name in COMMANDS
    kind = getattr(importlib.import_module(f"rl.commands.{name}"), name.capitalize())
    given = ["logs" if word == "--last" else word for word in words]
    if name == "resume":  # which hands the other flags to the program of the run
        parse(given[1:], CONFIGS).check()
        given = given[:1]
    read(kind, name, given)


def extras_there_are() -> set[str]:
    """The extras of pyproject.toml."""
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


def test_the_table_of_environments_has_flags_that_can_work(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = re.findall(r"\| `(--env-id [^`]*)` \|", (ROOT / "docs/environments.md").read_text())
    assert len(rows) > 5
    for row in rows:
        reads_program("train_fabric.py", row.split(), monkeypatch)


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}, (
                target
            )


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_examples_are_python(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(block)


def test_every_page_is_in_the_navigation() -> None:
    def files(part: Any) -> Iterator[str]:
        parts = part.values() if isinstance(part, dict) else part
        yield from [part] if isinstance(part, str) else (file for inner in parts for file in files(inner))

    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert set(files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])) == pages


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readmes_loop_is_the_programs() -> None:
    (loop,) = re.findall(r"```python\n(for _ in run.updates.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = [line.strip() for line in (ROOT / "train_fabric.py").read_text().splitlines()]
    assert [line for line in loop.splitlines() if line.partition("  # ")[0].strip() not in program] == []


def test_the_docs_own_environment_and_encoder_train(monkeypatch: pytest.MonkeyPatch) -> None:
    for page, name in (("your_environment", "my_package"), ("your_encoder", "my_module")):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
        Path(f"{name}.py").write_text(blocks[0])
        monkeypatch.delitem(sys.modules, name, raising=False)
    flags = "--env-id my_package:Walk-v0 --encoder my_module:Wide --allow-import --execution eager --num-envs 4"
    flags += " --num-steps 16 --total-timesteps 128"
    monkeypatch.setattr("sys.argv", ["train_torch.py", *flags.split()])
    monkeypatch.setattr("sys.path", [*sys.path])
    command_line(train_torch.main, CONFIGS, train_torch.PROGRAM)
    assert (run_folder("torch_logs") / "last.ckpt").exists()
