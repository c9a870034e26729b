import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.commands import refused
from tests.visual_search.losses.angles import COMBINED, margined
from visual_search.config import MarginConfig
from visual_search.losses import margin_softmax
from visual_search.losses.margin_head import MarginHead, focal, initial_centers
from visual_search.losses.margins import MARGINS

CLASSES, DIMENSION, ROWS = 13, 9, 6
M = 0.4


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(ROWS, DIMENSION, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    return embeddings.to(dtype).requires_grad_(), labels


def margin(**settings: Any) -> MarginConfig:
    return MarginConfig(**{"class_margins": "none", **settings})


def make(name: str = "arcface", **settings: Any) -> MarginHead:
    seed = settings.pop("seed", 0)
    config = margin(**{"name": name, "scale": 12.0, "margin": M, **settings})
    return MarginHead(DIMENSION, torch.arange(1, CLASSES + 1), config, seed).double()


def cosines(head: MarginHead, embeddings: Tensor) -> Tensor:
    """Of each row to the nearest centre of each class."""
    of_centers = F.normalize(embeddings, dim=1) @ F.normalize(head.weight, dim=1).T
    return of_centers.view(len(embeddings), CLASSES, -1).amax(dim=2)


def naive_losses(
    head: MarginHead, embeddings: Tensor, labels: Tensor, margin: Any = M, smoothing: float = 0.0
) -> Tensor:
    """Angles by acos, derivatives by autograd."""
    rule, name, right = head.rule, head.rule.name, labels[:, None]
    similar, scale = cosines(head, embeddings), rule.scale if head.rule.name == "adacos" else 12.0
    if name == "softmax":
        of_centers = (embeddings @ head.weight.T).view(ROWS, CLASSES, -1)
        logits = of_centers.amax(dim=2)
    else:
        margin = {"sphereface": 0.35, "adacos": 0.0}.get(name, margin)
        theta = torch.acos(similar.gather(1, right))
        lengths = embeddings.detach().norm(dim=1, keepdim=True)
        usual, spread = rule.length_mean, rule.length_std + 1e-3
        quality = ((lengths - usual) / spread * rule.config.adaface_h).clamp(-1, 1)
        if name == "curricularface":
            hard = similar > torch.cos(theta + margin)
            similar = torch.where(hard, similar * (0.3 + similar), similar)
        logits = scale * similar.scatter(1, right, margined(name, theta, margin, quality))
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize(("smoothing", "block"), [(0.0, 1 << 20), (0.2, 1000), (0.0, 1)])
@pytest.mark.parametrize("centers", [1, 3])
@pytest.mark.parametrize("name", MARGINS)
def test_losses_and_gradients_are_the_naive_ones(
    name: str, centers: int, smoothing: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(margin_softmax, "_CACHED_BYTES", block)
    extra = COMBINED if name == "combined" else {}
    head = make(name, centers=centers, label_smoothing=smoothing, **extra).eval()
    head.rule.pace.fill_(0.3)
    embeddings, labels = batch()
    weights = torch.linspace(0.5, 1.5, ROWS, dtype=torch.float64)
    expected = naive_losses(head, embeddings, labels, smoothing=smoothing)
    wanted = torch.autograd.grad((expected * weights).sum(), (embeddings, head.weight))
    loss = ((losses := head(embeddings, labels)) * weights).sum()
    got = torch.autograd.grad(loss, (embeddings, head.weight), retain_graph=True)
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
    with pytest.raises(RuntimeError, match="once for each forward pass"):
        loss.backward()
    # A frozen head changes nothing for the embeddings.
    head.weight.requires_grad_(False)
    (frozen,) = torch.autograd.grad((head(embeddings, labels) * weights).sum(), embeddings)
    assert torch.equal(frozen, got[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("name", MARGINS)
def test_finite_where_embedding_and_centre_coincide(
    name: str, side: float, dtype: torch.dtype
) -> None:
    head = make(name, centers=1).float()
    labels = torch.arange(ROWS)
    embeddings = (head.weight.detach()[labels] * side).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        losses = head(embeddings, labels)
    assert losses.dtype == torch.float32
    for found in (losses, *torch.autograd.grad(losses.mean(), (embeddings, head.weight))):
        assert found.isfinite().all()


def test_focal_loss_is_the_papers() -> None:
    embeddings, labels = batch()
    plain, focused = make(), make(focal_gamma=2.0)
    losses = plain(embeddings, labels)
    p = torch.exp(-losses)
    torch.testing.assert_close(focused(embeddings, labels), (1 - p) ** 2 * losses)
    for gamma in (0.5, 2.0):
        zero = torch.zeros(1, requires_grad=True)
        assert torch.autograd.grad(focal(zero, gamma).sum(), zero)[0].isfinite().all()


def test_a_margin_for_each_class() -> None:
    embeddings, labels = batch()
    head = make(class_margins="power", low=0.1, span=0.3, power=-0.5)
    expected = naive_losses(head, embeddings, labels, 0.1 + 0.3 * (labels[:, None] + 1.0) ** -0.5)
    torch.testing.assert_close(head(embeddings, labels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("grow", "expected"),
    [("none", [1.0, 1.0, 1.0]), ("linear", [0.2, 0.6, 1.0]), ("log", [0.2, 0.6961, 1.0])],
)
@pytest.mark.parametrize("name", ["cosface", "combined", "sphereface"])
def test_growing_margin(name: str, grow: str, expected: list[float]) -> None:
    # 0.2 + 0.8 * ln(1 + (e - 1) / 2) = 0.6961
    extra = {"m1": 1.2, "m3": 0.3} if name == "combined" else {}
    head = make(name, grow=grow, grow_from=0.2, **extra)
    embeddings, labels = batch()
    for progress, share in zip((0.0, 0.5, 1.0), expected, strict=True):
        head.set_progress(progress)
        grown = {key: value * share for key, value in extra.items()}
        if name == "combined":
            grown["m1"] = 1 + 0.2 * share
        if name == "sphereface":
            grown["m1"] = 1 + 0.35 * share
        fixed = make(name, **{"margin": M * share, **grown})
        torch.testing.assert_close(
            head(embeddings, labels), fixed(embeddings, labels), atol=1e-3, rtol=1e-3
        )


def test_elastic_margins_are_drawn_in_training_and_plus_gives_far_rows_the_large_ones() -> None:
    similarity = torch.linspace(0.9, -0.5, 4000)
    draws = {}
    for name in ("elasticface-arc", "elasticface-arc-plus"):
        head = MarginHead(8, torch.ones(4), margin(name=name, elastic_std=0.1))
        torch.manual_seed(0)
        draws[name] = head.rule.draw(similarity)
        assert head.eval().rule.draw(similarity).abs().max() == 0
    plain, plus = draws.values()
    torch.manual_seed(0)
    assert torch.equal(plain, torch.randn(4000) * 0.1)
    assert torch.equal(plus, plain.sort().values)
    (embeddings, labels), head = batch(), make("elasticface-cos", elastic_std=0.1)
    torch.manual_seed(0)
    losses = head(embeddings, labels)
    torch.manual_seed(0)
    drawn = M + 0.1 * torch.randn(ROWS, 1, dtype=torch.float64)
    torch.testing.assert_close(losses, naive_losses(head, embeddings, labels, drawn))


def test_curricular_pace_is_the_running_mean_of_target_cosines() -> None:
    head = make("curricularface", curricular_momentum=0.1)
    pace = 0.0
    for seed in range(3):
        embeddings, labels = batch(seed)
        cosine = cosines(head, embeddings)[torch.arange(ROWS), labels]
        pace = 0.1 * cosine.mean().item() + 0.9 * pace
        head(embeddings, labels)
        assert head.rule.pace.item() == pytest.approx(pace, abs=1e-6)
    head.eval()(embeddings, labels)
    assert head.rule.pace.item() == pytest.approx(pace, abs=1e-6)


def test_adaface_follows_the_lengths() -> None:
    head = make("adaface", adaface_h=0.5)
    embeddings, labels = batch()
    lengths = embeddings.detach().norm(dim=1)
    got = head(embeddings, labels)
    mean, std = 0.99 * 20 + 0.01 * lengths.mean().item(), 0.99 * 100 + 0.01 * lengths.std().item()
    assert head.rule.length_mean.item() == pytest.approx(mean, rel=1e-6)
    assert head.rule.length_std.item() == pytest.approx(std, rel=1e-6)
    expected = naive_losses(head, embeddings, labels)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_adacos_scale_by_hand() -> None:
    head = make("adacos")
    embeddings, labels = batch()
    cosine = cosines(head, embeddings).detach()
    scale = math.sqrt(2) * math.log(CLASSES - 1)
    assert head.rule.scale.item() == pytest.approx(scale, rel=1e-6)
    sums, angles = [], []
    for row, label in zip(cosine.tolist(), labels.tolist(), strict=True):
        sums.append(sum(math.exp(scale * c) for n, c in enumerate(row) if n != label))
        angles.append(math.acos(row[label]))
    median = sorted(angles)[(ROWS - 1) // 2]
    head(embeddings, labels)
    expected = math.log(sum(sums) / ROWS) / math.cos(min(math.pi / 4, median))
    assert head.rule.scale.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["adaface", "curricularface", "adacos"])
def test_moving_state_survives_a_checkpoint(name: str) -> None:
    head = make(name, class_margins="minmax", grow="linear")
    for seed in range(4):
        head.set_progress(seed / 5)
        head(*batch(seed))
    other = make(name, class_margins="minmax", grow="linear", seed=5)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head(*batch(9)), other(*batch(9)))


def test_automatic_scale() -> None:
    head = MarginHead(4, torch.ones(101), margin(scale=0.0))
    assert head.rule.scale.item() == pytest.approx(math.sqrt(2) * math.log(100))
    assert MarginHead(4, torch.ones(2), margin(scale=0.0)).rule.scale.item() == 1.0


@pytest.mark.parametrize(("kind", "low", "span"), [("minmax", 1.7, 1.5), ("power", 0.0, 3.2)])
def test_margins_of_more_than_half_a_turn_are_refused(kind: str, low: float, span: float) -> None:
    refused(r"margin\.span", make, class_margins=kind, low=low, span=span)


def test_any_run_of_first_centers_is_the_same() -> None:
    whole = initial_centers(9000, 2, 3, seed=4)
    assert torch.equal(initial_centers(9000, 2, 3, 4, 4000, 8500), whole[8000:17000])
    assert not torch.equal(initial_centers(9000, 2, 3, 5), whole)
    assert whole[:8192].std().item() == pytest.approx(math.sqrt(2 / 18003), rel=0.05)


def test_vectors_without_length_have_cosine_zero_and_no_gradient() -> None:
    head = make("cosface")
    with torch.no_grad():
        head.weight[:3] = 0
    embeddings = torch.zeros(2, DIMENSION, dtype=torch.float64, requires_grad=True)
    losses = head(embeddings, torch.tensor([0, 5]))
    expected = math.log(CLASSES - 1 + math.exp(-12 * M)) + 12 * M
    assert losses.tolist() == pytest.approx([expected] * 2)
    for gradient in torch.autograd.grad(losses.sum(), (embeddings, head.weight)):
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_even_under_autocast(dtype: torch.dtype) -> None:
    embeddings, labels = batch()
    halved = embeddings.detach().to(dtype).requires_grad_()
    wide = halved.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        losses = make().float()(halved, labels)
    expected = make()(wide, labels)
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)
    (ours,) = torch.autograd.grad(losses.sum(), halved)
    (theirs,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(ours, theirs.to(dtype), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("centers", [1, 3])
def test_a_prefix_is_scored_as_by_a_narrow_head(centers: int) -> None:
    embeddings, labels = batch()
    wide = make(centers=centers)
    narrow = MarginHead(4, torch.arange(1, CLASSES + 1), wide.rule.config).double()
    narrow.weight.data.copy_(wide.weight.data[:, :4])
    short = embeddings.detach()[:, :4].clone().requires_grad_()
    ours, theirs = wide.prefix_losses(embeddings, labels, 4), narrow(short, labels)
    torch.testing.assert_close(ours, theirs)
    whole = torch.autograd.grad(ours.sum(), (embeddings, wide.weight))
    for one, other in zip(
        whole, torch.autograd.grad(theirs.sum(), (short, narrow.weight)), strict=True
    ):
        torch.testing.assert_close(one[:, :4], other)
        assert not one[:, 4:].any()


def test_what_a_margin_learns_of_the_data_is_that_of_whole_embeddings() -> None:
    head = make("adacos")
    before = head.rule.scale.clone()
    head.prefix_losses(*batch(), 3)
    assert head.rule.scale == before
    head(*batch())
    assert head.rule.scale != before
