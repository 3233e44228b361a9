"""A network from a file: found by a search, narrowed by NetAdapt, or your own.

python main.py --config=configs/found.py:spec=FILE
  Trains the network from scratch on the digits. FILE is a spec.json, as searches and
  `mbv3_jax.arch.spec_to_json` write it and every run folder has it. Its resolution, padding and
  BatchNorm epsilon are kept unless they are given: --config.net.resolution=32. A network as large
  as V3-Small takes about half a minute to a minute and a half on two CPU cores.
python main.py --config=configs/found.py:spec=FILE,imagenet
  Trains it on other data; not run here.
"""

from ml_collections.config_dict import placeholder

from configs import common, recipes

# Taken from the file, unless a recipe changes them.
_AS_FOUND = {"in_channels": int, "padding": str, "bn_eps": float}


def get_config(argument: str):
    """Returns the configuration.

    Args:
      argument: "spec=FILE", or "spec=FILE," and the data as for configs/small.py. A path that
        contains a comma is given by --config.spec instead, and the argument is "spec=,digits".
    """
    if not argument.startswith("spec="):
        raise ValueError(f"argument {argument!r}: expected spec=FILE or spec=FILE,TASK")
    file, _, task = argument.removeprefix("spec=").partition(",")
    config = recipes.choose("mobilenet_v3_small", task or "digits", recipes.V3)
    plain = common.default("mobilenet_v3_small").net
    as_found = {"name": str, "resolution": object}
    as_found |= {k: kind for k, kind in _AS_FOUND.items() if config.net[k] == plain[k]}
    with config.unlocked():
        for field, kind in as_found.items():
            del config.net[field]  # a new field takes the type of its placeholder
            config.net[field] = placeholder(kind)
    config.net.width_rule = plain.width_rule
    config.spec = file or None
    return config
