"""Pictures and pages out of runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import run, tiny

from benchmarks.step import CONTENDERS, BenchOptions, measure, table
from fastsn.analysis import layer_report
from fastsn.gan import bench
from fastsn.gan.data.sets import load_images
from fastsn.gan.loop.trainer import Trainer
from fastsn.gan.measure.diagnostics import diagnose
from fastsn.gan.measure.evaluation import best_value
from fastsn.gan.measure.sampling import evaluating, generate, grid, interpolate, save_png, to_uint8
from fastsn.gan.nets.normalization import METHODS
from fastsn.gan.report import report
from fastsn.gan.rng import Rng
from fastsn.gan.run.folder import RunDirError
from fastsn.gan.run.jsonl import read_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    counts = {"n_real": 20, "n_fake": 20, "n_score": 20, "splits": 2}
    for method in ("bssn", "sn"):
        config = tiny(
            norm={"method": method},
            log={"diagnostics_every": 10, "tensorboard": method == "sn"},
            eval={"every": 15, "extractor": "classifier", **counts},
        )
        run(config, folder / method)
    return [folder / "bssn", folder / "sn"]


def test_a_page_with_all_pictures(runs: list[Path], tmp_path: Path) -> None:
    page = report(runs, tmp_path / "page").read_text()
    pictures = re.findall(r"!\[[^]]*\]\(<?([^)>]*)>?\)", page)
    assert sorted(pictures) == sorted(path.name for path in (tmp_path / "page").glob("*.png"))
    assert len(pictures) == 6 + 2
    for name in pictures:
        with Image.open(tmp_path / "page" / name) as image:
            image.verify()
    assert "| norm.method | bssn | sn |" in page
    assert "30 of 30" in page and "finished" in page and "frechet_20_20" in page
    assert "classifier" in page and re.search(r"\b(fid|is)_", page) is None


def test_names_are_escaped_and_tables_may_be_missing(runs: list[Path], tmp_path: Path) -> None:
    odd = Path(shutil.copytree(runs[0], tmp_path / "<b>&"))
    for name in ("diagnostics.jsonl", "metrics.jsonl"):
        (odd / name).unlink()
    page = report([odd], tmp_path / "page").read_text()
    assert "| &lt;b>& |" in page
    assert not (tmp_path / "page" / "layers.png").exists()


def test_numbers_of_different_protocols_are_drawn_apart(runs: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs[0], tmp_path / "other"))
    rows = read_rows(other / "metrics.jsonl")
    for row in rows:
        row["protocol"]["real_hash"] = "another"
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report([*runs, other], tmp_path / "page").read_text()
    assert "metrics-1.png" in page and "metrics-2.png" in page and "(metrics.png)" not in page
    assert "## Metrics of bssn, sn" in page and "## Metrics of other" in page


def test_the_deviation_of_the_best_is_that_of_its_row() -> None:
    names = ("is_50k_s10", "is_50k_s10_std", "fid_5k_10k", "precision_5k_10k")
    cells = [(7.0, 0.3, 30.0, 0.4), (8.0, 0.2, 20.0, 0.6), (6.0, 0.1, 40.0, 0.5)]
    rows = [
        {"step": step, **dict(zip(names, row, strict=True)), "protocol": {"real": "a"}}
        for step, row in enumerate(cells)
    ]
    assert [best_value(rows, name) for name in names] == [(8, 1), (0.2, 1), (20, 1), (0.6, 1)]
    rows[2]["protocol"] = {"real": "b"}  # of other images: no rival of those before
    assert best_value(rows, "is_50k_s10") == (6, 2)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("log", '{"loss_d": 1}'),
        ("log", "[1, 2]"),
        ("log", '{"step": "one", "loss_d": 1}'),
        ("metrics", '"text"'),
        ("diagnostics", '{"step": 1}'),
        ("events", "{}"),
        ("log", "[" * 100_000),
    ],
)
def test_garbage_in_tables_is_named(
    table: str, line: str, runs: list[Path], tmp_path: Path
) -> None:
    odd = Path(shutil.copytree(runs[0], tmp_path / "odd"))
    (odd / f"{table}.jsonl").write_text(f"{line}\n")
    with pytest.raises(RunDirError, match=rf"{table}\.jsonl:1: expected"):
        report([odd], tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_what_is_no_run_is_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=f"{tmp_path}: expected the folder of a run"):
        report([tmp_path], tmp_path / "page")
    empty = Path(shutil.copytree(runs[0], tmp_path / "empty"))
    (empty / "log.jsonl").write_text("")
    with pytest.raises(RunDirError, match="logged nothing"):
        report([empty], tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_metrics_say_what_they_depend_on(runs: list[Path]) -> None:
    rows = read_rows(runs[0] / "metrics.jsonl")
    assert [row["step"] for row in rows] == [15, 30]
    assert rows[0]["protocol"]["extractor"] == "classifier"
    assert len(rows[0]["protocol"]["extractor_sha256"]) == 64
    best = min(rows, key=lambda row: row["frechet_20_20"])
    state = torch.load(runs[0] / "checkpoints" / "best.pt", weights_only=True)
    assert state["best"]["step"] == state["step"] == best["step"]
    assert state["best"]["value"] == best["frechet_20_20"]


def test_tensorboard_has_the_same_numbers(runs: list[Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(runs[1] / "tensorboard"))
    board.Reload()
    mine = [(row["step"], row["loss_d"]) for row in read_rows(runs[1] / "log.jsonl")]
    theirs = [(event.step, event.value) for event in board.Scalars("train/loss_d")]
    assert theirs == [(step, pytest.approx(value)) for step, value in mine]
    assert "diagnostics/convs.0.weight/grad_norm" in board.Tags()["scalars"]
    assert [event.step for event in board.Images("samples")] == [10, 20, 30]


def test_diagnostics_are_those_of_the_layers() -> None:
    config = tiny(norm={"method": "bssn", "scale": 1.5})
    trainer = Trainer(config, load_images("fashion_mini", None), CPU)
    trainer.iterate()
    discriminator = trainer.nets.discriminator
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    real = trainer.images.sample(4, trainer.image_rng("diagnostics"))
    *layers, whole = diagnose(discriminator, real)
    assert all(torch.equal(before[k], v) for k, v in discriminator.state_dict().items())
    assert discriminator.training

    report = layer_report(discriminator, real[:1])
    assert [row["layer"] for row in layers] == [layer.name for layer in report]
    for row, layer in zip(layers, report, strict=True):
        assert row["variance"] == layer.variance and row["conv_norm"] == layer.conv_norm
        weight = discriminator.get_submodule(layer.name.removesuffix(".weight")).parametrizations
        gradient = weight["weight"].original.grad
        assert row["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert whole["grad_norm"] == pytest.approx(
        sum(row["grad_norm"] ** 2 for row in layers) ** 0.5, rel=1e-6
    )

    discriminator.eval()
    weights = [layer.weight.detach() for layer in (*discriminator.convs, discriminator.fc)]
    expected = []
    for image in real:
        x, leaves = (image[None] + 1) / 2, [w.clone().requires_grad_() for w in weights]
        for leaf in leaves[:-1]:
            x = F.leaky_relu(F.conv2d(x, leaf, stride=2, padding=2), 0.2)
        F.linear(x.flatten(1), leaves[-1]).sum().backward()
        expected.append([float(leaf.grad.norm()) for leaf in leaves])
    means = torch.tensor(expected).mean(0).tolist()
    assert [row["output_grad_norm"] for row in layers] == pytest.approx(means, rel=1e-5)
    assert whole["output_grad_norm"] == pytest.approx(
        float(torch.tensor(expected).norm(dim=1).mean()), rel=1e-5
    )

    step = 1e-3
    norms = []
    for image in real:
        image = image.clone()[None].requires_grad_(True)
        (gradient,) = torch.autograd.grad(discriminator(image).sum(), image)
        direction = gradient / gradient.norm()
        with torch.no_grad():
            ahead, behind = (discriminator(image + s * direction) for s in (step, -step))
        norms.append(float((ahead - behind) / (2 * step)))
    assert whole["input_grad_norm"] == pytest.approx(sum(norms) / len(norms), rel=2e-2)


@pytest.mark.parametrize("method", METHODS)
def test_diagnostics_leave_every_kind_of_discriminator_as_it_was(method: str) -> None:
    trainer = Trainer(tiny(norm={"method": method}), load_images("fashion_mini", None), CPU)
    trainer.iterate()
    discriminator = trainer.nets.discriminator
    real = trainer.images.sample(4, trainer.image_rng("diagnostics"))
    with evaluating(discriminator):
        scores = discriminator(real)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    needed = [parameter.requires_grad for parameter in discriminator.parameters()]
    *layers, _ = diagnose(discriminator, real)
    assert all(row["output_grad_norm"] > 0 for row in layers)
    assert all(torch.equal(before[k], v) for k, v in discriminator.state_dict().items())
    assert [parameter.requires_grad for parameter in discriminator.parameters()] == needed
    with evaluating(discriminator):
        assert torch.equal(discriminator(real), scores)
    trainer.iterate()


# Pictures


def test_grid_and_png(tmp_path: Path) -> None:
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2) * 50
    picture = grid(images.contiguous(), columns=2)
    assert picture.shape == (3, 5, 5)
    assert picture[0].tolist() == [
        [0, 0, 255, 50, 50],
        [0, 0, 255, 50, 50],
        [255] * 5,
        [100, 100, 255, 255, 255],
        [100, 100, 255, 255, 255],
    ]
    save_png(tmp_path / "a.png", picture, zoom=3)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (15, 15) and image.getpixel((1, 13)) == (100, 100, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_pixels_are_rounded_and_clamped() -> None:
    values = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.998, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_samples_depend_on_nothing_but_their_counters() -> None:
    trainer = Trainer(tiny(), load_images("fashion_mini", None), CPU)
    generator = trainer.nets.generator
    a = generate(generator, 10, Rng(0, CPU), "samples", 3)
    torch.rand(5)
    b = generate(generator, 10, Rng(0, CPU), "samples", 3)
    assert torch.equal(a, b) and generator.training
    assert not torch.equal(a, generate(generator, 10, Rng(0, CPU), "samples", 4))
    assert not torch.equal(a, generate(generator, 10, Rng(1, CPU), "samples", 3))


def test_walks_begin_and_end_at_samples() -> None:
    trainer = Trainer(tiny(), load_images("fashion_mini", None), CPU)
    generator = trainer.nets.generator
    walks = interpolate(generator, 2, 5, Rng(0, CPU)).unflatten(0, (2, 5))
    ends = generate(generator, 4, Rng(0, CPU), "samples")
    torch.testing.assert_close(walks[:, 0], ends[:2], atol=1, rtol=0)
    torch.testing.assert_close(walks[:, -1], ends[2:], atol=1, rtol=0)
    assert not torch.equal(walks[:, 0], walks[:, 2])


# Time of a step


def test_step_times(tmp_path: Path) -> None:
    result = measure(BenchOptions(width=0.05, batch=4, seconds=0.05, device="cpu"))
    rows = result["rows"]
    assert [row["contender"] for row in rows] == list(CONTENDERS)
    assert rows[0]["overhead"] == 0
    assert all(row["median_s"] > 0 and row["steps"] >= 6 for row in rows)
    for row in rows[1:]:
        assert row["overhead"] == pytest.approx(row["overhead_s"] / rows[0]["median_s"])
    text = table(json.loads(json.dumps(result)))
    assert all(name in text for name in CONTENDERS)


def test_bench_times_every_method_in_every_mode(tmp_path: Path) -> None:
    out = tmp_path / "times.json"
    options = bench.BenchOptions("cnn32", width=0.0625, seconds=0.01, device="cpu", out=str(out))
    text = bench.bench(options)
    result = json.loads(out.read_text())
    assert result["weights"] == 8 and "command" not in result["environment"]
    assert [row["method"] for row in result["rows"]] == list(bench.METHODS)
    assert all(row[mode] > 0 for row in result["rows"] for mode in bench.MODES)
    assert text == bench.table(result)
    first, fastsn_sn = result["rows"][0], result["rows"][1]
    assert f"({first['forward'] / fastsn_sn['forward']:4.1f}x)" in text.splitlines()[3]
