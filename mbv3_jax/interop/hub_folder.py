"""A folder for the Hugging Face Hub: a model that this package reads, and timm if it can.

README.md            the card: front matter for the Hub, what the network is, how to load it
model.safetensors    the weights, by timm's names if timm has the network, else by those of the spec
config.json          how timm builds the network; absent if timm has none like it
spec.json, classes.json, preprocessing.json, labels.json   as in an import folder
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mbv3_jax.arch import cost
from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.errors import RunError, UsageError, counted, printable
from mbv3_jax.core.files import replacing
from mbv3_jax.interop import hub, mapping, timm_config, weight_files
from mbv3_jax.interop.convert import Imported, counterpart, import_weights
from mbv3_jax.interop.networks import Network
from mbv3_jax.run.model import Model, description, read_description

WEIGHTS = "model.safetensors"
_MOST_CLASSES = 20
# Options for weights of other libraries.
_OF_OTHERS = ("network", "width", "classes", "labels", "hidden")


def write(folder: Path, model: Model, repository: str | None) -> Network | None:
    """Atomically writes a folder to upload.

    Args:
      folder: a path that does not exist yet.
      model: what to write.
      repository: OWNER/NAME for the model card; None for placeholders.

    Returns:
      timm's network that loads the folder; None if timm has none like it.

    Raises:
      UsageError: safetensors is not installed.
      RunError: it cannot be written; nothing of it is left.
    """
    spec = model.spec.replace(quant=None)
    stats = {k: v for k, v in model.variables["batch_stats"].items() if k != "quant"}
    variables = {"params": model.variables["params"], "batch_stats": stats}
    model = dataclasses.replace(model, spec=spec, variables=variables)
    network: Network | None
    try:
        network, table = _timm(spec)
        tensors = mapping.to_theirs(table, variables)
    except UsageError:  # timm has no such network, or none with such a bias
        network = None
        tensors = {name: np.asarray(v, np.float32) for name, v in _leaves(variables)}
    texts = description(model)
    texts["README.md"] = _card(model, network, repository or "OWNER/NAME")
    if network is not None:
        texts[timm_config.NAME] = timm_config.text(model, network)
    try:
        with replacing(folder.absolute()) as aside:
            aside.mkdir(parents=True)
            weight_files.write("timm", aside / WEIGHTS, tensors, metadata={})
            for name, text in texts.items():
                (aside / name).write_text(text, encoding="utf-8")
    except OSError as e:
        raise RunError(f"cannot write {folder}: {e.strerror}") from e
    return network


def import_repository(library: str | None, weights: str, **options: Any) -> Imported:
    """Imports weights from the Hugging Face Hub.

    Args:
      library: whose weights they are; None for what `write` wrote, and for timm's.
      weights: hf:OWNER/NAME[@REVISION].
      options: those of `convert.import_weights`, by name. A folder that `write` wrote contains all
        of this, and takes only `sha256`.

    Raises:
      UsageError: as for `convert.import_weights`, or the Hub has no such repository.
      RunError: it cannot be downloaded, or is damaged.
    """
    address = hub.parse(weights, "--weights")
    if options.pop("revision", None):
        raise UsageError(
            f"--revision: write it behind the address, {hub.PREFIX}OWNER/NAME@REVISION"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fetched = hub.fetch(address, folder, weight_files.endings(library or "timm"))
        origin = {
            "hub": address.repository,
            "revision": fetched.commit,
            "file": fetched.weights.name,
        }
        try:
            if fetched.is_described and library is None:
                imported = _import_described(folder, address, options)
            else:
                imported = import_weights(library or "timm", str(fetched.weights), **options)
        except (UsageError, RunError) as e:  # the folder is gone when the message is read
            raise type(e)(str(e).replace(str(folder), str(address))) from e
    return dataclasses.replace(imported, origin=imported.origin | origin)


def _import_described(folder: Path, address: hub.Address, options: dict[str, Any]) -> Imported:
    view = {name: value for name, value in (options["view"] or {}).items() if value is not None}
    others = {name: options[name] for name in _OF_OTHERS if options[name]}
    if named := next(iter(others | view), None):
        raise UsageError(
            f"--{named.replace('_', '-')}: {address} says it itself; with --from=timm the "
            "flags decide"
        )
    model, sha256 = read(folder)
    wanted = options["sha256"]
    if wanted is not None and not sha256.startswith(wanted.lower()):
        raise UsageError(f"{address}: the SHA-256 of {WEIGHTS} is {sha256}, expected {wanted}")
    network = Network(library="mbv3_jax", name=printable(model.spec.name), spec=model.spec)
    origin = {
        "library": network.library,
        "network": network.name,
        "width": network.width,
        "weights": None,
        "part": None,
        "prefix": "",
        "left_out": [],
        "new": [],
        "note": None,
        "sha256": sha256,
        "preprocessing": "as in the repository",
        "class_names": "as in the repository",
    }
    return Imported(model=model, network=network, origin=origin)


def read(folder: Path) -> tuple[Model, str]:
    """Reads a folder that `write` wrote.

    Returns:
      The model, and the SHA-256 of its weights.

    Raises:
      UsageError: the weights do not fit the network, or timm's config.json names another one.
      RunError: a file is missing or damaged.
    """
    spec, names, preprocessing, multi_label = read_description(folder)
    file = weight_files.read("timm", folder / WEIGHTS)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    timm_config.check_architecture(folder / WEIGHTS, shapes)
    try:
        if any(name.startswith("params.") for name in file.tensors):
            variables = _nested(file.tensors)
        else:
            variables = mapping.to_ours(_timm(spec)[1], file.tensors)
        model = Model(
            spec=spec,
            variables=variables,
            preprocessing=preprocessing,
            class_names=tuple(names),
            multi_label=multi_label,
        )
    except ValueError as e:
        raise RunError(f"{folder} does not fit together: {e}") from e
    return model, file.sha256


def _timm(spec: NetSpec) -> tuple[Network, list[mapping.Pair]]:
    """timm's network like this one, and its names of the variables; UsageError if it has none."""
    network = counterpart(spec, "timm")
    return network, mapping.pairs_of(network, spec)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested dicts by the names on their paths, joined by dots."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _nested(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `_leaves`; ValueError if there is none."""
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, value in sorted(tensors.items(), key=lambda item: item[0]):  # outer names first
        *parents, leaf = name.split(".")
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{printable(name)} lies in a tensor")
        node[leaf] = value
    return variables


def _card(model: Model, network: Network | None, repository: str) -> str:
    spec, view = model.spec, model.preprocessing
    library = "mbv3_jax" if network is None else "timm"
    tags = ["image-classification", "mobilenet", "mbv3_jax", *(["timm"] if network else [])]
    lines = ["---", "tags:", *(f"- {tag}" for tag in tags)]
    lines += ["pipeline_tag: image-classification", f"library_name: {library}", "---"]
    name = repository.rpartition("/")[2]
    lines += ["", f"# {name}", "", "## Model details", ""]
    named = list(map(printable, model.class_names[:_MOST_CLASSES]))
    more = len(model.class_names) - len(named)
    facts = {
        "Network": f"{printable(spec.name)}{f', {network.label} of timm' if network else ''}",
        "Parameters": f"{cost.params(spec):,}",
        "Multiply-adds": f"{cost.madds(spec):,} for one image",
        "Images": (
            f"{spec.input_shape[0]}x{spec.input_shape[1]} pixels, crop {view.crop_fraction:.3g} "
            f"({view.central}), {view.interpolation}, mean {list(view.mean)}, std {list(view.std)}"
        ),
        "Classes": f"{counted(spec.num_classes, 'class')}: {', '.join(named)}"
        + (f" and {more:,} more" if more > 0 else ""),
        "Probabilities": model.probabilities,
    }
    lines += [f"- **{key}:** {value}" for key, value in facts.items()]
    lines += ["", "## Model usage", "", "With mbv3_jax:", "", "```bash"]
    lines += [f"mbv3 import --weights=hf:{repository} --out=network"]
    lines += ["mbv3 predict --import=network IMAGES", "```"]
    if network is not None:
        lines += ["", "With timm:", "", "```python", "import timm"]
        lines += [f'model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()']
        lines += ["config = timm.data.resolve_model_data_config(model)"]
        lines += ["transform = timm.data.create_transform(**config, is_training=False)", "```"]
    return "\n".join(lines) + "\n"
