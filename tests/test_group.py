"""Groups: one op call for a model, the same numbers as ungrouped, and what users can ask."""

from __future__ import annotations

import pytest
import torch
from models import equal, images, norms, originals, small_cnn, vectors
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import fastsn
from fastsn.frames import current


class CountOps(TorchDispatchMode):
    """Counts calls of fastsn's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"spectral_normalize": 0, "spectral_normalize_backward": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "fastsn":
            self.counts[func.name().split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["sn", "ssn", "bsn", "bssn"])
def test_one_op_call_forward_and_one_backward(method: str) -> None:
    model = small_cnn()
    fastsn.apply(model, method)
    with CountOps() as ops:
        loss = model(images()).sum()
        assert ops.counts == {"spectral_normalize": 1, "spectral_normalize_backward": 0}
        loss.backward()
    assert ops.counts == {"spectral_normalize": 1, "spectral_normalize_backward": 1}


def test_step_mode_computes_once_for_three_forwards() -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn", update="step")
    with CountOps() as ops:
        for _ in range(3):
            model(images()).sum().backward()
    assert ops.counts == {"spectral_normalize": 1, "spectral_normalize_backward": 3}


def test_frozen_evaluation_calls_no_op() -> None:
    model = small_cnn().eval()
    group = fastsn.apply(model, "bssn")
    with group.frozen(), CountOps() as ops:
        model(images())
    assert ops.counts["spectral_normalize"] == 0


@pytest.mark.parametrize("method", ["sn", "bssn"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_grouped_equals_ungrouped(method: str, backend: str) -> None:
    with fastsn.use_backend(backend):
        torch.manual_seed(0)
        model = small_cnn()
        group = fastsn.apply(model, method)
        torch.manual_seed(0)
        alone = small_cnn()
        fastsn.apply(alone, method).detach()
        alone.load_state_dict(model.state_dict())
        x = images()
        for _ in range(3):
            out, other = model(x), alone(x)
            assert torch.equal(out, other)
            grads = torch.autograd.grad(out.sum(), originals(model))
            others = torch.autograd.grad(other.sum(), originals(alone))
            assert equal(list(grads), list(others))
        assert equal(vectors(model), vectors(alone))
    assert len(group) == 4


def test_apply_gives_the_numbers_of_spectral_norm() -> None:
    """One call for the model draws and warms up the vectors as one call per layer does."""
    torch.manual_seed(0)
    model = small_cnn()
    fastsn.apply(model, "sn")
    torch.manual_seed(0)
    single = small_cnn()
    for layer in single:
        if hasattr(layer, "weight"):
            fastsn.spectral_norm(layer)
    for (key, value), (other_key, other) in zip(
        model.state_dict().items(), single.state_dict().items(), strict=True
    ):
        assert key == other_key
        torch.testing.assert_close(value, other, msg=key)


def test_layer_used_outside_the_model_normalizes_by_itself() -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn")
    before = vectors(model)
    model[0](images()).sum().backward()
    after = vectors(model)
    assert not equal(before[:4], after[:4])
    assert equal(before[4:], after[4:])
    assert originals(model)[0].grad is not None


def test_exception_in_forward_leaves_no_shared_weight() -> None:
    model = small_cnn()
    fastsn.apply(model, "sn")
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 4, 8, 8))
    assert current() is None


def test_layers_of_different_settings_are_grouped_too() -> None:
    """Another dtype, eps, mode or number of iterations makes another op call only."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    fastsn.spectral_norm(model[0])
    fastsn.spectral_norm(model[1], n_power_iterations=3)
    fastsn.spectral_norm(model[2], bidirectional=True, scale=2.0)
    fastsn.spectral_norm(model[3])
    fastsn.spectral_norm(model[3], "bias")
    group = fastsn.SpectralNormGroup(model)
    model[3].eval()
    for norm in norms(model[3]):
        norm.eval()
    before = vectors(model)
    with CountOps() as ops:
        model(torch.randn(1, 4)).sum().backward()
    assert ops.counts == {"spectral_normalize": 3, "spectral_normalize_backward": 3}
    assert len(group) == 5
    assert equal(before[-2:], vectors(model)[-2:])
    torch.testing.assert_close(model[3].bias.norm(), torch.tensor(1.0))


def test_loss_on_some_layers_only() -> None:
    """Layers that took no part get no gradient, and the others the same as always."""
    model = small_cnn()
    fastsn.apply(model, "bssn")
    model[7].parametrizations.weight.original.requires_grad_(False)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    x, out = images(), {}
    model[2].register_forward_hook(lambda layer, args, output: out.update(hidden=output))
    model(x)
    out["hidden"].sum().backward()
    assert [w.grad is not None for w in originals(model)] == [True, True, False, False]
    model.load_state_dict(start)
    alone = torch.autograd.grad(model[2](model[1](model[0](x))).sum(), originals(model)[:2])
    for weight, grad in zip(originals(model), alone, strict=False):
        torch.testing.assert_close(weight.grad, grad)


def test_group_inside_a_group() -> None:
    """An outer group's forward covers the inner model; the inner group then computes nothing."""
    inner = small_cnn()
    fastsn.apply(inner, "sn")
    outer = nn.Sequential(inner, nn.Linear(1, 3))
    fastsn.spectral_norm(outer[1])
    fastsn.SpectralNormGroup(outer)
    with CountOps() as ops:
        outer(images())
    assert ops.counts["spectral_normalize"] == 1
    with CountOps() as ops:
        inner(images())
    assert ops.counts["spectral_normalize"] == 1


def test_sigmas_are_the_exact_norms_after_many_updates() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "bssn", n_power_iterations=100)
    for _ in range(20):
        group.update()
    for name, sigma in group.sigmas().items():
        weight = model[int(name.split(".")[0])].parametrizations.weight.original.detach().double()
        exact = [
            torch.linalg.matrix_norm(weight.movedim(d, 0).flatten(1), 2)
            for d in ((0, 1) if weight.ndim > 2 else (0,))
        ]
        torch.testing.assert_close(sigma.double(), sum(exact) / len(exact), rtol=1e-5, atol=0)
        each = group.sigmas(per_unfolding=True)[name]
        assert each.shape == (len(exact),)
        torch.testing.assert_close(each.mean(), sigma)


def test_reset_draws_new_warm_vectors() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "bssn")
    with torch.no_grad():
        for weight in originals(model):
            nn.init.normal_(weight, std=30.0)
    before = vectors(model)
    group.reset()
    assert not equal(before, vectors(model))
    model.eval()
    model(images())
    norm = torch.linalg.matrix_norm(model[2].weight.detach().flatten(1), 2)
    assert 1.0 < float(norm) < 1.6  # 1.2 and the slack of 15 iterations


def test_print_says_what_was_wrapped_and_what_was_left_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.MultiheadAttention(8, 2)
    )
    model.register_parameter("positions", nn.Parameter(torch.randn(4, 8)))
    text = str(fastsn.apply(model, "bssn", exclude=["2"]))
    assert "0.weight" in text and "8x3x3x3" in text and "bsn" in text
    left = text.split("left alone:")[1]
    assert "2.weight" in left and "excluded" in left
    assert "positions" in left and "Sequential is not handled" in left
    assert "3.in_proj_weight" in text and "3.in_proj_weight" not in left
    assert "3.out_proj.weight" not in left


def test_removing_a_norm_by_torch_leaves_a_working_model() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "sn")
    parametrize.remove_parametrizations(model[2], "weight")
    assert model(images()).shape == (2, 1)
    assert len(group) == 3
    assert "2.weight" in str(group).split("left alone:")[1]
    assert "its spectral norm was removed" in str(group)


def test_replaced_member_is_named() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "sn")
    model[2] = nn.Conv2d(8, 12, 4, 2, 1)
    with pytest.raises(RuntimeError, match=r"layer '2'.*removed or replaced.*refresh"):
        model(images())
    group.refresh()
    model(images())


def test_detach_leaves_layers_normalized() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "sn")
    group.detach()
    with CountOps() as ops:
        model(images())
    assert ops.counts["spectral_normalize"] == 4


def test_include_patterns() -> None:
    model = small_cnn()
    assert len(fastsn.apply(model, "sn", include=["[02]"])) == 2


def test_learned_scale_shared_and_own() -> None:
    model = small_cnn()
    gamma = nn.Parameter(torch.tensor(0.8))
    fastsn.apply(model, "bssn", scale=gamma)
    assert sum(p is gamma for p in model.parameters()) == 1
    model(images()).sum().backward()
    assert gamma.grad != 0
    own = small_cnn()
    for layer in own:
        if hasattr(layer, "weight"):
            fastsn.spectral_norm(layer, bidirectional=True, scale=nn.Parameter(torch.ones(())))
    fastsn.SpectralNormGroup(own)
    own(images()).sum().backward()
    scales = [norm.scale for norm in norms(own)]
    assert len({id(s) for s in scales}) == 4 and all(s.grad is not None for s in scales)


def test_fold_bakes_the_evaluation_weights_in() -> None:
    import copy

    model = small_cnn()
    fastsn.apply(model, "bssn")
    model(images())
    twin = copy.deepcopy(model)
    model.eval()
    x = images()
    expected = model(x)
    plain = fastsn.fold(model)
    assert plain is model and type(model[0]) is nn.Conv2d
    assert sorted(model.state_dict()) == sorted(small_cnn().state_dict())
    assert not model._forward_pre_hooks and not model._forward_hooks
    assert torch.equal(model(x), expected)
    twin.eval()
    assert torch.equal(twin(x), expected)  # a deep copy is not touched


def test_fold_layer_without_group() -> None:
    layer = fastsn.spectral_norm(nn.ConvTranspose2d(3, 4, 3), bidirectional=True)
    layer.eval()
    expected = layer.weight.detach().clone()
    fastsn.fold(layer)
    assert isinstance(layer._parameters["weight"], nn.Parameter)
    assert torch.equal(layer.weight, expected)


def test_fold_conv_spectral_norm() -> None:
    model = nn.Sequential(fastsn.conv_spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    with pytest.raises(ValueError, match="waits for its first forward: run the model once"):
        fastsn.fold(model)
    x = images()
    model(x)
    model.eval()
    expected = model(x)
    fastsn.fold(model)
    assert type(model[0]) is nn.Conv2d and not model[0]._forward_pre_hooks
    torch.testing.assert_close(model(x), expected)
