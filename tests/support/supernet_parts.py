"""Networks of a supernet as networks of their own, to compare the two."""

import jax
import jax.numpy as jnp

from mbv3_jax.nn import functional
from mbv3_jax.search.space import Point, Space


def extract(space: Space, params: dict, point: Point) -> functional.Variables:
    """Cuts the variables of a point out of the shared weights; its running statistics are fresh."""
    spec = space.to_spec(point)
    places = {f"block{i + 1}": f"block{s + 1}" for i, s in enumerate(space.slots(point))}

    def take(path, leaf):
        stage, *rest = (p.key for p in path)
        whole = params[places.get(stage, stage)]
        for name in rest:
            whole = whole[name]
        if leaf.ndim < 4:
            return whole[: leaf.shape[0]]
        margins = [(n - k) // 2 for n, k in zip(whole.shape[:2], leaf.shape[:2], strict=True)]
        middle = [slice(m, m + k) for m, k in zip(margins, leaf.shape[:2], strict=True)]
        return whole[(*middle, slice(leaf.shape[2]), slice(leaf.shape[3]))]

    shapes = functional.shapes(spec)
    return {
        "params": jax.tree_util.tree_map_with_path(take, shapes["params"]),
        "batch_stats": jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full(x.shape, float(path[-1].key == "var")), shapes["batch_stats"]
        ),
    }
