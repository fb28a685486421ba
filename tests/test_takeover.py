"""``convert`` and ``apply`` take only what they know; handles to groups; files of other models."""

from __future__ import annotations

import copy
import gc
import io
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import images, originals, small_cnn, vectors
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as torch_hook
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook

import fastsn
from fastsn import backends, checks


class SoftNorm(_SpectralNorm):
    """Divides by sigma only where it exceeds a bound, as several libraries' do."""

    def forward(self, weight: Tensor) -> Tensor:
        normalized = super().forward(weight)
        sigma = (weight / normalized).mean()
        return weight / sigma.clamp_min(1.0)


class SoftHook(TorchHook):
    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        return super().compute_weight(module, do_power_iteration) * 0.9


def with_subclass() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parametrizations.spectral_norm(model[0])
    parametrize.register_parametrization(model[1], "weight", SoftNorm(model[1].weight))
    return model


def test_a_subclass_of_torchs_parametrization_is_left_alone_and_named() -> None:
    model = with_subclass()
    x = torch.randn(2, 4)
    model.eval()
    expected = model(x)
    group = fastsn.convert(model)
    torch.testing.assert_close(model(x), expected)
    assert len(group) == 1
    left = str(group).split("left alone:")[1]
    assert "1.weight" in left and "SoftNorm, a subclass" in left


def test_a_subclass_of_torchs_hook_is_left_alone_and_named() -> None:
    model = nn.Sequential(torch_hook(nn.Linear(4, 4)), torch_hook(nn.Linear(4, 4)))
    (key,) = model[1]._forward_pre_hooks
    model[1]._forward_pre_hooks[key].__class__ = SoftHook
    model.eval()
    x = torch.randn(2, 4)
    expected = model(x)
    group = fastsn.convert(model)
    torch.testing.assert_close(model(x), expected)
    assert len(group) == 1 and "SoftHook, a subclass" in str(group)


def test_nothing_but_subclasses_is_an_error_that_names_them() -> None:
    model = nn.Sequential(with_subclass()[1])
    with pytest.raises(ValueError, match=r"(?s)expected .*got none.*0\.weight.*SoftNorm"):
        fastsn.convert(model)


class BigGANLinear(nn.Linear):
    """As BigGAN's layers: they normalize their weight in their forward."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("u0", torch.randn(1, sizes[1]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / torch.linalg.matrix_norm(self.weight, 2), self.bias)


class MimicryLinear(BigGANLinear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.sn_u = self._buffers.pop("u0")


def mimicry() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.register_buffer("sn_u", torch.randn(1, 4))
    return layer


@pytest.mark.parametrize(("make", "word"), [(lambda: BigGANLinear(4, 4), "u0"), (mimicry, "sn_u")])
def test_a_layer_that_normalizes_itself_is_refused_by_name(make: Any, word: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), make())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"layer '1'.*{word}"):
        fastsn.apply(model, "sn")
    assert list(model.state_dict()) == list(before) and type(model[0]) is nn.Linear
    group = fastsn.apply(model, "sn", exclude=["1"])
    assert len(group) == 1
    with pytest.raises(ValueError, match=word):
        fastsn.spectral_norm(model[1])


def test_convert_leaves_layers_that_normalize_themselves() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), BigGANLinear(4, 4))
    group = fastsn.convert(model)
    assert len(group) == 1
    assert "normalizes itself" in str(group) and "u0" in str(group)


@pytest.mark.parametrize("new", [True, False], ids=["parametrization", "hook"])
def test_weight_norm_below_is_refused_or_left_alone(new: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        below = parametrizations.weight_norm if new else nn.utils.weight_norm
        model = nn.Sequential(nn.Linear(4, 4), below(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="layer '1'"):
        fastsn.apply(model, "sn")
    assert type(model[0]) is nn.Linear
    parametrizations.spectral_norm(model[0])
    x = torch.randn(2, 4)
    model.eval()
    expected = model(x)
    assert len(fastsn.convert(model)) == 1
    torch.testing.assert_close(model(x), expected)


def test_torchs_norm_on_top_of_weight_norm() -> None:
    layer = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(4, 4)))
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), layer).eval()
    x = torch.randn(2, 4)
    expected = model(x)
    group = fastsn.convert(model)
    torch.testing.assert_close(model(x), expected)
    assert len(group) == 1 and "follows another parametrization" in str(group)


def test_a_hook_whose_weight_another_hook_took_is_refused_unchanged() -> None:
    model = nn.Sequential(torch_hook(nn.Linear(4, 4)), torch_hook(nn.Linear(4, 4)))
    model[1].weight_other = model[1]._parameters.pop("weight_orig")
    with pytest.raises(ValueError, match="layer '1'.*weight_orig"):
        fastsn.convert(model)
    assert model[0]._forward_pre_hooks and "weight_orig" in model[0]._parameters


def test_excluded_layers_stay_out_of_the_group() -> None:
    model = small_cnn()
    fastsn.spectral_norm(model[2])
    group = fastsn.apply(model, "sn", exclude=["2"])
    assert [member.name for member in group.members] == ["0", "4", "7"]
    before = [u.clone() for u, _ in model[2].parametrizations.weight[0].vectors()]
    group.update()
    assert all(
        map(torch.equal, before, [u for u, _ in model[2].parametrizations.weight[0].vectors()])
    )
    group.refresh()
    assert len(group) == 3
    assert len(fastsn.group_of(copy.deepcopy(model))) == 3


def test_checkpoints_from_before_torch_1_0() -> None:
    peer = nn.Sequential(torch_hook(nn.Conv2d(3, 4, 3)), torch_hook(nn.Linear(4, 4)))
    old = dict(peer.state_dict())
    for name in ("0", "1"):
        del old[f"{name}.weight_v"]
        old[f"{name}.weight"] = peer[int(name)].weight.detach().clone()
    for convert in (True, False):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
        if convert:
            for layer in model:
                torch_hook(layer)
            fastsn.convert(model)
        else:
            fastsn.apply(model, "sn")
        model.load_state_dict(old)
        for layer, theirs in zip(model, peer, strict=True):
            held = layer.parametrizations.weight
            torch.testing.assert_close(held.original, theirs.weight_orig)
            torch.testing.assert_close(held[0]._u, theirs.weight_u)


def test_a_plain_checkpoint_loads_by_one_call() -> None:
    plain = small_cnn()
    model = small_cnn()
    fastsn.apply(model, "bssn")
    before = vectors(model)
    fastsn.load_plain_state_dict(model, plain.state_dict())
    for weight, layer in zip(originals(model), (plain[i] for i in (0, 2, 4, 7)), strict=True):
        assert torch.equal(weight, layer.weight)
    assert not any(map(torch.equal, before, vectors(model)))
    model.eval()
    assert float(torch.linalg.matrix_norm(model[7].weight.detach(), 2)) < 1.25
    with pytest.raises(ValueError, match="model.load_state_dict"):
        fastsn.load_plain_state_dict(model, model.state_dict())
    with pytest.raises(ValueError, match="got none"):
        fastsn.load_plain_state_dict(plain, plain.state_dict())


def test_a_plain_checkpoint_that_does_not_fit_changes_nothing() -> None:
    plain = small_cnn().state_dict()
    model = small_cnn()
    fastsn.apply(model, "bssn")
    start = copy.deepcopy(model.state_dict())
    wrong = {**plain, "0.weight": torch.ones(1, 2)}
    missing = {k: v for k, v in plain.items() if k != "7.bias"}
    for given, words in (
        (wrong, r"0\.parametrizations\.weight\.original.*expected shape"),
        (missing, r"missing: 7\.bias"),
        ({**plain, "extra": torch.ones(1)}, "unexpected: extra"),
    ):
        with pytest.raises(RuntimeError, match=rf"(?s)nothing was loaded.*{words}"):
            fastsn.load_plain_state_dict(model, given)
        assert all(torch.equal(v, start[k]) for k, v in model.state_dict().items())


# Handles


def through_torch_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("make", [copy.deepcopy, through_torch_save])
def test_group_of_a_copy_is_the_copys(make: Any) -> None:
    model = small_cnn()
    group = fastsn.apply(model, "bssn")
    twin = make(model)
    assert fastsn.group_of(model) is group
    other = fastsn.group_of(twin)
    assert other is not group and other.model is twin and len(other) == 4
    before = vectors(model)
    other.update()
    assert all(map(torch.equal, before, vectors(model)))
    assert fastsn.group_of(nn.Sequential(model)) is group
    with pytest.raises(ValueError, match="expected Linear to have a group, got none"):
        fastsn.group_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got 2 inside of it"):
        fastsn.group_of(nn.ModuleList([model, twin]))


def test_no_second_group_is_stacked() -> None:
    model = small_cnn()
    first = fastsn.apply(model, "sn", include=["0"])
    second = fastsn.apply(model, "sn", include=["2"])
    assert fastsn.group_of(model) is second and len(second) == 2 and first is not second
    third = fastsn.convert(model)
    assert len(third) == 2 and len(model._load_state_dict_pre_hooks) == 1
    before = vectors(model)
    model(images())
    alone = copy.deepcopy(model)
    fastsn.group_of(alone).detach()
    with torch.no_grad():
        for name, old in zip([n for n, _ in alone.named_buffers()], before, strict=True):
            alone.get_buffer(name).copy_(old)
    alone(images())
    for one, other in zip(vectors(model), vectors(alone), strict=True):
        torch.testing.assert_close(one, other)


def test_removing_all_norms_by_torch_leaves_a_working_model() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "sn")
    for i in (0, 2, 4, 7):
        parametrize.remove_parametrizations(model[i], "weight")
    assert model(images()).shape == (2, 1)
    assert len(group) == 0
    model(images()).sum().backward()


def test_removing_the_norm_of_a_single_layer_with_a_group() -> None:
    layer = nn.Linear(4, 3)
    fastsn.apply(layer, "sn")
    layer(torch.randn(2, 4))
    parametrize.remove_parametrizations(layer, "weight")
    assert layer(torch.randn(2, 4)).shape == (2, 3)
    assert type(layer) is nn.Linear


def test_method_and_scale_travel_with_the_state() -> None:
    keys = set(small_cnn().state_dict())
    source, same, plain, bsn = (small_cnn() for _ in range(4))
    fastsn.apply(source, "ssn", scale=1.7)
    fastsn.apply(same, "ssn", scale=1.7)
    fastsn.apply(plain, "sn")
    fastsn.apply(bsn, "bssn", scale=1.7)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert not any("fastsn" in key for key in state) and len(state) > len(keys)
    same.load_state_dict(state)
    start = copy.deepcopy(plain.state_dict())
    with pytest.raises(
        RuntimeError, match=r"expected a state dict of sn .*got one of ssn with scale 1\.7"
    ):
        plain.load_state_dict(state)
    assert all(torch.equal(v, start[k]) for k, v in plain.state_dict().items())
    plain.load_state_dict(dict(state))
    bsn.load_state_dict(state)  # the new pair warms up
    with pytest.raises(RuntimeError, match=r"of ssn with scale 1\.7 .*got one of bssn"):
        same.load_state_dict(bsn.state_dict())


def test_backend_for_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_requested", "")
    fastsn.set_backend("reference")
    assert backends.requested_backend() == "reference"
    with fastsn.use_backend("auto"):
        assert backends.requested_backend() == "auto"
    assert backends.requested_backend() == "reference"
    with pytest.raises(ValueError, match="set_backend: expected one of"):
        fastsn.set_backend("fast")


def test_no_table_keeps_dead_layers() -> None:
    from fastsn import forward

    gc.collect()
    owners, living = len(checks._owners), len(forward._living)
    probes = []
    for update in ("forward", "step"):
        model = small_cnn()
        fastsn.apply(model, "bssn", update=update)
        model(images()).sum().backward()
        probes += [weakref.ref(model), *(weakref.ref(layer) for layer in model)]
        del model
    gc.collect()
    assert not any(probe() is not None for probe in probes)
    # not more: layers of other tests may die meanwhile
    assert len(checks._owners) <= owners and len(forward._living) <= living


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n_power_iterations": 1.0}, TypeError),
        ({"n_power_iterations": True}, TypeError),
        ({"n_power_iterations": "1"}, TypeError),
        ({"eps": "1e-12"}, TypeError),
        ({"eps": None}, TypeError),
        ({"scale": "1"}, TypeError),
        ({"scale": True}, TypeError),
        ({"dim": 0.0}, TypeError),
        ({"dim": True}, TypeError),
        ({"bidirectional": 1}, TypeError),
        ({"bidirectional": "yes"}, TypeError),
    ],
)
def test_options_of_a_wrong_type_are_refused_at_once(options: Any, error: Any) -> None:
    layer = nn.Linear(3, 3)
    (name,) = options
    with pytest.raises(error, match=f"expected {name} to be"):
        fastsn.spectral_norm(layer, **options)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("options", [{"update": 1}, {"update": "steps"}])
def test_update_is_checked_before_anything_is_changed(options: Any) -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    for call in (fastsn.convert, lambda m, **o: fastsn.apply(m, "sn", include=["1"], **o)):
        with pytest.raises(ValueError, match="expected update"):
            call(model, **options)
    assert type(model[1]) is nn.Linear
    assert type(model[0].parametrizations.weight[0]) is _SpectralNorm


@pytest.mark.parametrize("grouped", [True, False])
def test_a_weight_of_another_shape_is_refused_at_once(grouped: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    group = fastsn.apply(model, "sn")
    if not grouped:
        group.detach()
    before = originals(model)[0].clone()
    with pytest.raises(ValueError, match=r"expected a weight of shape \(3, 3\), got \(2, 3\)"):
        model[0].weight = torch.ones(2, 3)
    assert torch.equal(originals(model)[0], before)
    model(torch.ones(1, 3))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_renormalizes_its_rows_is_refused(kind: Any) -> None:
    layer = kind(5, 4, max_norm=1.0)
    with pytest.raises(ValueError, match="max_norm"):
        fastsn.spectral_norm(layer)
    with pytest.raises(ValueError, match="layer '0'.*max_norm"):
        fastsn.apply(nn.Sequential(layer), "sn")
    assert type(layer) is kind


@pytest.mark.parametrize("training", [True, False])
def test_jit_trace_of_a_model_that_is_not_folded(training: bool) -> None:
    model = small_cnn().train(training)
    fastsn.apply(model, "bssn")
    x = images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if training:
            with pytest.raises(RuntimeError, match=r"fastsn\.fold"):
                torch.jit.trace(model, x, check_trace=False)
        else:
            traced = torch.jit.trace(model, x, check_trace=False)
            torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("dynamo", [True, False], ids=["torch.export", "torch.jit"])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("method", ["sn", "bssn"])
def test_onnx_of_a_model_that_is_not_folded(
    method: str, grouped: bool, dynamo: bool, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    model = small_cnn()
    fastsn.apply(model, method)
    if not grouped:
        fastsn.group_of(model).detach()
    x = images()
    file = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            # the other exporter puts a model into evaluation mode by itself
            with pytest.raises(Exception, match=r"fastsn\.fold"):
                torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False)
        model.eval()
        torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False)
    program = onnx.ReferenceEvaluator(str(file))
    (output,) = program.run(None, {program.input_names[0]: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(x).detach())
