"""Linear layers that are fast also where rows, inputs or outputs are few."""

import torch
from torch import Tensor, nn
from torch.nn import functional

# Of layers that are compiled for the CPU:
FEW_ROWS = 16  # below which the call of a matrix product takes longer than the product
FEW_WEIGHTS = 2**16  # likewise; with sums in a larger layer a policy of images took 7 times as long (docs/log.md)
FEW_OUTPUTS = 4  # of any number of rows, where sums save a gradient step two products and a copy
FEW_INPUTS = 64  # below which it matters in which order the gradient of the weights is computed


class Linear(nn.Linear):
    """A linear layer; a small one compiled for the CPU is a sum, which Inductor fuses with what is around it."""

    def forward(self, features: Tensor) -> Tensor:
        """Outputs [..., O] of features [..., F]."""
        is_compiling = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
        if features.device.type != "cpu" or not is_compiling:
            return super().forward(features)
        if self._is_small(features):
            return (features.unsqueeze(-2) * self.weight).sum(-1) + self.bias
        if torch.is_grad_enabled() and self.in_features < FEW_INPUTS:
            # As the weights lie in memory, so does autograd compute their gradient: as [O, B] @ [B, F], or as [F, B]
            # @ [B, O], for which MKL can need as little as a tenth of the time on AMD's processors.
            return functional.linear(features, transposed_in_memory(self.weight), self.bias)
        return super().forward(features)

    def _is_small(self, features: Tensor) -> bool:
        has_few_rows = features.numel() <= FEW_ROWS * self.in_features and self.weight.numel() <= FEW_WEIGHTS
        return has_few_rows or self.out_features <= FEW_OUTPUTS


def transposed_in_memory(weight: Tensor) -> Tensor:
    """A copy of a matrix [O, F], or of anything else, in the order in which `Linear`'s sum is a loop over outputs."""
    return weight.t().clone(memory_format=torch.contiguous_format).t() if weight.dim() == 2 else weight.clone()
