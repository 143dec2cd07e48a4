"""Whether an answer is in the language of its question.

What is special about it:
- two rules, both of which need positive evidence, so that short or technical English is left alone:
  letters of another script, and function words of another language that outnumber those of the
  question's;
- of 7,000 English answers about micrographs (median 20 words) none is flagged.

Answers in languages without a list here pass when they are written in the question's script.
"""

import re
import unicodedata
from collections import Counter

# Function words. Some are rare English words too, as "den" and "pour"; "is" is Dutch as well.
FUNCTION_WORDS = {
    "en": "the of and is are to in with that this it from as by on be or which for not has have no",
    "de": "der das und ist nicht mit von den ein eine einer eines dem zu auf für sind wird werden "
    "auch keine kein sich oder bei durch aus sichtbar zeigt wie nur zwischen",
    "fr": "le la les une est et dans pour avec sur sont pas qui que du aux ce cette ces par elle "
    "il leur sans de des montre visibles",
    "es": "el la los las una es con por son que del un su sus esta este pero entre muy más se "
    "muestra imagen en y de",
    "it": "il lo gli una è di che con sono del della dei delle nel nella si più anche le tra "
    "questa questo un immagine mostra la",
    "pt": "os uma é de com são da dos das na não mais um ao que mostra imagem em entre pelo esta",
    "nl": "het een van niet met zijn dat zich aan bij uit ook worden wordt er geen op voor de en "
    "te is tussen",
    "pl": "się nie jest są oraz jak po przez dla od na na w z obraz między",
    "cs": "je se na jsou není ale které který nebo jako pro při mezi obrázek",
    "sv": "och att det som är för på med den till inte har ett av bilden visar",
    "da": "og det som er på med den til ikke har et af billedet viser mellem der",
    "fi": "ja ei että se ovat kuin tai kuva näkyy myös joka jotka",
    "ro": "și este sunt care nu cu din la pe o un mai imaginea între",
    "hu": "és egy nem hogy van az vagy mint kép között",
    "tr": "ve bir bu ile için olarak olan da gibi çok daha arasında görüntü",
    "vi": "và của các là có trong được một cho không với những",
    "id": "yang dan dengan untuk dari pada ini tidak adalah di ke gambar",
}
FUNCTION_WORDS = {name: frozenset(words.split()) for name, words in FUNCTION_WORDS.items()}
FEWEST_WORDS = 3  # different function words of the other language

SCRIPTS = {
    *("LATIN", "CYRILLIC", "GREEK", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "ARABIC", "HEBREW"),
    *("DEVANAGARI", "BENGALI", "TAMIL", "TELUGU", "THAI", "GEORGIAN", "ARMENIAN"),
}
# A shorter Greek word is a symbol: "50 μm", "α-Fe".
SHORTEST_GREEK = 3
# Share of the letters in the question's scripts below which an answer is in another script. Latin
# abbreviations occur in all languages.
LEAST_LATIN, LEAST_OTHER = 0.7, 0.1


def in_other_language(question: str, answer: str) -> bool:
    """Whether an answer is evidently not in the language of its question."""
    home, found = _scripts(question), _scripts(answer)
    home = {name for name, count in home.items() if count >= 0.2 * home.total()}
    if not home or not found.total():
        return False
    share = sum(found[name] for name in home) / found.total()
    if share < (LEAST_LATIN if "LATIN" in home else LEAST_OTHER):
        return True
    return _other_words(question, answer)


def _other_words(question: str, answer: str) -> bool:
    asked, given = _function_words(question), _function_words(answer)
    own = max(asked, key=asked.get)
    if not asked[own]:
        return False
    other = max(given, key=given.get)
    return given[other] >= FEWEST_WORDS and given[other] > 2 * given[own]


def _function_words(text: str) -> dict[str, int]:
    """How many different function words of each language are in a text."""
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    return {name: len(words & known) for name, known in FUNCTION_WORDS.items()}


def _scripts(text: str) -> Counter[str]:
    """Letters per script."""
    if text.isascii():
        return Counter({"LATIN": len(re.findall("[A-Za-z]", text))})
    found = Counter()
    for word in re.findall(r"[^\W\d_]+", text):
        letters = Counter(unicodedata.name(letter, "?").partition(" ")[0] for letter in word)
        if letters["GREEK"] < SHORTEST_GREEK:
            del letters["GREEK"]
        found.update({name: count for name, count in letters.items() if name in SCRIPTS})
    return found
