"""How many networks a space has."""

import functools
import itertools
import math

from mbv3_jax.search.space import OF_BLOCKS, Space


def combinations(space: Space) -> int:
    """Choices of all decisions multiplied, whether they make a difference or not; papers print
    this number."""
    return math.prod(len(d.choices) for d in space.decisions)


def size(space: Space) -> int:
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
