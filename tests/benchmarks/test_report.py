import json

import pytest

from benchmarks import report, roofline

CASE = {
    "name": "paper",
    "shapes": {"x": [64, 2]},
    "seconds": {"slrfast": 2e-5, "eager": 1e-4, "torch.compile": 1e-5},
    "times_floor": {"slrfast": 1.23},
    "error": {"slrfast": 1e-7},
}


def write(folder, op, commit, date, **case):
    run = {"op": op, "machine": "cpu-x", "commit": commit, "date": date, "threads": 2, "versions": {"torch": "2.13"}}
    run["isa"] = "avx2"
    path = folder / "cpu-x" / f"{op}-{commit}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**run, "cases": [{**CASE, **case}]}))


def test_newest_run_of_every_op_with_wins_and_losses(tmp_path):
    write(tmp_path, "motion", "new", "2026-02-01T00:00:00+00:00")
    write(tmp_path, "motion", "old", "2026-01-01T00:00:00+00:00")
    write(tmp_path, "step", "one", "2026-01-01T00:00:00+00:00", phases={"slrfast": {"gcn": 2.0}, "eager": {"gcn": 3.5}})
    text = report.render(report.newest(tmp_path))
    assert text.count("## cpu-x") == 1 and "| old |" not in text
    row = "| motion | paper x [64, 2] | 20 us | eager 100 us (5.00x), torch.compile 10 us (0.50x) | 1.2 | 1e-07 | new |"
    assert row in text
    assert "| phase | slrfast | eager |" in text and "| gcn | 2 s | 3.5 s |" in text


def test_forms_of_slrfast_share_a_cell_and_skipped_candidates_are_named(tmp_path):
    seconds = {"slrfast": 2e-5, "slrfast, bf16 banks": 1e-5, "eager": 1e-4}
    date = "2026-01-01T00:00:00+00:00"
    write(tmp_path, "info_nce", "one", date, seconds=seconds, skipped={"faiss": "not installed"})
    row = "| 20 us, bf16 banks 10 us | eager 100 us (5.00x, 10.00x), faiss: not installed | 1.2 | 1e-07 | one |"
    assert row in report.render(report.newest(tmp_path))


def test_the_whole_loss_has_a_row_for_each_form_with_kernels_and_threads(tmp_path):
    names = ("slrfast", "slrfast, bf16 banks", "slrfast, bf16 banks, CUDA graph", "eager")
    seconds = dict(zip(names, (2e-2, 1e-2, 5e-3, 1e-1), strict=True))
    figures = {"times_floor": dict.fromkeys(names, 2.0), "error": dict.fromkeys(names, 1e-6)}
    date = "2026-01-01T00:00:00+00:00"
    write(tmp_path, "stc_loss_avx2", "one", date, seconds=seconds, device="cpu", threads=1, **figures)
    text = report.render(report.newest(tmp_path))
    assert "| float32 banks | avx2 | 1 | 20 ms | eager 100 ms (5.00x) | 2.0 | 1e-06 | one |" in text
    assert "| bf16 banks, CUDA graph | avx2 | 1 | 5 ms | eager 100 ms (20.00x) |" in text
    assert "| stc_loss_avx2 |" not in text


def test_memory_and_the_cost_of_a_product(tmp_path):
    write(
        tmp_path, "bank_memory", "one", "2026-01-01T00:00:00+00:00", shapes={"query": [10, 10], "bank": [100, 10]},
        seconds={"slrfast": 1e-6, "eager": 1e-3}, peak_bytes={"slrfast": 2**20, "eager": 2**30},
    )  # fmt: skip
    row = "| 10 | 100 | 10 | 1 us | 100.0 ps | 1 ms | 100000.0 ps | 1.0 MiB | 1024.0 MiB | 0.1% |"
    assert row in report.render(report.newest(tmp_path))


def test_peak_memory_of_other_benchmarks_as_a_share_of_the_baselines(tmp_path):
    peak = {"slrfast": 2**20, "slrfast, bf16": 2**19, "eager": 2**22}
    whole = {name: size + 2**22 for name, size in peak.items()}
    date = "2026-01-01T00:00:00+00:00"
    write(tmp_path, "step", "one", date, peak_bytes=peak, baseline="eager")
    text = report.render(report.newest(tmp_path))
    title = "step, paper, peak memory (commit one):"
    assert f"{title}\n\n| | beyond what was there before |\n|---|--:|\n| slrfast | 1 MiB (25%) |" in text
    assert "| slrfast, bf16 | 0 MiB (12%) |\n| eager | 4 MiB (100%) |" in text and "all in all" not in text
    write(tmp_path, "step", "one", date, peak_bytes=peak, whole_peak_bytes=whole, baseline="eager")
    text = report.render(report.newest(tmp_path))
    assert "| beyond what was there before | all in all: weights" in text
    assert "| slrfast | 1 MiB (25%) | 5 MiB (62%) |" in text


def test_loss_curves_are_drawn_and_stated(tmp_path):
    losses = {"slrfast": [[2.0, 1.0] * 10, [3.0, 2.0] * 10], "reference": [[2.0, 1.1] * 10, [3.0, 2.0] * 10]}
    losses["slrfast, weights 1e-7 off"] = [[2.0, 1.2] * 10, [3.0, 2.0] * 10]
    distances = {"same_seed": 0.025, "other_weights": 0.05, "other_seed": 0.95}
    results = {"losses": losses, "distance": distances, "seeds": [1, 2]}
    run = {"curves": "STC", "machine": "cpu-x", "commit": "abc", "date": "2026", "results": results}
    (tmp_path / "cpu-x").mkdir()
    (tmp_path / "cpu-x" / "loss_curves.json").write_text(json.dumps(run))
    text = report.render_curves(report.newest(tmp_path, "curves"))
    assert "20 training steps of a small STC" in text and all(number in text for number in ("0.025", "0.05 ", "0.95"))
    assert text.endswith("![Loss curves](loss_curves.png)")
    assert report.render_curves(report.newest(tmp_path)) == ""
    report.draw_curves(run, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_names_the_least_and_the_most_gain(tmp_path):
    assert report.render_summary({}) == "No results have been recorded yet."
    write(tmp_path, "motion", "one", "2026-01-01T00:00:00+00:00")
    (path,) = (tmp_path / "cpu-x").glob("*.json")
    run = json.loads(path.read_text())
    lossy = {**CASE, "name": "small", "seconds": {"slrfast": 2e-5, "slrfast, bf16": 1e-5, "padded": 1e-5}}
    path.write_text(json.dumps({**run, "cases": [CASE, {**lossy, "baseline": "padded"}, {**CASE, "name": "middle"}]}))
    write(tmp_path, "step", "one", "2026-01-01T00:00:00+00:00")
    text = report.render_summary(report.newest(tmp_path))
    assert text.startswith("On cpu-x, 2 threads")
    assert "| motion | 3 | 0.50x of padded: small | 5.00x of eager: paper | one |" in text
    assert "| step | 1 | 5.00x of eager: paper |  | one |" in text
    assert report.gains(report.newest(tmp_path)) == {"cpu-x": {"motion": (0.5, 5.0), "step": (5.0, 5.0)}}


def test_only_the_text_between_the_markers_changes():
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    text = f"a\n{begin}\nstale\n{end}\nb\n"
    assert report.insert(text, "fresh") == f"a\n{begin}\nfresh\n{end}\nb\n"
    assert report.insert(report.insert(text, "fresh"), "fresh") == report.insert(text, "fresh")
    for broken in ("no markers", f"{end} {begin}"):
        with pytest.raises(ValueError, match="must contain"):
            report.insert(broken, "fresh")


def test_nothing_recorded(tmp_path):
    assert report.render(report.newest(tmp_path)) == "No results have been recorded yet."


@pytest.mark.parametrize(("seconds", "text"), [(0.0000123, "12.3 us"), (0.00456, "4.56 ms"), (7.0, "7 s")])
def test_duration(seconds, text):
    assert report.duration(seconds) == text


def test_demos_have_a_table_each(tmp_path):
    assert report.render_demos(report.newest(tmp_path, "demo")) == "No demo has been recorded yet."
    row = {"top1_instance": 0.5, "top5_instance": 0.9, "top1_class": 0.25, "top5_class": 0.75}
    results = {
        "test_clips": 8, "classes": 4, "protocol": "held out", "seconds": 120, "pretraining_seconds": 60,
        "standard_error": 0.01, "rows": [{"network": "pre-trained", "classifier": "kNN", **row}],
    }  # fmt: skip
    run = {"demo": "synthetic", "machine": "cpu-x", "commit": "abc", "date": "2026", "results": results}
    (tmp_path / "cpu-x").mkdir()
    (tmp_path / "cpu-x" / "demo.json").write_text(json.dumps(run))
    write(tmp_path, "motion", "one", "2026-01-01T00:00:00+00:00")
    text = report.render_demos(report.newest(tmp_path, "demo"))
    assert "8 test clips of 4 classes, held out; 2.0 min on cpu-x, of which 1.0 pre-training" in text
    assert "| pre-trained | kNN | 50.0 | 90.0 | 25.0 | 75.0 |" in text
    assert "| motion |" in report.render(report.newest(tmp_path)) and "pre-trained" not in report.render(
        report.newest(tmp_path)
    )


FLOORS = {
    "machine": {"flops_per_second": 1e11, "copied_bytes_per_second": 1e10},
    "floor_seconds": {"flops": 1e-6, "bytes": 5e-6},
}


def test_the_position_on_the_roofline_is_that_of_the_json(tmp_path):
    date = "2026-01-01T00:00:00+00:00"
    write(tmp_path, "motion", "one", date, **FLOORS)
    write(tmp_path, "dense", "two", date, **{**FLOORS, "floor_seconds": {"flops": 1e-5, "bytes": 1e-6}})
    write(tmp_path, "copy", "six", date, **{**FLOORS, "floor_seconds": {"flops": 0.0, "bytes": 1e-5}})
    positions = report.positions(report.newest(tmp_path))
    text = roofline.render(positions)
    assert "| motion | paper | 100 k | 50 k | 2 | bytes | 5% | 25% | one |" in text  # in 20 us
    assert "| dense | paper | 1 M | 10 k | 100 | arithmetic | 50% | 5% | two |" in text
    assert "| copy | paper | 0 | 100 k | 0 | bytes | 0% | 50% | six |" in text
    report.draw_roofline(positions, tmp_path / "roofline.png")
    report.draw_gains(report.gains(report.newest(tmp_path)), tmp_path / "gains.png")
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("roofline", "gains"))
    assert roofline.render({}) == "No results have been recorded yet."


@pytest.mark.parametrize(("number", "text"), [(999.0, "999"), (1234.0, "1.23 k"), (3.2e9, "3.2 G"), (0.0, "0")])
def test_counts(number, text):
    assert roofline.count(number) == text


def test_what_is_unproven_is_listed_and_what_is_proven_named():
    row = "| `slrfast/kernels/triton/{}.py` | {} | {} |\n"
    text = "| kernel | last commit proven on a GPU | result |\n|---|---|---|\n"
    text += row.format("motion", "–", "unproven") + row.format("enqueue", "abc", "passed, 1.2x of eager")
    found = report.render_unproven(text)
    assert found.startswith("1 of 2 kernels have not run on a GPU")
    assert "| `motion` | `slrfast/kernels/triton/motion.py` | – |" in found
    assert "| `slrfast/kernels/triton/enqueue.py` | abc | passed, 1.2x of eager |" in found
    assert found.index("motion.py") < found.index("enqueue.py")


def test_a_check_changes_nothing(monkeypatch, capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- results:begin -->\nstale\n<!-- results:end -->\n")
    monkeypatch.setattr(report, "pages", lambda: {page: {"results": "fresh"}})
    monkeypatch.setattr(report, "draw", lambda: None)
    monkeypatch.setattr("sys.argv", ["report", "--check"])
    assert report.main() == 1 and "stale" in page.read_text() and "page.md is out of date" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["report"])
    assert report.main() == 0 and "fresh" in page.read_text()
    monkeypatch.setattr("sys.argv", ["report", "--check"])
    assert report.main() == 0
