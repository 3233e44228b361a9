"""What timm, torchvision and Keras call the layers of a network, one function a library."""

from collections.abc import Iterator

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.interop.relatives import STAGES

Names = dict[str, tuple[str, bool]]  # our layer -> their name, and whether it is a dense layer


def _block_layers(spec: NetSpec, i: int) -> Iterator[str]:
    """The layers of block `i` that have weights, in order, as in `nn.blocks.Bneck`."""
    if spec.has_expand(i):
        yield from ("expand/conv", "expand/bn")
    yield from ("depthwise/conv", "depthwise/bn")
    if spec.blocks[i].se:
        yield from ("se/reduce", "se/expand")
    yield from ("project/conv", "project/bn")


def _assemble(spec: NetSpec, block_names, **outside) -> Names:
    """Names of a whole network from those of its blocks and of what is around them."""
    names = {"stem/conv": outside["stem"][0], "stem/bn": outside["stem"][1]}
    for i in range(len(spec.blocks)):
        theirs = block_names(i)
        names |= {f"block{i + 1}/{layer}": theirs[layer] for layer in _block_layers(spec, i)}
    names |= {"last/conv": outside["last"][0], "last/bn": outside["last"][1]}
    names |= {"head": outside["head"]} if spec.head else {}
    named = {path: (name, False) for path, name in names.items()}
    if outside.get("head_is_dense") and spec.head:
        named["head"] = (outside["head"], True)
    return {**named, "logits": (outside["logits"], outside["logits_is_dense"])}


def _timm(spec: NetSpec) -> Names:
    places = [(s, j) for s, count in enumerate(STAGES[spec.name]) for j in range(count)]

    def block(i: int) -> dict[str, str]:
        stage, number = places[i]
        inside = f"blocks.{stage}.{number}"
        layers = ["conv_dw", "bn1", "conv_pw", "bn2"]
        if spec.has_expand(i):
            layers = ["conv_dw", "bn2", "conv_pwl", "bn3"]
        ours = ("depthwise/conv", "depthwise/bn", "project/conv", "project/bn")
        names = {o: f"{inside}.{t}" for o, t in zip(ours, layers, strict=True)}
        names |= {f"se/{n}": f"{inside}.se.conv_{n}" for n in ("reduce", "expand")}
        return names | {"expand/conv": f"{inside}.conv_pw", "expand/bn": f"{inside}.bn1"}

    after = f"blocks.{len(STAGES[spec.name])}.0"
    return _assemble(
        spec,
        block,
        stem=("conv_stem", "bn1"),
        last=(f"{after}.conv", f"{after}.bn1") if spec.head else ("conv_head", "bn2"),
        head="conv_head",
        logits="classifier",
        logits_is_dense=True,
    )


def _torchvision(spec: NetSpec) -> Names:
    if spec.name.startswith("mnasnet"):
        return _torchvision_mnasnet(spec)
    end = len(spec.blocks) + 1
    is_v3 = spec.head is not None

    def block(i: int) -> dict[str, str]:
        inside, names, number = f"features.{i + 1}.{'block' if is_v3 else 'conv'}", {}, 0
        for layer in ("expand", "depthwise", "se", "project"):
            if layer == "se" and spec.blocks[i].se:
                names |= {"se/reduce": f"{inside}.{number}.fc1"}
                names |= {"se/expand": f"{inside}.{number}.fc2"}
            elif layer == "project" and not is_v3:  # its BatchNorm stands beside it
                names[f"{layer}/conv"] = f"{inside}.{number}"
                names[f"{layer}/bn"] = f"{inside}.{number + 1}"
            elif layer != "se" and (layer != "expand" or spec.has_expand(i)):
                names[f"{layer}/conv"] = f"{inside}.{number}.0"
                names[f"{layer}/bn"] = f"{inside}.{number}.1"
            else:
                continue
            number += 1
        return names

    return _assemble(
        spec,
        block,
        stem=("features.0.0", "features.0.1"),
        last=(f"features.{end}.0", f"features.{end}.1"),
        head="classifier.0",
        head_is_dense=True,
        logits="classifier.3" if is_v3 else "classifier.1",
        logits_is_dense=True,
    )


def _torchvision_mnasnet(spec: NetSpec) -> Names:
    """MNASNet lists stem, first block and last 1x1 flat, nonlinearities counted."""
    stages = STAGES[spec.name]
    places = [(s, j) for s, count in enumerate(stages) for j in range(count)]

    def block(i: int) -> dict[str, str]:
        stage, number = places[i]
        numbers = (3, 4, 6, 7) if not stage else (0, 1, 3, 4, 6, 7)
        inside = "layers" if not stage else f"layers.{7 + stage}.{number}.layers"
        theirs = [f"{inside}.{n}" for n in numbers]
        return dict(zip(_block_layers(spec, i), theirs, strict=True))

    after = 7 + len(stages)
    return _assemble(
        spec,
        block,
        stem=("layers.0", "layers.1"),
        last=(f"layers.{after}", f"layers.{after + 1}"),
        head=None,
        logits="classifier.1",
        logits_is_dense=True,
    )


def _keras(spec: NetSpec) -> Names:
    """Keras 3 files number the layers of each class by themselves, in order of the pass."""
    counts: dict[str, int] = {}

    def number(kind: str) -> str:
        counts[kind] = counts.get(kind, -1) + 1
        return f"layers/{kind}" + (f"_{counts[kind]}" if counts[kind] else "")

    names = {}
    paths = ["stem/conv", "stem/bn"]
    for i in range(len(spec.blocks)):
        paths += [f"block{i + 1}/{layer}" for layer in _block_layers(spec, i)]
    paths += ["last/conv", "last/bn", *(["head"] if spec.head else []), "logits"]
    for path in paths:
        is_dense = path == "logits" and spec.head is None
        if path.endswith("/bn"):
            kind = "batch_normalization"
        elif path.endswith("/depthwise/conv"):
            kind = "depthwise_conv2d"
        else:
            kind = "dense" if is_dense else "conv2d"
        names[path] = (number(kind), is_dense)
    return names


NAMES = {"timm": _timm, "torchvision": _torchvision, "keras": _keras}
