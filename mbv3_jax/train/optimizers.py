"""Optimizers by name, with weight decay by rule.

The order is the same for all of them: the gradient is clipped by its global norm; then

  coupled (rmsprop_tf, sgd, adam)  weight_decay * w is added to the gradient, as the gradient of
                                   the L2 loss weight_decay / 2 * sum(w^2) would be (slim); then
                                   the optimizer;
  decoupled (the others)           the optimizer's direction, plus weight_decay * w, times the
                                   learning rate. The decay follows the schedule, as in optax,
                                   Keras and PyTorch.

A new optimizer is one entry; its keyword-only parameters become fields of `config.optimizer`:

    @OPTIMIZERS.register("adopt")
    def adopt(schedule, decay, *, b1: float = 0.9, b2: float = 0.9999):
        return optax.chain(optax.contrib.scale_by_adopt(b1, b2), decay,
                           optax.scale_by_learning_rate(schedule))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mbv3_jax.core.checks import check_number, choose, flag
from mbv3_jax.core.packages import LazyModule
from mbv3_jax.core.registry import Registry

if TYPE_CHECKING:
    import jax
    import optax

    from mbv3_jax.train.schedules import Schedule
else:  # configs/common.py reads the options of the optimizers, without waiting for JAX
    jax, optax = LazyModule("jax"), LazyModule("optax")

# What an entry is called with: the learning-rate schedule, and a transformation that adds
# weight_decay * w to the updates of the parameters that the rule chooses.
OPTIMIZERS: Registry[Callable[..., optax.GradientTransformation]] = Registry("optimizer")

Rule = str | Sequence[tuple[str, bool]]
Tree = Any  # nested dicts of arrays

# A rule is a list of (regular expression over a whole parameter path, whether it is decayed).
RULES: dict[str, tuple[tuple[str, bool], ...]] = {
    # Weights of convolutions and of the 1x1 layers of SE and head; no BatchNorm, no biases.
    "kernels": ((r"(.*/)?kernel", True), (r"(.*/)?(scale|bias)", False)),
    # slim's `mobilenet.training_scope`: no regularizer on separable (depthwise) convolutions.
    "kernels_but_depthwise": (
        (r"(?!.*\bdepthwise/)(.*/)?kernel", True),
        (r".*\bdepthwise/(.*/)?kernel", False),
        (r"(.*/)?(scale|bias)", False),
    ),
    # As the model garden excludes "batch_normalization".
    "all_but_batch_norm": ((r"(.*/)?bn/(scale|bias)", False), (r"(?!.*\bbn/).*", True)),
    "all": ((r".*", True),),
    "none": ((r".*", False),),
}


def make_optimizer(
    name: str,
    schedule: Schedule,
    *,
    weight_decay: float = 0.0,
    decay_rule: Rule = "kernels",
    clip_norm: float | None = None,
    **options: Any,
) -> optax.GradientTransformation:
    """Builds an optimizer. Its `update` needs the parameters as third argument.

    Args:
      name: a key of `OPTIMIZERS`.
      schedule: step -> learning rate; the optimizer counts its own updates from 0.
      weight_decay: factor of the L2 or decoupled term; 0 for none.
      decay_rule: which parameters are decayed: a key of `RULES` or a list of (regular
        expression, decayed or not) pairs, see `select`.
      clip_norm: largest global norm of the gradient, before weight decay; None for no clipping.
      **options: of the optimizer, see its entry; None counts as not given.

    Returns:
      An optax transformation. `init` and `update` raise as `select` does.

    Raises:
      ValueError: a name, option or rule is unknown, or a value is out of range.
    """
    check_number("optimizer.weight_decay", weight_decay, at_least=0)
    in_rule = _selector("optimizer.decay_rule", decay_rule)
    decay = optax.add_decayed_weights(weight_decay, mask=in_rule)
    clip = optax.identity()
    if clip_norm is not None:
        check_number("optimizer.clip_norm", clip_norm, above=0)
        clip = optax.clip_by_global_norm(clip_norm)
    update = OPTIMIZERS.build(name, options, schedule, decay)
    return optax.chain(clip, update)


def parameter_paths(params: Tree) -> list[str]:
    """The path of each leaf, "block3/se/reduce/kernel", in the order of `jax.tree.leaves`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def select(params: Tree, rule: Rule, *, path: str = "rule") -> Tree:
    """Which parameters a rule chooses.

    Args:
      params: nested dicts.
      rule: a key of `RULES`, or pairs (regular expression, chosen or not). An expression has to
        match the whole path of a parameter.
      path: where the rule stands in the configuration, for messages.

    Returns:
      The structure of `params` with a bool for each leaf.

    Raises:
      ValueError: the rule is unknown or malformed, or some parameters are matched by no
        expression or by several; the message lists them.
    """
    return _selector(path, rule)(params)


def _selector(path: str, rule: Rule) -> Callable[[Tree], Tree]:
    """`select` with the rule checked now and applied to parameters later."""
    pairs = _compile(path, rule)

    def chosen(params: Tree) -> Tree:
        paths = parameter_paths(params)
        matches = [[pair for pair in pairs if pair[0].fullmatch(p)] for p in paths]
        problems = [
            f"{p} (matched by {', '.join(repr(e.pattern) for e, _ in m) or 'none'})"
            for p, m in zip(paths, matches, strict=True)
            if len(m) != 1
        ]
        if problems:
            raise ValueError(
                f"{path}: every parameter must be matched by exactly one expression; not so for "
                + ", ".join(problems)
            )
        return jax.tree.unflatten(jax.tree.structure(params), [m[0][1] for m in matches])

    return chosen


def _compile(path: str, rule: Rule) -> list[tuple[re.Pattern, bool]]:
    if isinstance(rule, str):
        rule = RULES[choose(path, rule, RULES)]
    form = "expected pairs (regular expression, True or False)"
    if not isinstance(rule, Sequence):
        raise ValueError(f"{path}: got {rule!r}, {form} or one of {', '.join(RULES)}")
    pairs = []
    for pair in rule:
        match pair:
            case [str(expression), bool(chosen)]:
                try:
                    pairs.append((re.compile(expression), chosen))
                except re.error as error:
                    raise ValueError(f"{path}: got {expression!r}: {error}; {form}") from error
            case _:
                raise ValueError(f"{path}: got {pair!r}, {form}")
    return pairs


@OPTIMIZERS.register("rmsprop_tf")
def rmsprop_tf(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    rho: float = 0.9,
    momentum: float = 0.9,
    eps: float = 0.002,
) -> optax.GradientTransformation:
    """RMSProp as TensorFlow 1 and slim have it.

    The accumulator starts at 1, eps is inside the root, the learning rate inside the momentum:

        ms  <- rho * ms + (1 - rho) * g^2
        mom <- momentum * mom + lr * g / sqrt(ms + eps)
        w   <- w - mom

    The default of eps is slim's for MobileNetV3. PyTorch adds eps outside the root; a value for
    that form is about the square root of the one here.
    """
    _check_rates(rho=rho, momentum=momentum)
    check_number("optimizer.eps", eps, above=0)
    rmsprop = optax.rmsprop(
        schedule,
        decay=rho,
        eps=eps,
        initial_scale=1.0,
        eps_in_sqrt=True,
        momentum=momentum or None,  # None spares the buffer
    )
    return optax.chain(decay, rmsprop)


@OPTIMIZERS.register("sgd")
def sgd(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Gradient descent; the learning rate is outside the momentum."""
    _check_rates(momentum=momentum)
    flag("optimizer.nesterov", nesterov)
    if nesterov and not momentum:
        raise ValueError("optimizer.nesterov: got True with momentum 0, expected momentum above 0")
    return optax.chain(decay, optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov))


@OPTIMIZERS.register("adam")
def adam(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv 1412.6980), with the weight decay in the gradient (PyTorch)."""
    return optax.chain(decay, _adam(b1, b2, eps), optax.scale_by_learning_rate(schedule))


@OPTIMIZERS.register("adamw")
def adamw(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""
    return optax.chain(_adam(b1, b2, eps), decay, optax.scale_by_learning_rate(schedule))


@OPTIMIZERS.register("lamb")
def lamb(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    trust_rule: Rule = "kernels",
) -> optax.GradientTransformation:
    """LAMB (You et al., arXiv 1904.00962).

    The step of each parameter that trust_rule chooses is scaled by |w| / |step|. The others take
    Adam's step, as in the authors' code: a bias that starts at zero would otherwise hardly move,
    by lr at the first step and by about lr^2 after it.
    """
    trusted = _selector("optimizer.trust_rule", trust_rule)
    return optax.chain(
        _adam(b1, b2, eps),
        decay,
        optax.masked(optax.scale_by_trust_ratio(), trusted),
        optax.scale_by_learning_rate(schedule),
    )


@OPTIMIZERS.register("lion")
def lion(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """Lion (Chen et al., arXiv 2302.06675): the sign of a mixture of momentum and gradient.

    Its authors use a learning rate 3 to 10 times as small as AdamW's, and a weight decay as many
    times as large.
    """
    _check_rates(b1=b1, b2=b2)
    return optax.chain(
        optax.scale_by_lion(b1=b1, b2=b2), decay, optax.scale_by_learning_rate(schedule)
    )


@OPTIMIZERS.register("muon")
def muon(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    muon_rule: Rule = "kernels_but_depthwise",
) -> optax.GradientTransformation:
    """Muon (Jordan 2024, as in Optax): the momentum of a matrix, made orthogonal.

    A convolution counts as a matrix from what it sums over to its outputs. Vectors, and parameters
    that muon_rule does not choose, take Adam's step with b1, b2 and eps. Updates are scaled to the
    size of Adam's (Liu et al., arXiv 2502.16982, section 2.2), so that both take the learning rate
    and the weight decay of AdamW.
    """
    _check_rates(momentum=momentum)
    flag("optimizer.nesterov", nesterov)
    chosen = _selector("optimizer.muon_rule", muon_rule)

    def axes(params: Tree) -> Tree:
        numbers = optax.contrib.MuonDimensionNumbers
        return jax.tree.map(lambda x: numbers(tuple(range(x.ndim - 1)), x.ndim - 1), params)

    def labels(params: Tree) -> Tree:
        return jax.tree.map(
            lambda x, matrix: "muon" if matrix and x.ndim > 1 else "adam", params, chosen(params)
        )

    def to_adams_size(x: jax.Array) -> jax.Array:
        return 0.2 * max(x.size // x.shape[-1], x.shape[-1]) ** 0.5 * x

    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(
            beta=momentum, nesterov=nesterov, weight_dimension_numbers=axes
        ),
        optax.stateless(lambda updates, _: jax.tree.map(to_adams_size, updates)),
    )
    return optax.chain(
        optax.partition({"muon": orthogonal, "adam": _adam(b1, b2, eps)}, labels),
        decay,
        optax.scale_by_learning_rate(schedule),
    )


def _adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    _check_rates(b1=b1, b2=b2)
    check_number("optimizer.eps", eps, above=0)
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        check_number(f"optimizer.{name}", rate, at_least=0, below=1)
