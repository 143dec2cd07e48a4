"""The lexicon of facts is consistent."""

from mvaema.evaluation.lexicon import load_lexicon


def test_exclusion_is_mutual_and_never_of_a_value_itself():
    lexicon = load_lexicon()
    for (kind, value), others in lexicon.excluded.items():
        assert value not in others
        assert all(value in lexicon.excluded[kind, other] for other in others)


def test_every_word_is_found_by_itself():
    lexicon = load_lexicon()
    for word, senses in lexicon.senses.items():
        (mention,) = lexicon.mentions(word)
        assert mention.senses == senses, word


def test_the_longest_phrase_wins():
    (mention,) = load_lexicon().mentions("a thin support film")
    assert ("presence", "substrate") in mention.senses
