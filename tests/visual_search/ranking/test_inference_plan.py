import platform
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.commands import ran
from tests.conftest import draw_product
from visual_search.common.errors import UserError
from visual_search.config import BackboneConfig, EmbedSettings
from visual_search.data.images import ImageItem
from visual_search.model.checkpoint import load_torchscript
from visual_search.model.embedder import Embedder, build_embedder
from visual_search.ranking import inference_plan
from visual_search.ranking.export import load_exported
from visual_search.ranking.inference_plan import EmbedFn, converted, plan_inference

BACKBONES = ["timm/test_efficientnet", "timm/test_convnext", "timm/test_resnet", "timm/test_vit"]


def embedder(backbone: str) -> Embedder:
    torch.manual_seed(0)
    model, _ = build_embedder(BackboneConfig(backbone, "none", std=(0.25,) * 3), 64)
    for module in model.modules():  # statistics that are not 0 and 1, so that folding matters
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return model.eval()


def images(n: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_a_copy_answers_as_the_model_and_leaves_it_alone(backbone: str, layout: str) -> None:
    model, pixels = embedder(backbone), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        expected = model(pixels)
        exact = converted(model, "fp32", layout, pixels[:2])(pixels)
        torch.testing.assert_close(exact, expected, atol=1e-5, rtol=1e-4)
        half = converted(model, "bf16", layout, pixels[:2])(pixels)
        assert half.dtype == torch.float32
        assert float((half * expected).sum(dim=1).min()) > 0.999
        torch.testing.assert_close(model(pixels), expected, atol=0, rtol=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.dtype == before[name].dtype


def norms(answer: Any) -> int:
    cells = [cell.cell_contents for cell in answer.__closure__]
    copy = next(cell for cell in cells if isinstance(cell, nn.Module))
    return sum(isinstance(module, nn.BatchNorm2d) for module in copy.modules())


def test_batch_norms_behind_convolutions_are_gone() -> None:
    model = embedder("timm/test_efficientnet")
    assert norms(converted(model, "fp32", "contiguous")) > 5
    assert norms(converted(model, "fp32", "contiguous", images(2))) == 0


class Shared(nn.Module):
    """One convolution in front of a norm and of a second way round it: it must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.norm.running_mean.fill_(0.7)  # type: ignore[union-attr]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        return (self.norm(maps) * 0.1 + maps.flip(2)).mean(dim=(2, 3)) ** 3


def test_a_norm_that_cannot_be_folded_stays() -> None:
    torch.manual_seed(1)
    model = Embedder(Shared(), nn.Identity(), (0.5,) * 3, (0.25,) * 3).eval()
    pixels = images()
    with torch.inference_mode():
        torch.testing.assert_close(
            converted(model, "fp32", "contiguous", pixels[:2])(pixels), model(pixels)
        )


def test_torchscript_runs_under_autocast(tiny_export: Path) -> None:
    model, _ = load_exported(tiny_export, CPU)
    scripted, pixels = load_torchscript(tiny_export / "model.pt").eval(), images()
    with torch.inference_mode():
        expected = model(pixels)
        exact = converted(scripted, "fp32", "channels_last")(pixels)
        half = converted(scripted, "bf16", "contiguous")(pixels)
    torch.testing.assert_close(exact, expected, atol=1e-5, rtol=1e-4)
    assert 0.99 < float((half * expected).sum(dim=1).min()) < 1 - 1e-7


CPU = torch.device("cpu")


@pytest.fixture
def items(tmp_path: Path) -> list[ImageItem]:
    for number in range(5):
        draw_product(number, 0).save(tmp_path / f"{number}.png")
    return [ImageItem(tmp_path / f"{number}.png") for number in range(5)]


def vectors(pixels: Tensor) -> Tensor:
    return nn.functional.normalize(pixels.flatten(1).float(), dim=1)


def test_a_cpu_runs_fp32_or_what_it_multiplies_in_hardware(
    items: list[ImageItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    for native, expected in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(inference_plan, "bf16_is_native", lambda native=native: native)
        plan = plan_inference(vectors, items, 8, device=CPU)
        assert (plan.precision, plan.memory_format) == (expected, "channels_last")
        assert (plan.batch_size, plan.backend, plan.only_size) == (4, "torch", 0)
        assert (plan.streams, plan.threads) == (inference_plan.available_cores(), 1)


def test_a_convnext_in_fp32_is_contiguous(items: list[ImageItem]) -> None:
    for backbone, layout in (("timm/test_convnext", "contiguous"), ("timm/test_vit", None)):
        model, _ = build_embedder(BackboneConfig(backbone, "none", std=(0.25,) * 3), 160)
        plan = plan_inference(
            model.eval(), items, 160, device=CPU, settings=EmbedSettings(precision="fp32")
        )
        assert plan.memory_format == (layout or "channels_last")
        assert inference_plan.memory_format_of(model, "bf16", on_gpu=False) == "channels_last"


def test_what_is_set_by_hand_goes_before_the_rules(items: list[ImageItem]) -> None:
    settings = EmbedSettings(precision="bf16", memory_format="contiguous", batch_size=3, workers=5)
    plan = plan_inference(vectors, items, 8, device=CPU, settings=settings)
    assert (plan.precision, plan.memory_format) == ("bf16", "contiguous")
    assert (plan.batch_size, plan.streams, plan.threads) == (3, 5, 1)


class Moody(nn.Module):
    """Answers wrongly, fails or hangs in half precision."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, pixels: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            if self.how == "fails":
                raise RuntimeError("no such kernel\nat line 3")
            if self.how == "hangs":
                time.sleep(5)
            return vectors(pixels).roll(1, dims=1)
        return vectors(pixels)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("answers wrongly", "its embeddings are not the model's: cosine"),
        ("fails", "no such kernel): the model runs in fp32"),
        ("hangs", "not done in"),
    ],
)
def test_a_precision_that_is_not_true_to_fp32_is_left_out(
    items: list[ImageItem],
    how: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(inference_plan, "bf16_is_native", lambda: True)
    started = time.perf_counter()
    plan = plan_inference(Moody(how), items, 8, device=CPU, seconds=1.0)
    assert time.perf_counter() - started < 3
    assert plan.precision == "fp32"
    pixels = images(2)
    torch.testing.assert_close(plan.embed(pixels), vectors(pixels))
    said = capsys.readouterr().out
    assert said.startswith("bf16 is left out (")
    assert reason in said


def turned(pixels: Tensor) -> Tensor:
    return nn.functional.normalize(vectors(pixels) + 0.5 * torch.eye(pixels[0].numel())[0], dim=1)


def missing(streams: int, threads: int) -> EmbedFn:
    raise RuntimeError("no network")


def test_another_runtime_is_taken_where_it_answers_alike(
    items: list[ImageItem], capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(runtime: EmbedFn, **settings: Any) -> inference_plan.InferencePlan:
        given: Any = {"device": CPU, "settings": EmbedSettings(precision="fp32", **settings)}
        return plan_inference(vectors, items, 8, runtime=lambda *_: runtime, **given)

    def same(pixels: Tensor) -> Tensor:
        return vectors(pixels)

    taken = plan(same)
    assert (taken.embed, taken.backend, taken.only_size) == (same, "onnx", 8)
    assert plan(same, backend="torch").backend == "torch"
    assert plan(turned).backend == "torch"
    assert "onnx is left out (its embeddings are not the model's" in capsys.readouterr().out
    assert plan(turned, min_cosine=0.5).embed is turned


def test_a_runtime_that_fails_is_done_without_unless_it_was_asked_for(
    items: list[ImageItem], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_inference(vectors, items, 8, device=CPU, runtime=missing)
    assert plan.backend == "torch"
    assert "onnx is left out (no network): PyTorch runs the model" in capsys.readouterr().out
    settings = EmbedSettings(backend="onnx")
    with pytest.raises(UserError, match=r"backend is onnx, which fails here \(no network\)"):
        plan_inference(vectors, items, 8, device=CPU, runtime=missing, settings=settings)


COUNT = """
import resource
import torch
from visual_search.ranking.inference_plan import keep_freed_memory

for kept in (False, True):
    if kept:
        assert keep_freed_memory()
    for _ in range(3):
        torch.ones(10_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(6):
        torch.ones(10_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_blocks_are_not_mapped_anew_each_time() -> None:
    """6 blocks of 40 MB are 58,000 pages of 4 kB; kept, the same ones are used again."""
    done = ran(sys.executable, "-c", COUNT)
    as_it_comes, kept = map(int, done.stdout.split())
    assert kept < as_it_comes / 4, done.stderr
