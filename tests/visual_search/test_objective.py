import torch
from torch import nn

from visual_search.config import MarginConfig, PhaseConfig, TrainConfig
from visual_search.model.embedder import Embedder
from visual_search.objective import Learner


def test_the_loss_is_the_mean_over_the_nested_widths() -> None:
    torch.manual_seed(0)
    embedder = Embedder(nn.Identity(), nn.Linear(5, 8), (0.0,) * 3, (1.0,) * 3)
    margin = MarginConfig(centers=1, nested=(2, 4), dropout=0.0)
    phase = PhaseConfig(margin=margin, train=TrainConfig(cache_features=True))
    learner = Learner(embedder, 8, phase, torch.tensor([3, 5, 2, 7]))
    head = learner.head
    assert head is not None
    features, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = learner(features, labels, torch.arange(6))
    embeddings = embedder.neck(features)
    parts = [head(embeddings, labels)]
    parts += [head.prefix_losses(embeddings, labels, width) for width in (2, 4)]
    torch.testing.assert_close(loss, torch.stack(parts).mean())
