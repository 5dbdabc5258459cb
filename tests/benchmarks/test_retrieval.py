"""The benchmark of retrieval at a size that takes no time: all ways give what float64 gives, and so does the whole."""

import pytest
import torch

from benchmarks import harness
from benchmarks.systems import retrieval


@pytest.fixture
def small(monkeypatch):
    for name, value in {"ITEMS": 40, "FIRST": 20, "DIM": 16}.items():
        monkeypatch.setattr(retrieval, name, value)

    def quick(case):
        found = {"error": harness.errors(case), "seconds": dict.fromkeys(case.candidates, 0.5)}
        return found | {"allowed_error": dict.fromkeys(found["error"], 1e-6)}

    monkeypatch.setattr(harness, "measure", quick)


def test_every_candidate_passes_the_gate_and_the_whole_is_scaled(small):
    (found,) = retrieval.cases("cpu")
    assert found["error"].keys() == {"slrfast", "slrfast, bf16", "eager"} and max(found["error"].values()) < 1e-6
    whole = found["whole"]
    assert whole["pairs"] == [40, 40] and whole["seconds"]["eager"] == 0.5 * 40 / 20
    assert whole["error"]["slrfast"] < 1e-6 and whole["result_bytes"] == 4 * 40 * 40
    assert whole["all_scores_bytes"]["not padded"] < whole["all_scores_bytes"]["padded"]


def test_the_whole_is_not_timed_where_it_is_wrong(small, monkeypatch):
    right = retrieval.similarity_matrix

    def wrong(signs, texts):
        return right(signs, texts) + (0.01 if len(signs) == 40 else 0)

    monkeypatch.setattr(retrieval, "similarity_matrix", wrong)
    with pytest.raises(harness.WrongAnswer, match="the first rows of the whole are off"):
        list(retrieval.cases("cpu"))


def test_lengths_are_those_that_are_named():
    clips, texts = retrieval.inputs("cpu", 500, 500, 8)
    assert (int(clips.lengths.min()), int(clips.lengths.max())) == retrieval.WINDOWS == (25 // 4 + 1, 100 // 4)
    assert (int(texts.lengths.min()), int(texts.lengths.max())) == retrieval.WORDS
    assert torch.equal(clips.rows.bfloat16().float(), clips.rows)


def test_memory_is_measured():
    found = retrieval.memory.peaks(retrieval.MODULE, ("slrfast", "eager"), "cpu", 3, 4, 8)
    assert found["peak_bytes"].keys() == {"slrfast", "eager"}
