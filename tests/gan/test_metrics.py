"""Metrics against independent oracles: torchmetrics, torch-fidelity, and closed forms."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastsn.gan.config import ConfigError, EvalConfig
from fastsn.gan.data.compat import import_torchvision
from fastsn.gan.data.images import Images
from fastsn.gan.data.sets import load_images
from fastsn.gan.measure import features as features_module
from fastsn.gan.measure import metrics
from fastsn.gan.measure.features import Classifier, Extractor, load_extractor
from fastsn.gan.measure.metrics import Evaluator, real_features
from fastsn.gan.run import logs

import_torchvision()  # both oracles import it
from torch_fidelity import calculate_metrics, register_feature_extractor  # noqa: E402
from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # noqa: E402
from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: E402
from torchmetrics.image.inception import InceptionScore  # noqa: E402
from torchmetrics.image.kid import KernelInceptionDistance  # noqa: E402


class Tiny(nn.Module):
    """Means of 4 x 4 pixels through two fixed random layers: 12 features and 5 scores."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(5)
        self.first = torch.randn(12, 3 * 16, generator=rng) / 7
        self.second = torch.randn(5, 12, generator=rng) * 3

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
        features = torch.tanh(x @ self.first.T * 4)
        return features, features @ self.second.T

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[0]


class TinyScores(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]


class TinyFidelity(FeatureExtractorBase):
    """The same for torch-fidelity."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.tiny = Tiny()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "scores"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "scores" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        both = dict(zip(("features", "scores"), self.tiny.both(images), strict=True))
        return tuple(both[name] for name in self.features_list)


register_feature_extractor("fastsn-tiny", TinyFidelity)


def pictures(n: int, seed: int, shift: float = 0.0) -> Tensor:
    """Smooth random pictures ``uint8 [n, 3, 16, 16]``."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 4, 4, generator=rng) * 50 + 128 + shift
    fine = nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    return fine.round().clamp(0, 255).to(torch.uint8)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]

    def __len__(self) -> int:
        return len(self.pixels)


@pytest.fixture(scope="module")
def sides() -> tuple[Tensor, Tensor]:
    return pictures(300, 1), pictures(400, 2, shift=15)


@pytest.fixture(scope="module")
def fidelity(sides: tuple[Tensor, Tensor]) -> dict[str, float]:
    real, fake = sides
    return calculate_metrics(
        input1=Pictures(fake),
        input2=Pictures(real),
        cuda=False,
        isc=True,
        fid=True,
        prc=True,
        feature_layer_prc="features",
        isc_splits=7,
        samples_shuffle=False,
        feature_extractor="fastsn-tiny",
        feature_layer_isc="scores",
        feature_layer_fid="features",
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )


def numbers(
    real: Tensor,
    fake: Tensor,
    scores: Tensor | None = None,
    *,
    splits: int = 1,
    subsets: int = 1,
    size: int = 0,
) -> dict[str, float]:
    scores = torch.zeros(len(fake), 3) if scores is None else scores
    size = size or min(len(real), len(fake))
    return metrics._numbers(real, fake, scores, splits, subsets, size)


def test_numbers_are_those_of_torch_fidelity_from_images(
    sides: Any, fidelity: dict[str, float]
) -> None:
    real, fake = (Tiny()(side) for side in sides)
    found = numbers(real, fake, Tiny().both(sides[1])[1], splits=7)
    for name in ("inception_score_mean", "inception_score_std", "frechet_inception_distance"):
        assert found[name] == pytest.approx(fidelity[name], rel=1e-5), name
    assert found["inception_score_mean"] > 1.1  # not the trivial value, 1
    assert found["frechet_inception_distance"] > 0.02
    assert found["precision"] == pytest.approx(fidelity["precision"])
    assert found["recall"] == pytest.approx(fidelity["recall"])
    assert 0 < found["precision"] < 1


# torchmetrics says that it keeps all features; here they are few.
BUFFERS = pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features")


@BUFFERS
@pytest.mark.filterwarnings("ignore:std.*degrees of freedom")  # of one split
def test_score_is_torchmetrics(sides: Any) -> None:
    # torchmetrics shuffles; one split does not depend on the order.
    metric = InceptionScore(feature=TinyScores(), splits=1)
    metric.update(sides[1])
    expected, _ = metric.compute()
    found = numbers(*(Tiny()(side) for side in sides), Tiny().both(sides[1])[1])
    assert found["inception_score_mean"] == pytest.approx(expected.item(), rel=1e-5)


@BUFFERS
def test_distances_are_torchmetrics(sides: Any) -> None:
    real, fake = sides
    frechet = FrechetInceptionDistance(feature=Tiny(), input_img_size=(3, 16, 16))
    frechet.update(real, real=True)
    frechet.update(fake, real=False)
    found = numbers(Tiny()(real), Tiny()(fake))
    assert found["frechet_inception_distance"] == pytest.approx(frechet.compute().item(), rel=1e-4)
    kernel = KernelInceptionDistance(feature=Tiny(), subsets=3, subset_size=300)
    kernel.update(real, real=True)
    kernel.update(fake[:300], real=False)
    found = numbers(Tiny()(real), Tiny()(fake[:300]), subsets=3, size=300)
    expected = kernel.compute()[0].item()
    assert found["kernel_inception_distance_mean"] == pytest.approx(expected, rel=1e-4)


def test_numbers_of_known_features() -> None:
    """Centered and whitened samples with a given mean and covariance: the closed form."""
    x = torch.randn(500, 3, dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov()).T)
    real = white * torch.tensor([1.0, 2.0, 3.0])
    fake = white * torch.tensor([4.0, 2.0, 1.0]) + torch.tensor([1.0, 0.0, -2.0])
    # |m|^2 + sum (s - t)^2 = 5 + 9 + 0 + 4
    assert numbers(real, fake)["frechet_inception_distance"] == pytest.approx(18)
    same = numbers(real, real)
    assert same["frechet_inception_distance"] == pytest.approx(0, abs=1e-9)
    assert (same["precision"], same["recall"]) == (1, 1)
    away = numbers(real, real + 1000)
    assert (away["precision"], away["recall"]) == (0, 0)
    sure = 100 * torch.eye(4).repeat(5, 1)
    known = numbers(real, fake, torch.cat([sure[:1].repeat(20, 1), sure]), splits=2)
    # the first split has one class and the second four
    assert known["inception_score_mean"] == pytest.approx(2.5)
    assert known["inception_score_std"] == pytest.approx(1.5)


# The whole


def fashion(n: int) -> Images:
    images = load_images("fashion_mini", None)
    return Images(images.pixels[:n], images.name, images.description)


def evaluate(
    real: Images, sample: Any, extractor: Any = "classifier", **options: Any
) -> dict[str, Any]:
    config = EvalConfig(extractor=extractor, **options)
    return Evaluator(config, real, torch.device("cpu"))(sample)


def test_classifier_numbers_have_their_own_names_and_order() -> None:
    images = load_images("fashion_mini", None)
    real = Images(images.pixels[:1000], "fashion_mini", "half of them")
    others = images.pixels[1000:2000]
    noise = torch.randint(0, 256, (1000, 1, 28, 28), dtype=torch.uint8)
    asked: list[int] = []

    def sampler(pixels: Tensor) -> Any:
        def sample(n: int) -> Tensor:
            asked.append(n)
            return pixels[:n]

        return sample

    options = {"n_real": 1000, "n_fake": 500, "n_score": 1000, "splits": 5}
    good = evaluate(real, sampler(others), **options)
    bad = evaluate(real, sampler(noise), **options)
    assert asked == [1000, 1000]
    assert set(good) == {
        "protocol",
        "score_1k_s5",
        "score_1k_s5_std",
        "frechet_1k_500",
        "kernel_1k_500",
        "precision_1k_500",
        "recall_1k_500",
    }
    assert good["recall_1k_500"] > bad["recall_1k_500"] + 0.5  # noise is all of one kind
    digest = hashlib.sha256((features_module.ASSETS / "classifier.pt").read_bytes()).hexdigest()
    assert good["protocol"] == {
        "extractor": "classifier",
        "extractor_sha256": digest,
        "real": "fashion_mini",
        "real_images": 1000,
        "real_hash": real.fingerprint["hash"],
        "resolution": 28,
        "channels": 1,
        "n_real": 1000,
        "n_fake": 500,
        "n_score": 1000,
        "splits": 5,
        "score_classes": 10,
        # Subsets as large as the set would all be the same: one, without a deviation.
        "kernel_subsets": 1,
        "kernel_subset_size": 500,
        "neighbours": 3,
    }
    assert good["score_1k_s5"] > 6  # of 10 classes
    assert bad["score_1k_s5"] < 4
    for name in ("frechet_1k_500", "kernel_1k_500"):
        # The kernel distance is unbiased, so it is about 0 for images of the same kind.
        assert bad[name] > 20 * abs(good[name])


def test_counts_say_which_images_are_compared() -> None:
    extractor, pixels = load_extractor("classifier"), fashion(300).pixels
    features, scores = extractor(pixels)
    images = Images(pixels[200:], "some", "100 images")
    real = real_features(images, extractor, 100)
    options = {"n_real": 100, "n_fake": 50, "n_score": 200, "splits": 2}
    values = evaluate(images, lambda n: pixels[:n], **options)
    expected = numbers(real, features[:50], scores[:200], splits=2, size=50)
    assert values["score_200_s2"] == pytest.approx(expected["inception_score_mean"])
    assert values["frechet_100_50"] == pytest.approx(expected["frechet_inception_distance"])
    assert values["kernel_100_50"] == pytest.approx(expected["kernel_inception_distance_mean"])
    assert "kernel_100_50_std" not in values


def test_kernel_subsets_are_smaller_than_the_sets_or_have_no_deviation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "KERNEL_SIZE", 20)
    pixels = fashion(100).pixels
    options = {"n_real": 50, "n_score": 50, "splits": 2}
    some = evaluate(fashion(100), lambda n: pixels[:n], n_fake=40, **options)
    assert some["kernel_50_40_std"] > 0 and some["protocol"]["kernel_subsets"] == 100
    whole = evaluate(fashion(100), lambda n: pixels[:n], n_fake=20, **options)
    assert "kernel_50_20_std" not in whole
    tiny = evaluate(fashion(100), lambda n: pixels[:n], **{**options, "n_fake": 2, "n_real": 2})
    assert all(value == value for value in tiny.values())


def test_evaluations_tell_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "QUIET", -1.0)
    images = fashion(600)
    evaluate(images, lambda n: images.pixels[:n], n_real=600, n_fake=600, n_score=600, splits=2)
    said = capsys.readouterr().err
    assert "features of real images: 250 of 600, " in said and "evaluating: 500 of 600, " in said


def test_real_features_are_of_the_same_images_every_time() -> None:
    extractor, images = load_extractor("classifier"), fashion(300)
    features = real_features(images, extractor, 200)
    assert features.shape == (200, 64)
    assert torch.equal(features, real_features(images, extractor, 200))
    with pytest.raises(ConfigError, match="eval.n_real: expected .* the 300 images.*got 301"):
        Evaluator(EvalConfig(extractor="classifier", n_real=301), images, torch.device("cpu"))


def test_classifier_knows_the_classes_of_the_shipped_images() -> None:
    images = load_images("fashion_mini", None)
    _, scores = load_extractor("classifier")(images.pixels)
    labels = torch.arange(len(images)) % 10
    assert (scores.argmax(1) == labels).double().mean() > 0.9


def test_classifier_takes_other_sizes_and_colours() -> None:
    extractor, pixels = load_extractor("classifier"), fashion(100).pixels
    large = nn.functional.interpolate(pixels.float(), scale_factor=2.0).to(torch.uint8)
    expected, _ = extractor(pixels)
    found, _ = extractor(large.expand(-1, 3, -1, -1))
    assert torch.nn.functional.cosine_similarity(found, expected).mean() > 0.95
    with pytest.raises(ValueError, match=r"expected images uint8 .*, got torch.float32 \[1, 1"):
        extractor(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match="1 or 3"):
        extractor(torch.zeros(1, 2, 28, 28, dtype=torch.uint8))


# Weights files


def test_shipped_weights_are_small() -> None:
    assert (features_module.ASSETS / "classifier.pt").stat().st_size < 1_000_000
    assert (features_module.ASSETS / "fashion_mini.png").stat().st_size < 3_000_000
    assert "Zalando" in (features_module.ASSETS / "NOTICE.txt").read_text()


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


def test_files_that_are_not_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected an extractor of .*, got 'resnet'"):
        load_extractor("resnet")
    with pytest.raises(FileNotFoundError, match="none.pt: expected weights of fastsn.gan's"):
        load_extractor("classifier", tmp_path / "none.pt")
    path = tmp_path / "weights.pt"
    torch.save({"state": Harmful()}, path)
    with pytest.raises(ValueError, match="weights.pt: .* unreadable"):
        load_extractor("classifier", path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match="weights.pt: .* unreadable"):
        load_extractor("classifier", path)
    assert not (tmp_path / "harmed").exists()
    whole = (features_module.ASSETS / "classifier.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="weights.pt: .* unreadable"):
        load_extractor("classifier", path)
    for state in ({"fc1.weight": torch.zeros(2)}, [1, 2], {"conv1.weight": 3}):
        torch.save(state, path)
        with pytest.raises(ValueError, match="weights.pt: expected weights of Classifier"):
            load_extractor("classifier", path)
    torch.save(Classifier().state_dict(), path)
    assert isinstance(load_extractor("classifier", path), Extractor)


def test_inception_weights_are_checked_before_they_are_used(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="weights-inception-2015-12-05.*got none"):
        load_extractor("inception")
    path = tmp_path / "inception.pth"
    with pytest.raises(FileNotFoundError, match=r"inception.pth: expected .*https://github.com"):
        load_extractor("inception", path)
    torch.save({}, path)
    with pytest.raises(ValueError, match="inception.pth: .*SHA-256 begins with 6726825d, got"):
        load_extractor("inception", path)


@pytest.mark.slow
def test_inception_path_with_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch-fidelity's own result with the same file; the true weights cannot be had here."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
    torch.save({}, tmp_path / "empty.pth")
    state = FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth")
    ).state_dict()
    monkeypatch.undo()
    path = tmp_path / "random.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(features_module, "INCEPTION_SHA256", digest[:8])
    real, fake = pictures(6, 1)[:, :1], pictures(6, 2)[:, :1]
    images = Images(real, "grey", "six grey pictures")
    options = {"weights": str(path), "n_real": 6, "n_fake": 6, "n_score": 6, "splits": 2}
    values = evaluate(images, lambda n: fake[:n], "inception", **options)
    expected = calculate_metrics(
        input1=Pictures(fake.expand(-1, 3, -1, -1)),
        input2=Pictures(real.expand(-1, 3, -1, -1)),
        cuda=False,
        isc=True,
        fid=True,
        isc_splits=2,
        samples_shuffle=False,
        feature_extractor_weights_path=str(path),
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    assert values["is_6_s2"] == pytest.approx(expected["inception_score_mean"], rel=1e-5)
    assert values["fid_6_6"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert values["protocol"]["extractor_sha256"] == digest
