"""Imports torchvision beside a torch build that its binary extension does not fit.

torchvision's wheel on the plain package index is compiled for CUDA. Beside a CPU build of torch
its extension cannot be loaded, and `import torchvision` (so `import timm` too) then stops at the
first detection operator that it describes but that the extension would have defined. The
classifiers use none of these operators: declaring their signatures is enough.
"""

import importlib
import sys

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")  # those torchvision 0.28 describes unconditionally
_library = None  # torch forgets the declarations when this object goes


def import_torchvision():
    """Returns the torchvision module, with its missing operators declared where need be."""
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as e:
        if "operator torchvision::" not in str(e):
            raise
    import torch

    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half-imported submodules
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        _library.define(name + _SIGNATURE)
    return importlib.import_module("torchvision")
