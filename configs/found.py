"""A network from a file: what a search found, NetAdapt shrank, or one wrote oneself.

python main.py --config=configs/found.py:spec=FILE
  FILE is a spec.json, as searches write it, as every run folder has one, and as
  `mbv3_jax.arch.to_json` makes it. It is trained from scratch on the digits;
  :spec=FILE,imagenet and so on for other data. Its resolution, padding and BatchNorm epsilon
  stay as they are unless given: --config.net.resolution=32
"""

from ml_collections.config_dict import placeholder

from configs import common, recipes

# As in the file, where a recipe says nothing else.
_AS_FOUND = {"in_channels": int, "padding": str, "bn_eps": float}


def get_config(argument: str):
    """`argument`: spec=FILE, then a comma and what configs/small.py takes: digits (default), ...

    A path with a comma in it is given by --config.spec instead: `spec=,digits`.
    """
    if not argument.startswith("spec="):
        raise ValueError(f"argument {argument!r}: expected spec=FILE or spec=FILE,TASK")
    file, _, task = argument.removeprefix("spec=").partition(",")
    config = recipes.choose("mobilenet_v3_small", task or "digits", recipes.V3)
    plain = common.default("mobilenet_v3_small").net
    as_found = {"name": str, "resolution": int}
    as_found |= {k: kind for k, kind in _AS_FOUND.items() if config.net[k] == plain[k]}
    with config.unlocked():
        for field, kind in as_found.items():
            del config.net[field]  # a placeholder would otherwise keep its place, not its kind
            config.net[field] = placeholder(kind)
    config.net.width_rule = plain.width_rule
    config.spec = file or None
    return config
