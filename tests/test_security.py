"""Opening a file or joining a run executes nothing, and names lead nowhere else."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.config import Config
from rl.envs.stepping import EnvConfig
from rl.errors import UserError
from rl.run.folder import folder_stem

ROOT = Path(__file__).parent.parent
SOURCES = [*(ROOT / "rl").rglob("*.py"), *ROOT.glob("train_*.py")]


def test_no_pickle_is_read_from_a_file_or_from_the_network() -> None:
    assert len(SOURCES) > 30
    for path in SOURCES:
        source = path.read_text()
        assert not re.search(r"\b(pickle|cloudpickle|dill|marshal|shelve)\b|_object(s|_list)?\(", source), path
        for call in re.findall(r"torch\.load\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", source):
            assert "weights_only=True" in call, (path, call)
        assert "weights_only=False" not in source and "add_safe_globals" not in source


names = st.text(max_size=90) | st.from_regex(r"[\w./:$~ -]*", fullmatch=True) | st.just("..") | st.just("../x")


@given(exp_name=names, env_id=names)
def test_whatever_is_accepted_as_a_name_stays_inside_the_log_folder(exp_name: str, env_id: str) -> None:
    config = Config(exp_name=exp_name, env=EnvConfig(env_id=env_id))
    try:
        config.check_names()
    except UserError:
        return
    folder = Path("/logs/program") / f"{folder_stem(config)}_x"
    assert folder.resolve().parent == Path("/logs/program") and "\n" not in str(folder)


@given(env_id=st.from_regex(r"[\w./-]*:[\w.:/-]*", fullmatch=True))
def test_no_environments_name_imports_anything_unless_a_flag_says_so(env_id: str) -> None:
    with pytest.raises(UserError):
        EnvConfig(env_id=env_id).check()
