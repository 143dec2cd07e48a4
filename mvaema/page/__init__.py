"""The page: a student in a browser, for people without Python.

In the order a micrograph passes through:
    limits.py      how much a visitor may send at once
    uploads.py     uploaded files and archives to bytes, and off the disk
    subject.py     one micrograph, and all that is known of it so far
    waiting.py     work in a thread, for so long and no longer
    opening.py     an uploaded file to a subject: its scale, its categories
    asking.py      questions to answers, word by word
    looking.py     where each word of an answer looks
    sizes.py       the sizes in what is shown
    drawing.py     a subject in HTML: picture, facts, bars, answers
    reports.py     all of it to keep: JSON, HTML and PDF
    batches.py     many files to one table
    parts.py       what the tabs share: the student's workers, and errors in plain words
    bench.py       where a micrograph lies: dropped, shown, described
    ask_tab.py     one micrograph: ask, look, measure, report
    pair_tab.py    two micrographs side by side
    batch_tab.py   many micrographs
    trust.py       when not to trust an answer
    blocks.py      the tabs to a page
    running.py     the process: its privacy, its address, its end
"""
