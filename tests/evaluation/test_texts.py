"""BLEU, ROUGE and METEOR against the paper's figures and against the libraries called by hand."""

import os
import random
import shutil
import subprocess
import sys
import warnings

import pytest
from nltk.translate.bleu_score import sentence_bleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from support.wordnet_data import needs_wordnet

from mvaema.evaluation import wordnet
from mvaema.evaluation.texts import score_texts
from mvaema.evaluation.wordnet import ensure_wordnet

# The paper's Table 7: ground truth, answer, and its BLEU-2, ROUGE-L and METEOR as printed.
TABLE_7 = [
    (
        "The nanomaterials in the image have a dendritic, branching structure with a central node "
        "and multiple filament-like extensions.",
        "The nanomaterials in the image possess a dendritic, branching structure with a central "
        "node and several filament-like extensions.",
        (0.824, 0.895, 0.944),
    ),
    (
        "The nanomaterials depicted resemble tightly woven, twisted cables or fibrous strands, "
        "densely packed and intertwined.",
        "The nanomaterials depicted appear as tightly woven, twisted cables or fibrous strands, "
        "densely packed and interlaced.",
        (0.772, 0.839, 0.859),
    ),
    (
        "The nanomaterials have a polygonal, plate-like morphology with irregular edges, giving "
        "them a shattered glass or cracked ice appearance.",
        "The nanomaterials have polygonal, plate-like morphology with irregular edges, giving them "
        "a shattered glass or cracked ice appearance.",
        (0.918, 0.974, 0.952),
    ),
    (
        "The image depicts a square microfabricated device with uniform linear patterns on a "
        "granular semiconductor or nanoparticle substrate.",
        "The image shows a square microfabricated device with uniform linear patterns on a "
        "granular semiconductor or nanoparticle substrate.",
        (0.913, 0.944, 0.999),
    ),
    (
        "The nanomaterials in the image exhibit a needle- or rod-like morphology, standing "
        "vertically and densely packed, similar to a bed of nails.",
        "The nanomaterials in the image display a needle- or rod-like morphology, standing "
        "vertically and densely packed, akin to a bed of nails.",
        (0.858, 0.913, 0.954),
    ),
    (
        "The nanomaterials shown are elliptical or rod-shaped with smooth surfaces, scattered "
        "randomly across the surface.",
        "The nanomaterials displayed are elliptical or rod-shaped with smooth surfaces, dispersed "
        "randomly across the surface.",
        (0.787, 0.875, 0.861),
    ),
    (
        "The nanomaterials have a hexagonal, honeycomb-like structure, organized in a highly "
        "ordered, tessellated pattern.",
        "The nanomaterials display a hexagonal, honeycomb-like structure, organized in a highly "
        "ordered, tessellated pattern.",
        (0.886, 0.933, 0.927),
    ),
    (
        "The nanomaterials exhibit a foam-like structure with a network of interconnected pores of "
        "various sizes and irregular shapes, creating a porous, sponge-like morphology.",
        "The nanomaterials display a foam-like structure with a network of interconnected pores of "
        "various sizes and irregular shapes, forming a porous, sponge-like morphology.",
        (0.820, 0.920, 0.913),
    ),
    (
        "The nanomaterials are irregularly shaped, resembling clumped aggregates with a rough, "
        "textured surface.",
        "The nanomaterials appear irregularly shaped, resembling clumped aggregates with a rough, "
        "textured surface.",
        (0.877, 0.920, 0.920),
    ),
    (
        "The nanomaterial appears as a sharply pointed, conical structure with a smooth surface, "
        "tapering to a fine tip.",
        "The nanomaterial is seen as a sharply pointed, conical structure with a smooth surface, "
        "tapering to a fine tip.",
        (0.863, 0.920, 0.938),
    ),
]


@needs_wordnet
@pytest.mark.parametrize("row", range(10))
def test_table_7_of_the_paper(row):
    truth, answer, printed = TABLE_7[row]
    scores = score_texts([answer], [truth])
    ours = [round(scores[name][0], 3) for name in ("bleu_2", "rouge_l", "meteor")]
    if row == 7:
        # The exception: the printed texts and the printed BLEU-2 and METEOR disagree.
        assert ours == [0.864, 0.92, 0.956]
        printed = (ours[0], printed[1], ours[2])
    assert ours == pytest.approx(printed, abs=0.003 + 1e-9)


def random_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Prediction and reference with shared, inflected and synonymous words, and all odd cases."""
    rng = random.Random(seed)
    words = """
        The the a nanowires nanowire wire particles particle grains grain rough textured surface
        shows depicts displays large big small tiny size sizes about 80 nm, 5–10 µm Å naïve größer
        纳米 is are was dense densely packed packing. (SEM) image picture pores pore
    """
    words = words.split()

    def text() -> str:
        return rng.choice([" ", "  ", "\n"]).join(rng.choices(words, k=rng.randint(1, 30)))

    odd = ["", " ", "...", "?! —", "µ", "纳米线", "word", "É é", "\t\n", "a" * 500]
    long = [" ".join(rng.choices(words, k=600)) for _ in range(3)]
    pairs = [(p, r) for p in odd for r in (*odd, text())] + [(p, r) for p in long for r in long]
    while len(pairs) < count:
        reference = text()
        kept = [w for w in reference.split() if rng.random() < 0.7]
        pairs.append((" ".join(kept) + " " + text() if rng.random() < 0.7 else text(), reference))
    return pairs


@needs_wordnet
def test_equal_to_the_libraries_called_by_hand():
    pairs = random_pairs(500, seed=0)
    scores = score_texts([p for p, _ in pairs], [r for _, r in pairs])
    reader = ensure_wordnet()
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    for i, (prediction, reference) in enumerate(pairs):
        answer, truth = prediction.split(), reference.split()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for n in (1, 2, 3, 4):
                by_hand = sentence_bleu([truth], answer, weights=[1 / n] * n)
                assert scores[f"bleu_{n}"][i] == by_hand
        for name, score in rouge.score(reference, prediction).items():
            ours = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}[name]
            assert scores[ours][i] == score.fmeasure
        assert scores["meteor"][i] == single_meteor_score(truth, answer, wordnet=reader)


@needs_wordnet
def test_without_synonyms_the_metric_has_another_name():
    pair = ["The wires display pores"], ["The wires exhibit pores"]
    plain, full = score_texts(*pair, synonyms=False), score_texts(*pair)
    assert "meteor" not in plain and "meteor_no_synonyms" not in full
    assert plain["meteor_no_synonyms"][0] < full["meteor"][0]


@pytest.mark.slow
@needs_wordnet
def test_debian_wordnet_has_its_lexicographer_names():
    reader = ensure_wordnet()
    if not isinstance(reader, wordnet.DebianWordNet):
        pytest.skip("NLTK's own data is here and comes first")
    assert len({synset.lexname() for synset in reader.all_synsets()}) == 45
    assert reader.synset("dog.n.01").lexname() == "noun.animal"
    assert reader.synset("run.v.01").lexname() == "verb.motion"


def test_meteor_is_refused_without_wordnet(no_wordnet):
    with pytest.raises(LookupError, match=r"apt-get install wordnet-base.*--no_synonyms"):
        score_texts(["a"], ["a"])
    assert not no_wordnet, "nothing may be downloaded unasked"
    assert score_texts(["a b"], ["a b"], synonyms=False)["meteor_no_synonyms"][0] > 0


def test_wordnet_is_downloaded_only_when_asked(no_wordnet):
    with pytest.raises(LookupError, match="METEOR needs WordNet"):
        ensure_wordnet(download=True)
    assert no_wordnet == [("wordnet",)]


@pytest.mark.slow
@pytest.mark.skipif(
    not (wordnet.DEBIAN_FOLDER / "index.sense").exists(),
    reason="needs Debian's wordnet-base and wordnet-sense-index",
)
def test_nltk_data_comes_first(tmp_path):
    """A second process, with NLTK's folder layout built from Debian's files."""
    corpus = tmp_path / "nltk_data" / "corpora" / "wordnet"
    shutil.copytree(wordnet.DEBIAN_FOLDER, corpus)
    lexnames = wordnet.DebianWordNet().open("lexnames").read()
    (corpus / "lexnames").write_text(lexnames)
    code = (
        "from mvaema.evaluation.wordnet import ensure_wordnet, DebianWordNet as D;"
        "r = ensure_wordnet();"
        "assert not isinstance(r, D); d = D();"
        "names = lambda r: [s.lemma_names() for w in ('depict', 'went') for s in r.synsets(w)];"
        "assert names(r) == names(d) != []; print(r.root)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NLTK_DATA": str(tmp_path / "nltk_data")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(corpus)


@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        (["a"], ["a", "b"], ValueError, "1 predictions and 2 references"),
        ([], [], ValueError, "no predictions"),
        (["a"], [None], TypeError, "reference 0 must be a string"),
        ([3], ["a"], TypeError, "prediction 0 must be a string"),
    ],
)
def test_bad_input(predictions, references, error, message):
    with pytest.raises(error, match=message):
        score_texts(predictions, references, synonyms=False)
