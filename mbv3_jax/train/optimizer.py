"""Optimizers by name, with weight decay by rule.

The order is the same for all: clip the gradient by its global norm, then

  coupled (rmsprop_tf, sgd)  add weight_decay * w to the gradient, as the gradient of the L2 loss
                             weight_decay / 2 * sum(w^2) would (slim), then the optimizer;
  decoupled (adamw, lamb)    the optimizer's direction, plus weight_decay * w, times the learning
                             rate. The decay follows the schedule, as in optax, Keras and PyTorch.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import check_number, choose
from mbv3_jax.core.registry import call_with_options
from mbv3_jax.train.schedules import Schedule

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
    # The model garden's exclusion of "batch_normalization".
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
    **options,
) -> optax.GradientTransformation:
    """Builds an optimizer. Its `update` needs the parameters as third argument.

    Options (None counts as not given):
      rmsprop_tf: rho=0.9, momentum=0.9, eps=0.002. RMSProp as TensorFlow 1 and slim have it:
        the accumulator starts at 1, eps is inside the root, the learning rate inside the momentum
            ms  <- rho * ms + (1 - rho) * g^2
            mom <- momentum * mom + lr * g / sqrt(ms + eps)
            w   <- w - mom
        The default of eps is slim's for MobileNetV3. PyTorch adds eps outside the root; a value
        for that form is about the square root of the one here.
      sgd: momentum=0.9, nesterov=False. The learning rate is outside the momentum.
      adamw: b1=0.9, b2=0.999, eps=1e-8 (Loshchilov and Hutter, arXiv 1711.05101).
      lamb: b1=0.9, b2=0.999, eps=1e-6, trust_rule="kernels" (You et al., arXiv 1904.00962). The
        step of each parameter chosen by trust_rule is scaled by |w| / |step|. The others take
        Adam's step, as in the authors' code: a bias that starts at zero would otherwise hardly
        move, by lr at the first step and by about lr^2 after it.

    Args:
      name: a key of `OPTIMIZERS`.
      schedule: step -> learning rate; the optimizer counts its own updates from 0.
      weight_decay: factor of the L2 or decoupled term; 0 for none.
      decay_rule: which parameters are decayed: a key of `RULES` or a list of (regular
        expression, decayed or not) pairs, as `select` takes it.
      clip_norm: largest global norm of the gradient, before weight decay; None for no clipping.
      **options: as above.

    Returns:
      An optax transformation. `init` and `update` raise as `select` does.

    Raises:
      ValueError: an unknown name, option or rule, or a value out of range.
    """
    check_number("optimizer.weight_decay", weight_decay, at_least=0)
    in_rule = _selector("optimizer.decay_rule", decay_rule)
    decay = optax.add_decayed_weights(weight_decay, mask=in_rule)
    clip = optax.identity()
    if clip_norm is not None:
        check_number("optimizer.clip_norm", clip_norm, above=0)
        clip = optax.clip_by_global_norm(clip_norm)
    update = call_with_options("optimizer", OPTIMIZERS, name, options, schedule, decay)
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
        match the whole of a parameter's path.
      path: where the rule stands in the configuration, for messages.

    Returns:
      The structure of `params` with a bool for each leaf.

    Raises:
      ValueError: an unknown rule or a malformed one, or parameters that no expression matches or
        more than one; the message lists them.
    """
    return _selector(path, rule)(params)


def _selector(path: str, rule: Rule):
    """`select` with the rule checked now, to be applied to parameters later."""
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
        flags = [m[0][1] for m in matches]
        return jax.tree.unflatten(jax.tree.structure(params), flags)

    return chosen


def _compile(path: str, rule: Rule) -> list[tuple[re.Pattern, bool]]:
    if isinstance(rule, str):
        rule = RULES[choose(path, rule, RULES)]
    wanted = "expected pairs (regular expression, True or False)"
    if not isinstance(rule, Sequence):
        raise ValueError(f"{path}: got {rule!r}, {wanted} or one of {', '.join(RULES)}")
    pairs = []
    for pair in rule:
        match pair:
            case [str(expression), bool(flag)]:
                try:
                    pairs.append((re.compile(expression), flag))
                except re.error as error:
                    raise ValueError(f"{path}: got {expression!r}: {error}; {wanted}") from error
            case _:
                raise ValueError(f"{path}: got {pair!r}, {wanted}")
    return pairs


def _rmsprop_tf(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    rho: float = 0.9,
    momentum: float = 0.9,
    eps: float = 0.002,
) -> optax.GradientTransformation:
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


def _sgd(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    _check_rates(momentum=momentum)
    choose("optimizer.nesterov", nesterov, (False, True))
    if nesterov and not momentum:
        raise ValueError("optimizer.nesterov: got True with momentum 0, expected momentum above 0")
    return optax.chain(decay, optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov))


def _adamw(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    return optax.chain(_adam(b1, b2, eps), decay, optax.scale_by_learning_rate(schedule))


def _lamb(
    schedule: Schedule,
    decay: optax.GradientTransformation,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    trust_rule: Rule = "kernels",
) -> optax.GradientTransformation:
    trusted = _selector("optimizer.trust_rule", trust_rule)
    return optax.chain(
        _adam(b1, b2, eps),
        decay,
        optax.masked(optax.scale_by_trust_ratio(), trusted),
        optax.scale_by_learning_rate(schedule),
    )


def _adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    _check_rates(b1=b1, b2=b2)
    check_number("optimizer.eps", eps, above=0)
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        check_number(f"optimizer.{name}", rate, at_least=0, below=1)


OPTIMIZERS = {"rmsprop_tf": _rmsprop_tf, "sgd": _sgd, "adamw": _adamw, "lamb": _lamb}


# Which parameters learn, and how fast: frozen stages, learning rates by group.

Tree = Any  # nested dicts of arrays


def stages(spec: NetSpec) -> tuple[str, ...]:
    """All stages of a network in their order: "stem", "block1", ..., "last", "head", "logits"."""
    return (*spec.strides(), *(("head",) if spec.head else ()), "logits")


def frozen_stages(spec: NetSpec, text: str) -> tuple[str, ...]:
    """The stages that a text names.

    Args:
      spec: the network.
      text: names of `stages`, with commas between them; a number stands for a block, a dash for
        all from one to the other: "stem-block6", "stem,1-6", "head".

    Raises:
      ValueError: an unknown name, a range that runs backwards, or no stage left to train.
    """
    names = stages(spec)

    def position(name: str) -> int:
        name = f"block{name}" if name.isdigit() else name
        return names.index(choose("finetune.frozen", name, names))

    chosen = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        first, dash, last = (p.strip() for p in part.partition("-"))
        low, high = position(first), position(last if dash else first)
        if low > high:
            raise ValueError(f"finetune.frozen: got {part!r}, where {last} comes before {first}")
        chosen.update(names[low : high + 1])
    if len(chosen) == len(names):
        raise ValueError(f"finetune.frozen: got {text!r}, which leaves no stage to train")
    return tuple(name for name in names if name in chosen)


def rate_factors(
    params: Tree,
    *,
    backbone: float = 1.0,
    patterns: Sequence[tuple[str, float]] = (),
    frozen: Sequence[str] = (),
) -> Tree:
    """The factor of the learning rate of each parameter.

    Args:
      params: nested dicts by stage.
      backbone: of everything but the logits.
      patterns: (regular expression over a whole parameter path, factor); the first that matches
        counts, and goes before `backbone`.
      frozen: stages whose factor is 0.

    Returns:
      The structure of `params` with a float for each leaf.

    Raises:
      ValueError: a factor below 0, a malformed expression, or one that matches no parameter.
    """
    check_number("finetune.backbone_lr_factor", backbone, at_least=0)
    compiled = [_pattern(pair) for pair in patterns]
    paths = parameter_paths(params)
    for expression, _ in compiled:
        if not any(expression.fullmatch(path) for path in paths):
            raise ValueError(
                f"finetune.lr_factors: {expression.pattern!r} matches no parameter; they have "
                f"paths like {paths[-1]} and {paths[0]}"
            )

    def factor(path: str) -> float:
        stage = path.partition("/")[0]
        if stage in frozen:
            return 0.0
        matching = (f for expression, f in compiled if expression.fullmatch(path))
        return next(matching, 1.0 if stage == "logits" else backbone)

    return jax.tree.unflatten(jax.tree.structure(params), [factor(path) for path in paths])


def _pattern(pair) -> tuple[re.Pattern, float]:
    match pair:
        case [str(expression), factor]:
            factor = check_number("finetune.lr_factors", factor, at_least=0)
            try:
                return re.compile(expression), factor
            except re.error as e:
                raise ValueError(f"finetune.lr_factors: got {expression!r}: {e}") from e
        case _:
            raise ValueError(
                f"finetune.lr_factors: got {pair!r}, expected pairs (regular expression, factor)"
            )


def scale_rates(
    tx: optax.GradientTransformation, factors: Callable[[Tree], Tree]
) -> optax.GradientTransformation:
    """The optimizer `tx` with the learning rate of each parameter times its factor.

    All our optimizers' updates are proportional to the learning rate, weight decay included, so
    that the factor of the update is the factor of the rate. 0 leaves a parameter as it is.
    """

    def scale(update, factor):
        return jnp.zeros_like(update) if factor == 0 else update * factor

    def update(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return jax.tree.map(scale, updates, factors(params)), state

    return optax.GradientTransformation(tx.init, update)
