"""The Batch API backend against a server that keeps files and batches."""

import json
import signal

import pytest
from support.teacher_helpers import (
    QUESTIONS,
    arguments,
    ask,
    hurried,
    load,
    make_images,
    outcomes,
    replies,
)
from support.teacher_process import TeacherProcess, options

from configuration_mvaema import QUESTIONS as WORDING
from mvaema.commands.teach import ask_command
from mvaema.teacher.export import export
from mvaema.teacher.journal import Journal, JournalError
from mvaema.teacher.money import load_price, spent

IMAGES = 3
ALL = IMAGES * QUESTIONS
BATCHES = "batches-00000-of-00001"


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images", IMAGES)


def ask_in_batches(images, output, url, **changes):
    return ask(images, output, url, batch=True, batch_poll=0.01, **changes)


def answered_once(output):
    """Every question has one reply, and it is the answer to this question."""
    rows = replies(output)
    assert len({row["fingerprint"] for row in rows}) == len(rows) == ALL
    answers = [json.loads(row["raw"])["choices"][0]["message"]["content"] for row in rows]
    assert len(set(answers)) == ALL
    for row, answer in zip(rows, answers, strict=True):
        assert WORDING[row["question_id"]] in answer


def test_all_questions_in_one_batch(server, images, output):
    assert ask_in_batches(images, output, server.url).stopped is None
    assert outcomes(output) == {"ok": ALL}
    answered_once(output)
    assert len(server.batches) == 1
    [batch] = server.batches.values()
    assert server.files[batch["input_file_id"]] == b"deleted", "the micrographs do not stay there"
    assert not list((output / BATCHES).iterdir()), "nor twice here"
    ask_in_batches(images, output, server.url)
    assert len(server.batches) == 1


def test_files_are_split_by_count(server, images, output):
    ask_in_batches(images, output, server.url, batch_requests=7)
    sizes = [len(inputs) for inputs in _requests(server)]
    assert sizes == [7, 7, 7, 7, 2]
    answered_once(output)


def test_files_are_split_by_size(server, images, output):
    line = max(len(x) for x in _lines_of_one_batch(images, output, server))
    server.batches.clear()
    output = output.with_name("second")
    ask_in_batches(images, output, server.url, batch_megabytes=4.5 * line / 1e6)
    assert len(server.batches) == -(-ALL // 4)
    answered_once(output)


def _lines_of_one_batch(images, output, server) -> list[bytes]:
    kept = []
    server.batch_fault = lambda batch, results: (
        kept.extend(server.files[batch["input_file_id"]].splitlines()) or (results, [])
    )
    ask_in_batches(images, output, server.url)
    server.batch_fault = None
    return kept


def _requests(server) -> list[list[str]]:
    """custom_ids per batch, from the results the server delivered, in order."""
    found, files = [], [b["output_file_id"] for b in server.batches.values()]
    for file_id in files:
        rows = server.files[file_id].decode().splitlines()
        found.append([json.loads(row)["custom_id"] for row in rows])
    return found


@pytest.mark.parametrize("state", ["completed", "expired", "cancelled"])
def test_results_of_every_terminal_state_are_fetched(state, server, images, output):
    """In the first batch a third is answered, a third fails, a third was not carried out."""

    def fault(batch, results):
        if len(server.batches) > 1:
            return results, []
        batch["status"] = state
        third = len(results) // 3
        errors = []
        for result in results[third : 2 * third]:
            body = {"error": {"code": "content_filter", "message": "no"}}
            response = {**result["response"], "status_code": 400, "body": body}
            errors.append({**result, "response": response})
        code = "batch_cancelled" if state == "cancelled" else "batch_expired"
        for result in results[2 * third :]:
            error = {"code": code, "message": "too late"}
            errors.append({**result, "response": None, "error": error})
        return results[:third], errors

    server.batch_fault = fault
    tally = ask_in_batches(images, output, server.url)
    assert tally.stopped is None
    assert outcomes(output) == {"ok": 20, "filtered": 10}
    answered = sum(x.delivered for x in server.exchanges)
    assert answered == 20, "only what was not carried out is asked again"
    assert len(server.batches) == 2


def test_results_come_in_any_order(server, images, output):
    server.batch_fault = lambda batch, results: (results[::-1], [])
    ask_in_batches(images, output, server.url)
    answered_once(output)
    rows = {row["fingerprint"]: json.loads(row["raw"]) for row in replies(output)}
    server.batches.clear()
    live = output.with_name("live")
    ask(images, live, server.url)
    expected = {row["fingerprint"]: json.loads(row["raw"]) for row in replies(live)}
    assert rows == expected


def test_unreadable_result_line_is_kept_aside(server, images, output, capsys):
    def fault(batch, results):
        if len(server.batches) == 1:
            results[3] = {"garbage": True}
        return results, []

    server.batch_fault = fault
    ask_in_batches(images, output, server.url)
    assert outcomes(output) == {"ok": ALL}
    assert (output / BATCHES / "unreadable-results.jsonl").read_text().count("\n") == 1
    assert len(server.batches) == 2


def failing(result: dict, status: int = 500) -> dict:
    """The result of a request that went wrong, as in an error file."""
    body = {"error": {"code": "server_error", "message": "no"}}
    response = {**result["response"], "status_code": status, "body": body}
    return {**result, "response": response}


@pytest.mark.parametrize(
    "twice",
    [
        lambda good: ([good, good], []),
        lambda good: ([good, failing(good)], []),
        lambda good: ([failing(good), good], []),
        lambda good: ([good], [failing(good, 400)]),
        lambda good: ([failing(good, 400)], [good]),
    ],
)
def test_two_results_for_one_question(twice, server, images, output, tmp_path):
    """Both are kept, the good one counts, and nothing is asked again."""

    def fault(batch, results):
        first, errors = twice(results[0])
        return [*results[1:5], *first, *results[5:]], errors

    server.batch_fault = fault
    assert ask_in_batches(images, output, server.url).stopped is None
    assert ask_in_batches(images, output, server.url, retry=["error"]).stopped is None
    assert len(server.batches) == 1
    rows = replies(output)
    sent = twice({"response": {"body": 1}, "custom_id": "x"})
    distinct = {json.dumps(row) for part in sent for row in part}
    assert len(rows) == ALL - 1 + len(distinct)
    export(output)
    answers = [qa for row in load(output / "dataset", tmp_path) for qa in row["qa"]]
    assert [qa["outcome"] for qa in answers] == ["ok"] * ALL


def test_result_lines_of_any_kind(server, images, output, tmp_path):
    """Each is journalled with its question, or kept aside; questions without an answer are asked
    again."""

    def fault(batch, results):
        if len(server.batches) > 1:
            return results, []
        del results[0]["response"]["status_code"]
        results[1]["response"]["status_code"] = "200"
        results[2]["response"]["status_code"] = 1e25
        results[3] |= {"response": None, "error": "it broke"}
        results[4] |= {"response": [], "error": ["odd"]}
        results[5] |= {"response": "text", "error": {"code": {}}}
        results[6]["response"]["request_id"] = {"\ud835": []}
        results[7]["response"]["body"]["usage"] = {"prompt_tokens": 10**30, "completion_tokens": 1}
        results[8]["response"]["body"]["model"] = "\ud835"
        for i, name in enumerate([None, ["x"], 7, "\ud835", "unknown"], start=10):
            results[i]["custom_id"] = name
        odd = [
            None,
            7,
            "text",
            [],
            '{"custom_id": ',
            "[" * 5000,
            '{"custom_id": %s}' % ("9" * 5000),
        ]
        return results, odd

    server.batch_fault = fault
    assert ask_in_batches(images, output, server.url).stopped is None
    assert outcomes(output) == {"ok": ALL}
    assert len(server.batches) == 2
    unreadable = (output / BATCHES / "unreadable-results.jsonl").read_bytes().splitlines()
    assert len(unreadable) == 5 + 7
    assert len(replies(output)) == ALL + 3, "what failed, and was asked again"
    assert export(output)[1].outcomes == {"ok": ALL}


@pytest.mark.parametrize("moment", ["upload", "create"])
@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_refused_batch_is_withdrawn(moment, status, server, images, output):
    """Nothing was paid for it: a live run may ask its questions, and nothing of it stays."""
    server.refuse_at, server.refusal = moment, (status, "no_batches")
    stopped = ask_in_batches(images, output, server.url).stopped
    assert f"status {status}" in stopped and "nothing is paid" in stopped
    assert f"{ALL} questions are asked again" in stopped
    assert set(server.files.values()) <= {b"deleted"}
    assert not list((output / BATCHES).iterdir())
    assert ask(images, output, server.url).stopped is None
    answered_once(output)


def test_run_without_replies_says_why_and_writes_no_dataset(server, images, output, capsys):
    server.refuse_at = "retrieve"
    args = arguments(images, output, server.url, batch=True, batch_poll=0.01)
    assert ask_command(args) == 1
    printed = capsys.readouterr()
    assert "The key was not accepted" in printed.err
    assert "30 questions are in open batches" in printed.out
    assert "No dataset was written: there are no replies yet" in printed.out
    assert not (output / "dataset").exists()


def test_server_that_lists_no_files(server, images, output):
    server.refuse_at, server.refusal = "list", (404, "not_found")
    assert ask_in_batches(images, output, server.url).stopped is None
    answered_once(output)


def test_another_key_gives_up_nothing(server, images, output):
    server.refuse_at = "retrieve"
    for give_up in ([], ["batch-0"]):
        stopped = ask_in_batches(images, output, server.url, give_up_batches=give_up).stopped
        assert "The key was not accepted" in stopped
    server.refuse_at = None
    assert ask_in_batches(images, output, server.url).stopped is None
    assert len(server.batches) == 1
    answered_once(output)


@pytest.mark.slow
def test_input_file_that_somebody_deleted_is_written_again(server, images, output, tmp_path):
    server.hang_at = "upload"
    batched = ("--batch", "True", "--no_export")
    run = TeacherProcess(tmp_path / "log", options(images, output, server.url, *batched))
    run.wait_for(server.hung.is_set)
    run.signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    server.hang_at = None
    [file] = (output / BATCHES).iterdir()
    file.unlink()
    assert f"{file.name} is gone" in ask_in_batches(images, output, server.url).stopped
    assert ask_in_batches(images, output, server.url).stopped is None
    assert len(server.batches) == 1
    answered_once(output)


def test_batch_that_is_gone_holds_up_nothing_and_can_be_given_up(
    server, images, output, tmp_path, capsys
):
    """The others are collected, its questions wait for the user's decision, and count as paid."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {teacher: {input: 10, output: 100, batch: 0.5, as_of: today}}")

    def fault(batch, results):
        if batch["id"] == "batch-1":  # it runs, and the next look does not find it
            server.batches.pop("batch-1")["status"] = "in_progress"
        return results, []

    server.batch_fault = fault
    changes = {"batch_requests": 10, "prices": str(prices), "max_tokens": 1000}
    for _ in range(2):
        stopped = ask_in_batches(images, output, server.url, **changes).stopped
        assert "--give_up_batches batch-1" in stopped and "10 questions" in stopped
        assert outcomes(output) == {"ok": 20} and len(server.batches) == 2
    server.batch_fault = None
    changes |= {"batch": True, "batch_poll": 0.01, "give_up_batches": ["batch-1", "batch-7"]}
    result = hurried(arguments(images, output, server.url, **changes)).ask()
    assert result.tally.stopped is None
    printed = capsys.readouterr().out
    assert "batch-1 is given up: 10 of its questions" in printed
    assert "batch-7: no open batch has this name" in printed
    assert outcomes(output) == {"ok": ALL}
    rows = replies(output)
    assert len(rows) == ALL + 10
    # 1,000 tokens in and 100 out each; at most 1,000 out for those that were given up.
    assert result.spent == pytest.approx((ALL * (0.01 + 0.01) + 10 * (0.01 + 0.1)) / 2)
    with Journal(next(output.glob("*.sqlite")), read_only=True) as journal:
        assert spent(journal, load_price("teacher", prices), 1000) == pytest.approx(result.spent)


def test_result_file_that_is_gone(server, images, output):
    """What the other file holds is kept; the rest is asked again when the user says so."""
    server.batch_fault = lambda batch, results: (results[:20], results[20:])
    server.drops = {"retrieve": 1}
    original = server.complete

    def complete(batch):
        original(batch)
        if batch["id"] == "batch-0":
            server.files.pop(batch["output_file_id"])

    server.complete = complete
    for _ in range(2):
        stopped = ask_in_batches(images, output, server.url).stopped
        assert "result file" in stopped and "--give_up_batches batch-0" in stopped
        assert outcomes(output) == {"ok": 10} and len(server.batches) == 1
    changes = {"give_up_batches": ["batch-0"]}
    for _ in range(2):  # the same command again changes nothing
        assert ask_in_batches(images, output, server.url, **changes).stopped is None
        assert outcomes(output) == {"ok": ALL} and len(server.batches) == 2
    assert len(replies(output)) == ALL + 20


DROPS = ["upload", "uploaded", "create", "created", "retrieve", "content", "output"]
PAGES = ["list", "upload", "uploaded", "batches", "create", "created", "retrieve"]


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        *(("drops", "create"), ("pages", "list"), ("pages", "created")),
        *(
            pytest.param(fault, step, marks=pytest.mark.slow)
            for fault, steps in (("drops", DROPS), ("pages", PAGES))
            for step in steps
            if (fault, step) not in (("drops", "create"), ("pages", "list"), ("pages", "created"))
        ),
    ],
)
def test_call_that_goes_wrong_once_is_repeated(fault, step, server, images, output):
    """A dropped connection, also in the middle of a result file, or a web page instead of JSON."""
    setattr(server, fault, {step: 1})
    assert ask_in_batches(images, output, server.url).stopped is None
    assert len(server.batches) == 1
    answered_once(output)


def test_deletion_that_fails_is_said_and_tried_again(server, images, output, capsys):
    server.refuse_at, server.refusal = "delete", (500, "server_error")
    assert ask_in_batches(images, output, server.url).stopped is None
    [batch] = server.batches.values()
    assert f"could not delete the input file {batch['input_file_id']}" in capsys.readouterr().out
    assert b"image_url" in server.files[batch["input_file_id"]]
    server.refuse_at = None
    assert ask_in_batches(images, output, server.url).stopped is None
    assert server.files[batch["input_file_id"]] == b"deleted"
    assert "could not delete" not in capsys.readouterr().out
    answered_once(output)


def test_failed_batch_ends_the_run_and_says_why(server, images, output):
    def fault(batch, results):
        batch["status"] = "failed"
        errors = [{"code": "invalid_json_line", "message": "line 1"}]
        batch["errors"] = {"object": "list", "data": errors}
        return [], []

    server.batch_fault = fault
    assert "invalid_json_line" in ask_in_batches(images, output, server.url).stopped
    server.batch_fault = None
    assert ask_in_batches(images, output, server.url).stopped is None
    answered_once(output)


def test_too_many_enqueued_tokens_means_waiting(server, images, output):
    """The account had no room for the second batch; its questions go out when others are done."""

    def fault(batch, results):
        if batch["id"] == "batch-1":
            batch["status"] = "failed"
            data = [{"code": "token_limit_exceeded", "message": "enqueued"}]
            batch["errors"] = {"object": "list", "data": data}
            return [], []
        return results, []

    server.batch_fault = fault
    assert ask_in_batches(images, output, server.url, batch_requests=6).stopped is None
    assert len(server.batches) == 6
    answered_once(output)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["upload", "uploaded", "create", "created", "output", "errors", "delete"]
)
def test_no_batch_is_submitted_twice_wherever_the_process_dies(
    moment, server, images, output, tmp_path
):
    """Killed while it uploads and submits (before and after the provider has), fetches the first
    and the second file of results, cleans up."""
    server.batch_fault = lambda batch, results: (results[: ALL // 2], results[ALL // 2 :])
    server.hang_at = moment
    batched = ("--batch", "True", "--batch_poll", "0.01", "--no_export")
    run = TeacherProcess(tmp_path / "log", options(images, output, server.url, *batched))
    run.wait_for(server.hung.is_set)
    run.signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    assert len(replies(output)) == {"errors": ALL // 2, "delete": ALL}.get(moment, 0)
    server.hang_at = None
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {teacher: {input: 10, output: 100, as_of: today}}")
    changes = {"batch": True, "batch_poll": 0.01, "prices": str(prices)}
    result = hurried(arguments(images, output, server.url, **changes)).ask()
    assert result.tally.stopped is None
    assert len(server.batches) == 1
    answered_once(output)
    assert result.spent == pytest.approx(ALL * 0.02), "each reply is charged once"
    held = [content for content in server.files.values() if b"image_url" in content]
    assert not held, "no micrographs stay at the provider"


def test_live_run_leaves_what_is_in_a_batch_alone(server, images, output, capsys):
    server.refuse_at = "retrieve"
    assert "--api_key_env" in ask_in_batches(images, output, server.url).stopped
    assert ask_command(arguments(images, output, server.url)) == 0
    assert not server.exchanges
    printed = capsys.readouterr().out
    assert "30 questions are in open batches" in printed and "no replies yet" in printed
    with pytest.raises(JournalError, match="30 questions are in open batches"):
        export(output)


def test_max_cost_counts_whole_batches(server, images, output, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {teacher: {input: 10, output: 100, batch: 0.5, as_of: today}}")
    # 0.01 a reply in a batch, at most about 0.18; a batch's worst case is reserved whole.
    tally = ask_in_batches(images, output, server.url, prices=str(prices), max_cost=0.4)
    assert "--max_cost" in tally.stopped
    assert 0 < 0.01 * len(replies(output)) <= 0.4
    assert (
        ask_in_batches(images, output, server.url, prices=str(prices), max_cost=20.0).stopped
        is None
    )
    answered_once(output)


def test_retry_asks_once_a_run(server, images, output):
    """A question that is truncated again is not asked a third time by the same run."""

    def truncate(batch, results):
        for result in results[:5]:
            result["response"]["body"]["choices"][0]["finish_reason"] = "length"
        return results, []

    server.batch_fault = truncate
    ask_in_batches(images, output, server.url)
    assert outcomes(output) == {"ok": ALL - 5, "truncated": 5}
    ask_in_batches(images, output, server.url, retry=["truncated"])
    assert len(server.batches) == 2
    assert len(replies(output)) == ALL + 5


def test_shards_in_one_folder_leave_each_others_batches_alone(server, images, output):
    server.refuse_at = "upload"
    for shard in ("0/2", "1/2"):
        assert ask_in_batches(images, output, server.url, shard=shard).stopped is not None
    server.refuse_at = None
    for shard in ("0/2", "1/2"):
        assert ask_in_batches(images, output, server.url, shard=shard).stopped is None
    assert len(server.batches) == 2
    answered_once(output)
