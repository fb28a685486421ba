"""Every option of a training run, as one tree of frozen dataclasses.

The command line, the YAML files and the presets are views of this tree: ``train.steps`` is the
field ``steps`` of ``Config.train``. :mod:`fastsn.gan.validation` says what cannot be used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "NormConfig",
    "OptimConfig",
    "SpeedConfig",
    "TrainConfig",
    "differences",
    "from_dict",
    "read_config",
    "read_yaml",
]

#: Options that may differ between the parts of one run: where things are, and how long it goes on.
FREE = frozenset(
    {
        "data.root",
        "train.steps",
        "train.device",
        "log.tensorboard",
        "checkpoint.keep",
        "checkpoint.every",
        "eval.weights",
    }
)


class ConfigError(ValueError):
    """An option that cannot be used; the message begins with its name."""


@dataclass(frozen=True)
class DataConfig:
    """The real images.

    Args:
        name: fashion_mini (5,000 images, shipped), mnist, fashion_mnist, cifar10, stl10, celeba,
            imagenet, folder (any folder of images) or array (.npy, .npz).
        root: folder or file of the data set; not needed for fashion_mini.
        resolution: side of the images in pixels; default: the data set's own.
    """

    name: str = "fashion_mini"
    root: str | None = None
    resolution: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The two networks.

    Args:
        name: mnist (Tables 4-5), cnn32, cnn48, cnn64 (Tables 2-3), resnet32 .. resnet128
            (Tables 8-13).
        width: factor of the number of channels; 1 is the paper's.
        negative_slope: of the discriminator's leaky ReLU, 0 for ReLU; default: the table's. The
            ResNets have none.
    """

    name: str = "mnist"
    width: float = 1.0
    negative_slope: float | None = None


@dataclass(frozen=True)
class NormConfig:
    """How the discriminator's weights are normalized.

    Args:
        method: none, sn, ssn, bsn, bssn, sn_conv, same_gamma, diff_gamma, bsn_same_gamma,
            bsn_diff_gamma, torch (torch's own spectral norm) or lecun (scaled LeCun
            initialization, no norm).
        scale: factor of the normalized weights, for ssn, bssn and sn_conv; of the initialization
            for lecun.
        update: step: the singular vectors advance once per discriminator update, as in the
            authors' code; forward: at every forward, as in torch.
        spread: standard deviation of the logarithms of the layers' scales, whose geometric mean is
            scale (appendix K); 0: all layers have the same. For ssn, bssn and sn_conv.
        spread_seed: of the layers' scales.
    """

    method: str = "bssn"
    scale: float = 1.0
    update: str = "step"
    spread: float = 0.0
    spread_seed: int = 0


@dataclass(frozen=True)
class LossConfig:
    """The adversarial loss.

    Args:
        name: hinge, vanilla, vanilla_saturating or wgan.
        gradient_penalty: weight of the gradient penalty (Gulrajani et al. 2017); 0 leaves it out.
    """

    name: str = "hinge"
    gradient_penalty: float = 0.0


@dataclass(frozen=True)
class OptimConfig:
    """Adam, and what an iteration is: n_dis discriminator updates and one generator update.

    Args:
        lr_g: learning rate of the generator.
        lr_d: learning rate of the discriminator.
        beta1: Adam's decay of the gradient's mean.
        beta2: Adam's decay of its square.
        n_dis: discriminator updates per generator update.
        batch_d: real images, and generated ones, per discriminator update, over all ranks.
        batch_g: generated images per generator update, over all ranks.
        reuse_z: the generator update takes the z of the last discriminator update, as in the
            authors' code, where the batches are equal; otherwise it draws its own.
        decay: none, or linear: the learning rates go to 0 over train.steps.
    """

    lr_g: float = 1e-4
    lr_d: float = 1e-4
    beta1: float = 0.5
    beta2: float = 0.999
    n_dis: int = 1
    batch_d: int = 64
    batch_g: int = 64
    reuse_z: bool = True
    decay: str = "none"


@dataclass(frozen=True)
class TrainConfig:
    """Length, seed and device.

    Args:
        steps: iterations (generator updates) in all; a run can be continued with more.
        seed: of everything random: initialization, batches, z.
        device: auto (cuda where there is one), cpu or cuda.
        ema: decay of the generator's moving average, which is then what is sampled and evaluated;
            0: none.
    """

    steps: int = 100_000
    seed: int = 0
    device: str = "auto"
    ema: float = 0.0


@dataclass(frozen=True)
class SpeedConfig:
    """What makes a step faster and its numbers others; all off in the paper's presets.

    Args:
        tf32: TF32 matrix products (NVIDIA GPUs).
        bf16: forwards in bfloat16 by autocast.
        channels_last: channels-last memory format.
        compile: torch.compile for both networks.
        cuda_graphs: one CUDA graph per iteration. The singular vectors then advance once more per
            iteration.
        deterministic: deterministic CUDA algorithms, which bit-exact resuming needs.
    """

    tf32: bool = False
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = True


@dataclass(frozen=True)
class LogConfig:
    """What is written while training, in iterations; 0 turns a part off.

    Args:
        every: a row of losses and speed; the only moments the host waits for the device.
        samples_every: a grid of samples, always from the same z.
        n_samples: images in the grid.
        diagnostics_every: gradient norms, variances, spectral norms and bounds of every layer.
        tensorboard: also write TensorBoard files.
    """

    every: int = 100
    samples_every: int = 5_000
    n_samples: int = 64
    diagnostics_every: int = 10_000
    tensorboard: bool = True


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.

    Args:
        every: iterations between two; one is always written at the end.
        keep: how many of the last ones to keep; the best by evaluation is kept beside them.
    """

    every: int = 1_000
    keep: int = 2


@dataclass(frozen=True)
class EvalConfig:
    """Metrics during training.

    Args:
        every: iterations between two evaluations; 0: none.
        extractor: inception (needs weights) or classifier (small, shipped, for 28x28 images;
            its numbers are not IS and FID).
        weights: file of Inception weights as torch-fidelity publishes them.
        n_real: real images of the Frechet distance.
        n_fake: generated images of the Frechet distance.
        n_score: generated images of the score.
        splits: parts the score is averaged over.
    """

    every: int = 0
    extractor: str = "inception"
    weights: str | None = None
    n_real: int = 5_000
    n_fake: int = 10_000
    n_score: int = 50_000
    splits: int = 10


@dataclass(frozen=True)
class Config:
    """All options of a run.

    Args:
        data: the real images.
        model: the two networks.
        norm: how the discriminator is normalized.
        loss: the adversarial loss.
        optim: Adam and the batches.
        train: length, seed and device.
        speed: what makes a step faster and its numbers others.
        log: what is written while training.
        checkpoint: checkpoints.
        eval: metrics during training.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The tree as plain dictionaries."""
        return {section: dict(vars(options)) for section, options in vars(self).items()}

    def to_yaml(self) -> str:
        """The tree as a YAML file, in the order of the fields."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def run_name(self) -> str:
        """A folder name that is a function of the options that make the run what it is.

        Only those that are not the default: an option that is added later leaves names as they are.
        """
        usual = dict(flatten(Config().to_dict()))
        fixed = {
            name: value
            for name, value in flatten(self.to_dict())
            if name not in FREE and value != usual[name]
        }
        digest = hashlib.blake2b(json.dumps(fixed, sort_keys=True).encode(), digest_size=4)
        parts = (self.data.name, self.norm.method, f"seed{self.train.seed}", digest.hexdigest())
        return "-".join(parts)


_types = cache(get_type_hints)


def flatten(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``("train.steps", 100)`` and so on."""
    for section, options in tree.items():
        for name, value in options.items():
            yield f"{section}.{name}", value


def from_dict(tree: Any, source: str = "the configuration") -> Config:
    """The configuration of plain dictionaries; what they leave out has its default.

    Raises:
        ConfigError: an unknown option or one of the wrong type.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source}: expected sections such as 'data' and 'train', got {tree!r}")
    sections = _types(Config)
    built = {}
    for section, options in tree.items():
        if section not in sections:
            raise ConfigError(f"{section}: expected one of {list(sections)} in {source}")
        if not isinstance(options, Mapping):
            raise ConfigError(f"{section}: expected options with values in {source}")
        types = _types(sections[section])
        for name in options:
            if name not in types:
                raise ConfigError(f"{section}.{name}: expected one of {list(types)} in {source}")
        values = {
            name: _typed(f"{section}.{name}", value, types[name]) for name, value in options.items()
        }
        built[section] = sections[section](**values)
    return Config(**built)


def _typed(name: str, value: Any, hint: Any) -> Any:
    kinds = getattr(hint, "__args__", (hint,))
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    if float in kinds and isinstance(value, str):  # YAML reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ConfigError(f"{name}: expected {wanted}, got {value!r}")


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: it cannot be read; the message names the file.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a readable YAML file, got: {error}") from None


def read_config(path: Path) -> Config:
    """The configuration of a YAML file."""
    return from_dict(read_yaml(path), str(path))


def differences(mine: Config, theirs: Config) -> list[str]:
    """Lines ``train.seed: 0 -> 1`` of all options that make it another run."""
    old, new = dict(flatten(theirs.to_dict())), dict(flatten(mine.to_dict()))
    free = FREE - {"train.steps"} if mine.optim.decay != "none" else FREE
    return [
        f"{name}: {old[name]!r} -> {new[name]!r}"
        for name in old
        if old[name] != new[name] and name not in free
    ]
