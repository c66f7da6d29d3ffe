"""scripts/bench memory: what was measured never reaches a prediction, and what is not stated is counted."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from scripts._bench.memory import score
from scripts._bench.memory.__main__ import main
from scripts._bench.memory.cases import Asked, split
from scripts._bench.memory.facts import LackingError, profile
from scripts._bench.memory.judge import OURS, RULES, judge, predict
from tests.planning.memory.models import LLAMA_8B

FACTS = {
    "meta-llama/Llama-3.1-8B-Instruct": {
        name: LLAMA_8B[name] for name in LLAMA_8B if name not in {"model_type", "architectures"}
    }
    | {"architecture_class": "LlamaForCausalLM", "params_total": 8030261248, "quantization_config": False}
}
CASE = {
    "id": "one", "engine": "vllm", "vllm_generation": "V1", "engine_version": "0.11.0", "architecture": "dense",
    "model": "meta-llama/Llama-3.1-8B-Instruct", "models_json_key": "meta-llama/Llama-3.1-8B-Instruct",
    "quant_family": "16bit", "gpu": "H100", "gpu_memory_gib": 79.18, "n_gpus": 1, "tensor_parallel": 1,
    "gpu_memory_utilization": 0.9, "max_model_len": 16000, "weights_gib": 14.99, "activation_peak_gib": 4.76,
    "non_torch_gib": 0.13, "kv_cache_gib": 51.38, "outcome": "ok",
}  # fmt: skip
#: Every field of the schema that an engine reported, or that somebody wrote down afterwards.
MEASURED = (
    "weights_gib", "activation_peak_gib", "non_torch_gib", "cuda_graph_gib", "kv_cache_gib", "kv_cache_tokens",
    "num_gpu_blocks", "max_concurrency", "sglang", "llama_cpp", "ollama", "other_measured", "outcome", "failure",
    "notes", "usable", "source", "source_kind", "model_certain",
)  # fmt: skip


def test_predictions_are_asked_with_no_measured_field():
    assert not {field.name for field in fields(Asked)} & set(MEASURED)


@pytest.mark.parametrize("field", MEASURED)
def test_no_measured_field_changes_a_prediction(field):
    plain = predict(split(CASE).asked, FACTS)
    for value in (None, 1.0, "0.11.0 fp8 8 layers", {"kv_buffer_mib": {"CUDA0": 5.0}, "free_at_start_gib": 3.0}, 10**9):
        assert predict(split(CASE | {field: value}).asked, FACTS) == plain


def test_of_llama_cpps_buffers_only_the_command_line_is_asked():
    case = CASE | {"llama_cpp": {"n_ctx": 4096, "n_ubatch": 256, "kv_type": "q8_0", "kv_buffer_mib": {"CUDA0": 5.0}}}
    asked = split(case).asked
    assert (asked.n_ctx, asked.n_ubatch, asked.kv_type) == (4096, 256, "q8_0")
    assert "5.0" not in repr(asked)


def test_a_case_is_judged_by_what_was_measured():
    result = judge(split(CASE), FACTS)
    assert score.weight_error(result, OURS) < 0.001
    assert score.pool_error(result, OURS) < 0.01
    assert score.other_error(result, OURS) < 0.1
    assert score.decisions([result], OURS, "ok") == score.Decisions(1, 1, 0, 0)
    assert all(score.weight_error(result, rule) is not None for rule in RULES)


def test_new_versions_print_graphs_with_activations_and_kernels_with_weights():
    new = CASE | {
        "other_measured": {"consumed_weights_plus_non_torch_gib": 15.26},
        "non_torch_gib": None,
        "weights_gib": 15.0,
    }
    assert judge(split(new), FACTS).measured.other == pytest.approx(4.76 + 0.26)


@pytest.mark.parametrize(
    ("field", "value", "lacks"),
    [
        ("models_json_key", None, "the model's facts"),
        ("quant_family", "unstated", "how the weights are quantized"),
        ("quant_family", "homemade", "how homemade stores weights"),
        ("n_gpus", None, "over how many devices"),
        ("max_model_len", None, "the longest request"),
        ("engine", "novel", "a known engine and cache type ('novel')"),
        ("gpu_memory_utilization", 7.0, "sound arguments (utilization must be above 0 and at most 1, not 7.0)"),
    ],
)
def test_what_is_lacking_is_named(field, value, lacks):
    case = CASE | {field: value} | ({"tensor_parallel": None} if field == "n_gpus" else {})
    assert lacks in judge(split(case), FACTS).lacks


def test_a_refusal_for_a_length_that_nobody_asked_for_is_no_decision():
    small = CASE | {"gpu_memory_gib": 24.0, "max_model_len": None}
    assert judge(split(small), FACTS).predictions[OURS].accepts is None
    assert judge(split(small | {"max_model_len": 131072}), FACTS).predictions[OURS].accepts is False


@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf"), "many", [], {}, True, 1e300])
def test_nonsense_in_a_case_is_no_crash(value):
    for field in [field.name for field in fields(Asked)] + list(MEASURED):
        judge(split(CASE | {field: value}), FACTS)


def test_a_model_without_facts_is_said():
    with pytest.raises(LackingError, match="the model's facts"):
        profile(FACTS, "somebody/else", "", "", "16bit")


def test_percentiles_lie_between_values():
    assert score.percentile([1.0, 2.0, 3.0, 4.0, 5.0], 0.9) == pytest.approx(4.6)
    assert score.percentile([], 0.5) is None


def test_the_bench_prints_tables_and_json(tmp_path, capsys):
    cases, models = tmp_path / "cases.json", tmp_path / "models.json"
    cases.write_text(json.dumps([CASE, CASE | {"id": "two", "models_json_key": None}]))
    models.write_text(json.dumps(FACTS))
    arguments = ["--cases", str(cases), "--models", str(models)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 cases, 1 predicted" in printed
    assert "the model's facts 1" in printed
    assert main([*arguments, "--json", "--cases-too"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["overall"][OURS]["weights"]["n"] == 1
    assert set(report["by_engine"]) == {"vllm"}
    assert [row["id"] for row in report["each"]] == ["one", "two"]


def test_a_file_that_is_no_list_of_cases_is_refused(tmp_path, capsys):
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    assert main(["--cases", str(wrong), "--models", str(wrong)]) == 2
    assert "must hold a JSON list" in capsys.readouterr().err
