"""A space of networks: decisions with their choices, and a network for every point.

A space is a list of stages, factorised hierarchically as in MnasNet (arXiv 1807.11626, section
4.1): a stage chooses its depth and width once, and kernel, expansion, squeeze-and-excite and
nonlinearity either once for all its blocks or block by block. A point is the index of the choice
for each decision, in the order of `Space.decisions`. A decision that makes no difference, like one
about a block that the depth leaves out, is inactive; its index is 0 in canonical points.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from mbv3_jax.arch import cost
from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.arch.spec import BlockSpec, NetSpec, SESpec, make_divisible
from mbv3_jax.core.checks import choose

Point = tuple[int, ...]
# Decisions that a stage can leave to each of its blocks.
OF_BLOCKS = ("kernel", "expansion", "se", "act")
# Identifies a decision: stage, block (None for all blocks of the stage), and what is decided.
_Key = tuple[int, int | None, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A row of blocks of equal width, of which the first has the stride.

    Attributes:
      out: The choices of the blocks' output channels.
      stride: The stride of the first block.
      depth: The choices of the number of blocks. 0 leaves the stage out, which needs a stride of 1.
      kernel: The choices of the depthwise kernel.
      expansion: The choices of the expansion as a factor of the block's input, rounded by
        `make_divisible`. 1 is a separable block without a 1x1 before its depthwise convolution.
      se: Whether the blocks have squeeze-and-excite.
      act: The choices of the nonlinearity.
      per_block: Which of `OF_BLOCKS` each block chooses for itself.
    """

    out: tuple[int, ...]
    stride: int = 1
    depth: tuple[int, ...] = (1,)
    kernel: tuple[int, ...] = (3,)
    expansion: tuple[float, ...] = (6,)
    se: tuple[bool, ...] = (False,)
    act: tuple[str, ...] = ("relu",)
    per_block: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("out", "depth", *OF_BLOCKS):
            choices = getattr(self, name)
            if not isinstance(choices, tuple) or not choices or len(set(choices)) < len(choices):
                raise ValueError(f"{name}: got {choices!r}, expected a tuple of different choices")
        for name in self.per_block:
            choose("per_block", name, OF_BLOCKS)
        for act in self.act:
            choose("act", act, ACTIVATIONS)
        if min(self.depth) < 0 or max(self.depth) < 1 or (0 in self.depth and self.stride != 1):
            raise ValueError(f"depth: got {self.depth}, expected 1 or more, 0 only with stride 1")
        if min(self.expansion) <= 0:
            raise ValueError(f"expansion: got {self.expansion}, expected positive factors")


@dataclasses.dataclass(frozen=True)
class Decision:
    """A decision for a stage, counted from 0, or for one of its blocks, counted from 0."""

    stage: int
    block: int | None
    what: str
    choices: tuple

    @property
    def name(self) -> str:
        """The name to print: stage2/width, stage2/block1/kernel, ...; counted from 1."""
        where = f"stage{self.stage + 1}"
        if self.block is not None:
            where += f"/block{self.block + 1}"
        return f"{where}/{'width' if self.what == 'out' else self.what}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """A space of networks.

    Attributes:
      name: The name of the preset.
      base: What all networks have in common: stem, last layer, head, resolution, classes,
        constants. Its blocks are ignored.
      stages: The stages between stem and last layer.
      squeeze_excite: The squeeze-and-excite of the blocks that have one.
      last_factor: The channels of the last 1x1 over those of the last block; None for the base's.
      decisions: All decisions, in the order of a point's indices.
    """

    name: str
    base: NetSpec
    stages: tuple[Stage, ...]
    squeeze_excite: SESpec = SESpec()  # noqa: RUF009 (frozen)
    last_factor: int | None = None
    decisions: tuple[Decision, ...] = dataclasses.field(init=False)
    _index: dict[_Key, int] = dataclasses.field(init=False, repr=False, compare=False)
    # What the parts of networks cost, as `counts` has found it.
    _counted: dict[tuple, tuple[int, int]] = dataclasses.field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        if all(0 in stage.depth for stage in self.stages):
            raise ValueError("stages: at least one must have blocks in every network")
        decisions: list[Decision] = []
        for number, stage in enumerate(self.stages):
            for what in ("depth", "out", *OF_BLOCKS):
                choices = getattr(stage, what)
                is_per_block = what in stage.per_block
                blocks = [*range(max(stage.depth))] if is_per_block else [None]
                if len(choices) > 1:
                    decisions += [Decision(number, block, what, choices) for block in blocks]
        object.__setattr__(self, "decisions", tuple(decisions))
        index = {(d.stage, d.block, d.what): i for i, d in enumerate(decisions)}
        object.__setattr__(self, "_index", index)

    def replace(self, **constants) -> "Space":
        """Returns the space with other constants: resolution, num_classes, dropout, ..."""
        return dataclasses.replace(self, base=self.base.replace(**constants))

    def to_spec(self, point: Sequence[int], *, name: str | None = None) -> NetSpec:
        """Returns the network of a point, named after the space unless a name is given.

        Raises:
          ValueError: The point is not in the space.
        """
        self.check(point)
        blocks, width = [], self.base.stem.out
        for number, stage in enumerate(self.stages):
            for i in range(self._value(point, number, None, "depth")):
                values = {what: self._value(point, number, i, what) for what in OF_BLOCKS}
                out = self._value(point, number, None, "out")
                blocks.append(self.block(stage, width, out, i == 0, values))
                width = out
        last = self.base.last
        if self.last_factor is not None:
            last = dataclasses.replace(last, out=make_divisible(self.last_factor * width))
        return self.base.replace(name=name or self.name, blocks=tuple(blocks), last=last)

    def slots(self, point: Sequence[int]) -> tuple[int, ...]:
        """Returns the place of each block of a network among all blocks of the space, from 0."""
        slots: list[int] = []
        first = 0
        for number, stage in enumerate(self.stages):
            slots += range(first, first + self._value(point, number, None, "depth"))
            first += max(stage.depth)
        return tuple(slots)

    def block(self, stage: Stage, width: int, out: int, is_first: bool, values: dict) -> BlockSpec:
        """Returns a block of a stage on an input of `width` channels."""
        factor = values["expansion"]
        return BlockSpec(
            kernel=values["kernel"],
            expansion=width if factor == 1 else make_divisible(width * factor),
            out=out,
            act=values["act"],
            stride=stage.stride if is_first else 1,
            se=self.squeeze_excite if values["se"] else None,
        )

    def _value(self, point: Sequence[int], stage: int, block: int | None, what: str):
        choices = getattr(self.stages[stage], what)
        block = block if what in self.stages[stage].per_block else None
        return choices[0] if len(choices) == 1 else choices[point[self._index[stage, block, what]]]

    def check(self, point: Sequence[int]) -> None:
        """Raises ValueError if a point has too many or too few indices, or one out of range."""
        if len(point) != len(self.decisions):
            raise ValueError(f"point: got {len(point)} indices, expected {len(self.decisions)}")
        for index, decision in zip(point, self.decisions, strict=True):
            if not 0 <= index < len(decision.choices):
                raise ValueError(
                    f"point: {decision.name}: got {index}, expected 0 to "
                    f"{len(decision.choices) - 1}, for {decision.choices}"
                )

    def active(self, point: Sequence[int]) -> tuple[bool, ...]:
        """Returns which decisions make a difference in a point."""
        depths = self.depths(point)
        return tuple(depths[stage] > least for stage, least in self._needed)

    def depths(self, point: Sequence[int]) -> list[int]:
        """Returns the number of blocks of each stage."""
        return [
            stage.depth[0 if index is None else point[index]]
            for stage, index in zip(self.stages, self._depth_indices, strict=True)
        ]

    @functools.cached_property
    def _depth_indices(self) -> list[int | None]:
        return [self._index.get((i, None, "depth")) for i in range(len(self.stages))]

    @functools.cached_property
    def _needed(self) -> list[tuple[int, int]]:
        """For each decision its stage, and the depth above which it makes a difference."""
        return [(d.stage, -1 if d.what == "depth" else d.block or 0) for d in self.decisions]

    @functools.cached_property
    def _spans(self) -> list[tuple[int, int]]:
        """Where the decisions of each stage begin and end in a point."""
        stages = [d.stage for d in self.decisions]
        return [
            (bisect.bisect_left(stages, i), bisect.bisect_right(stages, i))
            for i in range(len(self.stages))
        ]

    def counts(self, points: Sequence[Point]) -> np.ndarray:
        """Returns multiply-adds and parameters [N, 2] of N points, quickly where there are many.

        What a stage costs depends on its own decisions and on the width of its input, so that it is
        counted (`arch.cost`) once for all networks that share it.
        """
        rows = []
        for point in points:
            keys = self._parts(point)
            try:
                parts = [self._counted[key] for key in keys]
            except KeyError:
                self._count(point, keys)
                parts = [self._counted[key] for key in keys]
            rows.append([sum(madds for madds, _ in parts), sum(params for _, params in parts)])
        return np.array(rows, float).reshape(len(points), 2)

    def _parts(self, point: Point) -> list[tuple]:
        """Returns a key for each stage and for what is around them: what its cost depends on."""
        keys: list[tuple] = []
        width = self.base.stem.out
        for number, depth in enumerate(self.depths(point)):
            start, stop = self._spans[number]
            keys.append((number, width, tuple(point[start:stop])))
            if depth:
                width = self._value(point, number, None, "out")
        return [*keys, (None, width)]

    def _count(self, point: Point, keys: Sequence[tuple]) -> None:
        spec = self.to_spec(point)
        counted = dict.fromkeys(keys, (0, 0))
        numbers = [number for number, depth in enumerate(self.depths(point)) for _ in range(depth)]
        for layer in cost.layers(spec):
            block = layer.part.removeprefix("block")
            key = keys[numbers[int(block) - 1] if block != layer.part else -1]
            madds, params = counted[key]
            counted[key] = madds + layer.madds, params + layer.params
        self._counted.update(counted)

    def canonical(self, point: Sequence[int]) -> Point:
        """Returns the point with 0 for all inactive decisions."""
        return tuple(int(i) if on else 0 for i, on in zip(point, self.active(point), strict=True))

    def sample(self, rng: np.random.Generator, count: int) -> list[Point]:
        """Draws canonical points, uniformly for each decision (but not uniformly over networks)."""
        sizes = [len(d.choices) for d in self.decisions]
        return [self.canonical(p) for p in rng.integers(0, sizes, (count, len(sizes)))]

    def mutate(self, point: Point, rng: np.random.Generator) -> Point:
        """Changes one active decision, and draws those that become active by this."""
        before = self.active(point)
        choices = [i for i, is_on in enumerate(before) if is_on]
        at = choices[rng.integers(len(choices))]
        changed = list(point)
        other = int(rng.integers(len(self.decisions[at].choices) - 1))
        changed[at] = other + (other >= point[at])
        if self.decisions[at].what != "depth":  # what is active remains so
            return tuple(changed)
        for i, (was, is_on) in enumerate(zip(before, self.active(changed), strict=True)):
            if is_on and not was:
                changed[i] = int(rng.integers(len(self.decisions[i].choices)))
        return self.canonical(changed)

    def one_hot(self, points: Sequence[Point]) -> np.ndarray:
        """Returns float32 [N, choices of all decisions]; inactive decisions are all zeros."""
        starts = np.cumsum([0, *(len(d.choices) for d in self.decisions)])
        out = np.zeros((len(points), starts[-1]), np.float32)
        for row, point in zip(out, points, strict=True):
            row[starts[:-1] + np.asarray(point, int)] = self.active(point)
        return out

    def points(self) -> Iterator[Point]:
        """Yields a canonical point for every distinct network, each once; for small spaces."""
        seen = set()
        for point in itertools.product(*(range(len(d.choices)) for d in self.decisions)):
            if point == self.canonical(point):
                blocks = self.to_spec(point).blocks
                if blocks not in seen:
                    seen.add(blocks)
                    yield point

    def encode(self, spec: NetSpec) -> Point:
        """Returns the first canonical point whose network is `spec`, whatever its name.

        Raises:
          ValueError: The network is not in the space; the message says what does not fit.
        """
        for field in dataclasses.fields(NetSpec):
            expected, value = getattr(self.base, field.name), getattr(spec, field.name)
            if field.name == "last" and self.last_factor is not None:
                wide = make_divisible(self.last_factor * spec.blocks[-1].out)
                expected = dataclasses.replace(expected, out=wide)
            if field.name not in ("name", "blocks") and expected != value:
                raise ValueError(
                    f"{spec.name} is not in the space {self.name}: {field.name}: got {value!r}, "
                    f"expected {expected!r}"
                )
        furthest = [0]
        indices = self._fit(spec, 0, 0, furthest)
        if indices is None:
            block = furthest[0] + 1
            raise ValueError(f"{spec.name} is not in the space {self.name}: at block {block}")
        return tuple(indices.get((d.stage, d.block, d.what), 0) for d in self.decisions)

    def _fit(
        self, spec: NetSpec, number: int, start: int, furthest: list[int]
    ) -> dict[_Key, int] | None:
        """Returns the indices of the decisions from stage `number` on, for the blocks from `start`.

        The result is None if they do not fit. `furthest` notes how many blocks any try has fitted.
        """
        furthest[0] = max(furthest[0], min(start, len(spec.blocks) - 1))
        if number == len(self.stages):
            return {} if start == len(spec.blocks) else None
        stage = self.stages[number]
        for depth in stage.depth:
            blocks = spec.blocks[start : start + depth]
            if len(blocks) < depth:
                continue
            inputs = spec.block_inputs()[start : start + depth]
            indices = self._fit_stage(number, blocks, inputs)
            if indices is None:
                continue
            rest = self._fit(spec, number + 1, start + depth, furthest)
            if rest is not None:
                return indices | rest
        return None

    def _fit_stage(
        self, number: int, blocks: Sequence[BlockSpec], inputs: Sequence[int]
    ) -> dict[_Key, int] | None:
        stage = self.stages[number]
        indices: dict[_Key, int] = {(number, None, "depth"): stage.depth.index(len(blocks))}
        if not blocks:
            return indices
        if blocks[0].out not in stage.out:
            return None
        indices[number, None, "out"] = stage.out.index(blocks[0].out)
        for i, block in enumerate(blocks):
            same = self.block(stage, inputs[i], blocks[0].out, i == 0, _values(block))
            if block != dataclasses.replace(same, expansion=block.expansion):
                return None  # another stride, width or squeeze-and-excite
        for what in OF_BLOCKS:
            shared = what not in stage.per_block
            groups = [range(len(blocks))] if shared else [[i] for i in range(len(blocks))]
            for group in groups:
                index = next(
                    (
                        k
                        for k, choice in enumerate(getattr(stage, what))
                        if all(self._has(blocks[i], inputs[i], what, choice) for i in group)
                    ),
                    None,
                )
                if index is None:
                    return None
                indices[number, None if shared else group[0], what] = index
        return indices

    def _has(self, block: BlockSpec, width: int, what: str, choice) -> bool:
        if what == "expansion":
            return block.expansion == (width if choice == 1 else make_divisible(width * choice))
        if what == "se":
            return (block.se is not None) == choice
        return getattr(block, what) == choice


def _values(block: BlockSpec) -> dict:
    se = block.se is not None
    return {"kernel": block.kernel, "expansion": 1, "se": se, "act": block.act}


def combinations(space: Space) -> int:
    """Returns the product of all choices, whether they make a difference or not, as papers do."""
    return math.prod(len(d.choices) for d in space.decisions)


def network_count(space: Space) -> int:
    """Returns the exact number of different networks.

    Decisions about blocks that are left out do not count, and neither does a second way to the same
    network (by the rounding of channels, or because a block may end one stage or begin the next).
    The space is an automaton that writes sequences of blocks. The count follows its sets of states,
    so that a sequence counts once however many ways lead to it.
    """

    def options(number: int, names) -> list[dict]:
        stage = space.stages[number]
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(getattr(stage, name) for name in names))
        ]

    # A state: the stage, how many of its blocks are written, the width, the stage's choices.
    @functools.cache
    def after(state) -> dict:
        """Returns the states that each possible next block leads to."""
        number, done, width, chosen = state
        stage = space.stages[number]
        shared = ["out", *(name for name in OF_BLOCKS if name not in stage.per_block)]
        moves: dict = {}
        if max(stage.depth) > done:
            for stage_values in [dict(chosen)] if done else options(number, shared):
                for block_values in options(number, stage.per_block):
                    values = stage_values | block_values
                    block = space.block(stage, width, values["out"], done == 0, values)
                    state = (number, done + 1, values["out"], tuple(stage_values.items()))
                    moves.setdefault(block, set()).add(state)
        if done in stage.depth and number + 1 < len(space.stages):
            for block, states in after((number + 1, 0, width, ())).items():
                moves.setdefault(block, set()).update(states)
        return moves

    def ends(state) -> bool:
        number, done, *_ = state
        later = space.stages[number + 1 :]
        return done in space.stages[number].depth and all(0 in stage.depth for stage in later)

    @functools.cache
    def count(states: frozenset) -> int:
        moves: dict = {}
        for state in states:
            for block, following in after(state).items():
                moves.setdefault(block, set()).update(following)
        return any(map(ends, states)) + sum(count(frozenset(s)) for s in moves.values())

    start = frozenset({(0, 0, space.base.stem.out, ())})
    return count(start)
