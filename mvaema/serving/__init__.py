"""Serving: a student behind the Chat Completions API of OpenAI.

In the order a request passes through:
    limits.py      how much a client may send, and how long it may take
    refusals.py    what a client is told when it gets no answer
    keys.py        who may ask
    uploads.py     the body of a request, no larger and no slower than allowed
    fields.py      fields of the body, of the right kind
    options.py     how an answer is to be decoded
    student.py     a student as it is served; torch_student.py and exported_student.py, with torch
                   and without
    messages.py    a conversation to one question about one image
    images.py      an image in a request to a micrograph
    preparing.py   both to what the student reads
    batching.py    requests of all clients to batches; those of vanished clients are dropped
    answering.py   a batch to answers, word by word where the decoding allows it
    replies.py     answers in the API's form
    logs.py        what the operator reads: no image, question or answer
    service.py     the student, its threads and the requests in progress
    app.py         the addresses that clients call
    running.py     the process: its start and its graceful end
"""
