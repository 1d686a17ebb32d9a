"""Linear layers, in whatever form they compute, against their formulas."""

import pytest
import torch

from rl.compile import Execution
from rl.models.linear import FEW_INPUTS, FEW_OUTPUTS, Linear


@pytest.mark.parametrize(
    ("mode", "num_inputs", "num_outputs"),
    [
        ("eager", FEW_INPUTS, FEW_OUTPUTS),
        ("compile", FEW_INPUTS, FEW_OUTPUTS),
        ("compile", FEW_INPUTS - 1, FEW_OUTPUTS + 1),
    ],
)
def test_outputs_and_gradients_are_those_of_the_formula(mode: str, num_inputs: int, num_outputs: int) -> None:
    torch.manual_seed(1)
    layer = Linear(num_inputs, num_outputs).double()
    features, factors = (torch.randn(2, 20, size).double() for size in (num_inputs, num_outputs))

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (features,))
        return (outputs * factors).sum(), outputs

    def gradients(weight: torch.Tensor, bias: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        return torch.func.grad(loss, argnums=(0, 1), has_aux=True)(weight, bias)

    weight, bias = layer.weight.detach(), layer.bias.detach()
    (of_weight, of_bias), outputs = Execution(mode).step(gradients)(weight, bias)
    torch.testing.assert_close(outputs, torch.einsum("tbf,of->tbo", features, weight) + bias)
    torch.testing.assert_close(of_weight, torch.einsum("tbo,tbf->of", factors, features))
    torch.testing.assert_close(of_bias, factors.sum((0, 1)))
