import itertools
import json

import jax
import numpy as np
import pytest

from mbv3_jax.search.policy_gradient import PolicyGradient, warm_up
from mbv3_jax.search.presets import preset
from mbv3_jax.search.searchers import Evolution, LocalSearch, Random, run
from mbv3_jax.search.space import Space, Stage

TOY = preset("toy")
SPACE = Space(
    name="depths",
    base=TOY.base,
    stages=(
        Stage(out=(8, 16), depth=(1, 2, 3), kernel=(3, 5), expansion=(2, 3), per_block=("kernel",)),
    ),
)
RAW = list(itertools.product(*(range(len(d.choices)) for d in SPACE.decisions)))


def reward_of(points, space=SPACE):
    """A reward with interactions between decisions, from 0 to 1."""
    x = space.one_hot(points).astype(float)
    rng = np.random.default_rng(7)
    linear, pairs = rng.normal(size=x.shape[1]), rng.normal(size=(x.shape[1],) * 2)
    values = x @ linear + 0.3 * np.einsum("ni,ij,nj->n", x, pairs, x)
    return 1 / (1 + np.exp(-values / 3))


def make(kind, seed=0, steps=30, space=SPACE):
    return {
        "random": lambda: Random(space, seed),
        "local search": lambda: LocalSearch(space, seed),
        "evolution": lambda: Evolution(space, seed, population=8, tournament=3),
        "factorised": lambda: PolicyGradient(
            space, seed, total_steps=steps, learning_rate=1 / steps
        ),
        "lstm": lambda: PolicyGradient(
            space, seed, total_steps=steps, policy="lstm", learning_rate=0.1 / steps
        ),
    }[kind]()


KINDS = ["random", "local search", "evolution", "factorised", "lstm"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_a_search_can_be_resumed(kind):
    def asked(searcher, steps):
        out = []
        run(searcher, reward_of, steps=steps, batch=4, after_step=lambda i, p, r: out.append(p))
        return out

    whole, twin, other = make(kind), make(kind), make(kind, seed=1)
    points = asked(whole, 12)
    assert asked(other, 12) != points
    assert asked(twin, 6) == points[:6]
    later = make(kind, seed=5)
    later.load(twin.state())
    assert asked(later, 6) == points[6:]
    assert later.best() == whole.best()
    plain = twin.state()
    plain.pop("leaves", None)  # arrays; the rest JSON holds
    json.dumps(plain)


@pytest.mark.parametrize("kind", KINDS)
def test_points_are_canonical_and_best_is_the_best(kind):
    searcher, told = make(kind), []
    best = run(searcher, reward_of, steps=5, batch=6, after_step=lambda i, p, r: told.append(r))
    assert best[1] == np.concatenate(told).max() == reward_of([best[0]])[0]
    assert all(SPACE.canonical(p) == p for p in searcher.ask(20))


@pytest.mark.parametrize(("policy", "rate"), [("factorised", 0.004), ("lstm", 0.0015)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_policy_gradient_finds_the_optimum_of_its_evaluator(policy, rate, seed):
    space = TOY
    optimum = reward_of(list(space.points()), space).max()
    steps = 400
    searcher = PolicyGradient(space, seed, total_steps=steps, policy=policy, learning_rate=rate)
    run(searcher, lambda p: reward_of(p, space), steps=steps, batch=16)
    assert reward_of([searcher.mode()], space)[0] >= 0.99 * optimum  # not by luck on the way
    assert searcher.best()[1] >= 0.99 * optimum


@pytest.mark.parametrize("policy", ["factorised", "lstm"])
def test_the_mean_gradient_is_the_enumerated_exact_one(policy):
    searcher = PolicyGradient(SPACE, 3, total_steps=10, policy=policy)
    leaves, structure = jax.tree.flatten(searcher.params)
    rng = np.random.default_rng(0)  # not even, so that nothing vanishes by symmetry
    moved = [x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    searcher.params = jax.tree.unflatten(structure, moved)
    points = list(SPACE.points())
    rewards = reward_of(points)
    active = np.array([SPACE.active(p) for p in points], np.float32)
    array = np.array(points, np.int32)

    def mean_reward(params):
        p = jax.numpy.exp(searcher.policy.log_probs(params, array, active))
        return jax.numpy.sum(p * rewards), jax.numpy.sum(p)

    (_, total), exact = jax.value_and_grad(mean_reward, has_aux=True)(searcher.params)
    assert total == pytest.approx(1, abs=1e-5)  # all networks, each once
    probabilities = np.exp(searcher.policy.log_probs(searcher.params, array, active))
    searcher.baseline = 0.3
    single = [searcher.gradient([p], [r]) for p, r in zip(points, rewards)]  # noqa: B905
    mean = jax.tree.map(lambda *g: sum(p * x for p, x in zip(probabilities, g)), *single)  # noqa: B905
    scale = max(np.abs(x).max() for x in jax.tree.leaves(exact))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), mean, exact)
    # And sampled: within five standard errors of the projection on the exact one.
    sampled = searcher.ask(4000)
    lookup = dict(zip(points, range(len(points)), strict=True))
    flat = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in single])
    target = np.concatenate([np.ravel(x) for x in jax.tree.leaves(exact)])
    along = flat[[lookup[p] for p in sampled]] @ target
    error = along.std() / np.sqrt(len(along))
    assert abs(along.mean() - target @ target) < 5 * error
    assert error < 0.3 * target @ target


def test_random_search_takes_no_network_twice_until_it_must():
    points = Random(TOY, 0).ask(128)
    assert len(set(points)) == 128
    searcher = Random(TOY, 0)
    searcher.ask(128)
    assert len(searcher.ask(5)) == 5


def test_evolution_forgets_the_oldest_and_mutates_the_best():
    searcher = Evolution(SPACE, 0, population=3, tournament=3)
    first = searcher.ask(3)
    searcher.tell(first, [3.0, 2.0, 1.0])
    (child,) = searcher.ask(1)
    assert sum(a != b for a, b in zip(child, first[0], strict=True)) >= 1
    searcher.tell([child], [0.0])
    assert first[0] not in [tuple(p) for p, _ in searcher.state()["living"]]


def test_local_search_changes_the_best_in_few_decisions():
    searcher = LocalSearch(TOY, 0, changes=2)
    first = searcher.ask(6)
    searcher.tell(first, np.arange(6))
    for point in searcher.ask(60):
        # A change of the depth decides the decisions of its new blocks as well, of which `toy` has
        # none.
        assert 0 <= np.sum(np.array(point) != first[5]) <= 2
    searcher.tell([first[0]], [9.0])
    assert {np.sum(np.array(p) != first[0]) for p in searcher.ask(60)} <= {0, 1, 2}
    (one,) = LocalSearch(TOY, 1).ask(1)
    searcher = LocalSearch(TOY, 1, changes=1)
    searcher.tell([one], [0.0])
    assert {np.sum(np.array(p) != one) for p in searcher.ask(40)} == {1}


def test_the_rate_rises_tenfold_while_the_warm_up_ends():
    plain = PolicyGradient(SPACE, 0, total_steps=100)
    rates = []
    for plain.step in (0, 50, 100):
        rates.append(plain._rate(512))
    np.testing.assert_allclose(rates, [6e-4, 6e-4 * 10**0.5, 6e-3])
    assert [warm_up(s, 100) for s in (0, 5, 25, 60)] == [1, 0.8, 0, 0]


def test_the_baseline_is_a_moving_average():
    searcher = PolicyGradient(SPACE, 0, total_steps=3)
    points = searcher.ask(2)
    for rewards in ([1.0, 0.0], [1.0, 1.0]):
        searcher.tell(points, rewards)
    assert searcher.baseline == pytest.approx(0.95 * 0.5 + 0.05)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="policy: got 'transformer', expected one of"):
        PolicyGradient(SPACE, total_steps=1, policy="transformer")
    with pytest.raises(ValueError, match="tournament: got 30"):
        Evolution(SPACE, tournament=30)
    searcher = Random(SPACE)
    with pytest.raises(ValueError, match="no reward was told"):
        searcher.best()
    for rewards in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="expected 2 finite numbers"):
            searcher.tell(RAW[:2], rewards)
