from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from visual_search import probing
from visual_search.embed_settings import EmbedSettings
from visual_search.errors import UserError
from visual_search.inference import Answer
from visual_search.probing import Compiled, prepare
from visual_search.side_by_side import side_by_side

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)


def vectors(pixels: Tensor) -> Tensor:
    return torch.nn.functional.normalize(pixels.flatten(1).float(), dim=1)


def fast_for_four(pixels: Tensor) -> Tensor:
    """Contiguous batches of four photos take 2 ms a photo, all others 6."""
    layout = pixels.is_contiguous() and len(pixels) == 4
    time.sleep((0.002 if layout else 0.006) * len(pixels))
    return vectors(pixels)


def test_the_fastest_is_chosen_by_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "bf16_is_native", lambda: False)
    chosen = prepare(fast_for_four, PIXELS, 2000, device=CPU, cores=2)
    assert (chosen.precision, chosen.memory_format, chosen.batch_size) == ("fp32", "contiguous", 4)
    assert chosen.streams == 2
    # Two streams of 500 photos a second each, less what waking costs.
    assert 300 < max(chosen.rates.values()) < 1001
    torch.testing.assert_close(chosen.answer(PIXELS), vectors(PIXELS))


def test_what_is_set_by_hand_is_not_measured() -> None:
    settings = EmbedSettings(
        precision="fp32", memory_format="channels_last", batch_size=3, workers=5
    )
    chosen = prepare(fast_for_four, PIXELS, 2000, device=CPU, cores=2, settings=settings)
    assert (chosen.memory_format, chosen.batch_size, chosen.streams) == ("channels_last", 3, 5)
    assert not any("contiguous" in name for name in chosen.rates)


def test_few_photos_and_no_time_are_not_measured() -> None:
    assert prepare(fast_for_four, PIXELS, 20, device=CPU, cores=2).rates == {}
    started = time.perf_counter()

    def slow(pixels: Tensor) -> Tensor:
        time.sleep(3)
        return vectors(pixels)

    chosen = prepare(slow, PIXELS, 10_000, device=CPU, cores=2, seconds=0.1)
    assert chosen.rates == {}
    assert time.perf_counter() - started < 2


def test_a_precision_that_answers_otherwise_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "bf16_is_native", lambda: True)

    def coarse(pixels: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            return vectors(pixels).roll(1, dims=1)
        time.sleep(0.002 * len(pixels))
        return vectors(pixels)

    assert prepare(coarse, PIXELS, 2000, device=CPU, cores=1).precision == "fp32"

    def alike(pixels: Tensor) -> Tensor:
        time.sleep((0.001 if torch.is_autocast_enabled("cpu") else 0.004) * len(pixels))
        return vectors(pixels)

    assert prepare(alike, PIXELS, 2000, device=CPU, cores=1).precision == "bf16"


def test_a_failure_in_a_thread_is_raised() -> None:
    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        side_by_side(broken, 2, 1, CPU)


def paced(pixels: Tensor) -> Tensor:
    time.sleep(0.002 * len(pixels))
    return vectors(pixels)


PHOTOS = 100_000  # at 2 ms each more than LONG_SECONDS
FIXED = EmbedSettings(precision="fp32", memory_format="contiguous", workers=2)


def raising(streams: int, threads: int, exact: bool) -> Answer:
    raise RuntimeError("Could not load model.xml\nframe 1")


def damaged(streams: int, threads: int, exact: bool) -> Answer:
    raise UserError("model.xml cannot be used: no network")


def slow_to_compile(streams: int, threads: int, exact: bool) -> Answer:
    time.sleep(30)
    return vectors


def slow_to_answer(streams: int, threads: int, exact: bool) -> Answer:
    def answer(pixels: Tensor) -> Tensor:
        time.sleep(30)
        return vectors(pixels)

    return answer


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (raising, "Could not load model.xml"),
        (damaged, "model.xml cannot be used: no network"),
        (slow_to_compile, "there is no time to measure it"),
        (slow_to_answer, "there is no time to measure it"),
    ],
)
def test_a_runtime_that_fails_is_done_without(
    load: Callable[[int, int, bool], Answer],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(probing, "COMPILE_SHARE", 0.005)
    compiled = Compiled("openvino", load)
    given: Any = {"device": CPU, "cores": 2, "compiled": compiled, "seconds": 2.0}
    chosen = prepare(paced, PIXELS, PHOTOS, settings=FIXED, **given)
    assert (chosen.backend, chosen.only_size) == ("torch", 0)
    torch.testing.assert_close(chosen.answer(PIXELS), vectors(PIXELS))
    assert f"openvino is left out ({reason}): PyTorch" in capsys.readouterr().out


@pytest.mark.parametrize("load", [raising, damaged])
def test_a_runtime_that_was_asked_for_must_not_fail(
    load: Callable[[int, int, bool], Answer],
) -> None:
    settings = replace(FIXED, backend="openvino")
    with pytest.raises(UserError, match=r"backend is openvino, which fails here \(.*model\.xml"):
        prepare(
            paced,
            PIXELS,
            PHOTOS,
            device=CPU,
            cores=2,
            settings=settings,
            compiled=Compiled("openvino", load),
        )


def test_a_runtime_that_is_faster_is_taken_and_named() -> None:
    seen: list[bool] = []

    def load(streams: int, threads: int, exact: bool) -> Answer:
        seen.append(exact)
        return vectors

    compiled = Compiled("onnx", load, coarse=False)
    chosen = prepare(paced, PIXELS, PHOTOS, device=CPU, cores=2, settings=FIXED, compiled=compiled)
    assert (chosen.backend, chosen.only_size) == ("onnx", 8)
    assert chosen.answer is vectors
    assert seen == [False]
    other = replace(FIXED, backend="openvino")  # what is asked for is not what there is
    assert (
        prepare(paced, PIXELS, 8, device=CPU, cores=2, settings=other, compiled=compiled).backend
        == "torch"
    )


def test_what_does_not_fit_the_memory_counts_as_not_moving() -> None:
    def narrow(pixels: Tensor) -> Tensor:
        if len(pixels) > 1 and not pixels.is_contiguous():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return vectors(pixels)

    settings = EmbedSettings(precision="fp32", workers=1)
    chosen = prepare(narrow, PIXELS, 2000, device=CPU, cores=1, settings=settings)
    assert chosen.memory_format == "contiguous"

    def full(pixels: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    chosen = prepare(full, PIXELS, 2000, device=CPU, cores=1, settings=settings)
    assert chosen.rates == {}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_is_used_where_it_is_asked_for() -> None:
    settings = replace(FIXED, batch_size=4, backend="compile")
    chosen = prepare(vectors, PIXELS, 8, device=CPU, cores=2, settings=settings)
    assert (chosen.backend, chosen.only_size) == ("compile", 8)
    for count in (4, 3, 1):
        with torch.inference_mode():
            answer = chosen.answer(PIXELS[:count])
        torch.testing.assert_close(answer, vectors(PIXELS[:count]))


def test_a_model_that_cannot_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(pixels: Tensor) -> Tensor:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    settings = replace(FIXED, batch_size=4, backend="compile")
    with pytest.raises(UserError, match=r"torch\.compile fails here \(no C\+\+ compiler\)"):
        prepare(vectors, PIXELS, 8, device=CPU, cores=2, settings=settings)
