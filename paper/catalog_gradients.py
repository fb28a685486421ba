"""What the paper measures inside discriminators: sections 3 to 5, appendices I to M."""

from __future__ import annotations

from paper.arms import conv, lecun, method, scaled, spread, sweep
from paper.spec import (
    Arm,
    Curves,
    Experiment,
    LayerBars,
    LayerCurves,
    NormRatios,
    Sweep,
    VarianceScatter,
)

__all__ = ["EXPERIMENTS"]

SN = method("cifar10", "sn", "SN")
NONE = method("cifar10", "none", "without SN")
STRICT = conv("cifar10", 1.0, label="SN_Conv")
SN_VARIANTS = (SN, STRICT, conv("cifar10", 1.75))
SN_OR_NONE = (NONE, SN)

# Appendix J: WGAN with a gradient penalty of 10, or with the strict norm and no penalty.
MNIST = (
    method("mnist", "none", "without SN"),
    conv("mnist", 1.0, label="with SN_Conv"),
)
CIFAR10_WGAN = (
    Arm(
        "without SN",
        "paper/cifar10_none",
        {"loss.name": "wgan", "loss.gradient_penalty": 10.0},
    ),
    Arm("with SN_Conv", "paper/cifar10_sn_conv", {"norm.scale": 1.0, "loss.name": "wgan"}),
)
PENALTIES = (
    method("cifar10", "wgan_gp", "stable"),
    method("cifar10", "wgan_gp_explode", "exploding gradients"),
    method("cifar10", "wgan_gp_vanish", "vanishing gradients"),
)
BOTH_NORMS = (*sweep(scaled, "SN"), *sweep(conv, "SN_Conv"))
SSN_AND_LECUN = (*sweep(scaled, "SSN"), *sweep(lecun, "LeCun initialization"))
RATIO = LayerCurves("conv_ratio", ("conv_ratio_lower", "conv_ratio_upper"), panels="layers")
VARIANCE = LayerCurves("variance", ("variance_bound",), panels="layers")
NORM_RATIOS = "Gradient norms are inverse to spectral norms, for random scales of the layers"

EXPERIMENTS = (
    Experiment(
        "fig2",
        "Gradient norm of each layer of the discriminator, with and without SN",
        "section 3, Figure 2",
        "mnist",
        MNIST,
        LayerCurves("output_grad_norm", log=True, panels="layers"),
    ),
    Experiment("fig3", NORM_RATIOS, "section 3, Figure 3", "mnist", spread("mnist"), NormRatios()),
    Experiment(
        "fig4",
        "Score of SN and of the strict SN_Conv, scaled or not",
        "section 4, Figure 4",
        "cifar10",
        SN_VARIANTS,
        Curves("score"),
    ),
    Experiment(
        "fig5",
        "Gradient norm of SN and of the strict SN_Conv, scaled or not",
        "section 4, Figure 5",
        "cifar10",
        SN_VARIANTS,
        Curves("grad_norm", log=True),
    ),
    Experiment(
        "fig6",
        "Score by scale, of SN and SN_Conv",
        "section 4, Figure 6",
        "cifar10",
        BOTH_NORMS,
        Sweep("score", "scale"),
    ),
    Experiment(
        "fig7",
        "Variance of each layer's weights under SN, and its bound",
        "section 4, Figure 7",
        "cifar10",
        (SN,),
        VARIANCE,
    ),
    Experiment(
        "fig8",
        "Best score by scale, of SSN and of scaled LeCun initialization",
        "section 5.2, Figure 8",
        "cifar10",
        SSN_AND_LECUN,
        Sweep("score", "scale", pick="best"),
    ),
    Experiment(
        "fig10",
        "Score of WGANs whose gradients are stable, explode or vanish",
        "appendix I, Figure 10",
        "cifar10",
        PENALTIES,
        Curves("score"),
    ),
    Experiment(
        "fig11",
        "Gradient norm of WGANs whose gradients are stable, explode or vanish",
        "appendix I, Figure 11",
        "cifar10",
        PENALTIES,
        Curves("grad_norm", log=True),
    ),
    Experiment(
        "fig12",
        "Gradient norm of each layer at half of the training, with and without SN",
        "appendix J, Figure 12",
        "mnist",
        MNIST,
        LayerBars("output_grad_norm", moment=0.5, log=True),
    ),
    Experiment(
        "fig13",
        "Gradient norm of each layer early in the training, with and without SN",
        "appendix J, Figure 13",
        "cifar10",
        CIFAR10_WGAN,
        LayerBars("output_grad_norm", moment=10_000 / 400_000, log=True),
    ),
    Experiment(
        "fig14",
        NORM_RATIOS,
        "appendix K, Figure 14",
        "cifar10",
        spread("cifar10"),
        NormRatios(),
    ),
    Experiment(
        "fig15", NORM_RATIOS, "appendix K, Figure 15", "stl10", spread("stl10"), NormRatios()
    ),
    Experiment(
        "fig16",
        "Variance of each layer's weights without SN",
        "appendix L.2, Figure 16",
        "cifar10",
        (NONE,),
        LayerCurves("variance", log=True),
    ),
    Experiment(
        "fig17",
        "Variance of each layer's weights under SN",
        "appendix L.2, Figure 17",
        "cifar10",
        (SN,),
        LayerCurves("variance", log=True),
    ),
    Experiment(
        "fig18",
        "Gradient norm with and without SN",
        "appendix L.2, Figure 18",
        "cifar10",
        SN_OR_NONE,
        Curves("grad_norm", log=True),
    ),
    Experiment(
        "fig19",
        "Score with and without SN",
        "appendix L.2, Figure 19",
        "cifar10",
        SN_OR_NONE,
        Curves("score"),
    ),
    Experiment(
        "fig20",
        "Norm of each convolution over that of its reshaped kernel, under SN, with bounds",
        "appendix L.3, Figure 20",
        "cifar10",
        (SN,),
        RATIO,
    ),
    Experiment(
        "fig21",
        "Norm of each convolution over that of its reshaped kernel, under SN_Conv, with bounds",
        "appendix L.3, Figure 21",
        "cifar10",
        (STRICT,),
        RATIO,
    ),
    Experiment(
        "fig22",
        "Product of the layers' variances by scale, of SN and SN_Conv",
        "appendix L.4, Figure 22",
        "cifar10",
        BOTH_NORMS,
        Sweep("log_variance_product", "scale"),
    ),
    Experiment(
        "fig23",
        "Best score over the product of the layers' variances, of SSN and scaled LeCun "
        "initialization",
        "appendix M, Figure 23",
        "cifar10",
        SSN_AND_LECUN,
        VarianceScatter(),
    ),
)
