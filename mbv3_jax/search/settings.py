"""The configuration of a search: read, checked, and the space and the table that it names."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mbv3_jax.core.checks import check_number, check_whole, choose, flag
from mbv3_jax.core.errors import UsageError
from mbv3_jax.run.folder import read_config
from mbv3_jax.search import accel_nasbench
from mbv3_jax.search.network_table import open_network_table
from mbv3_jax.search.presets import preset
from mbv3_jax.search.proxy import Proxy
from mbv3_jax.search.selection import HELD_OUT, check_trainings
from mbv3_jax.search.space import Space


def read_search_config(folder: Path) -> ConfigDict:
    """Returns the configuration of a search folder.

    Raises:
      UsageError: The folder is not a search folder, is damaged or was written by a newer version.
    """
    config = read_config(folder)
    if config.get("program") != "search":
        raise UsageError(f"{folder} is not a search folder, but that of a run")
    return config


def seed_config(config: ConfigDict) -> ConfigDict:
    """Returns the configuration of the training from which NetAdapt starts.

    It is `config.final`. With `netadapt.split_fraction` the training leaves out a part of the
    training images, by which NetAdapt chooses: the split that is reported stays unseen.
    """
    final = config.final.copy_and_resolve_references()
    fraction = config.netadapt.get("split_fraction")  # absent in folders of version 1
    if fraction is not None:
        with final.unlocked():
            final.data.split_fraction, final.data.eval_split = fraction, None
    return final.lock()


def open_proxy(config: ConfigDict, folder: Path) -> Proxy:
    """Opens the table that `config.proxy` names; `accel_nasbench` is downloaded once for a folder.

    Raises:
      UsageError: The file cannot be read or is not such a table.
      RunError: The download failed.
      ValueError: The table has no space or no such accuracy.
    """
    options = config.proxy
    kept = folder / "table.json"
    if options.table != accel_nasbench.NAME:
        table = open_network_table(Path(options.table))
    elif kept.exists():
        table = open_network_table(kept)
    else:
        archive = Path(options.archive) if options.archive else None
        table = accel_nasbench.convert(accel_nasbench.fetch(archive))
    if table.space is None:
        raise ValueError(f"proxy.table: {options.table} has no space to search")
    held_out = min(HELD_OUT, len(table.networks) // 5)
    order = np.random.default_rng(config.seed).permutation(len(table.networks))
    proxy = Proxy(table, rows=order[held_out:], accuracy=options.accuracy, seed=config.seed)
    choose("proxy.accuracy", proxy.accuracy, table.columns)  # raises if there is none
    return proxy


def open_space(config: ConfigDict, proxy: Proxy | None) -> Space:
    """Returns the space of the table of `open_proxy`, or else the one that `config.space` names."""
    if proxy is not None:
        assert proxy.table.space is not None, "open_proxy has refused it"
        return proxy.table.space
    options = config.space.to_dict()
    return preset(options.pop("name")).replace(**options)


def check_numbers(config: ConfigDict) -> None:
    """Checks now what the controllers, the surrogate or NetAdapt would refuse after hours.

    Raises:
      ValueError: A field of the configuration is wrong; the message names it.
    """
    options = config.netadapt
    check_trainings(config)
    if config.evaluator == "proxy":
        check_whole("refine_rounds", config.refine_rounds, 0)
        if options.enabled and not flag("train", config.train):
            raise ValueError("netadapt.enabled: NetAdapt narrows a trained network; set train=True")
    else:
        controller = config.controller
        check_whole("check", config.check, 0)
        check_whole("finalists", config.get("finalists", 0), 0)  # absent in older folders
        check_whole("controller.points", controller.points, 0)
        if controller.learning_rate not in (None, "tunas"):
            check_number("controller.learning_rate", controller.learning_rate, above=0)
    if config.evaluator == "surrogate":
        check_whole("rounds.first", config.rounds.first, 2)
        check_whole("rounds.per_round", config.rounds.per_round, 1)
        check_whole("rounds.rounds", config.rounds.rounds, 0)
        if (within := config.rounds.get("within")) is not None:  # absent in older folders
            check_number("rounds.within", within, above=0)
    if flag("netadapt.enabled", options.enabled):
        check_number("netadapt.start", options.start, at_least=1)
        check_number("netadapt.delta", options.delta, above=0, below=1)
        check_whole("netadapt.steps", options.steps, 1)
        if options.max_proposals is not None:
            check_whole("netadapt.max_proposals", options.max_proposals, 1)
        if options.get("split_fraction") is not None:
            check_number("netadapt.split_fraction", options.split_fraction, above=0, below=1)
            if options.eval_split is not None:
                raise ValueError(
                    f"netadapt.split_fraction: got {options.split_fraction}, but "
                    f"netadapt.eval_split is {options.eval_split!r}; one must be None"
                )
