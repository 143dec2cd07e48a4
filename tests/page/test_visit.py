"""A visit in headless Chromium: upload, ask, look, measure, report, compare, batch."""

import csv
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.drawn_structures import scattered_discs
from support.microscope_files import write_dm3, write_olympus
from support.page_visitor import noise

from mvaema.measuring.measure import measure
from mvaema.micrographs.microscope import read_micrograph
from mvaema.students.loading import load_student

pytestmark = pytest.mark.slow
QUESTION = "What is bright here?"


@pytest.fixture(scope="module")
def model(student):
    return load_student(student).eval()


def shown_pixels(page) -> np.ndarray:
    """The micrograph as the browser has decoded it."""
    side = page.evaluate(
        """async () => {
            const image = document.querySelector(".mv-stage img");
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
            return [canvas.width, canvas.height, [...data].filter((_, i) => i % 4 === 0)];
        }"""
    )
    return np.array(side[2]).reshape(side[1], side[0])


def test_a_free_question_is_answered_as_in_python_and_the_upload_is_gone(
    visit, server, micrograph, model
):
    visitor = visit()
    visitor.drop_and_wait(micrograph)
    assert not server.kept()
    answer = visitor.ask(QUESTION)
    image = Image.open(micrograph)
    assert answer.split() == model.answer(image, QUESTION, decoding="greedy").split()
    ranked = model.classify(image, by="itc+itm")
    rows = visitor.page.locator(".mv-bars tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == [name.replace("_", " ") for name in ranked]
    assert "secret_customer" not in visitor.page.content()


def test_each_format_shows_its_pixels_and_what_the_instrument_recorded(visit, tmp_path):
    visitor, deep = visit(), noise(deep=True)
    tifffile.imwrite(tmp_path / "deep.tif", deep)
    write_olympus(tmp_path / "wafer.tif", noise(seed=1), 2.5e-9, 40_000)
    write_dm3(tmp_path / "a.dm3", deep, [(0.5, "nm"), (0.5, "nm")], 200_000.0)
    Image.fromarray(noise(seed=2)).save(tmp_path / "photo.jpg", quality=95)
    facts = {"wafer.tif": ["2.5 nm per pixel"], "a.dm3": ["0.5 nm per pixel", "200 kV", "STEM"]}
    for name in ("deep.tif", "wafer.tif", "a.dm3", "photo.jpg"):
        visitor.drop(tmp_path / name)
        expected = np.asarray(read_micrograph(tmp_path / name).image).astype(int)
        visitor.page.wait_for_function(
            "size => document.querySelector('.mv-stage')?.dataset.width === size",
            arg=str(expected.shape[1]),
        )
        visitor.page.locator(".mv-facts", has_text="96 × 64").wait_for()
        visitor.page.locator(".mv-bars").wait_for()
        assert np.abs(shown_pixels(visitor.page) - expected).mean() < 8, name  # a JPEG of noise
        for fact in facts.get(name, ()):
            assert fact in visitor.page.locator(".mv-facts").inner_text()
        assert "secret" not in visitor.page.content()
        visitor.page.reload()
        visitor.page.get_by_role("heading", name="Ask about a micrograph").wait_for()


@pytest.mark.skipif(
    not os.environ.get("MVAEMA_SHARED"), reason="MVAEMA_SHARED names no folder of real files"
)
def test_a_real_dm3_is_read(visit):
    visitor = visit()
    visitor.drop_and_wait(Path(os.environ["MVAEMA_SHARED"], "native", "gatan_dm_image_um_unit.dm3"))
    assert "recorded by the instrument" in visitor.page.locator(".mv-facts").inner_text()


def test_an_answer_streams_in_whole_words(visit, micrograph):
    visitor = visit()
    visitor.drop_and_wait(micrograph)
    visitor.page.evaluate(
        """() => {
            window.seen = [];
            new MutationObserver(() => {
                const text = document.querySelector(".mv-answer[aria-busy] .mv-text");
                if (text) window.seen.push(text.textContent.replace("▍", ""));
            }).observe(document.body, { childList: true, subtree: true, characterData: true });
        }"""
    )
    answer = visitor.ask(QUESTION)
    seen = list(dict.fromkeys(visitor.page.evaluate("window.seen")))
    assert seen and all(" ".join(answer.split()).startswith(" ".join(s.split())) for s in seen)


def test_words_show_their_map_by_pointer_and_by_keyboard(visit, micrograph, model):
    from mvaema.evaluation.likelihoods import Scorer, eager_attention

    visitor = visit()
    visitor.drop_and_wait(micrograph)
    answer, page = visitor.ask(QUESTION), visitor.page
    with eager_attention(model):
        scorer = Scorer(model)
        seen = scorer.see(Image.open(micrograph))
        expected = scorer.word_maps(
            seen, QUESTION, model.answer(Image.open(micrograph), QUESTION, decoding="greedy")
        )
    assert expected and [word for word, _ in expected] == answer.split()[: len(expected)]
    words, drawn = page.locator(".mv-word"), "document.querySelector('.mv-map').dataset.word"
    words.nth(1).hover()
    assert page.evaluate(drawn) == expected[1][0]
    page.mouse.move(0, 0)
    assert page.evaluate(drawn) is None
    words.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert words.nth(1).get_attribute("aria-pressed") == "true"
    assert expected[1][0] in page.locator(".mv-where").inner_text()
    alpha = page.evaluate(
        """() => {
            const map = document.querySelector(".mv-map");
            const data = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
            return [...data].filter((_, i) => i % 4 === 3);
        }"""
    )
    weights = expected[1][1].astype(float).ravel()
    stretched = 255 * 0.75 * (weights - weights.min()) / np.ptp(weights)
    assert alpha == pytest.approx(stretched, abs=1)


def test_a_region_is_drawn_or_typed_and_asked_about(visit, micrograph, model):
    visitor = visit()
    visitor.drop_and_wait(micrograph)
    page = visitor.page
    stage = page.locator(".mv-stage").bounding_box()
    page.mouse.move(stage["x"] + stage["width"] / 4, stage["y"] + stage["height"] / 4)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="A region to ask about").click()
    sides = [page.get_by_label(side) for side in ("Left", "Top", "Right", "Bottom")]
    page.wait_for_function("document.querySelector('input[aria-label=\"Right\"]')?.value < 160")
    drawn = [int(side.input_value()) for side in sides]
    assert drawn == pytest.approx([40, 40, 80, 80], abs=2)
    sides[2].fill("120")
    sides[2].press("Enter")
    page.wait_for_function("parseFloat(document.querySelector('.mv-region').style.width) > 40")
    answer = visitor.ask(QUESTION)
    assert "about the region" in page.locator(".mv-question").inner_text()
    part = Image.open(micrograph).crop((*drawn[:2], 120, drawn[3]))
    assert answer.split() == model.answer(part, QUESTION, decoding="greedy").split()


def test_sizes_with_a_typed_scale_are_those_of_the_tool(visit, micrograph):
    visitor = visit()
    visitor.drop_and_wait(micrograph)
    page = visitor.page
    page.get_by_label("Length of a pixel in nm").fill("2.5")
    page.get_by_label("Length of a pixel in nm").press("Enter")
    page.locator(".mv-facts", has_text="2.5 nm per pixel, as you typed it").wait_for()
    page.get_by_role("button", name="Measure sizes").click()
    page.get_by_label("What to look for").click()
    page.get_by_role("option", name="particles").click()
    page.get_by_role("button", name="Measure", exact=True).click()
    expected = measure(scattered_discs().image, kind="particles", pixel_size_nm=2.5)
    assert expected.trusted
    page.locator(".mv-said strong", has_text=expected.sentence()).wait_for()
    assert page.locator(".mv-overlay").is_visible() and page.locator(".mv-histogram").is_visible()


def test_all_ten_and_a_report_in_three_forms(visit, micrograph, model, server, tmp_path):
    visitor = visit()
    visitor.drop_and_wait(micrograph)
    page = visitor.page
    page.get_by_role("button", name="All ten questions").click()
    page.get_by_role("button", name="Ask all ten").click()
    page.locator(".mv-download").nth(2).wait_for()
    files = {}
    for link in page.locator(".mv-download").all():
        with page.expect_download() as download:
            link.click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        files[path.suffix] = path.read_bytes()
    found = json.loads(files[".json"])
    answers = {a["question_id"]: a["answer"] for a in found["answers"]}
    assert answers == model.answer(Image.open(micrograph), decoding="greedy")
    assert files[".pdf"].startswith(b"%PDF-")
    for content in files.values():
        assert b"secret_customer" not in content
    assert not server.kept()
    # The report is a page of its own, without an address of any host.
    (tmp_path / "report.html").write_bytes(files[".html"])
    report = visitor.context.new_page()
    report.goto((tmp_path / "report.html").as_uri())
    assert report.locator(".mv-answers dt").count() == 10
    assert b"http" not in files[".html"]
    visitor.asked = [url for url in visitor.asked if not url.startswith("file:")]


def test_two_micrographs_side_by_side(visit, micrograph, small, model):
    visitor = visit()
    page = visitor.page
    page.get_by_role("tab", name="Compare two").click()
    visitor.drop(micrograph, 0)
    visitor.drop(small, 1)
    page.wait_for_function("document.querySelectorAll('.mv-bars').length === 2")
    page.get_by_label("Question for both").click()
    page.get_by_role("option", name="my own question").click()
    page.get_by_role("textbox", name="My own question").fill(QUESTION)
    page.get_by_role("button", name="Ask both").click()
    page.wait_for_function("document.querySelectorAll('.mv-answer .mv-spoken').length === 2")
    answers = page.locator(".mv-text").all_inner_texts()
    expected = model.answer(
        [Image.open(micrograph), Image.open(small)], QUESTION, decoding="greedy"
    )
    assert [a.split() for a in answers] == [e.split() for e in expected]


def test_a_batch_of_files_and_an_archive(visit, micrograph, small, server, tmp_path, model):
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(small, "lot 7/=small.png")
        packed.writestr("lot 7/notes.tif", "this is a text")
        packed.writestr("__MACOSX/lot 7/._small.png", "litter")
    visitor = visit()
    page = visitor.page
    visitor.drop_batch([micrograph, archive])
    page.get_by_role("button", name="Run").click()
    page.locator(".mv-download").wait_for()
    assert page.locator("progress").get_attribute("value") == "3"
    with page.expect_download() as download:
        page.locator(".mv-download").click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = {row["file"]: row for row in csv.DictReader(io.StringIO(text))}
    assert list(rows) == ["secret_customer.png", "'=small.png", "notes.tif"]
    question = model.config.questions["basics"]
    for name, path in (("secret_customer.png", micrograph), ("'=small.png", small)):
        expected = model.answer(Image.open(path), question, decoding="greedy")
        assert rows[name]["answer"] == expected and rows[name]["status"] == "ok"
    assert "no format that is read" in rows["notes.tif"]["status"]
    assert not server.kept()
