"""Every option of a training run, as one tree of frozen dataclasses.

The command line, the YAML files and the presets are views of this tree: ``train.steps`` is the
field ``steps`` of ``Config.train``. The types say what an option can be, :func:`validate` what
options exclude each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse.typing import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

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
    "validate",
]

if TYPE_CHECKING:
    Resolution = int
    Steps = int
    Batch = int
    Pictures = int
    Sample = int
    Width = float
    Decay = float
else:
    # Bounds far above all use: they tell a typing error at once, not after hours.
    Resolution = restricted_number_type("Resolution", int, [(">", 0), ("<=", 4096)])
    Width = restricted_number_type("Width", float, [(">", 0), ("<=", 64)])
    Decay = restricted_number_type("Decay", float, [(">=", 0), ("<", 1)])
    Steps = restricted_number_type("Steps", int, [(">", 0), ("<", 10**8)])
    Batch = restricted_number_type("Batch", int, [(">", 0), ("<=", 2**20)])
    Pictures = restricted_number_type("Pictures", int, [(">", 0), ("<=", 2**16)])
    Sample = restricted_number_type("Sample", int, [(">=", 2), ("<=", 10**7)])

DataName = Literal[
    "fashion_mini", "mnist", "fashion_mnist", "cifar10", "stl10", "celeba", "imagenet", "folder",
    "array",
]  # fmt: skip
ModelName = Literal["mnist", "cnn32", "cnn48", "cnn64", "resnet32", "resnet64", "resnet128"]
Method = Literal[
    "none", "sn", "ssn", "bsn", "bssn", "sn_conv", "same_gamma", "diff_gamma", "bsn_same_gamma",
    "bsn_diff_gamma", "torch", "lecun",
]  # fmt: skip
#: The methods with a scale, and those that can have another one in each layer.
SCALED = ("ssn", "bssn", "sn_conv", "lecun")
SPREADABLE = ("ssn", "bssn", "sn_conv")

#: The largest content of a configuration file, in bytes and in values with all aliases expanded.
MOST_BYTES, MOST_VALUES = 2**20, 10_000

#: Options that may differ between the parts of one run: where things are, and how long it goes on.
FREE = frozenset(
    {
        "data.root",
        "data.verify",
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
        channels: 1 makes grey images, 3 coloured ones; default: the data set's own, of a folder 3
            if any picture has colours.
        verify: only the original files of cifar10, stl10 and celeba, by their MD5 sums; false takes
            a part of them, or copies packed anew.
    """

    name: DataName = "fashion_mini"
    root: str | None = None
    resolution: Resolution | None = None
    channels: Literal[1, 3] | None = None
    verify: bool = True


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

    name: ModelName = "mnist"
    width: Width = 1.0
    negative_slope: NonNegativeFloat | None = None


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

    method: Method = "bssn"
    scale: PositiveFloat = 1.0
    update: Literal["step", "forward"] = "step"
    spread: NonNegativeFloat = 0.0
    spread_seed: NonNegativeInt = 0


@dataclass(frozen=True)
class LossConfig:
    """The adversarial loss.

    Args:
        name: hinge, vanilla, vanilla_saturating or wgan.
        gradient_penalty: weight of the gradient penalty (Gulrajani et al. 2017); 0 leaves it out.
    """

    name: Literal["hinge", "vanilla", "vanilla_saturating", "wgan"] = "hinge"
    gradient_penalty: NonNegativeFloat = 0.0


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

    lr_g: PositiveFloat = 1e-4
    lr_d: PositiveFloat = 1e-4
    beta1: Decay = 0.5
    beta2: Decay = 0.999
    n_dis: PositiveInt = 1
    batch_d: Batch = 64
    batch_g: Batch = 64
    reuse_z: bool = True
    decay: Literal["none", "linear"] = "none"


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

    steps: Steps = 100_000
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ema: Decay = 0.0


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

    every: PositiveInt = 100
    samples_every: NonNegativeInt = 5_000
    n_samples: Pictures = 64
    diagnostics_every: NonNegativeInt = 10_000
    tensorboard: bool = True


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.

    Args:
        every: iterations between two; one is always written at the end.
        keep: how many of the last ones to keep; the best by evaluation is kept beside them.
    """

    every: PositiveInt = 1_000
    keep: PositiveInt = 2


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

    every: NonNegativeInt = 0
    extractor: Literal["inception", "classifier"] = "inception"
    weights: str | None = None
    n_real: Sample = 5_000
    n_fake: Sample = 10_000
    n_score: Sample = 50_000
    splits: PositiveInt = 10


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
    """A plain value that the type allows."""
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return None if value is None else _typed(name, value, kinds[0])
    if get_origin(hint) is Literal:
        if value not in get_args(hint) or isinstance(value, bool):
            raise ConfigError(f"{name}: expected one of {[*get_args(hint)]}, got {value!r}")
        return value
    base = next(kind for kind in (bool, int, float, str) if issubclass(hint, kind))
    plain = value
    if base is float and isinstance(value, str):  # YAML reads 1e-4 as a string
        with contextlib.suppress(ValueError):
            plain = float(value)
    if base is float and isinstance(plain, int) and not isinstance(plain, bool):
        plain = float(plain)
    wrong = not isinstance(plain, base) or (isinstance(plain, bool) and base is not bool)
    if wrong or (base is float and not math.isfinite(plain)):
        raise ConfigError(f"{name}: expected {base.__name__}, got {value!r}")
    try:
        return base(hint(plain))  # jsonargparse's types check when they are made
    except ValueError:
        allowed = hint._expression.replace("v", "")
        raise ConfigError(f"{name}: expected {base.__name__} {allowed}, got {value!r}") from None


def validate(config: Config) -> Config:
    """Returns ``config``, with plain values, if a run can be made of it.

    Raises:
        ConfigError: the first option that is out of range, or that another one excludes.
    """
    config = from_dict(config.to_dict())
    norm, speed, evals, network = config.norm, config.speed, config.eval, config.model
    decay, slope = config.optim.decay, network.negative_slope

    def check(right: object, name: str, wanted: str, got: object, why: str = "") -> None:
        if not right:
            raise ConfigError(f"{name}: expected {wanted}, got {got}{': ' if why else ''}{why}")

    check(
        norm.scale == 1 or norm.method in SCALED,
        "norm.scale",
        f"1 with norm.method {norm.method!r}",
        norm.scale,
        f"the methods with a scale are {', '.join(SCALED)}",
    )
    check(
        not norm.spread or norm.method in SPREADABLE,
        "norm.spread",
        f"0 with norm.method {norm.method!r}",
        norm.spread,
        f"the methods with a scale for each layer are {', '.join(SPREADABLE)}",
    )
    check(
        slope is None or not network.name.startswith("resnet"),
        "model.negative_slope",
        f"none with model.name {network.name!r}",
        slope,
        "it has ReLUs alone",
    )
    if speed.cuda_graphs:
        off, why = "speed.cuda_graphs", "a graph keeps the learning rate it was captured with"
        check(not speed.compile, off, "false with speed.compile", "both")
        check(decay == "none", off, f"false with optim.decay {decay!r}", "both", why)
        why = "its random points are drawn inside the step"
        penalty = config.loss.gradient_penalty
        check(not penalty, off, "false with loss.gradient_penalty", "both", why)
    check(
        not evals.every or evals.extractor != "inception" or evals.weights,
        "eval.weights",
        "a file of Inception weights",
        "none",
        "give one, or set eval.extractor to classifier, or eval.every to 0",
    )
    wanted = f"at least eval.splits ({evals.splits})"
    check(evals.n_score >= evals.splits, "eval.n_score", wanted, evals.n_score)
    return config


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, if it is of a size that configurations have.

    Raises:
        ConfigError: it cannot be read; the message names the file.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: expected at most {MOST_BYTES} bytes of options, got more")
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _values(root, {}) > MOST_VALUES:
            raise ConfigError(f"{path}: expected at most {MOST_VALUES} options, got more")
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: expected a readable YAML file, got: {error}") from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node has with its aliases written out: a few lines may have billions."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # of a node in itself
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


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
