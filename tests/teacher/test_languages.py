"""Answers in the language of their question, and in another; technical English."""

import json
import os
from pathlib import Path

import pytest

from configuration_mvaema import QUESTIONS
from mvaema.teacher.languages import in_other_language

OTHERS = {
    "German": "Das Bild zeigt dünne Nanodrähte, die nicht miteinander verbunden sind.",
    "French": "L'image montre des nanofils fins qui ne sont pas reliés entre eux.",
    "Spanish": "La imagen muestra nanohilos delgados que no están conectados entre sí.",
    "Italian": "L'immagine mostra sottili nanofili che non sono collegati tra di loro.",
    "Portuguese": "A imagem mostra nanofios finos que não estão ligados entre si, com uma escala.",
    "Dutch": "De afbeelding toont dunne nanodraden die niet met elkaar verbonden zijn.",
    "Polish": "Obraz przedstawia cienkie nanodruty, które nie są połączone i się nie stykają.",
    "Swedish": "Bilden visar tunna nanotrådar som inte är förbundna med varandra.",
    "Turkish": "Görüntü, birbirine bağlı olmayan nanotelleri ve bir ölçek ile gösterir.",
    "Vietnamese": "Hình ảnh cho thấy các dây nano mảnh không được nối với nhau.",
    "Indonesian": "Gambar ini menunjukkan kawat nano tipis yang tidak terhubung dengan yang lain.",
    "Chinese": "SEM图像显示了ZnO纳米线，直径约50 nm。",
    "Chinese, a word": "纳米线。",
    "Japanese": "この画像には細いナノワイヤーが写っています。",
    "Korean": "이미지는 가느다란 나노와이어를 보여줍니다.",
    "Russian": "На изображении видны тонкие нанопроволоки диаметром 50 нм.",
    "Greek": "Η εικόνα δείχνει λεπτά νανοσύρματα που δεν συνδέονται.",
    "Arabic": "تظهر الصورة أسلاكًا نانوية رفيعة.",
}
TECHNICAL = [
    "50 μm.",
    "α-Fe₂O₃, β-Ga₂O₃ and γ-Al₂O₃; Ω of 10 µm.",
    "No.",
    "ZnO nanowires, Ø 50 nm, on Si (100).",
    "De Broglie waves in the plane of a van der Waals crystal, à la carte.",
    "Sn–Pb solder, den- and pour-shaped pores in the matrix.",
    "2 × 10⁻³ Å, ≈ 30 °C, −5 kV",
    "The label reads “纳米” beside the bar; the wires are thin and long.",
    "",
    "…",
]


@pytest.mark.parametrize("language", OTHERS)
def test_answers_in_other_languages(language):
    for question in QUESTIONS.values():
        assert in_other_language(question, OTHERS[language])


@pytest.mark.parametrize("answer", [*TECHNICAL, *QUESTIONS.values()])
def test_technical_english(answer):
    for question in QUESTIONS.values():
        assert not in_other_language(question, answer)


def test_questions_in_another_language():
    german, chinese = "Wie groß sind die Strukturen und wie sind sie verteilt?", "纳米线有多大？"
    assert not in_other_language(german, OTHERS["German"])
    assert in_other_language(german, OTHERS["Dutch"].replace("De", "En"))
    english = "The wires are thin, and none of them touches the others in this image."
    assert in_other_language(german, english)
    assert not in_other_language(chinese, OTHERS["Chinese"])
    assert in_other_language(chinese, english)
    assert not in_other_language("?", english), "no evidence"


@pytest.mark.skipif("MVAEMA_SHARED" not in os.environ, reason="needs real answers")
def test_real_answers_are_not_flagged():
    """7,000 answers of a teacher: fewer than 1 in 1,000."""
    folder = Path(os.environ["MVAEMA_SHARED"]) / "micrographs"
    rows = [json.loads(line) for file in folder.glob("*/metadata.jsonl") for line in file.open()]
    answers = [qa for row in rows for qa in row["qa"]]
    flagged = [qa["answer"] for qa in answers if in_other_language(qa["question"], qa["answer"])]
    assert len(answers) == 7000
    assert len(flagged) < 7, flagged
