"""The folder of a search that has ended, without searching: what `report` reads of it."""

import dataclasses
import json
from pathlib import Path

from mbv3_jax.arch import cost, tables


def result() -> dict:
    """A search.json with all that it may have; names are such that a page must escape them."""
    specs = {
        name: getattr(tables, name)().replace(resolution=32, num_classes=15)
        for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
    }
    small = specs["mobilenet_v3_small"].replace(name="found_small")
    large = small.replace(name="found_large", blocks=small.blocks[:-2])
    steps = [
        {"change": "block3 expansion 88 -> 80", "cost": 1.2, "accuracy": 0.61},
        {"change": "bottleneck of block4, block5 40 -> 32", "cost": 1.1, "accuracy": None},
    ]
    return {
        "space": "small",
        "resolution": 32,
        "num_classes": 15,
        "cost": {"name": "ms", "unit": "ms", "source": "LiteRT, one thread, a <fast> machine"},
        "evaluator": "surrogate",
        "agreement": {"spearman": 0.71, "count": 16, "interval": [0.3, 0.9]},
        "candidates": [
            {"point": [i], "top1": 0.3 + 0.01 * i, "cost": 0.8 + 0.03 * i} for i in range(12)
        ],
        "found": {
            "small & $quick$": {
                **network(small, 0.63, 1.01),
                "point": [0, 1],
                "target": 1.0,
                "measured": 1.05,
                "predicted": 0.52,
                "uncertainty": 0.03,
                "rewards": [0.1, 0.2, 0.25, 0.3],
                "adapted": steps,
                "split": "test",
            },
            "large": {
                **network(large, 0.66, 1.52),
                "point": [1, 1],
                "target": 1.5,
                "predicted": 0.55,
                "uncertainty": 0.02,
                "rewards": [0.2, 0.2, 0.3, 0.4],
                "split": "test",
            },
        },
        "references": {
            "mobilenet_v2": network(specs["mobilenet_v2"], 0.64, 14.2),
            "mobilenet_v3_large": network(specs["mobilenet_v3_large"], 0.69, 5.25),
            "mobilenet_v3_small": {
                **network(specs["mobilenet_v3_small"], 0.62, 1.9),
                "measured": 2.0,
            },
        },
    }


def network(spec, top1: float, price: float) -> dict:
    tree = json.loads(json.dumps(dataclasses.asdict(spec)))
    return {"spec": tree, "top1": top1, "cost": price, "madds": cost.madds(spec)}


def make(folder: Path, tree: dict | None = None) -> Path:
    """Writes the folder, with `result` or another search.json; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"program": "search"}))
    (folder / "search.json").write_text(json.dumps(tree or result()))
    return folder
