"""The benchmark of the gallery on a small run: what it compares, and that it resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gallery_ingest, gallery_service
from benchmarks.gallery import GalleryBenchmark
from benchmarks.gallery_index import FLAT, OURS, TeacherCodes, measure
from gallery.codes import hamming, pack
from gallery.errors import InputError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a finished run that the benchmark reads."""
    rng = np.random.default_rng(0)
    centers = rng.choice(np.array([-1, 1], np.int8), (5, 64))
    np.save(tmp_path / "centers.npy", centers)
    for name, count in (("gallery", 300), ("student-queries", 50)):
        folder = tmp_path / "cache" / name
        folder.mkdir(parents=True)
        logits = centers[rng.integers(0, 5, count)] + rng.normal(0, 0.8, (count, 64))
        np.save(folder / "00000.npy", logits.astype(np.float32))
    return tmp_path


def test_every_index_is_compared_with_a_flat_scan_and_the_next_run_reads_it(run: Path, tmp_path: Path) -> None:
    benchmark = GalleryBenchmark(root=run, runs=tmp_path / "bench", items=(3000,), queries=20, served=0, written=0)
    trials = list(benchmark.trials())
    figures = [trial.index for trial in trials if trial.index]
    for one in figures:
        if one.method.startswith(OURS) or one.method.endswith("flat"):
            assert [(t.exact_distances, t.exact_rows) for t in one.timings] == [(20, 20)] * 2
        assert bool(one.timings) == (not one.reason)
    assert {"the run's 5 classes", "100 classes"} == {one.codes for one in figures}
    assert {FLAT, "faiss IVF, nprobe 2", "faiss HNSW16, ef 128"} < {one.method for one in figures}
    assert list(benchmark.trials()) == trials
    assert "#### 3,000 codes, 100 classes" in benchmark.text(trials)


def test_other_classes_have_the_flips_of_the_run(run: Path) -> None:
    codes = TeacherCodes(run, 0)
    made = codes.flipped(40, 5000, 10)
    real = hamming(pack(codes.gallery), pack(codes.centers)).min(1)
    assert hamming(made.codes, pack(made.centers)).min(1).mean() == pytest.approx(real.mean(), rel=0.1)
    assert made.queries.shape == (10, 8)


def test_uniform_bits_are_searched_too(run: Path) -> None:
    ours = [one for one in measure(TeacherCodes(run, 0).uniform(1000, 10)) if one.method.startswith(OURS)]
    assert [timing.exact_rows for one in ours for timing in one.timings] == [10] * 4


def test_without_a_run_it_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"distill/run\.py"):
        TeacherCodes(tmp_path, 0)


def test_without_a_load_generator_the_service_is_left_out_by_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = list(gallery_service.measure(TeacherCodes(run, 0).uniform(100, 5), tmp_path / "service"))
    assert [one.requests for one in found] == [0]
    assert "wrk" in found[0].reason
    assert "wrk" in gallery_service.text(found)


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
def test_the_service_is_measured_under_load_and_through_a_swap(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    monkeypatch.setattr(gallery_service, "CHANGED", 50)
    monkeypatch.setattr(gallery_service, "CONNECTIONS", (2, 2))
    monkeypatch.setattr(gallery_service, "SECONDS", 1)
    monkeypatch.setattr(gallery_service, "SWAP_SECONDS", 8)
    found = list(gallery_service.measure(TeacherCodes(run, 0).resampled(500, 20), tmp_path / "service"))
    assert len(found) == 3
    assert all(one.requests > 0 and one.failed == 0 and one.cpu_ms > 0 for one in found)
    assert found[-1].swap_s
    assert "while a version is published" in gallery_service.text(found)
    assert not (tmp_path / "service").exists()


def test_writing_is_measured(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_ingest, "COMMITS", (10, 20))
    monkeypatch.setattr(gallery_ingest, "CHANGED", 100)
    benchmark = GalleryBenchmark(root=run, runs=tmp_path / "bench", items=(), written=1000, served=0, queries=20)
    trials = list(benchmark.trials())
    found = [trial.ingest for trial in trials if trial.ingest]
    assert [one.rows for one in found[:8]] == [1000, 10, 20, 100, 100, 1000, 1000, 1000]
    assert all(one.cpu_s > 0 for one in found[:8])
    assert all("codespace.json" in one.reason for one in found[8:]), "there is no teacher in this run"
    assert list(benchmark.trials()) == trials
    assert "| replace | 100 |" in benchmark.text(trials)
    assert not (tmp_path / "bench" / "gallery-ingest").exists()
