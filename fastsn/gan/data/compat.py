"""The one place where torchvision is imported."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import torch

__all__ = ["import_torchvision"]

# The operators that torchvision describes to torch at import, whether or not it could load them.
_DESCRIBED = ("nms", "qnms")
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """``torchvision``, also where its compiled operators do not load.

    A CUDA build of torchvision beside a CPU build of torch raises "operator torchvision::nms does
    not exist" at import. Nothing here needs its operators: they are declared, without kernels, and
    the import is tried again.

    Raises:
        ImportError: torchvision is not installed, or fails in another way.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"expected torchvision, got: {error}. Install it with: pip install 'fastsn[gan]'"
        ) from error
    except RuntimeError as error:
        if _declared or "torchvision::" not in str(error):
            raise ImportError(f"expected torchvision to import, got: {error}") from error
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _DESCRIBED:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)  # its declarations last as long as it does
    torchvision = importlib.import_module("torchvision")
    warnings.warn(
        f"torchvision {torchvision.__version__} cannot load its compiled operators beside torch "
        f"{torch.__version__}: its readers work, its operators (such as nms) do not",
        RuntimeWarning,
        stacklevel=2,
    )
    return torchvision
