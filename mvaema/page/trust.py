"""When not to trust an answer, in words that stand on the page and in its reports.

What is special about it: no number says how likely an answer is right. The student's matching head
was measured as such a number, and does not tell good answers from bad ones.
"""

NO_SUPPORT = (
    "No figure says how likely an answer is right: the student's own sign for it was measured, and "
    "does not tell good answers from bad ones."
)

MAPS = """\
- **The map of a word** shows where attention went, not why the word was chosen. A map that is
  nearly even everywhere says little."""
NO_MAPS = """\
- **Where its words looked** is not shown: this student was exported, and keeps that to itself."""

# Markdown, with a place for one of these two. The figures are those of docs/study.md;
# docs/results.md says how they were measured.
TEXT = """
### When not to trust an answer

- **Answers are suggestions.** On real micrographs, no student of this project words its answers
  better than the most typical answer to each question, which never looks at the image.
- **No support figure is shown.** A student's matching head gives a probability that an answer fits
  the image. As a predictor of whether the answer is better than the typical one, it had an AUROC of
  0.52 to 0.58 over three students, where 0.5 is chance (`docs/study.md`, measured with
  `benchmarks/support_signals.py`). Nor does any other sign that a student gives. A number that does
  not predict is left out.
- **Lengths in answers are guesses.** 6 % of them are within 20 % of the teacher's. Use *Measure*:
  it reads the scale bar and counts pixels, or says why it cannot.
- **Categories** are shares among ten. The student of this repository had 0.44 of 129 real
  micrographs right; one trained on 510 real ones 0.64.
{maps}
- **Simulated micrographs** are what the student of this repository knows best. On real ones it
  sees much less.

### What happens to a micrograph

It is read in the memory of the machine that runs this page, and the upload is removed from its disk
at once. It is forgotten when you close the page, or an hour after you last used it. Nothing is sent
anywhere else, and no file name goes into a report.
"""
