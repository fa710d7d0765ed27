"""Facts on captions beyond their likeness to references, document frequencies kept in a file, Java's metrics."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from finetune.metrics import java
from finetune.metrics.captions import caption_metrics, known_captions
from finetune.metrics.cider import CiderScorer, DocumentFrequencies
from finetune.metrics.frequencies_file import (
    DamagedFrequencies,
    NoFrequenciesFile,
    OtherFrequencies,
    read_frequencies,
    write_frequencies,
)
from finetune.metrics.java import JAVA_METRICS, NoJavaMetrics, UnknownMetricName, java_metrics
from finetune.text.tokenizer import tokenize

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden_pycocoevalcap.json").read_text("utf-8"))
METEOR = 0.33758220239271297  # pycocoevalcap 1.2 (METEOR 1.5, Java 17) of the golden file's first case


def test_what_captions_have_to_say() -> None:
    said = ["A dog runs.", "a dog runs", "a a dog", "青青", "the cat sits"]
    truths = [["A DOG RUNS", "x"], ["a cat"], ["dog dog"], ["青青"], ["a cat"]]
    found = caption_metrics(said, truths, known=known_captions(["A dog runs!", "青 青。"]))
    assert found["distinct_captions"] == 4 / 5
    assert found["exact_captions"] == 2 / 5
    assert found["repeating_captions"] == 1 / 5
    assert found["words_used"] == 7
    assert found["novel_captions"] == 2 / 5
    assert "novel_captions" not in caption_metrics(said, truths)


def test_few_different_captions_are_warned_of() -> None:
    same = caption_metrics(["a dog"] * 49 + ["a cat"], [["a dog"]] * 50)
    assert any("only 2 different captions for 50 images (4.0%)" in warning for warning in same["warnings"])
    assert caption_metrics(["a dog"] * 19 + ["a cat"], [["a dog"]] * 20)["warnings"] == []  # a tenth


@pytest.mark.parametrize("name", ["df.json", "df.json.gz"])
def test_document_frequencies_are_kept_in_a_file(tmp_path: Path, name: str) -> None:
    references = [[tokenize(caption) for caption in captions] for captions in GOLDEN[0]["references"]]
    learnt = DocumentFrequencies.learn(references)
    write_frequencies(tmp_path / name, learnt)
    read = read_frequencies(tmp_path / name)
    assert read == learnt
    assert min(read.counts.values()) > 1  # an n-gram of one image weighs as much as one of none
    first = (tmp_path / name).read_bytes()
    write_frequencies(tmp_path / name, read)
    assert (tmp_path / name).read_bytes() == first
    alone = caption_metrics(GOLDEN[0]["candidates"][:1], GOLDEN[0]["references"][:1], frequencies=read)
    assert alone["cider"] == pytest.approx(GOLDEN[0]["ciders"][0], abs=1e-9)


def test_what_is_no_file_of_document_frequencies_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "df.json"
    with pytest.raises(NoFrequenciesFile):
        read_frequencies(file)
    fine = {"format": 1, "tokenizer": "words@1", "images": 3, "document_frequencies": {"a": 2}}
    for data in (
        pickle.dumps({"ref_len": 1.0}),
        b"\x1f\x8b broken",
        gzip.compress(b"{}")[:-9],
        b"[]",
        json.dumps(fine | {"format": 2}).encode(),
        json.dumps(fine | {"images": 0}).encode(),
        json.dumps(fine | {"document_frequencies": {"a": 4}}).encode(),
        json.dumps(fine | {"document_frequencies": {"a": True}}).encode(),
        json.dumps(fine | {"document_frequencies": ["a"]}).encode(),
    ):
        file.write_bytes(data)
        with pytest.raises(DamagedFrequencies, match=r"df\.json"):
            read_frequencies(file)
    file.write_text(json.dumps(fine | {"tokenizer": "ptb@1"}))
    with pytest.raises(OtherFrequencies, match="ptb@1"):
        read_frequencies(file)


def test_a_batch_is_scored_like_its_captions() -> None:
    references = [[tokenize(caption) for caption in captions] for captions in GOLDEN[0]["references"]]
    candidates = [tokenize(caption) for caption in GOLDEN[0]["candidates"]]
    scorer = CiderScorer(references)
    images = [2, 0, 0, 1]
    found = scorer.score_batch(images, [candidates[2], candidates[0], candidates[1], candidates[1]])
    assert found.dtype == "float32"
    assert found[[0, 1, 3]] == pytest.approx([GOLDEN[0]["ciders"][image] for image in (2, 0, 1)], rel=1e-6)
    assert found[2] == pytest.approx(scorer.score(0, candidates[1]), rel=1e-6)
    with pytest.raises(ValueError, match="argument 2"):
        scorer.score_batch([1, 2], [["a"]])


def test_words_may_be_numbers() -> None:
    numbers: dict[str, int] = {}
    references = [
        [[numbers.setdefault(w, len(numbers)) for w in tokenize(c)] for c in r] for r in GOLDEN[0]["references"]
    ]
    candidates = [[numbers.setdefault(w, len(numbers)) for w in tokenize(c)] for c in GOLDEN[0]["candidates"]]
    scores = CiderScorer(references).scores(candidates)  # type: ignore[arg-type]
    assert scores == pytest.approx(GOLDEN[0]["ciders"], abs=1e-9)


def test_thousands_of_captions_a_second_are_scored() -> None:
    references = [[f"a {w} dog number {i} runs over the wet grass {w}".split() for w in "abcde"] for i in range(100)]
    candidates = [truths[0][:-1] for truths in references] * 10
    scorer = CiderScorer(references, frequencies=DocumentFrequencies.learn(references))
    began = time.process_time()
    scorer.score_batch([*range(100)] * 10, candidates)
    assert 1000 / (time.process_time() - began) > 1000  # 30,000 are usual; this is only to notice a slow one


def test_without_java_a_hint_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert java_metrics([], ["a dog"], [["a dog"]]) == {}
    with pytest.raises(UnknownMetricName, match="meteor, spice"):
        java_metrics(["bertscore"], ["a dog"], [["a dog"]])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoJavaMetrics, match="no `java`"):
        java_metrics(["meteor"], ["a dog"], [["a dog"]])


def test_without_the_library_a_hint_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'pycocoevalcap'")

    monkeypatch.setattr(shutil, "which", lambda name: "/bin/java")
    monkeypatch.setattr(java, "_SCORERS", dict.fromkeys(JAVA_METRICS, missing))
    with pytest.raises(NoJavaMetrics) as caught:
        java_metrics(["meteor"], ["a dog"], [["a dog"]])
    assert caught.value.hint == "pip install 'modelzoo[java-metrics]'"


@pytest.mark.slow
def test_meteor_is_the_librarys() -> None:
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("METEOR needs Java")
    assert java_metrics(["meteor"], GOLDEN[0]["candidates"], GOLDEN[0]["references"]) == {
        "meteor": pytest.approx(METEOR, abs=1e-6)
    }
