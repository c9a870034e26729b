import pytest
import torch

from benchmarks.evaluate import WAYS, agreement, embeddings


def test_the_ways_answer_the_same_question() -> None:
    vectors, labels = embeddings(1500)
    answers = {
        way: WAYS[way](torch.from_numpy(vectors), labels) for way in ("ours", "pml", "pml_short")
    }
    for way in ("pml", "pml_short"):
        assert answers[way] == pytest.approx(
            {name: answers["ours"][name] for name in answers[way]}, abs=1e-9
        )
    assert answers["pml"].keys() == {"R@1", "R-precision", "MAP@R", "mAP@1000"}
    assert "mAP@1000" not in answers["pml_short"]
    assert 0.5 < answers["ours"]["R@1"] < 0.99
    assert agreement({"a": 1.0, "b": 2.0}, {"b": 2.5, "c": 3.0}) == (
        "b differ by 5.0e-01 at the most"
    )
