"""The teacher: instruction data from any OpenAI-compatible vision model.

In the order in which data passes through:
    requests.py    where requests may be sent, how fast and for how much: for all who ask
    arguments.py   what a user of the teacher may choose
    run.py         one run: from checked arguments to answers in the journal
    preparing.py   from a micrograph to the bytes that leave the lab
    prompt.py      from image, caption, scale and question to a request, and its fingerprint
    questions.py   which questions are still to be asked
    money.py       what a request costs, and how much may be spent
    estimating.py  what the missing answers will cost
    endpoint.py    where requests may go, and the key
    limits.py      when the next request may go
    patience.py    when failures are waited out, and when they end the run
    asking.py      one request per question, many at a time
    batch.py       the same questions through a Batch API
    batch_api.py   the provider's side of a batch
    batch_files.py from the result files of a batch to replies
    recording.py   many replies to one commit
    durable.py     a SQLite file that survives a kill and a full disk
    journal.py     every reply, raw
    replies.py     from a reply to a verdict: outcome, answer, and whether to ask again
    accounts.py    what a run has done and spent
    merging.py     from the journals of many shards to one
    flags.py       answers worth a second look
    languages.py   whether an answer is in the language of its question
    export.py      from the journal to a micrograph dataset, and to a hub
    card.py        the dataset's card
"""
