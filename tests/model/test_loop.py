"""The loop that complete rows leave, against transformers' own."""

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from loop_mvaema import LeavingRows

QUESTIONS = ["What?", "How large are the structures?", "Is it rough, and where?"]
STEPS = 16


class EndsAt(StoppingCriteria):
    """Ends each row after a number of words of its own."""

    def __init__(self, lengths: list[int]):
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] > self.lengths


class OfWholeBatch(LogitsProcessor):
    """Forbids each row a word of its own: it must see all rows, each in its place."""

    def __init__(self, words: torch.Tensor):
        self.words = words

    def __call__(self, input_ids, scores):
        assert len(input_ids) == len(scores) == len(self.words)
        return scores.scatter(1, self.words.unsqueeze(1), -torch.inf)


class Told(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.ended = True


@pytest.fixture(params=[False, True], ids=["shared", "aware"])
def asked(request, make_model, images):
    """A model, and three questions about each of four images."""
    model = make_model(instruction_aware=request.param)
    inputs = model.processor(images=images, text=[QUESTIONS] * len(images))
    return model, dict(inputs)


# Images are complete at different steps, the last one in its middle row.
LENGTHS = [1, 4, 2, 3, 3, 3, 9, 1, 1, 5, STEPS, 7]


def generated(model, inputs, loop: bool, **options):
    told = Told()
    criteria = StoppingCriteriaList([EndsAt(LENGTHS)])
    own = {"custom_generate": LeavingRows(told)} if loop else {}
    fed = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: fed.append(len(given["decoder_input_ids"])), with_kwargs=True
    )
    ids = model.generate(
        **inputs,
        **own,
        **options,
        streamer=told,
        stopping_criteria=criteria,
        max_new_tokens=STEPS,
        do_sample=False,
    )
    hook.remove()
    assert told.ended
    return ids.tolist(), told.values, fed


@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.5}])
def test_ids_and_what_is_streamed_are_those_of_transformers(asked, options):
    model, inputs = asked
    expected, streamed, whole = generated(model, inputs, loop=False, **options)
    found, told, fed = generated(model, inputs, loop=True, **options)
    assert found == expected and told == streamed
    ends = {row.index(0, 1) if 0 in row[1:] else len(row) for row in found}
    assert len(ends) > 5, "rows end at many steps"
    assert set(whole) == {len(LENGTHS)}
    assert fed[0] == len(LENGTHS) and fed[-1] == 1 and fed == sorted(fed, reverse=True)
    if model.config.instruction_aware:  # no images are shared: every row leaves at once
        assert fed == [sum(length > step for length in LENGTHS) for step in range(STEPS)]


def test_a_processor_that_is_not_known_sees_all_rows(asked):
    model, inputs = asked
    words = torch.arange(len(LENGTHS)) + 40
    options = {"logits_processor": LogitsProcessorList([OfWholeBatch(words)])}
    expected, *_ = generated(model, inputs, loop=False, **options)
    found, *_ = generated(model, inputs, loop=True, **options)
    assert found == expected


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_without_rows_that_could_leave_transformers_decodes(model, images, monkeypatch, options):
    expected = model.answer(images[0], QUESTIONS, decoding="greedy", max_new_tokens=6)
    monkeypatch.setattr(LeavingRows, "__call__", None)
    answers = model.answer(images[0], QUESTIONS, decoding="greedy", max_new_tokens=6, **options)
    assert answers == expected
