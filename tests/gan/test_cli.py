"""The command: what it refuses, with which words, and that it then writes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import events, last_state, rows, run, tiny

from fastsn.gan import cli
from fastsn.gan.config import Config, flatten, from_dict
from fastsn.gan.presets import DATA_SETS
from fastsn.gan.run import checkpoint

TINY = [
    "--model.width=0.05",
    "--optim.batch_d=4",
    "--optim.batch_g=4",
    "--train.steps=4",
    "--train.device=cpu",
    "--log.every=2",
    "--log.tensorboard=false",
    "--log.diagnostics_every=4",
    "--log.n_samples=4",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished ``run``, and files that are no good."""
    folder = tmp_path_factory.mktemp("cli")
    run(tiny(train={"steps": 10}, log={"diagnostics_every": 10}), folder / "run")
    (folder / "empty").mkdir()
    (folder / "images").mkdir()
    (folder / "broken.yaml").write_text("train: {steps: [")
    (folder / "list.yaml").write_text("- 1\n- 2\n")
    (folder / "unknown.yaml").write_text("train: {stepz: 3}\n")
    (folder / "typed.yaml").write_text("train: {steps: many}\n")
    (folder / "bomb.yaml").write_text("a: &a [*a]\n")
    (folder / "text.pt").write_text("not a checkpoint")
    torch.save({"weights": torch.ones(3)}, folder / "foreign.pt")
    path = checkpoint.step_path(folder / "run" / "checkpoints", 10)
    (folder / "half.pt").write_bytes(path.read_bytes()[:5000])
    return folder


BAD = [
    # what is asked for
    ("", "command"),
    ("paint", "paint"),
    ("train --train.stepz 3", "--train.stepz"),
    ("train extra", "extra"),
    ("train --config", "--config"),
    ("train --config paper/cifar11_sn", "paper/cifar11_sn"),
    ("train --config paper/mnist_sn_h3", "paper/mnist_sn_h3"),
    ("train --config missing.yaml", "missing.yaml"),
    ("train --config broken.yaml", "broken.yaml"),
    ("train --config list.yaml", "list.yaml"),
    ("train --config unknown.yaml", "train.stepz"),
    ("train --config typed.yaml", "train.steps"),
    ("train --config bomb.yaml", "bomb.yaml: expected at most"),
    # options
    ("train --train.steps none", "train.steps"),
    ("train --train.steps 0", "train.steps"),
    ("train --train.steps 2.5", "train.steps"),
    ("train --train.seed -3", "train.seed"),
    ("train --train.ema 1", "train.ema"),
    ("train --train.device tpu", "train.device"),
    ("train --optim.lr_g -1", "optim.lr_g"),
    ("train --train.steps 999999999999", "train.steps"),
    ("train --model.width 1e12", "model.width"),
    ("eval run --eval.n_real 1 --eval.extractor classifier", "eval.n_real"),
    ("eval run --eval.n_fake 10000000000", "eval.n_fake"),
    ("train --optim.lr_d nan", "optim.lr_d"),
    ("train --optim.beta2 1.5", "optim.beta2"),
    ("train --optim.batch_d 0", "optim.batch_d"),
    ("train --optim.decay step", "optim.decay"),
    ("train --norm.method batch", "norm.method"),
    ("train --norm.method sn --norm.scale 2", "norm.scale"),
    ("train --norm.update always", "norm.update"),
    ("train --loss.name wasserstein", "loss.name"),
    ("train --loss.gradient_penalty -1", "loss.gradient_penalty"),
    ("train --model.name dcgan", "model.name"),
    ("train --model.width 0", "model.width"),
    ("train --speed.cuda_graphs true --train.device cpu", "speed.cuda_graphs"),
    ("train --speed.tf32 true --train.device cpu", "speed.tf32"),
    ("train --speed.bf16 maybe", "speed.bf16"),
    ("train --eval.every 10", "eval.weights"),
    ("train --eval.every 10 --eval.weights missing.pth", "missing.pth"),
    ("train --eval.every 10 --eval.weights text.pt", "text.pt"),
    ("train --eval.every 4 --eval.extractor classifier --eval.n_real 9999", "eval.n_real"),
    ("train --resume perhaps", "resume"),
    # data and shapes
    ("train --data.name cifar100", "data.name"),
    ("train --data.name cifar10 --model.name cnn32", "cifar10"),
    ("train --data.name cifar10 --data.root empty --model.name cnn32", "empty"),
    ("train --data.name folder --data.root images", "images"),
    ("train --data.name array --data.root text.pt", "text.pt"),
    ("train --data.resolution 30", "model.name"),
    ("train --model.name cnn32", "model.name"),
    # folders
    ("train --out text.pt", "text.pt"),
    ("train --out .", "other files"),
    ("train --out /proc/fastsn", "/proc/fastsn"),
    ("train --out run", "train.seed: 0 -> 5"),
    ("train --out run --resume false", "--resume false"),
    # other commands
    ("eval nothing", "nothing"),
    ("eval half.pt --eval.extractor classifier", "half.pt"),
    ("eval foreign.pt", "foreign.pt"),
    ("eval run", "eval.weights"),
    ("eval run --seed -1", "seed"),
    ("eval run --best true", "best.pt"),
    ("eval run --device tpu", "device"),
    ("eval run --out nowhere/x.json", "--out"),
    ("eval images --images true --eval.extractor classifier", "images"),
    ("eval run --eval.extractor vgg", "eval.extractor"),
    ("eval run --eval.every 4", "--eval.every"),
    ("sample", "source"),
    ("sample empty", "empty"),
    ("sample text.pt", "text.pt"),
    ("sample run --kind movie", "kind"),
    ("sample run --rows 0", "rows"),
    ("sample run --rows 9999 --columns 9999", "--n, --rows, --columns: expected at most"),
    ("sample run --n 5", "--n: expected none with --kind grid"),
    ("sample run --kind images --out images2/x", "--out"),
    ("sample run --kind images --out=run", "--out: expected a new or empty folder"),
    ("sample run --zoom -1", "zoom"),
    ("sample run --zoom 100000", "zoom"),
    ("sample run --out nowhere/x.png", "--out"),
    ("report", "runs"),
    ("report empty", "empty"),
    ("report run run", "different names"),
    ("report run --out text.pt", "text.pt"),
    ("bench --model vgg", "model"),
    ("bench --width 0", "width"),
    ("bench --seconds -1", "seconds"),
    ("bench --seconds 1e9", "seconds"),
    ("bench --device tpu", "device"),
    ("bench --backend opencl", "--backend opencl"),
    ("bench --backend cuda --device cpu", "--backend cuda"),
    ("bench --out nowhere/x.json", "--out"),
]


@pytest.mark.parametrize(("line", "named"), BAD, ids=[line or "nothing" for line, _ in BAD])
def test_bad_input_is_named_and_nothing_written(
    line: str,
    named: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    before = snapshot(trained)
    arguments = line.split()
    if "--out run" in line:  # this run's options, but for one
        small = ["--config=run/config.yaml", "--train.seed=5"]
        arguments += small if "seed" in named else small[:1]
    elif line.startswith("train") and "--config" not in line:
        given = {word.partition("=")[0] for word in arguments}
        arguments += [option for option in TINY if option.partition("=")[0] not in given]
    assert cli.main(arguments) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith("fastsn: error: ") and "Traceback" not in output.err
    assert named in output.err
    assert snapshot(trained) == before


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_train_sample_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY]) == 0
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("fashion_mini-bssn-seed0-")
    assert [row["step"] for row in rows(out)] == [2, 4]
    assert cli.main(["train", *TINY, "--train.steps=6"]) == 0
    assert last_state(out)["step"] == 6 and events(out).count("resume") == 1
    capfd.readouterr()
    source = str(out.relative_to(tmp_path))
    assert cli.main(["sample", source, "--rows=2", "--columns=3", "--out=a.png"]) == 0
    assert capfd.readouterr().out == "a.png\n"
    from PIL import Image

    with Image.open("a.png") as image:
        assert image.size == (2 * (3 * 29 - 1), 2 * (2 * 29 - 1))
    assert cli.main(["sample", source, "--kind=interpolation", "--out=b.png"]) == 0
    path = checkpoint.step_path(out / "checkpoints", 6)
    assert cli.main(["sample", str(path), "--rows=2", "--columns=3", "--out=c.png"]) == 0
    assert Path("c.png").read_bytes() == Path("a.png").read_bytes()
    assert cli.main(["report", source, "--out=page"]) == 0
    assert Path("page/report.md").is_file()


def test_eval_of_a_run_and_of_a_folder(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    counts = ["--eval.n_real=50", "--eval.n_fake=40", "--eval.n_score=30", "--eval.splits=2"]
    options = ["--eval.extractor=classifier", *counts, "--device=cpu"]
    out = tmp_path / "metrics.json"
    assert cli.main(["eval", str(trained / "run"), *options, f"--out={out}"]) == 0
    row = json.loads(capfd.readouterr().out)
    assert row == json.loads(out.read_text())
    assert row["step"] == 10 and row["frechet_50_40"] > 0 and row["score_30_s2"] >= 1
    protocol = row["protocol"]
    assert protocol["extractor"] == "classifier" and protocol["real"] == "fashion_mini"
    assert [protocol[name] for name in ("n_real", "n_fake", "n_score")] == [50, 40, 30]

    from fastsn.gan.data.sets import load_images
    from fastsn.gan.measure.sampling import save_png

    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(load_images("fashion_mini", None).pixels[:40]):
        save_png(folder / f"{index:03}.png", image)
    assert cli.main(["eval", str(folder), "--images=true", *options]) == 0
    real = json.loads(capfd.readouterr().out)
    assert real["frechet_50_40"] < row["frechet_50_40"]


def test_print_config_is_a_configuration(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--config=paper/stl10_bssn", "--train.seed=3", "--print_config"])
    assert caught.value.code == 0
    tree = yaml.safe_load(capfd.readouterr().out)
    assert tree.pop("out") is None and tree.pop("resume") is True
    config = from_dict(tree)
    assert config.model.name == "cnn48" and config.train.seed == 3
    assert config.train.steps == 800_000 and config.norm.method == "bssn"


def test_later_options_win(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr_g: 3e-4, lr_d: 5e-4}\n")
    arguments = ["--config=paper/cifar10_sn", f"--config={file}", "--optim.lr_d=7e-4"]
    with pytest.raises(SystemExit):
        cli.main(["train", *arguments, "--print_config"])
    tree = yaml.safe_load(capfd.readouterr().out)
    assert (tree["optim"]["lr_g"], tree["optim"]["lr_d"]) == (3e-4, 7e-4)
    assert tree["model"]["name"] == "cnn32"


@pytest.mark.parametrize("command", ["train", "sweep", "eval", "sample", "report", "bench"])
def test_every_option_is_documented(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help_all"])
    assert caught.value.code == 0
    text = capfd.readouterr().out
    _, _, listed = text.partition("options:")
    for block in listed.split("\n  -")[1:]:
        words = " ".join(block.split())
        name = words.split()[0]
        described = words.partition("(type")[0].split(maxsplit=2)
        assert len(described) > 2, f"--{name} has no description"


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_help_is_short_and_lists_options_and_presets(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--help"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) < 80 and max(map(len, lines)) <= 100
    names = [name for name, _ in flatten(Config().to_dict())]
    assert all(sum(f"--{name}=" in line for line in lines) == 1 for name in names)
    text = " ".join(lines)
    assert all(data in text for data in DATA_SETS) and "demo; paper/DATA_METHOD" in text
    assert "h1, h2, h3, h4, h5" in text and "--help_all" in text


def test_samples_as_images_and_as_an_array(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(trained / "run")
    assert cli.main(["sample", source, "--kind=images", "--n=12", "--zoom=1"]) == 0
    assert cli.main(["sample", source, "--kind=npz", "--n=12"]) == 0
    from fastsn.gan.data.sets import load_images

    folder, array = load_images("folder", "samples"), load_images("array", "samples.npz")
    assert sorted(path.name for path in Path("samples").glob("*.png"))[-1] == "000011.png"
    assert folder.pixels.shape == (12, 1, 28, 28)
    assert torch.equal(folder.pixels, array.pixels)


def test_ranks_that_are_half_said_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for values, named in (
        ({"WORLD_SIZE": "2"}, "RANK: expected a number"),
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE: expected a number"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK: expected less than WORLD"),
    ):
        with monkeypatch.context() as patch:
            for name, value in values.items():
                patch.setenv(name, value)
            assert cli.main(["train", *TINY]) == 2
        assert named in capfd.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_backend_that_is_not_there_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastsn.gan.cli", "train", *TINY]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for name in ("opencl", "cuda"):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**environment, "FASTSN_BACKEND": name},
        )
        assert done.returncode == 2 and done.stderr.startswith("fastsn: error: "), done.stderr
        assert name in done.stderr and "Traceback" not in done.stderr
        assert not [*tmp_path.iterdir()]


def test_a_stopped_run_exits_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--optim.lr_d=1e30", "--norm.method=none", "--loss.name=wgan"]
    assert cli.main(["train", *TINY, *arguments, f"--out={tmp_path / 'run'}"]) == 1
    assert "fastsn: stopped at step 2: expected finite" in capfd.readouterr().err


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    """A package that is not there, for a fresh interpreter."""
    code = (
        "import sys, importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'jsonargparse' else find(name)\n"
        "from fastsn.gan.cli import main\n"
        "sys.exit(main(['train']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 2
    assert "none named jsonargparse: pip install 'fastsn[gan]'" in done.stderr


def test_a_preset_is_found_beside_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--config=demo", "--print_config"])
    assert "fashion_mini" in capsys.readouterr().out
