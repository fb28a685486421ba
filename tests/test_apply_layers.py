"""Recurrent, attention and tied weights in ``apply``: the numbers of a norm for each weight.

They are compared with power iterations written out here, in float64, on a plain copy of the layer.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import originals, vectors
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm as torch_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fastsn


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Recurrent(nn.Module):
    """A recurrent layer on sequences, packed or padded."""

    def __init__(self, make: Callable[..., Any], packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.rnn = make(4, 6, **options)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            return self.rnn(x)[0].square().mean()
        packed = pack_padded_sequence(x, torch.tensor([5, 2, 4]), enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0])[0].square().mean()


class Cells(nn.Module):
    """A loop over time with a cell, which reads its weights at every step."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.cell = make(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x:
            state = self.cell(step, state)
        return (state[0] if isinstance(state, tuple) else state).square().mean()


class Attention(nn.Module):
    """Attention on other keys and values, or on itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.itself = not options

    def forward(self, x: Tensor) -> Tensor:
        other = x if self.itself else torch.cat([x, x[..., :2]], -1)
        return self.attention(x, other, other)[0].square().mean()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm, projected": lambda: Recurrent(nn.LSTM, proj_size=3, bias=False),
    "lstm, packed": lambda: Recurrent(nn.LSTM, packed=True),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2),
    "rnn, packed": lambda: Recurrent(nn.RNN, packed=True, nonlinearity="relu"),
    "lstm cell": lambda: Cells(nn.LSTMCell),
    "gru cell": lambda: Cells(nn.GRUCell),
    "rnn cell": lambda: Cells(nn.RNNCell),
    "attention": Attention,
    "attention, other widths": lambda: Attention(kdim=6, vdim=6, add_bias_kv=True),
}

WEIGHTS = {
    "lstm": 8, "lstm, projected": 3, "lstm, packed": 2, "gru": 4, "rnn, packed": 2, "lstm cell": 2,
    "gru cell": 2, "rnn cell": 2, "attention": 2, "attention, other widths": 4,
}  # fmt: skip


class PerWeight:
    """A plain model whose matrices are divided by estimates of their norms, as Miyato et al. do."""

    def __init__(self, plain: nn.Module, normalized: nn.Module) -> None:
        self.plain = plain
        self.vectors: dict[str, list[Tensor]] = {}
        for name, module in normalized.named_modules():
            if isinstance(module, fastsn.parametrization.SpectralNorm):
                label = name.replace("parametrizations.", "").removesuffix(".0")
                self.vectors[label] = [vector.clone() for vector in module.vectors()[0]]

    def __call__(self, x: Tensor, advance: bool = True) -> Tensor:
        weights = dict(self.plain.named_parameters(remove_duplicate=False))
        for label, (u, v) in self.vectors.items():
            matrix = weights[label]
            if advance:
                with torch.no_grad():
                    u.copy_(F.normalize(matrix @ v, dim=0))
                    v.copy_(F.normalize(matrix.T @ u, dim=0))
            weights[label] = matrix / (u.clone() @ matrix @ v.clone())
        return functional_call(self.plain, weights, (x,), tie_weights=False)


@pytest.mark.parametrize("update", ["forward", "step"])
@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_those_of_a_norm_for_each_weight(name: str, update: str) -> None:
    model = MODELS[name]()
    plain = copy.deepcopy(model)
    group = fastsn.apply(model, "sn", update=update)
    expected = PerWeight(plain, model)
    assert len(group) == len(expected.vectors) == WEIGHTS[name]
    for step in range(4):
        x = torch.randn(5, 3, 4)
        out, other = model(x), expected(x)
        torch.testing.assert_close(out, other, rtol=1e-12, atol=1e-14)
        out.backward()
        other.backward()
        for ours, theirs in zip(
            _sorted(model.named_parameters()), _sorted(plain.named_parameters()), strict=True
        ):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-13)
            with torch.no_grad():
                ours.sub_(ours.grad, alpha=0.1 + step)
                theirs.copy_(ours)
            ours.grad = theirs.grad = None
        for label, pair in expected.vectors.items():
            layer, _, own = label.rpartition(".")
            norm = model.get_submodule(f"{layer}.parametrizations.{own}.0")
            torch.testing.assert_close(list(norm.vectors()[0]), pair, rtol=1e-11, atol=1e-13)
    model.eval()
    torch.testing.assert_close(model(x), expected(x, advance=False), rtol=1e-11, atol=1e-13)


def _sorted(named: Any) -> list[nn.Parameter]:
    """Parameters by their names in a plain model."""
    plain = [
        (name.replace("parametrizations.", "").removesuffix(".original"), p) for name, p in named
    ]
    return [parameter for _, parameter in sorted(plain, key=lambda pair: pair[0])]


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_layer_alone_has_torchs_numbers(make: Callable[..., Any]) -> None:
    """torch's layers read their weights several times in a forward, and each read advances."""
    theirs = make(4, 6, 2, bidirectional=True)
    ours = copy.deepcopy(theirs)
    for name in [name for name, _ in theirs.named_parameters() if name.startswith("weight")]:
        torch_norm(theirs, name)
        fastsn.spectral_norm(ours, name)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(4):
        x = torch.randn(5, 3, 4)
        out, expected = ours(x)[0], theirs(x)[0]
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
        out.square().sum().backward()
        expected.square().sum().backward()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-11, atol=1e-13)
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-11, atol=1e-13)


def test_gradients_of_recurrent_weights_are_right() -> None:
    layer = nn.RNN(3, 2)
    fastsn.apply(layer, "ssn", scale=1.5)
    layer.eval()
    names = ["parametrizations.weight_ih_l0.original", "parametrizations.weight_hh_l0.original"]
    given = [layer.get_parameter(name).detach().requires_grad_() for name in names]
    x = torch.randn(3, 2, 3)

    def run(*weights: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


# What a recurrent layer keeps


class Marked(torch.autograd.Function):
    """The identity, whose node in the graph holds an object."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mark: Any) -> Tensor:
        ctx.mark = mark
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


def test_nothing_of_a_forward_stays_in_the_layer() -> None:
    """A layer of whose list the graph of its last weights hung would keep it alive."""
    model = Recurrent(nn.LSTM)
    fastsn.apply(model, "sn")
    held = model.rnn.parametrizations.weight_hh_l0
    mark = threading.Event()
    alive = weakref.ref(mark)
    weights = {"rnn.parametrizations.weight_hh_l0.original": Marked.apply(held.original, mark)}
    del mark
    out = functional_call(model, weights, (torch.randn(5, 3, 4),))
    weights.clear()
    assert alive() is not None
    del out
    gc.collect()
    assert alive() is None
    assert all(isinstance(weight, nn.Parameter) for weight in model.rnn._flat_weights)


def test_copies_and_pickles_after_a_forward() -> None:
    model = Recurrent(nn.GRU)
    fastsn.apply(model, "sn")
    x = torch.randn(5, 3, 4)
    model(x).backward()
    before = vectors(model)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(map(torch.equal, before, vectors(model)))  # neither reads a weight
    model.eval()
    for twin in twins:
        assert torch.equal(twin.eval()(x), model(x))
        for parameter in twin.parameters():
            parameter.data.mul_(2)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            theirs = getattr(twin.rnn, name)
            torch.testing.assert_close(theirs, getattr(model.rnn, name), rtol=1e-12, atol=0)


def test_moving_a_layer_advances_nothing() -> None:
    model = Recurrent(nn.LSTM)
    fastsn.apply(model, "sn")
    before = vectors(model)
    model.double()
    assert all(map(torch.equal, before, vectors(model)))
    model.float()(torch.randn(5, 3, 4, dtype=torch.float32)).backward()


def test_threads_do_not_take_each_others_weights() -> None:
    """Between two of torch's steps in one thread, another thread ends a forward."""
    model = Recurrent(nn.LSTM).eval()
    fastsn.apply(model, "sn")
    x = torch.randn(5, 3, 4)
    expected, wrong = model(x), []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(50):
            if not torch.equal(model(x), expected):
                wrong.append(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_in_one_piece_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's layout: the weights are moved in place, which must not look like a change of them."""
    moved = []

    @torch.no_grad()
    def flatten(self: Any) -> None:
        for weight in self._flat_weights:
            moved.append(weight)
            weight.set_(weight.clone())

    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", flatten)
    for update in ("forward", "step"):
        model = Recurrent(nn.LSTM)
        plain = copy.deepcopy(model)
        fastsn.apply(model, "sn", update=update)
        expected = PerWeight(plain, model)
        moved.clear()
        for _ in range(2):
            x = torch.randn(5, 3, 4)
            out, again, other = model(x), None, expected(x)
            if update == "step":
                again = model(x)
                assert torch.equal(out, again)
            torch.testing.assert_close(out, other, rtol=1e-12, atol=1e-14)
            (out if again is None else (out + again) / 2).backward()
            other.backward()
            for ours, theirs in zip(
                _sorted(model.named_parameters()), _sorted(plain.named_parameters()), strict=True
            ):
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-13)
                with torch.no_grad():
                    ours.sub_(ours.grad)
                    theirs.copy_(ours)
                ours.grad = theirs.grad = None
        assert len(moved) >= 8 and any(weight.grad_fn is not None for weight in moved)


@pytest.mark.parametrize("root", [True, False])
def test_a_group_taken_off_leaves_a_normalized_layer(root: bool) -> None:
    """Also where the recurrent layer is itself the model of the group."""
    layer = nn.GRU(4, 6)
    model = layer if root else nn.ModuleList([layer])
    group = fastsn.apply(model, "sn")
    x = torch.randn(5, 3, 4)
    model.eval()
    expected = layer(x)[0]
    group.detach()
    assert torch.equal(layer(x)[0], expected)
    for weight in originals(model):
        weight.data.mul_(100)
    torch.testing.assert_close(layer(x)[0], expected)


def test_fold_and_removal_give_plain_recurrent_layers() -> None:
    model = Recurrent(nn.LSTM, num_layers=2)
    fastsn.apply(model, "sn")
    x = torch.randn(5, 3, 4)
    expected = model.eval()(x)
    folded = fastsn.fold(copy.deepcopy(model))
    assert type(folded.rnn) is nn.LSTM
    assert torch.equal(folded(x), expected)
    for name in [name for name in model.rnn._flat_weights_names if name.startswith("weight")]:
        parametrize.remove_parametrizations(model.rnn, name)
    assert torch.equal(model(x), expected)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x).backward()
    optimizer.step()
    assert not torch.equal(model(x), expected)


def test_recurrent_layer_under_autocast_and_a_checkpoint() -> None:
    model = Recurrent(nn.LSTM).float()
    fastsn.apply(model, "sn")
    twin = copy.deepcopy(model)
    x = torch.randn(5, 3, 4, dtype=torch.float32)
    checkpoint(model, x, use_reentrant=False).backward()
    twin(x).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    torch.testing.assert_close(out.float(), twin(x), rtol=0.05, atol=0.01)


# Attention's fast path


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("whole", [True, False], ids=["encoder", "attention"])
def test_fast_path_uses_normalized_weights(whole: bool) -> None:
    """In evaluation torch hands all weights to one kernel; those must be the normalized ones."""
    if whole:
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        model: Any = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
    else:
        model = nn.MultiheadAttention(8, 2, batch_first=True)
    fastsn.apply(model, "sn")
    x = torch.randn(2, 5, 8)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    arguments = (x,) if whole else (x, x, x)
    key = "src_key_padding_mask" if whole else "key_padding_mask"

    def run(given: Any) -> Tensor:
        out = given(*arguments, **{key: mask})
        return (out if whole else out[0])[0]  # of the sequence without padding

    for _ in range(2):  # the second time after a change of the weights
        model.train()
        run(model).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=0.1)
                parameter.grad = None
        model.eval()
        slow = run(model)  # with gradients there is no fast path
        with torch.no_grad(), _calls_of_fast_kernels() as calls:
            fast = run(model)
        assert calls
        torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(run(fastsn.fold(copy.deepcopy(model))), slow)
    with torch.no_grad():
        for weight in originals(model):
            weight.mul_(100)
        torch.testing.assert_close(run(model), slow, rtol=1e-6, atol=1e-6)


class _calls_of_fast_kernels(torch.utils._python_dispatch.TorchDispatchMode):
    """Lists calls of torch's two kernels for whole layers."""

    def __enter__(self) -> list[str]:  # type: ignore[override]
        self.calls: list[str] = []
        super().__enter__()
        return self.calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in (
            "aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd",
        ):  # fmt: skip
            self.calls.append(func.name())
        return func(*args, **(kwargs or {}))


def test_attention_compiles_and_exports() -> None:
    model = Attention()
    fastsn.apply(model, "sn")
    twin = copy.deepcopy(model)
    x = torch.randn(2, 5, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        out, expected = compiled(x), twin(x)
        torch.testing.assert_close(out, expected)
        out.backward()
        expected.backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    exported = torch.export.export(twin.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), twin(x))


def test_recurrent_layer_exports() -> None:
    model = Recurrent(nn.LSTM).eval()
    fastsn.apply(model, "sn")
    x = torch.randn(5, 3, 4)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


# Names of parameters


def test_include_and_exclude_name_parameters() -> None:
    def names(**options: Any) -> list[str]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"rnn": nn.LSTM(4, 6), "head": nn.Linear(6, 2)})
        model.register_parameter("table", nn.Parameter(torch.randn(3, 4)))
        return sorted(fastsn.apply(model, "sn", **options).sigmas())

    both = ["rnn.weight_hh_l0", "rnn.weight_ih_l0"]
    assert names() == ["head.weight", *both]
    assert names(include=["rnn.weight_hh_l0"]) == ["rnn.weight_hh_l0"]
    assert names(include=["*.weight_hh_*", "head"]) == ["head.weight", "rnn.weight_hh_l0"]
    assert names(include=["rnn"]) == both
    assert names(include=["*"]) == ["head.weight", *both]  # a pattern takes no table and no bias
    assert names(include=["table", "head.weight"]) == ["head.weight", "table"]
    assert names(exclude=["rnn.weight_ih_l0"]) == ["head.weight", "rnn.weight_hh_l0"]
    assert names(exclude=["*.weight_?h_*"]) == ["head.weight"]
    with pytest.raises(ValueError, match=r"include pattern 'rnn.weight_l0' to match"):
        names(include=["rnn.weight_l0"])
    with pytest.raises(ValueError, match=r"exclude pattern 'rnn.wait' to match"):
        names(exclude=["rnn.wait"])


def test_excluded_parameters_stay_out_of_the_group() -> None:
    model = nn.LSTM(4, 6)
    fastsn.spectral_norm(model, "weight_ih_l0")
    group = fastsn.apply(model, "sn", exclude=["weight_ih_l0"])
    assert list(group.sigmas()) == ["weight_hh_l0"]
    group.refresh()
    assert list(group.sigmas()) == ["weight_hh_l0"]


@pytest.mark.parametrize("method", ["sn", "bssn"])
def test_print_gives_the_call_for_every_weight_left_alone(method: str) -> None:
    model: Any = nn.Module()
    model.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GRU(4, 6), nn.LSTMCell(4, 6))
    model.attention = nn.MultiheadAttention(4, 2, kdim=3)
    model.register_parameter("table", nn.Parameter(torch.randn(3, 4)))
    every = {name for name, p in model.named_parameters() if p.ndim > 1}
    group = fastsn.apply(model, method, include=["body.1.weight_hh_l0"])
    lines = str(group).split("left alone:\n")[1].splitlines()
    assert {line.split()[0] for line in lines} == every - {"body.1.weight_hh_l0"}
    for line in lines:
        call = line.partition("; ")[2]
        assert call.startswith("fastsn.spectral_norm(model")
        eval(call, {"fastsn": fastsn, "model": model})
    group.refresh()
    assert set(group.sigmas()) == every
    settings = {norm.extra_repr().rpartition("scale=")[2] for norm in map(_norm, group.members)}
    assert settings == {"1" if method == "sn" else "1.2"}
    assert model.body[0].parametrizations.weight[0].extra_repr().startswith(method[0:3:2] + "n"
        if method == "sn" else "bsn")  # fmt: skip


def _norm(member: Any) -> Any:
    return member.norm


def test_errors_change_nothing() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 6), "head": nn.Linear(6, 2)})
    names = [name for name, _ in model.named_parameters()]
    torch_norm(model["rnn"], "weight_hh_l0")
    for options, text in (
        ({}, "layer 'rnn' not to be normalized"),
        ({"include": "rnn"}, "list of names"),
        ({"include": ["rnn.bias_hh"]}, "to match a layer or a parameter"),
        ({"exclude": ["*"]}, "recurrent or attention layer, got none left by"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            fastsn.apply(model, "sn", **options)  # type: ignore[arg-type]
    parametrize.remove_parametrizations(model["rnn"], "weight_hh_l0", leave_parametrized=False)
    assert {name for name, _ in model.named_parameters()} == set(names)
    assert type(model["rnn"]) is nn.LSTM
    fastsn.apply(model, "sn", exclude=["rnn.weight_hh_l0"])


# Tied weights


class Language(nn.Module):
    """Embedding and output layer have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x)).logsumexp(-1).mean()


@pytest.mark.parametrize("update", ["forward", "step"])
def test_tied_weights_have_one_norm_and_two_readers(update: str) -> None:
    model = Language()
    plain = copy.deepcopy(model)
    group = fastsn.apply(model, "sn", update=update)
    assert list(group.sigmas()) == ["embed.weight"] and "(tied to head.weight)" in str(group)
    assert "left alone" not in str(group)
    norm = model.embed.parametrizations.weight[0]
    assert model.head.parametrizations.weight[0] is norm
    u, v = (vector.clone() for vector in norm.vectors()[0])
    tokens = torch.arange(7)
    for _ in range(3):
        weight = plain.embed.weight
        with torch.no_grad():
            u = F.normalize(weight @ v, dim=0)
            v = F.normalize(weight.T @ u, dim=0)
        ready = weight / (u @ weight @ v)
        expected = F.linear(F.embedding(tokens, ready), ready).logsumexp(-1).mean()
        out = model(tokens)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=0)
        out.backward()
        expected.backward()
        (ours,) = model.parameters()
        torch.testing.assert_close(ours.grad, weight.grad, rtol=1e-11, atol=1e-13)
        with torch.no_grad():
            ours.sub_(ours.grad)
            weight.copy_(ours)
        ours.grad = weight.grad = None
        torch.testing.assert_close(list(norm.vectors()[0]), [u, v], rtol=1e-11, atol=1e-13)


def test_tied_weights_stay_tied() -> None:
    model = Language()
    fastsn.apply(model, "ssn", scale=2.0)
    tokens = torch.arange(7)
    model(tokens).backward()
    expected = model.eval()(tokens)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(list(twin.parameters())) == 1 and len(vectors(twin)) == 2
        assert torch.equal(twin(tokens), expected)
        fastsn.fold(twin)
        assert twin.head.weight is twin.embed.weight
        torch.testing.assert_close(twin(tokens), expected, rtol=1e-14, atol=0)
    other = Language()
    fastsn.apply(other, "ssn", scale=2.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(tokens), expected)
    plain = Language()
    fastsn.load_plain_state_dict(other, plain.state_dict())
    assert len(list(other.parameters())) == 1


def test_tied_weight_with_a_reader_left_out() -> None:
    model = Language()
    group = fastsn.apply(model, "sn", exclude=["head"])
    left = str(group).split("left alone")[1]
    assert "excluded; it reads embed.weight, to which it is tied, without the norm" in left
    assert isinstance(model.head.weight, nn.Parameter)
    assert model.head.weight is model.embed.parametrizations.weight.original


def test_tied_weights_of_two_torch_norms_keep_their_own() -> None:
    model = Language()
    torch_norm(model.embed)
    torch_norm(model.head)
    for layer in (model.embed, model.head):
        norm = layer.parametrizations.weight[0]
        norm._u.copy_(F.normalize(torch.randn(7), dim=0))  # apart
    tokens = torch.arange(7)
    expected = model.eval()(tokens)
    fastsn.convert(model)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-12, atol=0)
    fastsn.fold(model)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-12, atol=0)
    assert model.head.weight is not model.embed.weight
