"""The report folder: its figures, its tables, and its page in a real browser."""

import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mvaema.evaluation.categories import score_categories
from mvaema.evaluation.records import compare, score_records, summarize
from mvaema.evaluation.report import best_median_worst, write_report
from mvaema.evaluation.texts import LABELS as METRICS
from mvaema.evaluation.verdict import verdict

PAPER_METRICS = ("bleu_2", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor_no_synonyms")
LABELS = ["Fibres", "Powder", "Tips"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def make_answers(markup: str = "<b>bold</b> & | pipes") -> dict[str, list[dict]]:
    records = [
        {
            "image_id": f"id{i}",
            "group": f"group{i}",
            "category": LABELS[i % 3],
            "question_id": question,
            "question": f"What about {question}?",
            "reference": f"Round grains of about {10 * i + 10} nm with a rough {question}.",
            "prediction": "Round grains of about 50 nm with a rough surface."[4 * i :],
        }
        for i in range(6)
        for question in ("morphology", "surface")
    ]
    records[0]["prediction"] += markup
    records[5]["prediction"] = ""
    others = [{**r, "prediction": "Round grains."} for r in records]
    return {
        "student": score_records(records, synonyms=False),
        "typical answer": score_records(others, synonyms=False),
    }


def make_results(answers: dict[str, list[dict]]) -> dict:
    rng = np.random.default_rng(0)
    categories = [
        {
            "image_id": str(i),
            "category": LABELS[i % 3],
            "probabilities": dict(zip(LABELS, rng.dirichlet(np.ones(3)).tolist(), strict=True)),
        }
        for i in range(30)
    ]
    scores = score_categories(categories, LABELS)
    figures = {
        "metrics": {m: METRICS[m] for m in PAPER_METRICS},
        "answers": {name: summarize(records) for name, records in answers.items()},
        "classification": {"ITC": scores, "chance": scores},
        "twin_classification": {},
        "sight": {},
        "support": {},
        "comparisons": {"typical answer → student": compare(*reversed(answers.values()))},
    }
    return {
        "model": "tests/tiny",
        "dataset": "tests/micrographs",
        "split": "validation",
        "date": "2026-11-21",
        "verdict": verdict(figures),
        **figures,
    }


def make_images() -> dict[str, Image.Image]:
    rng = np.random.default_rng(0)
    images = {}
    for i in range(6):
        image = Image.fromarray(rng.integers(0, 255, (300 + i, 500), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x010E] = "customer wafer 7"
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", exif=exif)
        images[f"id{i}"] = Image.open(buffer)
    return images


def make_attention() -> dict[tuple[str, str], list[list[int]]]:
    """Of one answer each about half of the micrographs."""
    rng = np.random.default_rng(1)
    return {(f"id{i}", "surface"): rng.integers(0, 256, (7, 7)).tolist() for i in range(3)}


LOSSES = {"loss": 3.0, "lm_loss": 3.0}
LOG = [{"epoch": i, "learning_rate": 1e-3, "train": LOSSES, "validation": LOSSES} for i in range(9)]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    answers = make_answers()
    folder = tmp_path_factory.mktemp("report")
    results = make_results(answers)
    for i, record in enumerate(answers["student"]):
        record["sight"] = {"image_gain": 0.01 * i - 0.02, "support": i / 12 if i else None}
        record["scores"]["false_claims"] = float(i % 3)
    page = write_report(results, answers, make_images(), folder, LOG, make_attention())
    return page, results, answers


def test_folder(report):
    path, results, _ = report
    folder = path.parent
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == results
    pictures = {p.name for p in folder.glob("*.png")}
    assert pictures == {
        "questions.png",
        "confusion_matrix_itc.png",
        "reliability_itc.png",
        "losses.png",
    }
    assert len(list((folder / "micrographs").glob("*.jpg"))) == 6


def test_tables_are_laid_out_as_the_paper_has_them(report):
    path, results, answers = report
    tables = (path.parent / "tables.md").read_text(encoding="utf-8")
    scores = {
        name: np.array([r["scores"][name] for r in answers["student"]]) for name in PAPER_METRICS
    }
    row = " | ".join(f"{s.mean():.3f}±{s.std():.3f}" for s in scores.values())
    assert f"| student | {row} |" in tables
    assert "| Category | Precision | Recall | F1 Score | Micrographs |" in tables
    fibres = results["classification"]["ITC"]["per_class"]["Fibres"]
    assert f"| Fibres | {fibres['precision']:.3f}±{fibres['precision_std']:.3f} |" in tables
    table_7 = tables[tables.index("as Table 7") :].splitlines()
    rows = [line for line in table_7 if line.startswith("| ![")]
    assert len(rows) == 6
    meteor = [r["scores"]["meteor_no_synonyms"] for r in answers["student"][::2]]  # morphology
    shown = [float(re.split(r"(?<!\\)\|", row)[-2]) for row in rows]
    assert shown == pytest.approx(sorted(meteor, reverse=True), abs=0.0005)
    # Every line of a table has as many cells as its header, whatever an answer contains.
    for block in re.findall(r"(?:^\|.*\n)+", tables, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "&lt;b&gt;bold" in tables


def test_tables_open_with_the_verdict(report):
    path, results, _ = report
    tables = (path.parent / "tables.md").read_text(encoding="utf-8")
    assert tables.startswith("## Verdict\n")
    for section in results["verdict"]:
        assert f"| {section['question']} | {section['answer']} |" in tables


def test_the_page_opens_with_the_verdict_and_six_micrographs(report):
    """In this order: verdict, micrographs, pictures and tables behind a click, answers."""
    path, results, _ = report
    page = path.read_text(encoding="utf-8")
    order = [section["question"] for section in results["verdict"]]
    order += ['id="six"', '<details class="part">', 'id="pictures"', 'id="tables"', 'id="answers"']
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    findings = [finding for section in results["verdict"] for finding in section["findings"]]
    shown = re.findall(r'<li><span class="verdict [\w ]+">([\w ]+)</span>', page)
    assert shown == [finding["answer"] for finding in findings]
    assert "<details open" not in page and '<details class="table" open' not in page
    six = page[page.index('id="six"') : page.index('<details class="part">')]
    places = re.findall(r'<span class="tag">(best|median|worst)</span>', six)
    assert places == ["best", "best", "median", "median", "worst", "worst"]
    # Each with the true answer, and all of it escaped.
    assert six.count("truth, by the teacher") == 6 and "<b>bold</b>" not in six


def test_which_six_micrographs_are_shown():
    """Ten micrographs with mean scores 0.0, 0.1, ..., 0.9, in any order, three answers each."""

    def records(count: int) -> list[dict]:
        return [
            {
                "image_id": f"id{(7 * i) % 10}",
                "question_id": question,
                "scores": {"meteor": (7 * i) % 10 / 10 + off},
            }
            for i in range(count)
            for question, off in (("a", 0.04), ("b", -0.05), ("c", 0.01))
        ]

    shown = best_median_worst(records(10), "meteor")
    assert [(place, r["image_id"]) for place, r in shown] == [
        ("best", "id9"),
        ("best", "id8"),
        ("median", "id5"),
        ("median", "id4"),
        ("worst", "id1"),
        ("worst", "id0"),
    ]
    assert {r["question_id"] for _, r in shown} == {"c"}  # the nearest to the mean
    for count in range(1, 7):
        places = [place for place, _ in best_median_worst(records(count), "meteor")]
        assert len(places) == count
        assert places == sorted(places, key=("best", "median", "worst").index)


class References(HTMLParser):
    """Everything in a page that a browser would load, and its elements."""

    def __init__(self):
        super().__init__()
        self.urls, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]


def test_page_is_self_contained_and_escaped(report):
    path, _, _ = report
    page = path.read_text(encoding="utf-8")
    references = References()
    references.feed(page)
    urls = references.urls + re.findall(r"url\(([^)]*)\)", page)
    assert len(urls) > 10
    assert all(url.startswith(("data:image/", "#")) for url in urls)
    assert references.tags.count("article") == 12
    assert "<b>bold</b>" not in page and "&lt;b&gt;bold&lt;/b&gt;" in page


def test_page_shows_where_answers_look(report):
    page = report[0].read_text(encoding="utf-8")
    uris = re.findall(r'class="looked m\d+"><img src="data:image/png;base64,([\w+/=]+)"', page)
    assert len(uris) == 3 and sum(map(len, uris)) < 3000
    pictures = [Image.open(io.BytesIO(b64decode(uri))) for uri in uris]
    found = sorted(np.asarray(picture)[..., 3].tolist() for picture in pictures)
    expected = [(0.75 * np.array(m)).astype(int).tolist() for m in make_attention().values()]
    assert found == sorted(expected)


def test_page_sorts_by_what_the_eyes_add(report):
    page = report[0].read_text(encoding="utf-8")
    for name, better in (("image_gain", 1), ("support", 1), ("false_claims", -1), ("rouge_l", 1)):
        assert f'<option value="{name}" data-better="{better}">' in page
    assert "<span>image gain</span> -0.020" in page and "<span>support</span> 0.92" in page
    scores = [
        json.loads(s.replace("&#34;", '"')) for s in re.findall(r'data-scores="([^"]*)"', page)
    ]
    assert sorted(s["image_gain"] for s in scores)[0] == pytest.approx(-0.02)


def test_no_metadata_leaves_with_the_images(report):
    path, _, _ = report
    embedded = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", path.read_text(encoding="utf-8"))
    contents = [b64decode(e) for e in embedded]
    contents += [p.read_bytes() for p in (path.parent / "micrographs").iterdir()]
    assert len(contents) == 12
    for content in contents:
        assert b"customer" not in content
        image = Image.open(io.BytesIO(content))
        assert max(image.size) == 384 and not image.getexif()


def test_page_shows_the_worst_answers(tmp_path):
    answers = make_answers()
    for record in answers["student"]:
        del record["category"]  # a split without categories
    path = write_report(make_results(answers), answers, make_images(), tmp_path, max_answers=3)
    page = path.read_text(encoding="utf-8")
    assert page.count("<article") == 3 and "3 worst of 12 answers" in page
    assert "no answer" in page  # the empty prediction, which scores 0
    assert "per category" not in page
    assert not (tmp_path / "losses.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, a, i: a.clear(), "no answers to report"),
        (lambda r, a, i: a.update(student=[]), "no answers to report"),
        (lambda r, a, i: r["answers"].pop("typical answer"), "no figures for typical answer"),
        (lambda r, a, i: i.pop("id3"), "1 micrographs are missing from `images`, such as 'id3'"),
        (lambda r, a, i: r.update(seconds=float("nan")), "JSON compliant"),
    ],
)
def test_bad_input(change, message, tmp_path):
    answers = make_answers()
    results, images = make_results(answers), make_images()
    change(results, answers, images)
    with pytest.raises(ValueError, match=message):
        write_report(results, answers, images, tmp_path / "new")


def test_log_without_losses(tmp_path):
    answers = make_answers()
    with pytest.raises(ValueError, match="has no `epoch`"):
        write_report(make_results(answers), answers, make_images(), tmp_path, [{"step": 1}])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_in_a_browser(tmp_path):
    """Order and filters work; markup in an answer neither runs nor reaches the network."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        markup = f"</p><script>document.title = 'broken'</script><img src='{url}/answer.png'>"
        answers = make_answers(markup)
        for i, record in enumerate(answers["student"]):
            record["sight"] = {"image_gain": 0.5, "support": (7 * i % 12) / 12 if i else None}
        page = write_report(make_results(answers), answers, make_images(), tmp_path)
        everything = open_in_chromium(page, tmp_path)
        driver = "<script>control.question.value = 'surface'; control.order.value = '-1'; update();"
        by_support = "control.metric.value = 'support'; control.order.value = '1'; update();"
        driven = tmp_path / "driven.html"
        driven.write_text(page.read_text(encoding="utf-8") + driver + "</script>")
        filtered = open_in_chromium(driven, tmp_path)
        driven.write_text(page.read_text(encoding="utf-8") + f"<script>{by_support}</script>")
        supported = open_in_chromium(driven, tmp_path)
        # The server does see a page that is not protected.
        open_page = tmp_path / "open.html"
        open_page.write_text(f"<img src='{url}/open.png'>")
        open_in_chromium(open_page, tmp_path)
        server.shutdown()
    assert requests == ["/open.png"]
    assert "12 of 12 answers" in everything and "<title>student" in everything
    assert "6 of 12 answers" in filtered
    scores = [
        json.loads(s.replace("&quot;", '"'))["meteor_no_synonyms"]
        for s in re.findall(r'data-scores="([^"]*)"', everything)
    ]
    assert len(scores) == 12 and scores == sorted(scores)
    support = [
        json.loads(s.replace("&quot;", '"'))["support"]
        for s in re.findall(r'data-scores="([^"]*)"', supported)
    ]
    assert support[:-1] == sorted(support[:-1]) and support[-1] is None  # which comes last
    shown = re.findall(r'<article data-question="(\w+)"(?:(?!hidden)[^>])*>', filtered)
    assert shown == ["surface"] * 6


def open_in_chromium(page, folder) -> str:
    """The page's elements after its scripts have run."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=2000", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
