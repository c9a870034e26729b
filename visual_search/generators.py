"""Random numbers that depend on nothing but the numbers they are asked by."""

from __future__ import annotations

import hashlib

import torch


def generator_of(*numbers: int) -> torch.Generator:
    """A generator in main memory, seeded by all of the numbers, in their order.

    They are hashed, since the generator reads the lower 32 bits of a seed only: neighbouring
    steps of neighbouring seeds would otherwise share their draws.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
