"""Errors: once for all ranks, with the right exit code."""

import pytest

from rl.errors import UserError, one_line, reported


def outcome(error: BaseException) -> object:
    with pytest.raises(SystemExit) as exit_, reported():
        raise error
    return exit_.value.code


def test_an_interrupted_run_says_so_and_has_the_conventional_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_ranks_leave_the_word_to_rank_0_and_speak_if_it_had_nothing_to_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for rank, message in ((0, "error: no\n"), (1, "error on rank 1: no\n")):
        monkeypatch.setenv("RANK", str(rank))
        assert outcome(UserError("no")) == 2
        assert capsys.readouterr().err == message
    assert sum(waits) == pytest.approx(10)


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        _ = 1 / 0


def test_a_long_text_becomes_one_short_line() -> None:
    assert one_line("one\n  two\r\nthree") == "one two three"
    assert len(one_line("x" * 300_000)) == 300 and one_line("x" * 300) == "x" * 300
