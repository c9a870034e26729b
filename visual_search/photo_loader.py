"""What reads the training photos, in processes of its own."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset

from visual_search.samplers import TrainingBatches


def photo_loader(images: Dataset, batches: TrainingBatches, seed: int, workers: int) -> DataLoader:
    """A loader of the batches that `batches` chooses.

    Args:
        images: by number.
        batches: the numbers of each batch.
        seed: of the draws that seed the workers.
        workers: processes that read; 0 reads in this one.
    """
    return DataLoader(
        images,
        batch_sampler=batches,
        # Its own: else the draws of dropout would depend on how many workers there are.
        generator=torch.Generator().manual_seed(seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
