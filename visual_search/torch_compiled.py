"""The model through `torch.compile`, which generates code for batches of one shape."""

from __future__ import annotations

import torch
from torch import Tensor

from visual_search.errors import UserError, first_line
from visual_search.inference import Answer
from visual_search.side_by_side import side_by_side


def torch_compiled(answer: Answer, batch: Tensor, threads: int, device: torch.device) -> Answer:
    """Compile a model for batches as large as `batch`; smaller ones are filled up.

    Minutes for a large model, so never tried unasked.

    Args:
        answer: uint8 pixels to unit vectors.
        batch: `(N, 3, size, size)`, uint8, on `device`; other sides would be compiled anew.
        threads: CPU threads that each of its callers uses; another number is compiled for anew.
        device: where the model is.

    Raises:
        UserError: when it cannot be compiled, such as without a C++ compiler on a CPU.
    """
    network, count = torch.compile(answer, dynamic=False), len(batch)

    def filled(pixels: Tensor) -> Tensor:
        given = len(pixels)
        if given < count:
            pixels = torch.cat([pixels, pixels.new_zeros(count - given, *pixels.shape[1:])])
        # Strides are part of what is compiled for.
        return network(pixels.contiguous())[:given]

    try:
        side_by_side(lambda: filled(batch), 1, threads, device)
    except Exception as error:  # errors of a compiler, of torch, of a driver
        raise UserError(
            f"embedding.backend is compile, but torch.compile fails here ({first_line(error)}): "
            "set it to torch"
        ) from error
    return filled
