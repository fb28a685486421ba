"""To look at models with: exact norms, convolution norms, the paper's bounds.

Nothing here is needed for training. Results are Python floats, computed in float64; every call
waits for the device.
"""

from fastsn.analysis.convolution import conv_matrix, conv_norm, conv_norm_of
from fastsn.analysis.report import LayerReport, LayerRow, layer_report
from fastsn.analysis.spectrum import (
    SingularValues,
    SpectrumMonitor,
    log_sigmas,
    singular_values,
)
from fastsn.analysis.theory import (
    GradientBounds,
    bsn_sigma_exact,
    bsn_variance_bound,
    parameter_variance,
    proposition1_bound,
    proposition3_bound,
    raw_gradient_bound,
    spectral_norm_exact,
    theorem2_bound,
    theorem2_lower_bound,
    theorem3_bound,
    theorem3_lower_bound,
    unfold,
)
from fastsn.analysis.tsuzuku import TsuzukuBounds, tsuzuku_alpha, tsuzuku_bounds

__all__ = [
    "GradientBounds",
    "LayerReport",
    "LayerRow",
    "SingularValues",
    "SpectrumMonitor",
    "TsuzukuBounds",
    "bsn_sigma_exact",
    "bsn_variance_bound",
    "conv_matrix",
    "conv_norm",
    "conv_norm_of",
    "layer_report",
    "log_sigmas",
    "parameter_variance",
    "proposition1_bound",
    "proposition3_bound",
    "raw_gradient_bound",
    "singular_values",
    "spectral_norm_exact",
    "theorem2_bound",
    "theorem2_lower_bound",
    "theorem3_bound",
    "theorem3_lower_bound",
    "tsuzuku_alpha",
    "tsuzuku_bounds",
    "unfold",
]
