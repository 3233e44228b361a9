"""Makes a function that XLA cannot look into, such as a Pallas kernel, follow vmap and shardings.

A custom call has no rule for a batch that lies on several devices: XLA would gather it onto each.
The rule given here lets images stay where they are; a sum over the batch is finished by an
all-reduce. Inside of `jax.shard_map` it runs as it is (with `check_vma=False`, which
`pallas_call` asks for).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

_DIMENSIONS = {"image": "g n {0} {1} c", "kernel": "g {0} c", "vector": "g c"}


def over_batch(
    run: Callable[..., jax.Array], arguments: tuple[str, ...], result: str
) -> Callable[..., jax.Array]:
    """A function that computes what `run` does, on each device for the part it holds.

    Args:
      run: of arrays whose first dimension is one of groups, computed apart from each other.
      arguments: what each array is, the first an "image": "image" [G, N, H, W, C], "kernel"
        [G, k * k, C] or "vector" [G, C].
      result: what `run` returns. A "kernel" made of images is a sum over N.

    Returns:
      A function of the same arrays without their first dimension. vmap, also nested, becomes
      that dimension; G, N and C may be divided among devices.
    """
    sums = result == "kernel"
    whole = []  # names of the dimensions that no device may have a part of

    def named(kind: str) -> str:
        names = [f"r{len(whole) + i}" for i in range(_DIMENSIONS[kind].count("{"))]
        whole.extend(names)
        return _DIMENSIONS[kind].format(*names)

    rule = f"{', '.join(map(named, arguments))} -> {named(result)}"
    # It resolves the keyword arguments of what it is given; `run` has some already.
    partitioned = custom_partitioning(lambda *arrays: run(*arrays))

    def partition(mesh, arguments_info, result_info):
        del result_info
        groups, batch, _, _, channels = (*arguments_info[0].sharding.spec, *(None,) * 5)[:5]
        spec = {
            "image": PartitionSpec(groups, batch, None, None, channels),
            "kernel": PartitionSpec(groups, None, channels),
            "vector": PartitionSpec(groups, channels),
        }

        def on_device(*arrays):
            y = run(*arrays)
            return jax.lax.psum(y, batch) if sums and batch else y

        shardings = tuple(NamedSharding(mesh, spec[kind]) for kind in arguments)
        return mesh, on_device, NamedSharding(mesh, spec[result]), shardings

    partitioned.def_partition(
        partition,
        sharding_rule=rule,
        need_replication_factors=tuple(whole),
        reduction_factors=("n",) if sums else (),
    )

    @custom_vmap
    def grouped(*arrays):
        return partitioned(*arrays)

    @grouped.def_vmap
    def _(size, batched, *arrays):
        arrays = [
            a if b else jnp.broadcast_to(a, (size, *a.shape))
            for a, b in zip(arrays, batched, strict=True)
        ]
        y = grouped(*(a.reshape(-1, *a.shape[2:]) for a in arrays))
        return y.reshape(size, -1, *y.shape[1:]), True

    return lambda *arrays: grouped(*(a[None] for a in arrays))[0]
