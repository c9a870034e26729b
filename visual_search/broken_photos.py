"""Training photos that cannot be read: counted, listed, and too many of them stop the run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from visual_search.datasets import TrainingImages
from visual_search.errors import UserError
from visual_search.files import write_text

# A handful of broken photos at the start of a run says nothing about the share.
ALWAYS_ALLOWED = 10


class BrokenPhotos:
    """Which training photos were replaced by others because they could not be read."""

    def __init__(self, images: TrainingImages, max_share: float) -> None:
        """
        Args:
            images: what the batches are drawn from.
            max_share: of the photos read so far, 0..1; more stop the run.
        """
        self.images, self.max_share = images, max_share
        self.seen = 0
        self.broken: set[str] = set()

    def see(self, indexes: Tensor, passed_over: Tensor) -> None:
        """Take note of a batch.

        Args:
            indexes: `(N,)`, the photos that were asked for.
            passed_over: `(N,)`, how many unreadable ones were met before one could be read.

        Raises:
            UserError: with examples, above the limit.
        """
        self.seen += len(indexes)
        for i in passed_over.nonzero().flatten().tolist():
            paths = self.images.unreadable(int(indexes[i]), int(passed_over[i]))
            self.broken.update(str(path) for path in paths)
        if len(self.broken) > max(self.max_share * self.seen, ALWAYS_ALLOWED):
            examples = ", ".join(sorted(self.broken)[:3])
            raise UserError(
                f"{len(self.broken)} of {self.seen} training photos cannot be read, for example "
                f"{examples}; repair them, or raise dataset.max_broken_share"
            )

    def write(self, path: Path) -> None:
        """List them in a file and say so, where there are any."""
        if self.broken:
            write_text(path, "".join(f"{name}\n" for name in sorted(self.broken)))
            print(f"{len(self.broken)} unreadable training photos were replaced: see {path}")

    def state_dict(self) -> dict[str, object]:
        """What a continued run has to know."""
        return {"seen": self.seen, "broken": sorted(self.broken)}

    def load_state_dict(self, state: dict) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.seen, self.broken = int(state["seen"]), set(state["broken"])
