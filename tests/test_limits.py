"""What a machine must have for a run."""

import pytest

from rl.limits import note_slow_precision


@pytest.mark.parametrize(
    ("flags", "precision", "slow"),
    [
        ("flags\t\t: fpu avx2 fma f16c", "bf16-mixed", True),
        ("flags\t\t: fpu avx2 fma f16c", "bf16-true", True),
        ("flags\t\t: fpu avx2 fma f16c", "32-true", False),
        ("flags\t\t: fpu avx512f avx512_bf16", "bf16-mixed", False),
        ("flags\t\t: fpu avx512f avx512_bf16", "16-mixed", True),
        ("flags\t\t: fpu amx_bf16 amx_fp16", "16-mixed", False),
        ("Features\t: fp asimd asimdhp", "bf16-mixed", True),
        ("Features\t: fp asimd asimdhp bf16", "bf16-mixed", False),
        ("arm", "bf16-mixed", False),  # where nothing lists them
    ],
)
def test_a_precision_for_which_the_cpu_has_no_instructions_is_said_to_be_slow(
    flags: str, precision: str, slow: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rl.limits.cpu_flags", lambda: flags)
    note_slow_precision(precision)
    assert ("this CPU has no instructions for it; 32-true" in capsys.readouterr().err) == slow
