"""Batch norms whose statistics are of the whole batch, where several processes have a share of it each."""

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sepconv.ranks import Ranks


def synchronize_norms(ranks: Ranks, device: torch.device) -> LayerSync:
    """What has Lightning put synchronised norms in the place of a network's while it trains on `device`."""
    return TorchSyncBatchNorm() if device.type == "cuda" else CpuBatchNorms(ranks)


class CpuBatchNorms(LayerSync):
    """Puts a CpuBatchNorm in the place of each batch norm, and the norm back."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.replaced: list[tuple[nn.Module, str, nn.Module]] = []  # norms, by where they were

    def apply(self, model: nn.Module) -> nn.Module:
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, _BatchNorm):
                    self.replaced.append((parent, name, layer))
                    setattr(parent, name, CpuBatchNorm(layer, self.ranks))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for parent, name, layer in self.replaced:
            setattr(parent, name, layer)
        self.replaced.clear()
        return model


class CpuBatchNorm(_BatchNorm):
    """A batch norm on a CPU, whose sums go over all processes.

    It is there because torch's nn.SyncBatchNorm has no kernels for a CPU, and refuses to train on one. It is no
    nn.BatchNorm2d, so that the fused kernels, whose statistics are of one process's images, leave it alone.

    Args:
        norm: whose place it takes, with the same parameters and buffers.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.ranks = ranks
        self._parameters, self._buffers, self.training = norm._parameters, norm._buffers, norm.training

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes any."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        maps = input.float()
        axes = [axis for axis in range(maps.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(maps.ndim)]
        count = self.ranks.sum(maps.new_tensor(maps.numel() // maps.shape[1]))
        mean = self.ranks.sum(maps.sum(axes)) / count
        centred = maps - mean.view(shape)
        variance = self.ranks.sum(centred.square().sum(axes)) / count
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        maps = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            maps = maps * self.weight.view(shape) + self.bias.view(shape)
        return maps.to(input.dtype)
