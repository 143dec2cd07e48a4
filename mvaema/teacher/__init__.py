"""The teacher: instruction data from any OpenAI-compatible vision model.

In the order a question passes through:
    arguments.py   what a user may choose
    run.py         one run, from arguments to a dataset
    preparing.py   a micrograph to the bytes that leave the lab
    prompt.py      image, caption, scale and question to a request, and its fingerprint
    questions.py   which questions are still to be asked
    endpoint.py    where requests may go, and the key
    limits.py      when the next one may go
    asking.py      the loop: every reply into the journal before anything else
    batch.py       the same questions through a Batch API
    journal.py     the replies, in SQLite
    replies.py     what a reply is: its outcome, its answer, and whether to ask again
    money.py       what it costs
    flags.py       answers worth a second look
    export.py      the journal to a micrograph dataset and its card
    merging.py     the journals of many shards to one
"""
