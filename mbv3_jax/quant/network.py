"""A network with all that its int8 form needs: folded weights, and a range for every tensor."""

import dataclasses
import functools

import jax
import numpy as np

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.nn import quantized
from mbv3_jax.nn.folded import fold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Network:
    """What an int8 file is written from.

    spec: the network, `spec.quant` None.
    folded: see `nn.folded.fold`; NumPy float32.
    low, high: [tensors], the range of each tensor of `nn.quantized.tensors(spec)`.
    how: how the ranges were found, for people.
    """

    spec: NetSpec
    folded: dict
    low: np.ndarray
    high: np.ndarray
    how: str

    def ranges(self) -> dict[str, tuple[float, float]]:
        """(low, high) of every tensor by its name; fixed ones as the runtime has them."""
        pairs = zip(self.low.tolist(), self.high.tolist(), strict=True)
        return dict(zip(quantized.tensors(self.spec), pairs, strict=True))

    @functools.cached_property
    def simulate(self):
        """Normalised images [N, H, W, C] -> the logits of simulated int8; jitted."""
        # As arguments: XLA would spend seconds to fold constants.
        run = jax.jit(lambda weights, x: quantized.simulate(self.spec, *weights, x))
        return functools.partial(run, (self.folded, self.low, self.high))


def trained(spec: NetSpec, variables: dict) -> Int8Network:
    """The int8 form of a network that was trained for it.

    Raises:
      ValueError: it was not, or ended before the delay was over.
    """
    if spec.quant is None:
        raise ValueError("the network was not trained for int8 (config.quant)")
    state = variables["batch_stats"]["quant"]
    if not float(state["on"]) > 0:
        raise ValueError(
            f"the network was trained in float only: its quant.delay of {spec.quant.delay_steps} "
            "steps was not over"
        )
    plain = spec.replace(quant=None)
    folded = jax.tree.map(np.asarray, jax.jit(lambda v: fold(plain, v))(variables))
    low, high = (np.asarray(state[k]) for k in ("low", "high"))
    return Int8Network(spec=plain, folded=folded, low=low, high=high, how="training")
