"""Options: types, ranges, what excludes what, and differences between runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from tiny import tiny

from fastsn.gan import config as config_module
from fastsn.gan.config import (
    Config,
    ConfigError,
    differences,
    flatten,
    from_dict,
    read_config,
    validate,
)
from fastsn.gan.data.sets import DATASETS
from fastsn.gan.measure.features import EXTRACTORS
from fastsn.gan.nets.losses import LOSSES
from fastsn.gan.nets.models import NETWORKS
from fastsn.gan.nets.normalization import METHODS
from fastsn.gan.rng import seed_of

BAD = [
    ({"train": {"steps": 0}}, "train.steps: expected int >0 and <100000000, got 0"),
    ({"train": {"steps": 1.5}}, "train.steps: expected int, got 1.5"),
    ({"train": {"steps": True}}, "train.steps: expected int, got True"),
    ({"train": {"seed": -1}}, "train.seed: expected int >=0, got -1"),
    ({"train": {"ema": 1.0}}, "train.ema: expected float >=0 and <1, got 1.0"),
    ({"train": {"device": "tpu"}}, "train.device: expected one of"),
    ({"train": {"stepz": 3}}, "train.stepz: expected one of"),
    ({"trian": {"steps": 3}}, "trian: expected one of"),
    ({"train": 3}, "train: expected options with values"),
    ({"data": {"name": "cifar"}}, "data.name: expected one of"),
    ({"data": {"resolution": 0}}, "data.resolution: expected int >0 and <=4096, got 0"),
    ({"data": {"root": 3}}, "data.root: expected str, got 3"),
    ({"model": {"name": "biggan"}}, "model.name: expected one of"),
    ({"model": {"width": -1.0}}, "model.width: expected float >0 and <=64, got -1.0"),
    ({"model": {"width": float("nan")}}, "model.width: expected float, got nan"),
    ({"model": {"width": "wide"}}, "model.width: expected float, got 'wide'"),
    ({"norm": {"method": "SN"}}, "norm.method: expected one of"),
    ({"norm": {"method": "sn", "scale": 1.2}}, "norm.scale: expected 1 with norm.method 'sn'"),
    ({"norm": {"method": "sn", "spread": 0.5}}, "norm.spread: expected 0 with norm.method 'sn'"),
    ({"norm": {"method": "ssn", "spread": -1.0}}, "norm.spread: expected float >=0, got"),
    ({"model": {"negative_slope": -0.1}}, "model.negative_slope: expected float >=0, got"),
    (
        {"model": {"name": "resnet32", "negative_slope": 0.2}},
        "model.negative_slope: expected none with model.name 'resnet32'",
    ),
    ({"norm": {"update": "never"}}, "norm.update: expected one of"),
    ({"loss": {"name": "mse"}}, "loss.name: expected one of"),
    ({"loss": {"gradient_penalty": -1.0}}, "loss.gradient_penalty: expected float >=0, got"),
    ({"optim": {"lr_g": 0.0}}, "optim.lr_g: expected float >0, got 0.0"),
    ({"optim": {"lr_d": float("inf")}}, "optim.lr_d: expected float, got inf"),
    ({"optim": {"beta1": 1.0}}, "optim.beta1: expected float >=0 and <1, got 1.0"),
    ({"optim": {"n_dis": 0}}, "optim.n_dis: expected int >0, got 0"),
    ({"optim": {"decay": "cosine"}}, "optim.decay: expected one of"),
    ({"speed": {"tf32": "yes"}}, "speed.tf32: expected bool, got 'yes'"),
    ({"speed": {"cuda_graphs": True, "compile": True}}, "speed.cuda_graphs: expected false"),
    (
        {"speed": {"cuda_graphs": True}, "optim": {"decay": "linear"}},
        "speed.cuda_graphs: expected false with optim.decay 'linear'",
    ),
    (
        {"speed": {"cuda_graphs": True}, "loss": {"gradient_penalty": 10.0}},
        "speed.cuda_graphs: expected false with loss.gradient_penalty",
    ),
    ({"log": {"every": 0}}, "log.every: expected int >0, got 0"),
    ({"checkpoint": {"keep": 0}}, "checkpoint.keep: expected int >0, got 0"),
    ({"eval": {"every": 5}}, "eval.weights: expected a file of Inception weights, got none"),
    ({"eval": {"n_score": 5}}, "eval.n_score: expected at least eval.splits"),
    ({"eval": {"extractor": "vgg"}}, "eval.extractor: expected one of"),
    # A wrong number is told at once, not by a timeout or by the memory it takes.
    ({"train": {"steps": 10**12}}, "train.steps: expected int >0 and <100000000"),
    ({"model": {"width": 1e9}}, "model.width: expected float >0 and <=64"),
    ({"data": {"resolution": 10**9}}, "data.resolution: expected int >0 and <=4096"),
    ({"eval": {"n_real": 1}}, "eval.n_real: expected int >=2 and <=10000000, got 1"),
    ({"eval": {"n_fake": 10**15}}, "eval.n_fake: expected int >=2 and <=10000000"),
    ({"optim": {"batch_d": 10**12}}, "optim.batch_d: expected int >0 and <=1048576"),
    ({"log": {"n_samples": 10**9}}, "log.n_samples: expected int >0 and <=65536"),
    ({"data": {"channels": 2}}, "data.channels: expected one of [1, 3], got 2"),
    ([], "expected sections such as 'data' and 'train', got []"),
]


@pytest.mark.parametrize(("tree", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_options_are_named(tree: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(from_dict(tree))
    assert message in str(caught.value)


def test_defaults_are_valid_and_everything_is_documented() -> None:
    validate(Config())
    for section in dataclasses.fields(Config):
        value = getattr(Config(), section.name)
        for option in dataclasses.fields(value):
            assert f"        {option.name}: " in str(type(value).__doc__), option.name


def test_round_trips_through_dictionaries_and_yaml(tmp_path: Path) -> None:
    config = tiny(optim={"lr_g": 1e-5, "beta1": 0.0}, data={"root": None})
    assert from_dict(config.to_dict()) == config
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert read_config(file) == config


def test_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("optim: {lr_g: 1e-4, lr_d: 1}\n")
    config = read_config(file)
    assert config.optim.lr_g == 1e-4
    assert config.optim.lr_d == 1.0 and type(config.optim.lr_d) is float


@pytest.mark.parametrize("text", ["a: [", "\x00", "train: {steps: 1", "3"])
def test_unreadable_files_are_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_config(file)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "expected at most 10000 options, got more"),
        ("a: &a [*a]\n", "expected at most 10000 options, got more"),
        ("[" * 100_000, "expected a readable YAML file"),
        ("# " + "x" * 2**20, "expected at most 1048576 bytes of options, got more"),
    ],
)
def test_yaml_that_would_grow_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_config(file)


def test_names_are_those_of_the_tables() -> None:
    for hint, table in (
        (config_module.DataName, DATASETS),
        (config_module.ModelName, NETWORKS),
        (config_module.Method, METHODS),
        (get_type_hints(config_module.LossConfig)["name"], LOSSES),
        (get_type_hints(config_module.EvalConfig)["extractor"], EXTRACTORS),
    ):
        assert [*get_args(hint)] == [*table]


def test_differences_name_what_makes_another_run() -> None:
    config = tiny()
    assert differences(config, config) == []
    other = tiny(train={"seed": 1}, norm={"scale": 1.4})
    assert differences(other, config) == ["norm.scale: 1.0 -> 1.4", "train.seed: 0 -> 1"]


def test_a_run_may_go_on_for_longer_unless_its_schedule_depends_on_its_length() -> None:
    assert differences(tiny(train={"steps": 99}), tiny()) == []
    longer = tiny(train={"steps": 99}, optim={"decay": "linear"})
    assert differences(longer, tiny(optim={"decay": "linear"})) == ["train.steps: 30 -> 99"]


def test_the_name_of_a_run_is_a_function_of_what_makes_it() -> None:
    name = tiny().run_name()
    assert name.startswith("fashion_mini-bssn-seed0-")
    assert tiny(data={"root": "/elsewhere"}, checkpoint={"keep": 9}).run_name() == name
    others = {
        tiny(**{section: {option: value}}).run_name()
        for section, option, value in (
            ("train", "seed", 1),
            ("norm", "scale", 1.3),
            ("optim", "lr_g", 0.5),
        )
    }
    assert len(others | {name}) == 4


def test_every_counter_makes_another_seed() -> None:
    seeds = {
        seed_of(0, "real"),
        seed_of(1, "real"),
        seed_of(0, "latent"),
        seed_of(0, "real", 1),
        seed_of(0, "real", 0, 1),
        seed_of(0, "real", 0, 0, 1),
        seed_of(0, "real", 11, 0, 1),
        seed_of(0, "real", 1, 10, 1),
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(ValueError, match="stream"):
        seed_of(0, "reel")


def test_an_option_that_comes_later_leaves_names_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = tiny(train={"seed": 3}).run_name()
    before = Config.to_dict

    def to_dict(self: Config) -> dict[str, dict[str, Any]]:
        tree = before(self)
        tree["train"]["later"] = 0.5
        return tree

    monkeypatch.setattr(Config, "to_dict", to_dict)
    assert "later" in tiny().to_dict()["train"]
    assert tiny(train={"seed": 3}).run_name() == name


def test_flatten_names_options_with_dots() -> None:
    names = [name for name, _ in flatten(Config().to_dict())]
    assert names[0] == "data.name" and "train.steps" in names
    assert len(names) == len(set(names)) > 40
