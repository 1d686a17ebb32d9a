"""A short run of tests/chaos.py, which kills real runs and compares their final states."""

import re
import sys

import pytest

from tests.programs.launch import ROOT, start, succeeded


def test_under_faults_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    output = succeeded(start(sys.executable, "-m", "tests.chaos", "--faults", "1", "--seed", "3", "--programs", "1"))
    assert re.search(r"faults injected +[1-9]", output)
    assert re.search(r"resumes that worked +(\d+) of \1\n", output)
    assert re.search(r"more than an interval in 0 cases", output)
    assert re.search(r"orphans +0\nunreadable checkpoints +0\nruns that ended as if undisturbed +(\d+) of \1\n", output)
