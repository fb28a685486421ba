"""The recipes of docs/recipes.md, run as they stand; and what their readers rely on."""

from __future__ import annotations

import copy
import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from models import originals, vectors
from torch import nn

import fastsn

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
RECIPES = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S))

#: Packages that a recipe needs beside torch: `pip install 'fastsn[frameworks]'`.
NEEDS = {
    "Lightning": ["lightning"],
    "accelerate": ["accelerate"],
    "safetensors": ["safetensors"],
    "TensorBoard": ["tensorboard"],
}

# Other packages' warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a recipe in an empty folder; its names."""
    monkeypatch.chdir(tmp_path)

    def run(title: str) -> Any:
        for package in NEEDS.get(title, []):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed: pip install 'fastsn[frameworks]'")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if title == "Lightning" and importlib.util.find_spec("torchvision") is not None:
                from fastsn.gan.data.compat import import_torchvision

                import_torchvision()  # which lightning imports, too
            names: dict[str, Any] = {"__name__": "recipe"}
            exec(compile(RECIPES[title], f"{PAGE.name}: {title}", "exec"), names)
        return type("Names", (), names)

    return run


def moved(model: nn.Module, plain: nn.Module) -> bool:
    """Whether training has changed the weights behind the norms."""
    return any(
        not torch.equal(a, b) for a, b in zip(originals(model), originals(plain), strict=True)
    )


def test_every_recipe_is_run() -> None:
    run = {name.removeprefix("test_recipe_") for name in globals() if "test_recipe_" in name}
    assert {re.sub(r"\W+", "_", title).lower() for title in RECIPES} == run
    assert set(NEEDS) <= set(RECIPES)


def test_recipe_lightning(run: Any) -> None:
    names = run("Lightning")
    model, again = names.model, names.again
    state = torch.load("gan.ckpt", weights_only=False)
    # the checkpoint holds the average as its weights, and the weights of training beside it
    key = "critic.0.parametrizations.weight.original"
    average = state["state_dict"][key]
    assert torch.equal(again.critic[0].parametrizations.weight.original, average)
    assert torch.isfinite(average).all()
    fresh = names.GAN()
    assert moved(model.critic, fresh.critic)
    for critic in (model.critic.eval(), again.critic.eval()):
        norm = torch.linalg.matrix_norm(critic[0].weight.detach(), 2)
        assert 1.1 < float(norm) < 1.4  # the scale, 1.2, and the slack of one iteration a step
    trainer = names.lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
        callbacks=[names.EMAWeightAveraging(decay=0.9)],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(fresh, names.data, ckpt_path="gan.ckpt", weights_only=False)
    assert trainer.current_epoch == 3 and fastsn.group_of(fresh.critic).model is fresh.critic


def test_step_mode_under_lightning_is_a_plain_loop(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused Adam leaves version counters alone; sigma must follow the weights nevertheless."""
    names = run("Lightning")
    model = names.GAN()
    plain = copy.deepcopy(model)
    (real,) = next(iter(names.data))
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(real), batch_size=16)
    trainer = names.lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    draw = torch.randn

    def same_noise() -> None:
        generator = torch.Generator().manual_seed(4)
        monkeypatch.setattr(torch, "randn", lambda *shape: draw(*shape, generator=generator))

    same_noise()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, batches)
    same_noise()
    for_critic, for_generator = plain.configure_optimizers()
    for _ in range(3):
        fake = plain.generator(torch.randn(len(real), 4))
        loss = (1 - plain.critic(real)).relu() + (1 + plain.critic(fake.detach())).relu()
        for_critic.zero_grad()
        loss.mean().backward()
        for_critic.step()
        for_generator.zero_grad()
        (-plain.critic(fake).mean()).backward()
        for_generator.step()
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_recipe_accelerate(run: Any) -> None:
    names = run("accelerate")
    model = names.accelerator.unwrap_model(names.model)
    assert len(names.group) == 2 and names.group.model is model
    assert names.optimizer.state_dict()["state"]
    assert all(float(sigma) > 0 for sigma in names.group.sigmas().values())


def test_recipe_dataparallel_and_distributeddataparallel(run: Any) -> None:
    names = run("DataParallel and DistributedDataParallel")
    assert all(weight.grad is not None for weight in originals(names.model))
    again = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    fastsn.apply(again, "sn")
    again.load_state_dict(torch.load("model.pt"))
    assert all(map(torch.equal, vectors(again), vectors(names.model)))


def test_replicas_of_dataparallel_normalize_by_themselves() -> None:
    """What DataParallel does on each device, done here: a replica's vectors are copies."""
    model = nn.Sequential(nn.Linear(4, 8), nn.LSTM(8, 3), nn.MultiheadAttention(4, 2))
    fastsn.apply(model, "sn")
    x = torch.randn(5, 4)
    for layer in model:
        replica = layer._replicate_for_data_parallel()
        replica._parameters = dict(layer._parameters)
        arguments = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
        if isinstance(layer, nn.LSTM):
            arguments = (torch.randn(5, 8),)
        replica.eval(), layer.eval()
        ours, theirs = layer(*arguments), replica(*arguments)
        first = ours[0] if isinstance(ours, tuple) else ours
        second = theirs[0] if isinstance(theirs, tuple) else theirs
        assert torch.equal(first, second)


def test_recipe_activation_checkpointing(run: Any) -> None:
    names = run("Activation checkpointing")
    model = names.model
    assert len(fastsn.group_of(model)) == 13
    twin = copy.deepcopy(model)
    for i in range(3):
        twin[i] = twin[i]._checkpoint_wrapped_module
    fastsn.group_of(twin).refresh()
    x = torch.randn(2, 5, 8)
    for each in (model, twin):
        each.zero_grad()
        each(x).square().mean().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert all(map(torch.equal, vectors(model), vectors(twin)))


def test_recipe_quantization(run: Any) -> None:
    names = run("Quantization")
    plain, images = names.plain, names.images
    names.model.eval()
    expected = names.model(images)
    torch.testing.assert_close(plain(images), expected)
    for quantized in (names.dynamic, names.static):
        weight = quantized[4].weight().dequantize()
        torch.testing.assert_close(weight, plain[4].weight, rtol=0, atol=0.02)
        torch.testing.assert_close(quantized(images), expected, rtol=0, atol=0.15)
    assert "quantized" in type(names.static[1]).__module__


def test_dynamic_quantization_of_a_folded_lstm() -> None:
    model = nn.LSTM(4, 6)
    fastsn.apply(model, "sn")
    x = torch.randn(5, 3, 4)
    expected = model.eval()(x)[0]
    plain = nn.ModuleDict({"rnn": fastsn.fold(model)})
    quantized = torch.ao.quantization.quantize_dynamic(plain, {nn.LSTM}, dtype=torch.qint8)
    torch.testing.assert_close(quantized["rnn"](x)[0], expected, rtol=0, atol=0.03)


@pytest.mark.slow
def test_recipe_aotinductor(run: Any) -> None:
    names = run("AOTInductor")
    assert Path("model.pt2").exists()
    torch.testing.assert_close(names.runner(names.images), names.plain(names.images))
    assert not any("fastsn" in str(node.target) for node in names.program.graph.nodes)


def test_recipe_safetensors(run: Any) -> None:
    names = run("safetensors")
    tokens = torch.arange(10)
    model, again = names.model.eval(), names.again.eval()
    assert torch.equal(again(tokens), model(tokens))
    assert all(map(torch.equal, vectors(again), vectors(model)))
    assert len(list(again.parameters())) == 3  # tied still


def test_recipe_tensorboard(run: Any) -> None:
    names = run("TensorBoard")
    (file,) = Path("log").iterdir()
    assert file.stat().st_size > 500
    assert len(names.monitor.update()["0.weight"].values) == 3
