"""A space of networks: decisions with their choices, and a network for every point.

A space is a list of stages, factorised hierarchically as in MnasNet (arXiv 1807.11626, section
4.1): a stage chooses its depth and width once, and kernel, expansion, squeeze-and-excite and
nonlinearity either once for all its blocks or block by block. A point is the index of the choice
for each decision, in the order of `Space.decisions`. A decision that makes no difference, as that
of a block which the depth leaves out, is inactive; its index is 0 in canonical points.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from mbv3_jax.arch.activations import ACTIVATIONS
from mbv3_jax.arch.spec import BlockSpec, NetSpec, SESpec, make_divisible
from mbv3_jax.core.checks import choose

Point = tuple[int, ...]
OF_BLOCKS = ("kernel", "expansion", "se", "act")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Some blocks in a row of equal width; the first has the stride. All fields are choices.

    `expansion` are factors of the block's input, rounded by `make_divisible`; 1 is a plain
    separable block, without a 1x1 before its depthwise convolution. `depth` counts blocks; 0
    leaves the stage out, which takes a stride of 1. `per_block` names what each block chooses for
    itself, out of kernel, expansion, se, act.
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
    """What is chosen where: of stage `stage` (from 0), or of its block `block` (from 0)."""

    stage: int
    block: int | None
    what: str
    choices: tuple

    @property
    def name(self) -> str:
        """stage2/width, stage2/block1/kernel, ...; counted from 1."""
        where = f"stage{self.stage + 1}"
        if self.block is not None:
            where += f"/block{self.block + 1}"
        return f"{where}/{'width' if self.what == 'out' else self.what}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """A space of networks.

    name: of the preset.
    base: everything that is the same for all: stem, last, head, resolution, classes, constants;
      its blocks do not count.
    stages: see `Stage`.
    squeeze_excite: of the blocks that have one.
    last_factor: the last 1x1 has so many times the channels of the last block; None: base's.
    """

    name: str
    base: NetSpec
    stages: tuple[Stage, ...]
    squeeze_excite: SESpec = SESpec()  # noqa: RUF009 (frozen)
    last_factor: int | None = None

    def __post_init__(self):
        if all(0 in stage.depth for stage in self.stages):
            raise ValueError("stages: one at least must have blocks in every network")
        decisions = []
        for number, stage in enumerate(self.stages):
            for what in ("depth", "out", *OF_BLOCKS):
                choices = getattr(stage, what)
                blocks = range(max(stage.depth)) if what in stage.per_block else [None]
                if len(choices) > 1:
                    decisions += [Decision(number, block, what, choices) for block in blocks]
        object.__setattr__(self, "decisions", tuple(decisions))
        index = {(d.stage, d.block, d.what): i for i, d in enumerate(decisions)}
        object.__setattr__(self, "_index", index)

    decisions: tuple[Decision, ...] = dataclasses.field(init=False)

    def replace(self, **constants) -> "Space":
        """The same space with other constants: resolution, num_classes, dropout, ..."""
        return dataclasses.replace(self, base=self.base.replace(**constants))

    # From points to networks.

    def to_spec(self, point: Sequence[int], *, name: str | None = None) -> NetSpec:
        """The network of a point, with a name or called after the space.

        Raises:
          ValueError: it is no point of the space.
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
        """Which place each block of the network takes among all that the space has (from 0)."""
        slots, first = [], 0
        for number, stage in enumerate(self.stages):
            slots += range(first, first + self._value(point, number, None, "depth"))
            first += max(stage.depth)
        return tuple(slots)

    def block(self, stage: Stage, width: int, out: int, is_first: bool, values: dict) -> BlockSpec:
        """A block of a stage on an input of `width` channels."""
        factor = values["expansion"]
        return BlockSpec(
            kernel=values["kernel"],
            expansion=width if factor == 1 else make_divisible(width * factor),
            out=out,
            act=values["act"],
            stride=stage.stride if is_first else 1,
            se=self.squeeze_excite if values["se"] else None,
        )

    def _value(self, point, stage: int, block: int | None, what: str):
        choices = getattr(self.stages[stage], what)
        block = block if what in self.stages[stage].per_block else None
        return choices[0] if len(choices) == 1 else choices[point[self._index[stage, block, what]]]

    def check(self, point: Sequence[int]) -> None:
        """Raises ValueError where a point has too many or too few indices, or one out of range."""
        if len(point) != len(self.decisions):
            raise ValueError(f"point: got {len(point)} indices, expected {len(self.decisions)}")
        for index, decision in zip(point, self.decisions, strict=True):
            if not 0 <= index < len(decision.choices):
                raise ValueError(
                    f"point: {decision.name}: got {index}, expected 0 to "
                    f"{len(decision.choices) - 1}, for {decision.choices}"
                )

    # Points.

    def active(self, point: Sequence[int]) -> tuple[bool, ...]:
        """Which decisions make a difference."""
        depths = [self._value(point, i, None, "depth") for i in range(len(self.stages))]
        return tuple(
            d.what == "depth" or depths[d.stage] > (0 if d.block is None else d.block)
            for d in self.decisions
        )

    def canonical(self, point: Sequence[int]) -> Point:
        """The point with 0 for all inactive decisions."""
        return tuple(int(i) if on else 0 for i, on in zip(point, self.active(point), strict=True))

    def sample(self, rng: np.random.Generator, count: int) -> list[Point]:
        """Canonical points, every decision drawn evenly (which is not evenly over networks)."""
        sizes = [len(d.choices) for d in self.decisions]
        return [self.canonical(p) for p in rng.integers(0, sizes, (count, len(sizes)))]

    def mutate(self, point: Point, rng: np.random.Generator) -> Point:
        """The point with one active decision changed; what becomes active by it is drawn."""
        before = self.active(point)
        at = rng.choice(np.flatnonzero(before))
        changed = list(point)
        other = rng.integers(len(self.decisions[at].choices) - 1)
        changed[at] = int(other + (other >= point[at]))
        for i, (was, is_on) in enumerate(zip(before, self.active(changed), strict=True)):
            if is_on and not was:
                changed[i] = int(rng.integers(len(self.decisions[i].choices)))
        return self.canonical(changed)

    def one_hot(self, points: Sequence[Point]) -> np.ndarray:
        """float32 [N, choices of all decisions]; inactive decisions are zeros throughout."""
        starts = np.cumsum([0, *(len(d.choices) for d in self.decisions)])
        out = np.zeros((len(points), starts[-1]), np.float32)
        for row, point in zip(out, points, strict=True):
            row[starts[:-1] + np.asarray(point, int)] = self.active(point)
        return out

    def points(self) -> Iterator[Point]:
        """A canonical point for every distinct network, each once; for small spaces."""
        seen = set()
        for point in itertools.product(*(range(len(d.choices)) for d in self.decisions)):
            if point == self.canonical(point):
                blocks = self.to_spec(point).blocks
                if blocks not in seen:
                    seen.add(blocks)
                    yield point

    # From networks to points.

    def encode(self, spec: NetSpec) -> Point:
        """The first canonical point whose network is `spec`, whatever its name.

        Raises:
          ValueError: it is no network of this space; the message says where it leaves it.
        """
        for field in dataclasses.fields(NetSpec):
            ours, theirs = getattr(self.base, field.name), getattr(spec, field.name)
            if field.name == "last" and self.last_factor is not None:
                wide = make_divisible(self.last_factor * spec.blocks[-1].out)
                ours = dataclasses.replace(ours, out=wide)
            if field.name not in ("name", "blocks") and ours != theirs:
                raise ValueError(
                    f"{spec.name} is not in the space {self.name}: {field.name}: got {theirs!r}, "
                    f"expected {ours!r}"
                )
        furthest = [0]
        found = self._fit(spec, 0, 0, furthest)
        if found is None:
            block = furthest[0] + 1
            raise ValueError(f"{spec.name} is not in the space {self.name}: at block {block}")
        return tuple(found.get((d.stage, d.block, d.what), 0) for d in self.decisions)

    def _fit(self, spec: NetSpec, number: int, start: int, furthest: list[int]) -> dict | None:
        """Indices of the decisions from stage `number` on for the blocks from `start` on."""
        furthest[0] = max(furthest[0], min(start, len(spec.blocks) - 1))
        if number == len(self.stages):
            return {} if start == len(spec.blocks) else None
        stage = self.stages[number]
        for depth in stage.depth:
            blocks = spec.blocks[start : start + depth]
            if len(blocks) < depth:
                continue
            inputs = spec.block_inputs()[start : start + depth]
            own = self._fit_stage(number, blocks, inputs)
            if own is None:
                continue
            rest = self._fit(spec, number + 1, start + depth, furthest)
            if rest is not None:
                return own | rest
        return None

    def _fit_stage(self, number: int, blocks, inputs) -> dict | None:
        stage = self.stages[number]
        found = {(number, None, "depth"): stage.depth.index(len(blocks))}
        if not blocks:
            return found
        if blocks[0].out not in stage.out:
            return None
        found[number, None, "out"] = stage.out.index(blocks[0].out)
        for i, block in enumerate(blocks):
            own = self.block(stage, inputs[i], blocks[0].out, i == 0, _values(block))
            if block != dataclasses.replace(own, expansion=block.expansion):
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
                found[number, None if shared else group[0], what] = index
        return found

    def _has(self, block: BlockSpec, width: int, what: str, choice) -> bool:
        if what == "expansion":
            return block.expansion == (width if choice == 1 else make_divisible(width * choice))
        if what == "se":
            return (block.se is not None) == choice
        return getattr(block, what) == choice


def _values(block: BlockSpec) -> dict:
    se = block.se is not None
    return {"kernel": block.kernel, "expansion": 1, "se": se, "act": block.act}


# How many networks a space has.


def combinations(space: Space) -> int:
    """Choices of all decisions multiplied, whether they make a difference or not; papers print
    this number."""
    return math.prod(len(d.choices) for d in space.decisions)


def network_count(space: Space) -> int:
    """How many different networks there are, exactly.

    Decisions of blocks that are left out do not count, nor do two ways to the same network (by
    rounding of channels, or as the end of one stage or the beginning of the next). Counted are
    the sequences of blocks that an automaton with the space's decisions as states can write: its
    sets of states are followed, so that a sequence counts once however many ways lead to it.
    """

    def options(number: int, names) -> list[dict]:
        stage = space.stages[number]
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(getattr(stage, name) for name in names))
        ]

    # A state: stage, blocks of it that are there, width, and what the stage has chosen.
    @functools.cache
    def after(state) -> dict:
        """Block -> the states that it leads to."""
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
