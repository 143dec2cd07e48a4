"""The speed benchmark runs, and compares what it says it compares. No times are asserted."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.speed import __main__ as command
from benchmarks.speed import inference, measure, memory, peers, report, training, workload
from benchmarks.speed.workload import Workload
from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS
from modeling_mvaema import MVaEMaModel

# The vocabulary stays that of the preset: the benchmark trains a tokenizer of its own.
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_image_layers": 2,
    "num_text_layers": 3,
    "projection_dim": 16,
    "max_position_embeddings": 64,
}


def tiny(**fields) -> Workload:
    return Workload(**{"batch": 3, "overrides": TINY} | fields)


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_peers_have_our_dimensions(preset):
    config = Workload(preset=preset).config()
    with torch.device("meta"):
        ours, vqa, vit = MVaEMaModel(config), peers.answering(config), peers.image_part(config)
        retrieval, bert = peers.retrieval(config), peers.text_part(config)
    assert size(vqa.vision_model) == size(ours.image_encoder) == size(vit)
    assert size(retrieval.vision_proj) == size(ours.image_proj)
    own = sum(
        size(layer.causal_attn) + size(layer.causal_attn_norm) for layer in ours.text_stack.layers
    )
    assert size(vqa.text_encoder) == size(ours.text_stack) - own
    cross = sum(
        size(layer.cross_attn) + size(layer.cross_attn_norm) for layer in ours.text_stack.layers
    )
    # BERT has embeddings of two token types.
    assert size(bert) - 2 * config.hidden_size == size(ours.text_stack) - own - cross


@pytest.mark.slow
def test_the_parts_of_blip_compute_what_its_public_call_does():
    inputs, config = workload.batch(tiny(questions=2)), tiny().config()
    _, public = training.model_and_loss("BLIP", tiny())
    _, parts = training.model_and_loss("BLIP, parts", tiny())
    torch.testing.assert_close(public(inputs), parts(inputs))

    # The question's padding is masked by one and not by the other, so there must be none.
    model = peers.answering(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    asked = (
        model,
        inference.image_processor_of_blip(config),
        workload.processor(config),
        workload.images(2),
        ["Which imaging technique was used?"],
    )
    answers = inference.blip_answers(*asked, max_new_tokens=6, min_new_tokens=6)
    assert answers == inference.blip_answers_by_parts(*asked, max_new_tokens=6, min_new_tokens=6)
    assert len(answers) == 2


def test_assembled_blip_trains_all_its_weights_and_starts_at_chance():
    inputs = workload.batch(tiny(losses="all"))
    model, loss = training.model_and_loss("BLIP, parts", tiny(losses="all"))
    value = loss(inputs)
    _, public = training.model_and_loss("BLIP", tiny(losses="all"))
    values = []
    for assembled in (loss, public):
        torch.manual_seed(0)  # of the negatives
        values.append(assembled(inputs))
    torch.testing.assert_close(*values)
    value.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    _, our_loss = training.model_and_loss("ours", tiny(losses="all"))
    # Of fresh models, ITC and LM are at chance and ITM near it: about the same for both.
    assert abs(value.item() - our_loss(inputs).item()) < 1.5


def test_batches_are_as_long_as_the_texts(monkeypatch, tmp_path):
    monkeypatch.setenv("MVAEMA_SHARED", str(tmp_path))
    workload.lengths.cache_clear(), workload.tokenizer.cache_clear()
    try:
        assert workload.micrograph_folder() is None
        batch = workload.batch(tiny(batch=40, questions=5, losses="all", overrides={}))
        config = tiny(overrides={}).config()
        for kind, mask, count in (
            ("prompts", batch["attention_mask"], 200),
            ("answers", batch["labels"] != -100, 200),
            ("statements", batch["statement_mask"], 80),
        ):
            lengths, deciles = mask.sum(dim=1), workload.DECILES[kind]
            assert len(lengths) == count
            assert deciles[0] <= lengths.min() and lengths.max() <= deciles[-1]
            assert deciles[3] <= lengths.median() <= deciles[7]
        ends = (batch["labels"] != -100).sum(dim=1, keepdim=True) - 1
        assert (batch["labels"].gather(1, ends) == config.eos_token_id).all()
        fixed = workload.batch(tiny(answer_tokens=9))["labels"]
        assert fixed.shape == (12, 9) and (fixed != -100).all()
        assert len(workload.images(3)) == 3
    finally:
        workload.lengths.cache_clear(), workload.tokenizer.cache_clear()


def test_work_is_that_of_the_products():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    work = measure.Work.count(lambda: (a @ b).relu())
    assert work == measure.Work(flops=2 * 3 * 5 * 7, bytes=4 * (3 * 5 + 5 * 7 + 3 * 7))
    # A fused attention: scores of 2 x 4 heads, 6 queries, 9 keys of width 8; then their values.
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert measure.Work.count(lambda: attention(q, k, v)).flops == 2 * (2 * 2 * 4 * 6 * 9 * 8)
    floor = work.floor(measure.Machine(matmul=21.0, bandwidth=7.1), took=30.0)
    assert (floor["compute_seconds"], floor["times_compute_floor"]) == (10.0, 3.0)
    assert floor["memory_seconds"] == pytest.approx(40.0)


def test_ratios_are_within_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure.alternate(functions, repeats=3)
    assert calls == list("baabbaab") and [len(times[name]) for name in "ab"] == [3, 3]
    # The machine was ten times as slow in the last turn; the ratio is not.
    ratio = measure.ratio([2.0, 4.0, 30.0], [1.0, 2.0, 10.0])
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.5)
    numbers = ("case", "paper", "MiB", 1.0, "BLIP", 2.0, ratio)
    assert report.Comparison(*numbers, target=2.0).met
    assert not report.Comparison(*numbers, target=1.9, at_most=True).met
    assert "≤ 1.9 NOT met" in report.Comparison(*numbers, target=1.9, at_most=True).line()
    assert report.Comparison(*numbers).met is None


@pytest.mark.slow
def test_peak_memory_sees_what_was_freed():
    before = measure.resident()
    torch.ones(64 << 20, dtype=torch.uint8).sum()
    assert measure.peak_resident() - before > 60 << 20
    peak = memory.main("ours", tiny())
    assert peak["training"] >= peak["step"] >= 0


def test_paper_run_is_ten_folds_of_fifty_epochs(monkeypatch):
    from benchmarks.speed import cases

    monkeypatch.setattr(cases, "PAPER_MICROGRAPHS", 3600)
    # 500 epochs of an hour's micrographs, of which a tenth takes a third of the time.
    assert cases.paper_run_hours(1.0) == pytest.approx(500 * (0.9 + 0.1 / 3))


def run(tmp_path, batch: int, *cases: str) -> SimpleNamespace:
    output = tmp_path / "results.json"
    options = ["--preset", "paper", "--repeats", "1", "--batch", str(batch)]
    options += ["--output", str(output)]
    command.main([*options, "--overrides", json.dumps(TINY), "--cases", *cases])
    return SimpleNamespace(**json.loads(output.read_text()))


@pytest.mark.slow
def test_command_prints_a_table_and_writes_json(tmp_path, capsys):
    results = run(tmp_path, 2, "classify", "parts")
    assert results.machine["matmul_flops"] > 0 and results.machine["threads"] >= 1
    assert results.options["overrides"] == TINY
    found = {(c["case"], c["peer_name"]): c for c in results.comparisons}
    printed = capsys.readouterr().out
    assert set(found) == {
        ("classify by ITC", "BLIP"),
        ("classify by ITM", "BLIP"),
        ("classify by ITM", "BLIP, parts"),
        ("image encoder, both passes", "ViT"),
        ("text encoder, both passes", "BERT"),
    }
    for (case, _), comparison in found.items():
        assert case in printed
        assert comparison["ours"] > 0 and comparison["peer"] > 0
        assert comparison["target"] is None and comparison["met"] is None
        for about in (comparison["details"]["ours"], comparison["details"]["peer"]):
            assert about["floor"]["flops"] > 0 and about["floor"]["bytes"] > 0
            assert len(about["seconds"]) == 1
            assert 0 < sum(o["share"] for o in about["top_operators"]) <= 1.001
    # BLIP's public call encodes the image for each of ten categories, its parts once.
    public, parts = (
        found["classify by ITM", who]["details"]["peer"] for who in ("BLIP", "BLIP, parts")
    )
    assert public["floor"]["flops"] > parts["floor"]["flops"]


def test_answers_and_classes_are_what_was_asked_for():
    asked = tiny(batch=2, questions=10, answer_tokens=5)
    for who in ("ours", "BLIP", "BLIP, parts"):
        _, call = inference.answering(who, asked)
        assert len(call()) == 2 * len(QUESTIONS)
        for by in ("itc", "itm"):
            _, call = inference.classifying(who, asked, by)
            assert set(call()) <= set(CATEGORY_CAPTIONS)


@pytest.mark.slow
def test_every_case_runs(tmp_path):
    results = run(tmp_path, 4, *command.CASES)
    by_case = {c["case"]: c for c in results.comparisons}
    assert by_case["cold start to first answer"]["ours"] > 0
    assert by_case["train ITC + ITM + LM"]["details"]["paper_run_hours"] > 0
    assert 0 < by_case["waiting for data, 1 worker"]["peer"] <= 100
    assert by_case["answer 10 questions each"]["details"]["ours"]["floor"]["flops"] > 0
    assert {c["target"] for c in results.comparisons} == {None, 0.7, 1.1, 1.3, 2.0, 2.5, 4.0}
    assert {"read JPEG", "read Parquet", "train, 2 processes"} <= set(by_case)
    assert by_case["texts in groups, LM"]["peer_name"] == "without it"
