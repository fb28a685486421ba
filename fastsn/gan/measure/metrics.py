r"""Sample quality: score, Frechet distance and kernel distance in an extractor's features.

With the Inception network they are IS (Salimans et al. 2016), FID (Heusel et al. 2017) and KID
(Binkowski et al. 2018), comparable with published ones; with another extractor they have other
names. The paper takes IS from 50,000 images in 10 splits, and FID from 5,000 real and 10,000
generated ones (appendix H); every name says these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsn.gan.data.images import Images
from fastsn.gan.measure.features import Extractor

__all__ = ["evaluate", "frechet_distance", "kernel_distance", "real_features", "score"]

#: Names of score, Frechet distance and kernel distance, by extractor.
NAMES = {"inception": ("is", "fid", "kid"), "classifier": ("score", "frechet", "kernel")}

#: Images per forward of an extractor.
BATCH = 250
#: KID's usual protocol: mean over this many random subsets of this size.
KERNEL_SUBSETS, KERNEL_SIZE = 100, 1000


def evaluate(
    real: Images | Tensor,
    sample: Callable[[int], Tensor],
    *,
    extractor: Extractor,
    n_real: int = 5_000,
    n_fake: int = 10_000,
    n_score: int = 50_000,
    splits: int = 10,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, Any]]:
    """All numbers about a generator.

    Args:
        real: real images, of which ``n_real`` are drawn once and for all (the same in every call),
            or their features, by :func:`real_features`.
        sample: called once, with the number of images wanted; gives ``uint8 [n, c, h, w]``.
        extractor: what the images are compared by; it is moved to ``device``.
        n_real: real images of the distances.
        n_fake: generated images of the distances: the first of those that are sampled.
        n_score: generated images of the score. The authors sample those of the score and of the
            distances separately; here they overlap.
        splits: parts whose scores are averaged.
        device: where features are computed.

    Returns:
        ``"values"``: numbers by names such as ``is_50k_s10``, ``fid_5k_10k``, ``kid_5k_10k``, or
        ``score_...``, ``frechet_...``, ``kernel_...`` for the classifier, with ``_std`` over splits
        or subsets for the first and the last; ``"protocol"``: all that they depend on.

    Raises:
        ValueError: too few images.
    """
    extractor.to(device)
    origin = real.name if isinstance(real, Images) else "features"
    if isinstance(real, Images):
        real = real_features(real, extractor, n_real, device)
    if len(real) != n_real:
        raise ValueError(f"expected features of n_real={n_real} real images, got {len(real)}")
    for name, n in (("n_real", n_real), ("n_fake", n_fake)):
        if n < 2:
            raise ValueError(f"expected {name} to be at least 2, got {n}")
    pixels = sample(max(n_fake, n_score))
    features, scores = _extract(pixels, extractor, device)
    subsets = KERNEL_SUBSETS, min(KERNEL_SIZE, n_real, n_fake)
    score_name, frechet_name, kernel_name = NAMES[extractor.name]
    score_name += f"_{_count(n_score)}_s{splits}"
    counts = f"_{_count(n_real)}_{_count(n_fake)}"
    values = {frechet_name + counts: frechet_distance(real, features[:n_fake])}
    values[score_name], values[f"{score_name}_std"] = score(scores[:n_score], splits)
    kernel = kernel_distance(real, features[:n_fake], *subsets)
    values[kernel_name + counts], values[f"{kernel_name}{counts}_std"] = kernel
    protocol = {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "real": origin,
        "n_real": n_real,
        "n_fake": n_fake,
        "n_score": n_score,
        "splits": splits,
        "score_classes": extractor.classes,
        "kernel_subsets": subsets[0],
        "kernel_subset_size": subsets[1],
    }
    return {"values": values, "protocol": protocol}


def real_features(
    images: Images, extractor: Extractor, n: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Features ``float32 [n, d]`` of ``n`` real images, drawn without replacement.

    The same images every time: the authors draw them once per run.

    Raises:
        ValueError: there are fewer.
    """
    if n > len(images):
        raise ValueError(
            f"expected n_real to be at most the {len(images)} images of {images.name}, got {n}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]
    pixels = images.pixels.index_select(0, order.to(images.pixels.device))
    return _extract(pixels, extractor.to(device), device)[0]


def _extract(
    pixels: Tensor, extractor: Extractor, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    parts = [extractor(part.to(device)) for part in pixels.split(BATCH)]
    features, scores = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(scores)


def _count(n: int) -> str:
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def score(scores: Tensor, splits: int = 10) -> tuple[float, float]:
    r"""Mean and standard deviation over splits of :math:`\exp E_x KL(p(y|x) \| E_x p(y|x))`.

    Args:
        scores: of classes, before the softmax, ``[n, k]``; the order is the images'.
        splits: consecutive parts of equal size, but for one.
    """
    n = len(scores)
    if not 1 <= splits <= n:
        raise ValueError(f"expected between 1 and {n} splits, got {splits}")
    results = []
    for i in range(splits):
        # in float64 per split: all of them at once would be large
        log_p = scores[i * n // splits : (i + 1) * n // splits].double().log_softmax(1)
        log_mean = log_p.logsumexp(0) - math.log(len(log_p))
        results.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())
    means = torch.stack(results)
    return float(means.mean()), float(means.std(correction=0))


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    r"""Frechet distance of the Gaussians with the features' means and covariances.

    .. math:: \|m_1 - m_2\|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})

    The trace of the root is the sum of the roots of the eigenvalues of
    :math:`C_1^{1/2} C_2 C_1^{1/2}`, which is symmetric.

    Args:
        real: ``[n, d]``, n at least 2.
        fake: ``[m, d]``, m at least 2.
    """
    (mean_1, cov_1), (mean_2, cov_2) = _moments(real), _moments(fake)
    values, vectors = torch.linalg.eigh(cov_1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov_2 @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    difference = (mean_1 - mean_2).square().sum()
    return float(difference + cov_1.trace() + cov_2.trace() - 2 * trace)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    x = features.double()
    mean = x.mean(0)
    x = x - mean
    return mean, x.T @ x / (len(x) - 1)


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: int = KERNEL_SUBSETS, size: int = KERNEL_SIZE
) -> tuple[float, float]:
    r"""Mean and standard deviation over random subsets of the unbiased squared MMD.

    The kernel is :math:`(x^T y / d + 1)^3`. The same subsets are drawn every time.

    Args:
        real: ``[n, d]``.
        fake: ``[m, d]``.
        subsets: how many.
        size: of each, without replacement; at most n and m.
    """
    if not 2 <= size <= min(len(real), len(fake)):
        raise ValueError(f"expected subsets of 2 to {min(len(real), len(fake))} images, got {size}")
    rng = torch.Generator().manual_seed(0)
    results = []
    for _ in range(subsets):
        x, y = (
            part[torch.randperm(len(part), generator=rng)[:size].to(part.device)].double()
            for part in (real, fake)
        )
        xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        results.append(within - 2 * xy.mean())
    distances = torch.stack(results)
    return float(distances.mean()), float(distances.std(correction=0))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1).pow(3)
