"""Evaluation: a student's answers, their scores, and the report.

Data passes through three steps, each usable by itself: collect, score, report. In that order:
    run.py                one evaluation: the three steps in sequence
    questions.py          what is asked: micrographs, questions and the teacher's answers
    answerers.py          who is asked: a student, or a chat model
  collect
    conditions.py         what a model is shown and told
    choices.py            which answers and micrographs it has to tell apart
    collect.py            answers, categories and embeddings, written down as they come
    looking.py            and what a model makes of given answers
    likelihoods.py        losses, matches, similarities and attention of given texts, by a student
    chats.py              what a chat model is given: prompts and answers by its template
    chat_likelihoods.py   losses of given texts, by a chat model
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
    sight.py              image gain, and which answer is true
    support.py            whether the matching head knows a good answer
    intervals.py          confidence intervals and p-values
    judge.py              grades that a chat model gives to answers
    inspect_task.py       the same questions and scores in inspect_ai, beside any chat model
  report
    verdict.py            what the figures say: does it see, is it better, where does it fail
    report.py             figures to one folder with a page
    tables.py             figures to tables
    sight_tables.py       those of what a student owes to its eyes
    table.py              a table and its cells
    figures.py            figures to pictures
  all of it, once per fold
    cross_validation.py   a student trained and scored per fold
    fold_tables.py        the scores of all folds to means and tables
"""
