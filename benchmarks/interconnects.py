"""Published figures of chips' interconnects, and the time of a collective that follows from them.

Sources, read on 2026-11-24:
  TPU v5e: docs.cloud.google.com/tpu/docs/v5e: 400 GB/s a chip, both directions together; all-reduce
    51.2 TB/s a pod of 256, which is 200 GB/s a chip, the same; slices 2x4, 4x8, 16x16; 2D torus.
  TPU v4: docs.cloud.google.com/tpu/docs/v4: all-reduce 1.1 PB/s a pod of 4096, which is 269 GB/s a
    chip; torus where every side is a multiple of 4, else mesh.
  TPU latency: jax-ml.github.io/scaling-book, "How to Think About TPUs": about 1 us a hop.
  H100: developer.nvidia.com/blog/introducing-nvidia-hgx-h100-an-accelerated-server-platform-for-ai-
    and-high-performance-computing: NVLink 900 GB/s a GPU, both directions together, among 8.
    Between servers 400 Gb/s a GPU, the DGX H100's ConnectX-7 InfiniBand.
  H100 latency: github.com/NVIDIA/nccl, src/graph/tuning.cc, tree with the LL protocol: 6.8 us, and
    there and back 0.6 us a GPU of the server and 5 us a doubling of servers.
"""

import dataclasses
import math

CHIPS = (8, 32, 256)
# How often the bytes go round: reduced and handed out again, or one of the two.
_PASSES = {"all-reduce": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torus:
    """A slice of a TPU pod, every chip connected to its neighbours.

    Assumed: a ring uses all links of a chip at once where the slice closes to a torus. Where it is
    a mesh, a corner has half of them, and the ring goes at its pace. A message crosses the slice
    along each axis in turn, to the farthest chip.
    """

    name: str
    gb_per_s: float  # that a chip sends, all links together
    slices: dict[int, tuple[int, ...]]  # chips: sides
    closed: tuple[int, ...]  # slices that are a torus
    hop_us: float = 1.0

    def bandwidth_ms(self, kind: str, size: int, chips: int) -> float:
        """Of a ring over all chips, by what a chip can send."""
        rate = self.gb_per_s * (1 if chips in self.closed else 0.5) * 1e6  # bytes a ms
        return _PASSES.get(kind, 1) * (chips - 1) / chips * size / rate

    def latency_ms(self, kind: str, chips: int) -> float:
        """Of one collective, however small."""
        closed = chips in self.closed
        hops = sum(side // 2 if closed else side - 1 for side in self.slices[chips])
        return _PASSES.get(kind, 1) * hops * self.hop_us / 1e3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Servers:
    """Servers of `inside` GPUs on one switch, with a network card for each GPU.

    Assumed: what is reduced is first reduced within a server, every GPU then a part of it with its
    like in the other servers, and handed out again within the server.
    """

    name: str
    inside: int
    inside_gb_per_s: float  # that a GPU sends to the others of its server
    between_gb_per_s: float  # that a GPU sends to other servers
    base_us: float
    inside_us: float
    between_us: float

    def bandwidth_ms(self, kind: str, size: int, chips: int) -> float:
        """Of a ring in each server and one between servers for each GPU."""
        n, servers = self.inside, chips // self.inside
        within = (n - 1) / n * size / self.inside_gb_per_s
        between = (servers - 1) / servers * size / n / self.between_gb_per_s
        return _PASSES.get(kind, 1) * (within + between) / 1e6

    def latency_ms(self, kind: str, chips: int) -> float:
        """Of one collective, however small."""
        doublings = math.log2(chips // self.inside)
        way = (self.inside - 1) * self.inside_us + doublings * self.between_us
        return (self.base_us + _PASSES.get(kind, 1) * way) / 1e3


INTERCONNECTS = (
    Torus(
        name="TPU v5e",
        gb_per_s=51.2e3 / 256,
        slices={8: (2, 4), 32: (4, 8), 256: (16, 16)},
        closed=(256,),
    ),
    Torus(
        name="TPU v4",
        gb_per_s=1.1e6 / 4096,
        slices={8: (2, 2, 2), 32: (2, 4, 4), 256: (4, 8, 8)},
        closed=(256,),
    ),
    Servers(
        name="H100",
        inside=8,
        inside_gb_per_s=900 / 2,
        between_gb_per_s=400 / 8,
        base_us=6.8,
        inside_us=0.6,
        between_us=5.0,
    ),
)
