"""What pip installs works without the repository: programs, commands, and type hints."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.programs.launch import ROOT

FLAGS = "--env-id CartPole-v1 --config none --total-timesteps 256 --num-envs 4 --num-steps 32 --eval-episodes 1"
ALL_IN_ONE = """  # as python -m train_fabric, and then two commands: torch is imported only once
import runpy
import rl.commands
runpy.run_module("train_fabric", run_name="__main__", alter_sys=True)
rl.commands.main("play --last --video film.gif --episodes 1".split())
rl.commands.main("export --last policy.safetensors".split())
print(rl.__path__)
"""


def outputs(*command: str | Path) -> str:
    """What a command prints, which must succeed, and cannot find the checkout."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=variables, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment, which has the wheel, and sees all other libraries of this one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(ROOT / "rl", folder / "source/rl")
    for file in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md"):
        shutil.copy(file, folder / "source")
    # By way of the sdist, which therefore is complete.
    outputs(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "source")
    (wheel,) = folder.glob("fabric_rl-*.whl")
    venv.create(folder / "fresh", symlinks=True)
    programs = folder / "fresh/bin"
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    outputs(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("fresh/lib/python*/site-packages")
    # Behind its own; the editable installation of the checkout is in a .pth file there, which is not read again.
    (site / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return programs


def test_the_main_job_runs_and_its_policy_is_filmed_and_exported(installed: Path) -> None:
    program = outputs(installed / "rl", "where", "train_fabric").strip()
    assert Path(program).is_relative_to(installed.parent)
    assert str(Path(program).with_name("rl")) in outputs(installed / "python", "-c", ALL_IN_ONE, *FLAGS.split())
    assert Path("film.gif").stat().st_size > 1000
    with safe_open("policy.safetensors", "numpy") as file:
        version = file.metadata()["version"]
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()


def test_a_users_type_checker_finds_no_mistake_in_the_loop_of_the_docs(installed: Path) -> None:
    loop, *own = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    Path("loop.py").write_text(loop)
    Path("own.py").write_text("\n".join(["import rl", *own]))
    Path("wrong.py").write_text("import rl\nrl.EnvConfig(env=1)\nrl.nothing\nrl.Network(hidden_sizes=64)\n")
    # With the options of this repository: they are strict, and torch, which takes mypy 15 s, then is in its cache.
    flags = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
    command = [sys.executable, "-m", "mypy", *flags, "--python-executable", installed / "python", *Path().glob("*.py")]
    checked = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    errors = re.findall(r"(?m)^(.*): error: (?!Call to untyped function \"backward\")", checked.stdout)  # torch's
    assert errors == ["wrong.py:2", "wrong.py:3", "wrong.py:4"], checked.stdout + checked.stderr
