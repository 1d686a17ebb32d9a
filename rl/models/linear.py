"""Linear layers that are fast also where rows are few."""

import torch
from torch import Tensor, nn

FEW_ROWS = 16  # on the CPU, below which the call of a matrix product takes longer than the product
FEW_WEIGHTS = 2**16  # likewise; with sums in a larger layer a policy of images took 7 times as long (docs/log.md)


class Linear(nn.Linear):
    """A linear layer; compiled for few rows on the CPU it is a sum, which Inductor fuses with what is around it."""

    def forward(self, features: Tensor) -> Tensor:
        """Outputs [..., O] of features [..., F]."""
        if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting() and self._has_few(features):
            return (features.unsqueeze(-2) * self.weight).sum(-1) + self.bias
        return super().forward(features)

    def _has_few(self, features: Tensor) -> bool:
        is_small = self.weight.numel() <= FEW_WEIGHTS and features.numel() <= FEW_ROWS * self.in_features
        return features.device.type == "cpu" and is_small


def transposed_in_memory(weight: Tensor) -> Tensor:
    """A copy of a matrix [O, F], or of anything else, in the order in which `Linear`'s sum is a loop over outputs."""
    return weight.t().clone(memory_format=torch.contiguous_format).t() if weight.dim() == 2 else weight.clone()
