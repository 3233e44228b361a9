"""torchvision and timm classifiers as peers."""

import numpy as np
import torch_stub

torchvision = torch_stub.import_torchvision()
import timm  # noqa: E402  (imports torchvision, so after the stub)
import torch  # noqa: E402
from peer_values import redraw  # noqa: E402
from torch import nn  # noqa: E402

from mbv3_jax.interop.mapping import BOOKKEEPING  # noqa: E402

_BN_NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


class TorchPeer:
    """A classifier by name: "timm/NAME", or "torchvision/NAME" with a width multiplier."""

    def __init__(self, name: str, width: float = 1.0, **options):
        self.library, _, model = name.partition("/")
        if self.library == "timm":
            self.model = timm.create_model(model, **options)
        else:
            scaled = {} if model.startswith("mnasnet") else {"width_mult": width}
            self.model = getattr(torchvision.models, model)(**scaled, **options)
        for m in self.model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
            elif isinstance(m, nn.BatchNorm2d):
                _Biased(m)

    def trainable(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def prepare(self, rng: np.random.Generator, *, bn_eps: float, bn_decay: float) -> None:
        """Redraws every tensor and sets BatchNorm's constants."""

        def fill(tensor, name, fan_in=None):
            tensor.copy_(torch.from_numpy(redraw(name, tuple(tensor.shape), rng, fan_in)))

        with torch.no_grad():
            for m in self.model.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.eps, m.momentum = bn_eps, 1 - bn_decay
                    for theirs, ours in _BN_NAMES.items():
                        fill(getattr(m, theirs), ours)
                elif isinstance(m, nn.Conv2d | nn.Linear):
                    fill(m.weight, "kernel", m.weight[0].numel())
                    if m.bias is not None:
                        fill(m.bias, "bias")

    def tensors(self) -> dict[str, np.ndarray]:
        """Copies of every tensor but the step counters, by name."""
        return {
            name: value.numpy().copy()
            for name, value in self.model.state_dict().items()
            if not name.endswith(BOOKKEEPING)
        }

    def forward(self, images: np.ndarray, *, train: bool) -> np.ndarray:
        """Logits [N, classes] of images [N, H, W, C]; train updates the running statistics."""
        self.model.train(train)
        with torch.no_grad():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
            return self.model(x).numpy()


class _Biased:
    """Makes a BatchNorm keep the biased variance in its running statistics.

    PyTorch normalises by the biased variance of the batch but averages the unbiased one, n/(n-1)
    times it, into `running_var`. This package, as Flax and Keras 3, averages the biased one.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        self.kept = None
        norm.register_forward_pre_hook(self.before)
        norm.register_forward_hook(self.after)

    def before(self, norm, inputs) -> None:
        self.kept = norm.running_var * (1 - norm.momentum)

    def after(self, norm, inputs, output) -> None:
        if norm.training:
            n = inputs[0].numel() // inputs[0].shape[1]
            added = norm.running_var - self.kept
            # another tensor: the backward pass wants this one as it is
            norm.running_var = (self.kept + added * ((n - 1) / n)).detach()
