"""Templates of a language or a file, and the mean over them."""

from pathlib import Path

import numpy as np
import torch

from tests.commands import refused
from visual_search.text.prompts import embed_names, language_of_names, templates_for


def test_prompts(tmp_path: Path) -> None:
    assert language_of_names(["стул", "IKEA", "стол"]) == "ru"
    assert language_of_names(["chair"]) == "en"
    file = tmp_path / "templates.txt"
    for content, message in (("{}\n\nна фото\n", r"templates\.txt line 3"), ("\n", "no template")):
        file.write_text(content)
        refused(message, templates_for, ["стул"], file)
    file.write_text("{}\n\nна фото {}\n", encoding="utf-8-sig")
    assert templates_for([], file) == ("{}", "на фото {}")

    class Encoder:
        """Places a text by its length."""

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            angles = torch.tensor([float(len(text)) for text in texts])
            return torch.stack([angles.cos(), angles.sin()], dim=1)

    vectors = embed_names(Encoder(), ["a", "bb"], ["{}", "x{}"])  # type: ignore[arg-type]
    expected = torch.tensor([[np.cos(1.5), np.sin(1.5)], [np.cos(2.5), np.sin(2.5)]])
    torch.testing.assert_close(vectors, expected.float())
