"""Sample quality: score, Frechet distance, kernel distance, precision and recall of features.

With the Inception network they are IS (Salimans et al. 2016), FID (Heusel et al. 2017), KID
(Binkowski et al. 2018) and improved precision and recall (Kynkaanniemi et al. 2019), comparable
with published ones; with another extractor they have other names. The paper takes IS from 50,000
images in 10 splits, and FID from 5,000 real and 10,000 generated ones (appendix H); every name says
these numbers. The formulas are torch-fidelity's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastsn.gan.config import ConfigError, EvalConfig
from fastsn.gan.data.compat import import_torchvision
from fastsn.gan.data.images import Images
from fastsn.gan.measure.features import Extractor, load_extractor
from fastsn.gan.measure.sampling import generate
from fastsn.gan.rng import Rng
from fastsn.gan.run.logs import progress

__all__ = ["Evaluator", "real_features"]

#: Names of score, Frechet distance and kernel distance, by extractor.
NAMES = {"inception": ("is", "fid", "kid"), "classifier": ("score", "frechet", "kernel")}

#: Images per forward of an extractor.
BATCH = 250
#: KID's usual protocol: mean over this many random subsets of this size.
KERNEL_SUBSETS, KERNEL_SIZE = 100, 1000
#: Neighbours whose distance is the radius of a point, for precision and recall.
NEIGHBOURS = 3


class Evaluator:
    """Evaluates generators against one data set; what it needs is checked when it is made.

    Args:
        options: extractor and sample counts. The real images of the distances are drawn once and
            for all; the generated ones are the first of those that are sampled. (The authors sample
            those of the score and of the distances separately; here they overlap.)
        real: the data set.
        device: where features are computed.

    Raises:
        ConfigError: weights that are missing or damaged, or too few images.
    """

    def __init__(self, options: EvalConfig, real: Images, device: torch.device) -> None:
        self.options, self.device = options, device
        self.origin = protocol_of(real)
        try:
            self.extractor = load_extractor(options.extractor, options.weights, device)
        except (ValueError, OSError) as error:
            raise ConfigError(f"eval.weights: {error}") from error
        try:
            self.real = real_features(real, self.extractor, options.n_real, device)
        except ValueError as error:
            raise ConfigError(f"eval.n_real: {error}") from error

    def __call__(self, sample: Callable[[int], Tensor]) -> dict[str, Any]:
        """A row of ``metrics.jsonl``.

        Args:
            sample: called once, with the number of images wanted; gives ``uint8 [n, c, h, w]``.

        Returns:
            Numbers by names such as ``is_50k_s10``, ``fid_5k_10k``, ``kid_5k_10k``, or
            ``score_...``, ``frechet_...``, ``kernel_...`` for the classifier;
            ``precision_5k_10k`` and ``recall_5k_10k``; with ``_std`` the deviation over splits of
            the score and, where they are parts of the images, over subsets of the kernel distance.
            ``protocol`` is all that they depend on.
        """
        options, extractor = self.options, self.extractor
        n_real, n_fake, n_score = options.n_real, options.n_fake, options.n_score
        pixels = sample(max(n_fake, n_score))
        features, scores = _extract(pixels, extractor, self.device, "evaluating")
        # Subsets as large as the sets would all be the same one, without a deviation.
        size = min(KERNEL_SIZE, n_real, n_fake)
        subsets = KERNEL_SUBSETS if size < min(n_real, n_fake) else 1
        numbers = _numbers(
            self.real, features[:n_fake], scores[:n_score], options.splits, subsets, size
        )
        score, frechet, kernel = NAMES[extractor.name]
        score += f"_{_count(n_score)}_s{options.splits}"
        counts = f"_{_count(n_real)}_{_count(n_fake)}"
        row: dict[str, Any] = {
            f"{frechet}{counts}": numbers["frechet_inception_distance"],
            score: numbers["inception_score_mean"],
            f"{score}_std": numbers["inception_score_std"],
            f"{kernel}{counts}": numbers["kernel_inception_distance_mean"],
            f"precision{counts}": numbers["precision"],
            f"recall{counts}": numbers["recall"],
        }
        if subsets > 1:
            row[f"{kernel}{counts}_std"] = numbers["kernel_inception_distance_std"]
        row["protocol"] = {
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
            **self.origin,
            "n_real": n_real,
            "n_fake": n_fake,
            "n_score": n_score,
            "splits": options.splits,
            "score_classes": extractor.classes,
            "kernel_subsets": subsets,
            "kernel_subset_size": size,
            "neighbours": min(NEIGHBOURS, n_real - 1, n_fake - 1),
        }
        return row

    def generator(self, network: nn.Module, rng: Rng, step: int) -> dict[str, Any]:
        """The row of a generator at a step of its training."""
        return self(lambda n: generate(network, n, rng, "eval", step))


def protocol_of(images: Images) -> dict[str, Any]:
    """What numbers depend on of the real images."""
    print_ = images.fingerprint
    channels, height, _ = print_["shape"]
    return {
        "real": images.name,
        "real_images": print_["images"],
        "real_hash": print_["hash"],
        "resolution": height,
        "channels": channels,
    }


def _numbers(
    real: Tensor, fake: Tensor, scores: Tensor, splits: int, subsets: int, size: int
) -> dict[str, float]:
    import_torchvision()  # torch-fidelity imports it
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = real.cpu().double(), fake.cpu().double()
    near = min(NEIGHBOURS, len(real) - 1, len(fake) - 1)
    return {
        **isc_features_to_metric(scores.cpu(), splits, shuffle=False),
        **fid_statistics_to_metric(
            fid_features_to_statistics(real), fid_features_to_statistics(fake), False
        ),
        **kid_features_to_metric(
            fake, real, kid_subsets=subsets, kid_subset_size=size, rng_seed=0, verbose=False
        ),
        **prc_features_to_metric(
            fake, real, prc_neighborhood=near, save_cpu_ram=True, verbose=False
        ),
    }


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
    return _extract(pixels, extractor.to(device), device, "features of real images")[0]


def _extract(
    pixels: Tensor, extractor: Extractor, device: torch.device | str, what: str
) -> tuple[Tensor, Tensor]:
    parts = progress(pixels.split(BATCH), what, BATCH, len(pixels))
    features, scores = zip(*[extractor(part.to(device)) for part in parts], strict=True)
    return torch.cat(features), torch.cat(scores)


def _count(n: int) -> str:
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)
