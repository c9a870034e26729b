"""Networks in 8-bit integers, by NNCF: weights, and activations as calibration photos show them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from visual_search.signal_stack import signal_stack_kept


def quantized(
    network: Any, photos: Sequence[np.ndarray], feed: Callable[[np.ndarray], Any] | None = None
) -> Any:
    """The network with int8 weights and activations (post-training quantisation).

    Args:
        network: of OpenVINO or ONNX.
        photos: batches `(1, 3, H, W)`, uint8; a few hundred of the kind it will see.
        feed: what the network is given for a batch; None gives the batch itself.

    Raises:
        ModuleNotFoundError: without NNCF.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    data = nncf.Dataset(list(photos), feed)
    with signal_stack_kept():
        return nncf.quantize(network, data, subset_size=len(photos))
