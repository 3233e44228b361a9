"""Which network the tensors of a file belong to: a library's own, or one with another head or none.

Fine-tuning keeps stem, blocks and last 1x1, and replaces what follows. A single dense layer there
can be imported whatever its name, and two if the activation between them is known. The tensors of
anything else do not determine what it computes (they have no nonlinearities), so it is left out and
the network gets new logits.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping

from mbv3_jax.arch.spec import HeadSpec, NetSpec
from mbv3_jax.core.errors import UsageError, printable
from mbv3_jax.interop import mapping, networks
from mbv3_jax.interop.look_alikes import look_alike
from mbv3_jax.interop.mapping import Names
from mbv3_jax.interop.networks import Network

BESIDE = "../"  # before the names of tensors that are not inside the network, see `layout`
_FEW = 3  # tensors that are named to show what a file has
_MOST_PROBLEMS = 12  # that are listed for a network that was not named
# The modules of networks, and of wrappers around them, that may be heads.
_HEADS = {
    "torch": re.compile(r"(classifier|conv_head|head|fc|linear|last_linear)\."),
    "keras": re.compile(
        r"layers/(dense|conv2d|batch_normalization|layer_normalization|p_re_lu)(_\d+)?/"
    ),
}
_NO_LAYER = re.compile(r"(criterion|loss|metric|accuracy|optimizer)")

Shapes = Mapping[str, tuple[int, ...]]
_Fitting = Callable[[Network, Shapes], tuple["Fit | None", list[str]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A network whose variables a file has.

    network: the library's network, with the head, classes and channels of the file.
    names: our layers -> the file's, as `mapping.pairs` takes them.
    new: the stages that the file has no tensors for: "logits", and maybe "last".
    left_out: the tensors that are not used, by their names in the file.
    hidden: whether the head that is left out is two dense layers, which `identify` would import if
      it were given the activation between them.
    """

    network: Network
    names: Names
    new: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    hidden: bool = False

    @property
    def table(self) -> list[mapping.Pair]:
        """See `mapping.pairs`."""
        return mapping.pairs(self.network.library, self.network.spec, self.names)


def identify(
    library: str,
    shapes: Shapes,
    name: str | None = None,
    width: float | None = None,
    what: str = "the file",
    hidden: str | None = None,
) -> Fit:
    """Finds the network that tensors of these shapes belong to.

    Args:
      library: the library whose names the tensors have.
      shapes: the shape of each tensor, by name; names of tensors outside the network begin with
        `BESIDE`.
      name: the name of the network, if it is known.
      width: the width of the network, if it is known.
      what: the origin of the tensors, for messages.
      hidden: the activation between the two dense layers of the file's head, a key of
        `activations.ACTIVATIONS`; None if it has no such head, or this is not known.

    Returns:
      The network, with as many classes and input channels as the tensors have. Without a head that
      can be imported, it has one class, and "logits" is among the new stages.

    Raises:
      UsageError: no network fits (the message lists every tensor that does not fit), or several
        networks fit equally well.
    """
    misfits: list[tuple[list[str], Network]] = []
    fit_parts = functools.partial(_fit_backbone, hidden=hidden)
    # A hidden layer may have the shape of the library's own.
    for fit_one in (_fit_whole, fit_parts) if hidden is None else (fit_parts,):
        fitting: dict[NetSpec, Fit] = {}
        for network in networks.candidates(library, name, width):
            fit, problems = _fit(fit_one, network, shapes)
            if fit is not None:
                fitting.setdefault(fit.network.spec, fit)
            elif fit_one is _fit_whole or hidden:
                misfits.append((problems, network))
        if len(fitting) == 1:
            fit = next(iter(fitting.values()))
            if hidden and not _takes_hidden(fit):
                raise UsageError(
                    f"--hidden={hidden}: the head of {what} is not two dense layers on the "
                    "features after pooling"
                )
            return fit
        if fitting:
            names = ", ".join(fit.network.name for fit in fitting.values())
            raise UsageError(
                f"{what} fits several networks equally well: {names}. They have the same tensors "
                "and differ in padding or BatchNorm; choose one with --network=NAME or NAME.TAG"
            )
    problems, nearest = min(misfits, key=lambda misfit: len(misfit[0]))
    if other_network := look_alike(_inside(shapes)):
        raise UsageError(
            f"{what} holds a network of another kind: {other_network}; those that are imported are "
            "MobileNetV2, MobileNetV3 and MnasNet of timm, torchvision and Keras"
        )
    if width is None and (scaled := _scaled(library, shapes, name)):
        tried = ", ".join(f"{w:g}" for w in networks.WIDTHS)
        raise UsageError(
            f"{what} has the layers of {library}'s {scaled} in a width that is not tried "
            f"({tried}); give its width_mult or alpha: --network={scaled} --width=NUMBER"
        )
    if name is not None:
        head = f"{what} is not {library}'s {nearest.label}"
    else:
        for other in networks.LIBRARIES:
            if other != library and (match := first_fitting(other, shapes)):
                raise UsageError(
                    f"{what} does not fit any network of {library}; its tensors are those of "
                    f"{other}'s {match.label}: use --from={other}"
                )
        theirs = {pair.theirs for pair in mapping.pairs(library, nearest.spec)}
        if shapes and not theirs & shapes.keys():
            few = ", ".join(printable(name) for name in list(shapes)[:_FEW])
            raise UsageError(
                f"{what} has no tensor with the name of one in a network of {library}; it has "
                f"{few}{', ...' if len(shapes) > _FEW else ''}"
            )
        head = f"{what} does not fit any network of {library}; the nearest is {nearest.label}"
        more = len(problems) - _MOST_PROBLEMS
        if more > 0:
            rest = f"... and {more} more; --network={nearest.name} lists them all"
            problems = [*problems[:_MOST_PROBLEMS], rest]
    raise UsageError(f"{head}:\n  " + "\n  ".join(problems))


def _scaled(library: str, shapes: Shapes, name: str | None) -> str | None:
    """The network whose layers the tensors are, each in another shape; None if there is none."""
    for each in networks.NAMES[library] if name is None else (name,):
        if library != "timm" and not each.startswith("mnasnet"):  # these have fixed widths
            _, problems = _fit_backbone(networks.get(library, each), shapes)
            if problems and all(re.search(r"\): has \(.*\), expected ", p) for p in problems):
                return each
    return None


def first_fitting(library: str, shapes: Shapes, name: str | None = None) -> Network | None:
    """The first network that tensors may belong to, whether or not others have the same tensors.

    Args:
      library, shapes: as for `identify`.
      name: of the only network to try; None tries them all.

    Returns:
      The network; None if the tensors are those of none.
    """
    for fit_one in (_fit_whole, _fit_backbone):
        for network in networks.candidates(library, name):
            if (fit := _fit(fit_one, network, shapes)[0]) is not None:
                return fit.network
    return None


def _fit(fit_one: _Fitting, network: Network, shapes: Shapes) -> tuple[Fit | None, list[str]]:
    """Fits a network, with another number of input channels if nothing but its stem differs."""
    fit, problems = fit_one(network, shapes)
    if len(problems) == 1:
        stem = next(p for p in mapping.pairs(network.library, network.spec) if p.axes is not None)
        shape = shapes.get(stem.theirs or "", ())
        if stem.axes is not None and len(shape) == 4 and shape[stem.axes[2]] > 0:
            try:
                spec = network.spec.replace(in_channels=shape[stem.axes[2]])
            except ValueError:  # far more channels than pixels can have
                return None, problems
            fit, _ = fit_one(dataclasses.replace(network, spec=spec), shapes)
    return fit, problems


def _inside(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if not name.startswith(BESIDE)}


def _fit_whole(network: Network, shapes: Shapes) -> tuple[Fit | None, list[str]]:
    """Fits the network with the library's head, which may have any number of classes.

    Returns:
      The fit or None, and what does not fit.
    """
    inside = _inside(shapes)
    network = _with_classes(network, inside)
    if problems := mapping.problems(mapping.pairs(network.library, network.spec), inside):
        return None, problems
    names = mapping.NAMES[network.library](network.spec)
    beside = tuple(n.removeprefix(BESIDE) for n in shapes if n not in inside)
    return Fit(network=network, names=names, left_out=beside), []


def _with_classes(network: Network, shapes: Shapes) -> Network:
    """The network with as many classes as the tensors of its logits have."""
    logits_bias = mapping.pairs(network.library, network.spec)[-1].theirs
    shape = shapes.get(logits_bias, ()) if logits_bias else ()
    if len(shape) != 1 or shape[0] < 1:
        return network
    return dataclasses.replace(network, spec=network.spec.replace(num_classes=int(shape[0])))


def _takes_hidden(fit: Fit) -> bool:
    return "logits" in fit.names and fit.names.get("head", ("", False))[1]


def _fit_backbone(
    network: Network, shapes: Shapes, hidden: str | None = None
) -> tuple[Fit | None, list[str]]:
    """Fits stem, blocks and last 1x1, and what can be imported of the head.

    Args:
      network, shapes: as for `_fit_whole`.
      hidden: as for `identify`.

    Returns:
      The fit or None, and what does not fit.
    """
    library, spec, inside = network.library, network.spec, _inside(shapes)
    names = mapping.NAMES[library](spec)
    kept: Names = {layer: n for layer, n in names.items() if layer not in ("head", "logits")}
    new = ["logits"]
    if not any(inside.keys() & _tensors(network, "last")):
        kept = {layer: n for layer, n in kept.items() if not layer.startswith("last/")}
        new = ["last", "logits"]
    table = mapping.pairs(library, spec.replace(head=None), kept)
    trunk = {pair.theirs for pair in table}
    heads = _HEADS["keras" if library == "keras" else "torch"]
    rest = {name for name in inside if name not in trunk and heads.match(name)}
    if problems := mapping.problems(table, {n: s for n, s in inside.items() if n not in rest}):
        return None, problems
    used = trunk
    features = spec.last.out
    head = None
    # With a hidden layer, torchvision's own, which is dense, is not there.
    may_have_own = hidden is None or library != "torchvision"
    if may_have_own and (own := _own_head(network, inside, rest)):
        kept["head"], head, features = names["head"], spec.head, spec.head.out if spec.head else 0
        rest -= own
        used = used | own
    others = [n for n in shapes if (n in rest or n not in inside) and not _NO_LAYER.search(n)]
    classes = 1
    layers = [] if "last" in new else _dense_layers(library, others, shapes, features)
    has_two = len(layers) == 2 and head is None
    if len(layers) == 1 or (has_two and hidden):
        if has_two and hidden:
            (first, width), *layers = layers
            kept["head"], head = (first, True), HeadSpec(out=width, act=hidden)
        ((name, classes),) = layers
        kept["logits"], new = (name, True), []
        used = used | set(others)
    changed = spec.replace(head=head, num_classes=classes)
    fit = Fit(
        network=dataclasses.replace(network, spec=changed),
        names=kept,
        new=tuple(new),
        left_out=tuple(n.removeprefix(BESIDE) for n in shapes if n not in used),
        hidden=has_two and bool(new),
    )
    return fit, []


def _tensors(network: Network, stage: str) -> dict[str, tuple[int, ...]]:
    """The library's tensors of one of our stages, with their shapes."""
    table = mapping.pairs(network.library, network.spec)
    return {
        pair.theirs: pair.their_shape
        for pair in table
        if pair.theirs is not None and pair.ours.split("/")[1] == stage
    }


def _own_head(network: Network, inside: Shapes, rest: set[str]) -> set[str]:
    """The tensors of the library's layer between pooling and logits, if the file has that layer.

    torchvision numbers it inside its classifier, so that a layer of the same number and shape may
    be one of another classifier; it is its own if nothing else in there is new except the logits.
    """
    if network.spec.head is None:
        return set()
    own = _tensors(network, "head")
    if any(inside.get(name) != shape for name, shape in own.items()):
        return set()
    if network.library == "torchvision":
        logits = mapping.NAMES["torchvision"](network.spec)["logits"][0]
        if any(not name.startswith(f"{logits}.") for name in rest - own.keys()):
            return set()
    return set(own)


def _dense_layers(
    library: str, names: list[str], shapes: Shapes, features: int
) -> list[tuple[str, int]]:
    """The layers and their numbers of outputs, if these are the tensors of one or two dense layers.

    Args:
      library: whose names these are.
      names: of tensors.
      shapes: of all tensors.
      features: the number of inputs that the first layer must have; the second has its outputs.

    Returns:
      The layers in the order of the pass; none if the tensors are not those of such layers.
    """
    kernel, bias = ("/vars/0", "/vars/1") if library == "keras" else (".weight", ".bias")
    layers = [n.removesuffix(kernel) for n in names if n.endswith(kernel)]
    if sorted(names) != sorted(layer + leaf for layer in layers for leaf in (kernel, bias)):
        return []
    if len(layers) > 2:
        return []
    fitting = []
    for ordered in itertools.permutations(sorted(layers, key=_numbered)):
        inputs, found = features, []
        for layer in ordered:
            shape = shapes[layer + kernel]
            shape = shape[::-1] if library == "keras" else shape
            if len(shape) != 2 or shape[1] != inputs or shapes[layer + bias] != shape[:1]:
                break
            inputs = shape[0]
            found.append((layer, inputs))
        if len(found) == len(layers):
            fitting.append(found)
    # Square layers fit in either order: their numbers decide, if they differ in nothing else.
    if len(fitting) > 1 and len({re.sub(r"_?\d+", "", layer) for layer in layers}) > 1:
        return []
    return fitting[0] if fitting else []


def _numbered(name: str) -> list[int | str]:
    """A key by which "fc.10" comes after "fc.9", and "dense_1" after "dense"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
