"""Fast spectral normalization for PyTorch: SN, SSN, BSN and BSSN.

Public names are listed in ``__all__``; the data's path is in docs/how-it-works.md.
"""

from fastsn import analysis, functional
from fastsn.apply import apply
from fastsn.backends import set_backend, use_backend
from fastsn.conv_norm import conv_spectral_norm
from fastsn.convert import convert, fold
from fastsn.group import SpectralNormGroup, group_of
from fastsn.parametrization import spectral_norm
from fastsn.state.layouts import convert_state_dict, load_plain_state_dict

__version__ = "0.1.0"

__all__ = [
    "SpectralNormGroup",
    "analysis",
    "apply",
    "conv_spectral_norm",
    "convert",
    "convert_state_dict",
    "fold",
    "functional",
    "group_of",
    "load_plain_state_dict",
    "set_backend",
    "spectral_norm",
    "use_backend",
]
