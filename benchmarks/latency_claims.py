"""What the paper says about cost, on this CPU: python -m benchmarks.latency_claims --files=F

LiteRT, one thread, batch 1, random weights. The networks of a claim take turns in one process;
figures are medians over turns with 95% intervals. --only-files stops before the timing, which is
the part that needs a quiet machine; --claims selects some of the claims; --out keeps the
measurements.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from mbv3_jax.arch.build import build
from mbv3_jax.core.files import write_atomically
from mbv3_jax.latency.measure import Effort, measure_files, ratios
from mbv3_jax.latency.subjects import write_random

_L, _S, _V2 = "mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2"
_INT8 = {"precision": "int8"}
# Claim: (network: options of arch.build, and "precision"); the first is what ratios are to, and
# for each other what is published: a ratio of Pixel-1 milliseconds (paper, tables 3 to 5, section
# 5; slim README) or None.
CLAIMS = {
    "last stage": {
        "efficient": ((_L, {}), None),
        "original": ((_L, {"last_stage": "original"}), 1 / 0.89),
    },
    "stem": {
        "16 h-swish": ((_L, {}), None),
        "32 ReLU": ((_L, {"stem_filters": 32, "stem_act": "relu"}), 53 / 51),
        "32 swish": ((_L, {"stem_filters": 32, "stem_act": "swish"}), 53 / 51),
    },
    "nonlinearity": {
        "V3-Large": ((_L, {}), None),
        "ReLU": ((_L, {"nonlinearity": "relu"}), 50.5 / 51.4),
        "h-swish from 16": ((_L, {"nonlinearity": "h_swish@16"}), 53.5 / 51.4),
        "h-swish from 112": ((_L, {"nonlinearity": "h_swish@112"}), 51 / 51.4),
        "swish for h-swish": ((_L, {"nonlinearity": "swish"}), None),
    },
    "large": {
        "V3-Large": ((_L, {}), None),
        "V2 1.0": ((_V2, {}), 64 / 51),
        "MnasNet-A1": (("mnasnet_a1", {}), 71 / 51),
        "V3-Large 0.75": ((_L, {"width": 0.75}), 39 / 51),
        "V3-Large minimalistic": ((f"{_L}_minimalistic", {}), 44.1 / 51.2),
    },
    "small": {
        "V3-Small": ((_S, {}), None),
        "V2 0.35": ((_V2, {"width": 0.35}), 16.6 / 15.8),
        "V3-Small 0.75": ((_S, {"width": 0.75}), 12.8 / 15.8),
        "V3-Small minimalistic": ((f"{_S}_minimalistic", {}), 12.2 / 15.8),
        "V3-Large": ((_L, {}), 51 / 15.8),
    },
    "int8": {
        "V3-Large": ((_L, {}), None),
        "V3-Large int8": ((_L, _INT8), 44 / 51),
    },
    "int8 small": {
        "V3-Small": ((_S, {}), None),
        "V3-Small int8": ((_S, _INT8), 15.5 / 15.8),
    },
    "int8 V2": {
        "V2 1.0": ((_V2, {}), None),
        "V2 1.0 int8": ((_V2, _INT8), 52 / 64),
    },
}
_EFFORT = Effort(warmup_seconds=0.1, seconds=1.5, runs=100, turn_seconds=0.04)


def file_of(folder: Path, network: str, options: dict) -> Path:
    """The network's file, unless it is there."""
    name = "-".join([network, *(f"{k}={v}" for k, v in options.items())])
    path = folder / f"{name}.tflite"
    if not path.is_file():
        options = dict(options)
        precision = options.pop("precision", "float32")
        write_random(folder, build(network, **options), "litert", precision, name)
    return path


def measure(claim: str, folder: Path) -> list[dict]:
    """Rows of the claim's table."""
    networks = CLAIMS[claim]
    models = [("litert", file_of(folder, *key)) for key, _ in networks.values()]
    timings = measure_files(models, effort=_EFFORT)
    rows = zip(networks.items(), timings, ratios(timings), strict=True)
    return [
        {"network": name, "published": published, "ms": t.ms, **dataclasses.asdict(r)}
        for (name, (_, published)), t, r in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--only-files", action="store_true")
    parser.add_argument("--claims", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--out", type=Path, help="FILE.json; claims that it has are not repeated")
    flags = parser.parse_args()
    flags.files.mkdir(parents=True, exist_ok=True)
    if flags.only_files:
        for claim in flags.claims:
            for key, _ in CLAIMS[claim].values():
                file_of(flags.files, *key)
        return
    found = json.loads(flags.out.read_text()) if flags.out and flags.out.is_file() else {}
    print("| claim | network | ms | of the first | 95% interval | published, Pixel 1 |")
    print("|-|-|-:|-:|-:|-:|")
    for claim in flags.claims:
        if claim not in found:
            found[claim] = measure(claim, flags.files)
            if flags.out:
                write_atomically(flags.out, json.dumps(found, indent=1))
        for row in found[claim]:
            published = f"{row['published']:.2f}" if row["published"] else ""
            print(
                f"| {claim} | {row['network']} | {row['ms']:.3f} | {row['ratio']:.3f} | "
                f"{row['low']:.3f}-{row['high']:.3f} | {published} |"
            )


if __name__ == "__main__":
    main()
