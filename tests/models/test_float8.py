"""Float8 layers: which layers are converted, and that they multiply 8-bit numbers."""

import pytest
import torch
from torch import Tensor, nn

from rl.cli import parse
from rl.config import CONFIGS
from rl.envs.actions import DiscreteActions
from rl.envs.observations import vector
from rl.envs.spaces import Spaces
from rl.errors import UserError
from rl.models.agent import Agent, Network
from rl.models.float8 import to_float8

CPU = torch.device("cpu")


def agent_for(hidden_size: int = 64) -> Agent:
    torch.manual_seed(0)
    network = Network(hidden_sizes=(hidden_size, hidden_size), shared_encoder=True)
    return Agent(Spaces(vector(4), DiscreteActions(2)), network)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values as 8-bit numbers, scaled so that the largest becomes the largest 8-bit number."""
    scale = torch.finfo(dtype).max / values.abs().max()
    return (values * scale).to(dtype).float() / scale


def test_a_layer_multiplies_e4m3_numbers_and_its_gradients_are_products_of_e5m2_ones() -> None:
    layer = nn.Sequential(nn.Linear(32, 48))
    to_float8(layer, CPU)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(20, 32, generator=generator, requires_grad=True)  # 20 is no multiple of 16
    towards = torch.randn(20, 48, generator=generator)
    output = layer(rows)
    output.backward(towards)
    weight, bias = layer[0].weight.detach(), layer[0].bias.detach()
    rows8, weight8 = rounded(rows.detach(), torch.float8_e4m3fn), rounded(weight, torch.float8_e4m3fn)
    towards8 = rounded(towards, torch.float8_e5m2)
    assert torch.allclose(output, rows8 @ weight8.T + bias, atol=1e-5)
    assert torch.allclose(rows.grad, towards8 @ weight8, atol=1e-4)
    assert torch.allclose(layer[0].weight.grad, towards8.T @ rows8, atol=1e-4)
    # This differs from the product of the unrounded numbers.
    assert not torch.allclose(output, rows @ weight.T + bias, atol=1e-3)


def test_layers_whose_sizes_do_not_fit_stay_as_they_are_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    agent = agent_for()
    names = list(agent.state_dict())
    to_float8(agent, CPU)
    kinds = {name: type(module).__name__ for name, module in agent.named_modules() if isinstance(module, nn.Linear)}
    assert kinds == {"encoder.0": "Linear", "encoder.2": "Float8Linear", "actor": "Linear", "critic": "Linear"}
    assert list(agent.state_dict()) == names
    said = capsys.readouterr().err
    assert (
        "in float8 (emulated: the same numbers, but slow" in said
        and "encoder.2; unchanged, since a size is not a multiple of 16: encoder.0 (4 to 64)" in said
    )


def test_with_a_width_that_does_not_fit_no_layer_is_in_float8(capsys: pytest.CaptureFixture[str]) -> None:
    agent = agent_for(hidden_size=20)
    obs = torch.randn(5, 4)
    before = agent(obs)[1]
    to_float8(agent, CPU)
    said = capsys.readouterr().err
    assert (
        "no layer; unchanged, since a size is not a multiple of 16: encoder.0 (4 to 20), encoder.2 (20 to 20)" in said
    )
    assert torch.equal(agent(obs)[1], before)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_it_runs_under_autocast_and_answers_in_float32(autocast: torch.dtype | None) -> None:
    agent, plain = agent_for(), agent_for()
    to_float8(agent, CPU)
    obs = torch.randn(7, 4)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        distribution, value = agent(obs)
    assert value.dtype == distribution.log_probs.dtype == torch.float32
    assert torch.allclose(value, plain(obs)[1], atol=0.1)


def test_without_torchao_the_flag_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--fp8: needs torchao; pip install 'fabric-rl\[fp8\]'"):
        parse(["--fp8"], CONFIGS).check()
