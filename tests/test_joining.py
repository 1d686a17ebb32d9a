"""Who the ranks are, whoever started them."""

import os

import pytest

from rl.joining import end_with_launcher, rank, take_slurm_ranks, world_size

SLURM = {
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "gpu[07-08,11],cpu3",
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NAME": "train",
}
TAKEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TAKEN += ("LT_CLI_USED", "LT_DEVICES", "LT_NUM_NODES")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TAKEN:  # so that they are gone after the test
        monkeypatch.setenv(name, "x")
        del os.environ[name]
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)


def test_a_task_of_slurm_knows_its_place(slurm: None) -> None:
    take_slurm_ranks()
    assert (rank(), world_size()) == (5, 8)
    assert (os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]) == ("1", "4")
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", "18456")
    assert (os.environ["LT_DEVICES"], os.environ["LT_NUM_NODES"]) == ("4", "2")


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "0"), ("SLURM_NTASKS", "1"), ("SLURM_JOB_NAME", "bash"), ("SLURM_JOB_NAME", "interactive")],
)
def test_where_a_launcher_or_a_shell_stands_between_slurm_says_nothing(
    slurm: None, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    take_slurm_ranks()
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1", "n1"), ("n1,n2", "n1"), ("n[3]", "n3"), ("a-[05-09]", "a-05"), ("x[1,4-7]", "x1")]
)
def test_the_first_node_is_found_in_slurms_list(
    slurm: None, nodes: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NODELIST", nodes)
    take_slurm_ranks()
    assert os.environ["MASTER_ADDR"] == first


def test_a_rank_whose_launcher_died_before_it_looked_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr("ctypes.CDLL", lambda _: type("Library", (), {"prctl": staticmethod(lambda *_: 0)}))
    end_with_launcher()
    monkeypatch.setattr("os.getppid", lambda: 1)
    with pytest.raises(SystemExit) as exit_:
        end_with_launcher()
    assert exit_.value.code == 143
