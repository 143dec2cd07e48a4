"""Evaluation: a student's answers, their scores, and the report.

Data passes through three steps, each usable by itself: collect, score, report. In that order:
    run.py                one evaluation: the three steps in sequence
    questions.py          what is asked: micrographs, questions and the teacher's answers
    answerers.py          who is asked: a student, or a chat model
  collect
    collect.py            answers, categories and embeddings, written down as they come
  score
    scores.py             everything collected to figures
    references.py         answers that need no look at the micrograph
    records.py            answers scored, averaged, and compared in pairs
    texts.py              BLEU, ROUGE and METEOR of an answer
    wordnet.py            the synonyms that METEOR needs
    claims.py             facts of an answer: right, false or unsupported
    facts.py              facts that a text asserts
    lexicon.py            the words for them
    lengths.py            lengths stated in an answer
    categories.py         classification and its calibration
    intervals.py          confidence intervals and p-values
    judge.py              grades that a chat model gives to answers
  report
    report.py             figures to one folder with a page
    tables.py             figures to tables
    figures.py            figures to pictures
  all of it, once per fold
    cross_validation.py   a student trained and scored per fold
    fold_tables.py        the scores of all folds to means and tables
"""
