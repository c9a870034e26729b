"""What the ranker did, for its log: settings, time by stage, what the clock gave up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visual_search.clock import Pacer
from visual_search.embed import Embeddings
from visual_search.embed_settings import EmbedSettings
from visual_search.probing import Prepared


def embedding_log(
    prepared: Prepared,
    input_size: int,
    settings: EmbedSettings,
    pacer: Pacer,
    sides: Sequence[Embeddings],
) -> dict[str, Any]:
    """Settings that were chosen, time by stage, what the clock gave up, rows that were mended."""
    decode = sum(side.decode_seconds for side in sides)
    model = sum(side.model_seconds for side in sides)
    return {
        "seconds": {
            "probe": round(prepared.seconds, 3),
            "decode": round(decode / prepared.streams, 3),
            "decode_all_threads": round(decode, 3),
            "model_all_threads": round(model, 3),
        },
        "settings": {
            "input_size": input_size,
            "device": str(prepared.device),
            "precision": prepared.precision,
            "backend": prepared.backend,
            "memory_format": prepared.memory_format,
            "batch_size": prepared.batch_size,
            "streams": prepared.streams,
            "threads": prepared.threads,
            "decoder": prepared.decoder,
            "flip": settings.flip,
            "crops": settings.crops,
            "trim_borders": settings.trim_borders,
            "measured": {name: round(rate, 1) for name, rate in prepared.rates.items()},
        },
        "clock": pacer.report(),
        "recomputed_rows": sum(side.recomputed for side in sides),
        "zeroed_rows": sum(side.zeroed for side in sides),
    }
