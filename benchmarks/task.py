"""What all contenders do, as plain data that fits on a command line."""

import dataclasses
import json


class Absent(Exception):
    """What a contender raises that cannot do a task here; the table says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to time.

    kind: "train" (forward, backward, TensorFlow-style RMSProp update) or "infer"; for one
      depthwise layer "forward" or "gradients" (by input and by kernel, forward included).
    network: a name of `mbv3_jax.arch.build`.
    width: of the network's channels; other than 1 only for `ours`.
    batch, resolution: of the images, [batch, resolution, resolution, 3] float32 contents.
    threads: CPU threads that the contender may use.
    dtype: "float32" or "bfloat16" (autocast where the contender is PyTorch).
    layer: name of a depthwise layer, as in `arch.cost.layers`; "" for the whole network.
    images: folder of JPEG files, for the kind "decode", which decodes, crops and resizes a batch.
    """

    kind: str
    network: str
    batch: int
    resolution: int
    threads: int
    dtype: str = "float32"
    layer: str = ""
    width: float = 1.0
    images: str = ""

    def to_json(self) -> str:
        """Text for `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Task":
        """Reads what `to_json` wrote."""
        return Task(**json.loads(text))
