"""Tasks from their files to tables, reports and verdicts, as the command runs them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import visual_search.text.tasks  # noqa: F401, it adds its kind of task
from tests.commands import refused, stopped, told
from tests.conftest import PROJECT, csv_rows, draw_product, export_tiny, write_csv
from tests.visual_search.evaluation.drawn import drawn
from visual_search.evaluation.compare import compare, most_changed, verdict
from visual_search.evaluation.dev_set import EmbeddedDevSet, evaluate_embeddings
from visual_search.evaluation.run_tasks import name_of_run
from visual_search.evaluation.scores import over_tasks, score_rows
from visual_search.evaluation.tasks import (
    ImageTask,
    TaskConfig,
    read_task,
    read_tasks,
    what_is_missing,
)
from visual_search.main_evaluate import main
from visual_search.ranking.rerank import parse_steps


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two kinds with two classes of three photos; a query of each class, and a distractor."""
    rows = []
    for label in range(4):
        for photo in range(3):
            name = f"{'chair' if label < 2 else 'lamp'}_final/{label}_{photo}.png"
            (tmp_path / name).parent.mkdir(exist_ok=True)
            draw_product(label, photo).save(tmp_path / name)
            rows.append([name, label, "query" if photo == 0 else "gallery", 1])
    draw_product(9, 9).save(tmp_path / "lamp_final" / "nothing.png")
    rows.append(["lamp_final/nothing.png", "none", "query", 1])
    header = ["file_name", "label", "evaluation_status", "is_test"]
    return write_csv(tmp_path / "dataset_info.csv", header, rows)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def task_files(tmp_path: Path, table: Path, dev_folder: Path) -> list[Path]:
    shop = f"title: A shop\ndev_set: {{eval_root: {dev_folder}}}\n"
    kinds = f"domain: furniture\nquery_domain: (chair)_final/|lamp\ndev_set: {{table: {table}}}\n"
    kinds += "distractors: true\nmetric: GAP\n"
    alone = f"dev_set: {{table: {table}}}\nprotocol: leave-one-out\nmetric: R@1\n"
    alone += "select: chair_final/\n"
    away = "dev_set: {table: nowhere/dataset_info.csv}\nprepare: fetch it\n"
    return [
        written(tmp_path / f"{name}.yml", text)
        for name, text in {"shop": shop, "kinds": kinds, "alone": alone, "away": away}.items()
    ]


def test_tasks_from_the_command_line(tmp_path: Path, task_files: list[Path]) -> None:
    weights, out = export_tiny(tmp_path / "weights", 0), tmp_path / "out"
    options = ["tasks", "--run", weights, "--cache", tmp_path / "cache", "--output", out]
    options += ["--tasks", *task_files]
    said = told(main, *options, "--trackers", "tensorboard")
    assert "skipped away: nowhere/dataset_info.csv is not there; prepare it: fetch it" in said
    values = json.loads((out / "results.json").read_text())
    assert values["skipped"].keys() == {"away"}
    tasks = values["tasks"]
    assert tasks["shop"]["queries"] == tasks["shop"]["gallery"] == 10
    assert (tasks["kinds"]["queries"], tasks["kinds"]["distractor_queries"]) == (4, 1)
    assert tasks["kinds"]["domains"].keys() == {"chair", "furniture"}  # a lamp has no group
    assert tasks["kinds"]["score"] == tasks["kinds"]["mean_over_queries"]["GAP"]
    assert tasks["alone"]["leave_one_out"]
    assert tasks["alone"]["queries"] == tasks["alone"]["gallery"] == 6
    scores = [tasks[name]["score"] for name in ("shop", "kinds", "alone")]
    assert values["means"]["competition"]["score"] == pytest.approx(np.mean(scores))

    place = ("--cache", tmp_path / "cache", "--data-folder", tmp_path / "development_test_data")
    plain = tasks["shop"]["mean_over_queries"]["mAP@1000"]
    assert f"mAP {plain:.4f}  plain cosine" in told(main, "score", "--run", weights, *place)

    rows = csv_rows(out / "scores" / "kinds.csv")
    assert [row["R@1"] == "" for row in rows] == [False] * 4 + [True]
    table = (out / "results.md").read_text()
    assert "| A shop | 10 | 10 | **" in table
    html = (out / "report.html").read_text()
    for words in ("A shop: the worst queries", "kinds: the worst classes", "first right at 1<"):
        assert words in html
    assert html.count("data:image/jpeg") == 20 + 12  # each image once, however often it is shown
    assert "away was not run" in html
    assert list((out / "tensorboard").iterdir())

    assert "embedded" not in told(main, *options)
    assert json.loads((out / "results.json").read_text())["tasks"] == tasks
    said = stopped(main, "tasks", "--run", weights, "--tasks", task_files[-1])
    assert "no task can be run" in said


def test_two_runs_are_compared(
    tmp_path: Path, task_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images, with what the demo installs: nothing of the text side is read."""
    monkeypatch.setitem(sys.modules, "visual_search.text.tasks", None)
    a, b, out = export_tiny(tmp_path / "a", 0), export_tiny(tmp_path / "b", 1), tmp_path / "out"
    options = ["--cache", tmp_path / "cache", "--output", out, "--tasks", *task_files]
    said = told(main, "compare", a, b, *options)
    values = json.loads((out / "comparison.json").read_text())
    assert values["tasks"].keys() == {"shop", "kinds", "alone"}
    assert values["tasks"]["kinds"]["metric"] == "mAP@1000"  # GAP is no mean over queries
    assert values["verdict"] == "undecided on 3 of 3"  # too few products differ
    assert values["verdict"] in said
    one = values["tasks"]["shop"]
    assert one["B"] - one["A"] == pytest.approx(one["over_products"]["mean"])
    assert one["over_products"]["clusters"] == 5
    page = (out / "comparison.html").read_text()
    assert "A shop: the queries that changed most" in page
    assert 0 < page.count("<b>A: AP") == page.count("<b>B: AP") <= 20 * 3
    said = stopped(main, "compare", a, b, "--metric", "mAP", *options)
    assert "--metric 'mAP' is unknown" in said


def task_of(model: EmbeddedDevSet, **config: object) -> ImageTask:
    return ImageTask.of("drawn", TaskConfig(**config), model.dev_set)  # type: ignore[arg-type]


def test_the_better_model_is_named() -> None:
    good, bad = drawn(0.6, 1), drawn(1.2, 2)
    one, other = (task_of(model).score(model) for model in (bad, good))
    found = compare(one, other)
    assert found.verdict == "B is better"
    assert found.over_products.clusters == 60
    assert found.over_queries.clusters == 180
    assert compare(other, one).verdict == "A is better"
    same = compare(one, one)
    assert (same.over_queries.low, same.over_queries.high) == (0, 0)
    assert verdict([found, compare(other, one), same]) == (
        "B is better on 1 of 3 tasks, A is better on 1 of 3 tasks, undecided on 1"
    )
    changed = most_changed(found, 10)
    gains = found.differences[changed]
    assert (gains[:5] > 0).all()
    assert gains[0] == found.differences.max()


@pytest.mark.parametrize("own", [False, True])
def test_reranked_tasks_rank_what_the_steps_make(own: bool) -> None:
    model = drawn(1.0, 3, own)
    plain = task_of(model).score(model)
    for steps in (
        [{"name": "center"}],
        [{"name": "dba", "neighbours": 3}],
        [{"name": "k_reciprocal"}],
    ):
        parsed = parse_steps(steps, "test")
        scores = task_of(model).score(model, parsed)
        assert scores.as_json()["reranked"]
        expected = model.score(parsed)
        np.testing.assert_allclose(scores.values["mAP@1000"], expected, atol=1e-9)
        assert (scores.values["mAP@1000"] != plain.values["mAP@1000"]).any()


def test_queries_without_a_match_count_as_0_wherever_a_score_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As in the challenge, whose mean is over all queries."""
    model = drawn(0.6, 4, distractors=True)
    n_queries = len(model.dev_set.queries)
    matched = np.isin(model.dev_set.query_products, model.dev_set.gallery_products)
    sentence = f"{(~matched).sum()} of {n_queries} queries have no match in the gallery"
    task = task_of(model)
    assert sentence in task.note
    scores = task.score(model)
    evaluation = evaluate_embeddings(model.dev_set, model.gallery, model.queries)  # in training
    assert sentence in capsys.readouterr().out
    mean = evaluation.mean_average_precision
    assert scores.means()["mAP@1000"] == pytest.approx(mean, abs=1e-12)
    assert mean == pytest.approx(model.score(()).mean(), abs=1e-12)
    assert mean == pytest.approx(model.score(())[matched].sum() / n_queries, abs=1e-12)
    assert scores.as_json()["queries"] == n_queries


def test_distractors_count_in_gap_and_nowhere_else() -> None:
    model = drawn(0.6, 4, distractors=True)
    task = task_of(model, distractors=True, metric="GAP")
    scores = task.score(model)
    assert scores.scored.sum() == 150
    cosines = (model.queries @ model.gallery.T).numpy()
    first, best = cosines.argmax(axis=1), cosines.max(axis=1)
    right = model.dev_set.gallery_products[first] == model.dev_set.query_products
    hits, total = 0, 0.0
    for place, query in enumerate(np.argsort(-best), 1):
        if right[query]:
            hits += 1
            total += hits / place
    assert scores.gap == scores.headline == pytest.approx(total / 150)
    assert scores.means()["R@1"] == pytest.approx(right.sum() / 150)
    # A task names the metric that its score is; where ranks have no cosines there is no GAP.
    for steps, metric in (([], "GAP"), ([{"name": "k_reciprocal"}], "mAP@1000")):
        scores = task.score(model, parse_steps(steps, "test"))
        told = scores.as_json()
        assert told["metric"] == scores.metric == metric
        assert told["score"] == told["mean_over_queries"][metric]
        heading, row = score_rows([scores], {})
        (bold,) = [place for place, cell in enumerate(row) if cell.startswith("**")]
        assert heading[bold] == metric


def test_means_over_tasks_domains_queries_and_classes() -> None:
    one, other = drawn(1.0, 5), drawn(0.5, 6)
    scores = [task_of(model).score(model) for model in (one, other)]
    scores[1].task.domains[:90] = "food"
    means = over_tasks(scores)
    aps = [values.values["mAP@1000"] for values in scores]
    assert means["tasks"]["mAP@1000"] == pytest.approx(np.mean([ap.mean() for ap in aps]))
    assert means["queries"]["mAP@1000"] == pytest.approx(np.concatenate(aps).mean())
    products = np.concatenate([aps[0], aps[1][90:]]).mean()
    assert means["domains"]["mAP@1000"] == pytest.approx((aps[1][:90].mean() + products) / 2)
    classes = scores[0].by(scores[0].task.query_labels)
    assert (classes["queries"] == 3).all()
    ap_of = {str(k): aps[0][3 * k : 3 * k + 3].mean() for k in range(60)}
    assert classes["mAP@1000"].to_dict() == pytest.approx(ap_of)


@pytest.mark.parametrize("file", sorted((PROJECT / "config" / "evaluation").glob("*.yml")))
def test_every_task_of_the_kit_is_read_and_says_what_to_prepare(file: Path) -> None:
    task = read_task(file)
    assert task.title
    if file.stem == "demo":
        assert (PROJECT / task.dev_set.eval_root / "gallery.csv").is_file()
    else:
        assert task.prepare
        reason = what_is_missing(task)
        assert reason is None or task.prepare in reason


def test_faulty_tasks_are_refused(tmp_path: Path, table: Path) -> None:
    def fault(text: str) -> Path:
        return written(tmp_path / "task.yml", text)

    refused(r"task\.yml: unknown key 'tilte'; did you mean 'title'", read_task, fault("tilte: x"))
    refused("select is not a regular expression", read_task, fault("select: '('"))
    refused("query_domain needs a group", read_task, fault("query_domain: chair"))
    refused("GAP needs distractors", read_task, fault("metric: GAP"))
    refused(r"task\.yml.*metric", read_task, fault("metric: mAP"))
    refused("another task is called task", read_tasks, [fault("title: x"), tmp_path / "task.yml"])
    nothing = read_task(fault(f"dev_set: {{table: {table}}}\nselect: sofa"))
    refused("found in none of the 13 paths", ImageTask.load, "x", nothing)


def test_all_rows_of_a_table_that_nothing_trains_on(tmp_path: Path, table: Path) -> None:
    rows = [[f"chair_final/0_{k}.png", "a"] for k in range(3)]
    file = write_csv(tmp_path / "folders.csv", ["file_name", "label"], rows)
    text = f"dev_set: {{table: {file}}}\nrows: all\n"
    task = ImageTask.load("x", read_task(written(tmp_path / "task.yml", text)))
    assert len(task.dev_set.queries) == 3


def test_runs_have_names_of_their_own() -> None:
    names = {
        "runs/a": "a",
        "runs/a/best": "a_best",
        "my_submission/weights": "my_submission_weights",
    }
    assert [name_of_run(Path(run)) for run in names] == list(names.values())
