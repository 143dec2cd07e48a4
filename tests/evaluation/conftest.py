"""A tiny student, a tiny dataset and the three steps, for all tests of the evaluation."""

from pathlib import Path

import nltk
import pytest
from matplotlib.figure import Figure
from nltk.corpus import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader
from PIL import Image
from support.sights import write_sights
from support.tiny_student import MAX_NEW_TOKENS, save_tiny_student, write_splits

from mvaema.evaluation import wordnet
from mvaema.evaluation.answerers import Student, load_answerer
from mvaema.evaluation.collect import Collected, collect
from mvaema.evaluation.questions import Questions, load_questions


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    """The folder of a student; not to be changed."""
    return save_tiny_student(tmp_path_factory.mktemp("tiny") / "student")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """The folder of a dataset; not to be changed."""
    return write_splits(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def questions(dataset) -> Questions:
    return load_questions(str(dataset), "validation", "train")


@pytest.fixture(scope="session")
def answerer(student) -> Student:
    return load_answerer(str(student), max_new_tokens=MAX_NEW_TOKENS, batch_size=2)


@pytest.fixture(scope="session")
def folder(answerer, questions, tmp_path_factory) -> Path:
    """The folder of a complete collection; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny") / "report"
    collect(answerer, questions, folder)
    return folder


@pytest.fixture(scope="session")
def collected(answerer, questions, folder) -> Collected:
    return collect(answerer, questions, folder)


@pytest.fixture(scope="module")
def empty_pictures():
    """Every picture is one pixel: drawing takes seconds, and has tests of its own."""

    def savefig(self, file, **options):
        Image.new("L", (1, 1)).save(file, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture
def no_wordnet(monkeypatch, tmp_path) -> list:
    """A machine without WordNet. Returns the downloads that NLTK is asked for."""
    downloads = []

    def download(*args, **kwargs):
        downloads.append(args)
        raise ValueError("no network")

    empty = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
    monkeypatch.setattr(nltk.corpus, "wordnet", empty)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.setattr(nltk, "download", download)
    wordnet.ensure_wordnet.cache_clear()
    yield downloads
    wordnet.ensure_wordnet.cache_clear()


@pytest.fixture(scope="session")
def sights(tmp_path_factory) -> Path:
    """The folder of a dataset that has to be looked at (`support/sights.py`)."""
    return write_sights(tmp_path_factory.mktemp("sights") / "data")


@pytest.fixture(scope="session")
def asked(sights) -> Questions:
    """The questions of `sights`."""
    return load_questions(str(sights), "validation", "train")
