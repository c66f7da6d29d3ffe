"""Models in Hugging Face's layout: real files in a directory, and the same through ranged reads."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from agent.models.errors import ProfileError
from agent.models.huggingface import from_config, read_folder, read_model
from agent.models.profile import Basis, Group, ModelProfile
from agent.models.profiles import Profiles
from agent.status import DiagnosisCode
from tests.models.safetensors_factory import Bytes, Tensors, write_safetensors

CONFIG: dict[str, Any] = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320,
    "max_position_embeddings": 4096, "rope_theta": 1000000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def tensors(*, head: bool = True, layers: int = 2) -> Tensors:
    found: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("BF16", (320, 64))}
    for index in range(layers):
        name = f"model.layers.{index}"
        found |= {
            f"{name}.input_layernorm.weight": ("BF16", (64,)),
            f"{name}.post_attention_layernorm.weight": ("BF16", (64,)),
            f"{name}.self_attn.q_proj.weight": ("BF16", (128, 64)),
            f"{name}.self_attn.k_proj.weight": ("BF16", (64, 64)),
            f"{name}.self_attn.v_proj.weight": ("BF16", (64, 64)),
            f"{name}.self_attn.o_proj.weight": ("BF16", (64, 128)),
            f"{name}.self_attn.q_norm.weight": ("BF16", (32,)),
            f"{name}.self_attn.k_norm.weight": ("BF16", (32,)),
            f"{name}.mlp.gate_proj.weight": ("BF16", (96, 64)),
            f"{name}.mlp.up_proj.weight": ("BF16", (96, 64)),
            f"{name}.mlp.down_proj.weight": ("BF16", (64, 96)),
        }
    found["model.norm.weight"] = ("BF16", (64,))
    return found | ({"lm_head.weight": ("BF16", (320, 64))} if head else {})


def model(folder: Path, *, shards: int = 1, configuration: dict[str, Any] | None = None, **files: Any) -> Path:
    """A directory with a small model; `files` are further ones, by names in which __ stands for a dot."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configuration or CONFIG))
    found = dict(tensors())
    if shards == 1:
        write_safetensors(folder / "model.safetensors", found, {"format": "pt"})
    else:
        names, where = list(found), {}
        for number in range(shards):
            file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = names[number::shards]
            write_safetensors(folder / file, {name: found[name] for name in part})
            where |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def refusal(folder: Path) -> tuple[DiagnosisCode, str]:
    with pytest.raises(ProfileError) as caught:
        read_folder(folder)
    return caught.value.diagnosis.code, caught.value.diagnosis.message


def test_bytes_of_each_group_are_those_of_the_files(tmp_path: Path) -> None:
    profile = read_folder(model(tmp_path / "m"))

    assert profile.basis == Basis.TENSORS
    assert profile.format == "safetensors"
    assert profile.file_bytes == (tmp_path / "m" / "model.safetensors").stat().st_size
    assert {tensors.group: tensors.bytes for tensors in profile.groups} == {
        Group.EMBEDDING: 2 * 320 * 64,
        Group.LM_HEAD: 2 * 320 * 64,
        Group.ATTENTION: 2 * 2 * 2 * 128 * 64,
        Group.ATTENTION_KV: 2 * 2 * 2 * 64 * 64,
        Group.MLP: 2 * 2 * 3 * 96 * 64,
        Group.NORM: 2 * (2 * (64 + 64 + 32 + 32) + 64),
    }
    assert profile.tensor_bytes == 2 * profile.parameters
    assert profile.parameters == from_config(CONFIG).parameters
    assert profile.embedding_bytes == profile.output_bytes == 2 * 320 * 64
    assert [layer.bytes for layer in profile.layer_details] == [2 * (6 * 64 * 64 + 3 * 96 * 64 + 192)] * 2


def test_what_the_header_and_the_rules_say_of_the_layers_agree(tmp_path: Path) -> None:
    measured, counted = read_folder(model(tmp_path / "m")), from_config(CONFIG)

    assert measured.groups == counted.groups
    assert measured.layer_details == counted.layer_details
    assert measured.stored == counted.stored


def test_ranged_reads_give_the_same_profile_and_touch_no_weights(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", shards=3)
    files = {path.name: Bytes(path.read_bytes()) for path in folder.iterdir()}

    profile = read_model(files, str(folder))

    assert profile == read_folder(folder)
    for name, reader in files.items():
        if name.endswith(".safetensors"):
            assert sum(length for _, length in reader.reads) < reader.size() / 2


def test_a_model_of_700_gb_is_profiled_from_its_headers(tmp_path: Path) -> None:
    wide = {
        **CONFIG,
        "hidden_size": 16384,
        "intermediate_size": 65536,
        "num_attention_heads": 128,
        "vocab_size": 128000,
    }
    folder = model(tmp_path / "m", configuration=wide)
    found: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("BF16", (128000, 16384))}
    for index in range(109):
        for part in ("gate_proj", "up_proj", "down_proj"):
            found[f"model.layers.{index}.mlp.{part}.weight"] = ("BF16", (65536, 16384))
    write_safetensors(folder / "model.safetensors", found)

    profile = read_folder(folder)

    assert profile.tensor_bytes == 2 * profile.parameters
    assert profile.tensor_bytes > 700 * 10**9


def test_a_profile_survives_json(tmp_path: Path) -> None:
    profile = read_folder(model(tmp_path / "m"))

    assert TypeAdapter(ModelProfile).validate_json(json.dumps(asdict(profile))) == profile


async def test_the_daemon_learns_of_a_directory_from_the_subprocess_and_of_its_changes(tmp_path: Path) -> None:
    folder, known = model(tmp_path / "m"), Profiles()

    first = await known.profile(folder)
    assert first == read_folder(folder)
    assert await known.profile(folder) is first

    (folder / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 8192}))
    assert (await known.profile(folder)).context_length == 8192

    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ProfileError) as caught:
        await known.profile(folder)
    assert caught.value.diagnosis.code == DiagnosisCode.MODEL_CORRUPT
    assert caught.value.diagnosis.hint == "fetch the model again"


def test_a_head_in_the_files_that_the_configuration_ties_is_left_out(tmp_path: Path) -> None:
    profile = read_folder(model(tmp_path / "m", configuration={**CONFIG, "tie_word_embeddings": True}))

    assert profile.tied
    assert profile.output_bytes == profile.group(Group.LM_HEAD).bytes == 0
    assert profile.parameters == from_config({**CONFIG, "tie_word_embeddings": True}).parameters
    assert any("output head" in note for note in profile.notes)


def test_copies_in_another_layout_are_not_counted_twice(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", shards=2)
    whole = read_folder(folder)
    write_safetensors(folder / "consolidated.safetensors", tensors())
    (folder / "pytorch_model.bin").write_bytes(bytes(100))
    (folder / "model.onnx").write_bytes(bytes(100))

    profile = read_folder(folder)

    assert profile == replace(whole, formats=("onnx", "pytorch", "safetensors"))


def test_without_safetensors_parameters_are_counted_and_other_weights_are_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    profile = read_folder(folder)

    assert (profile.format, profile.file_bytes, profile.basis) == ("pytorch", 1000, Basis.CONFIG)
    assert profile.parameters == from_config(CONFIG).parameters


def test_an_unknown_architecture_with_weights_has_exact_bytes_and_says_what_is_not_known(tmp_path: Path) -> None:
    strange = {
        **CONFIG,
        "model_type": "strange",
        "architectures": ["StrangeForCausalLM"],
        "auto_map": {"AutoModel": "x.y"},
    }
    profile = read_folder(model(tmp_path / "m", configuration=strange))

    assert profile.basis == Basis.TENSORS
    assert profile.parameters == from_config(CONFIG).parameters
    assert profile.remote_code
    assert any("(strange) is not known" in note for note in profile.notes)
    assert [layer.attention.kv_elements for layer in profile.layer_details] == [128, 128]


def missing_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def escaping_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))


def empty_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))


def odd_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 3}}))


def lost_tensor(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.layers.7.gone.weight"] = "model-00001-of-00003.safetensors"
    file.write_text(json.dumps(index))


def twice(folder: Path) -> None:
    write_safetensors(folder / "model-00002-of-00003.safetensors", {"model.embed_tokens.weight": ("BF16", (320, 64))})


def other_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 128}))


def no_weights(folder: Path) -> None:
    for weights in folder.glob("model*"):
        weights.unlink()


def only_onnx(folder: Path) -> None:
    no_weights(folder)
    (folder / "model.onnx").write_bytes(b"x")


def gguf_beside_config(folder: Path) -> None:
    no_weights(folder)
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def gguf_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model-Q4_K_M.gguf").touch()


def config_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def config_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff{")


def config_is_huge(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(10**10)


def no_index_and_too_few(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    missing_shard(folder)


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (missing_shard, DiagnosisCode.MODEL_MISSING, "model-00002-of-00003.safetensors, one of 3 files"),
        (no_index_and_too_few, DiagnosisCode.MODEL_MISSING, "says that there are 3 files, and 2 are there"),
        (escaping_index, DiagnosisCode.MODEL_CORRUPT, "no plain file name"),
        (empty_index, DiagnosisCode.MODEL_CORRUPT, "weight_map must name 1 to"),
        (odd_index, DiagnosisCode.MODEL_CORRUPT, "weight_map must map"),
        (lost_tensor, DiagnosisCode.MODEL_CORRUPT, "model.layers.7.gone.weight', which none of its files has"),
        (twice, DiagnosisCode.MODEL_CORRUPT, "in more than one file"),
        (other_model, DiagnosisCode.MODEL_CORRUPT, "hidden_size is 128, but model.embed_tokens.weight is [320, 64]"),
        (no_config, DiagnosisCode.MODEL_MISSING, "has no config.json"),
        (no_weights, DiagnosisCode.MODEL_MISSING, "has a config.json, but no weights"),
        (only_onnx, DiagnosisCode.MODEL_UNSUPPORTED, "has no weights but those for onnx"),
        (gguf_beside_config, DiagnosisCode.MODEL_UNSUPPORTED, "directory of GGUF files"),
        (adapter, DiagnosisCode.MODEL_UNSUPPORTED, "LoRA adapter"),
        (gguf_folder, DiagnosisCode.MODEL_UNSUPPORTED, "directory of GGUF files"),
        (config_is_a_list, DiagnosisCode.MODEL_CORRUPT, "must be an object, not list"),
        (config_is_no_json, DiagnosisCode.MODEL_CORRUPT, "config.json is not JSON"),
        (config_is_huge, DiagnosisCode.MODEL_CORRUPT, "a real one has less than"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_directory_is_refused_with_what_is_wrong(
    damage: Any, code: DiagnosisCode, words: str, tmp_path: Path
) -> None:
    folder = model(tmp_path / "m", shards=3)
    damage(folder)

    found, message = refusal(folder)

    assert found == code
    assert words in message


def test_pipes_in_the_directory_are_not_opened(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    os.mkfifo(folder / "tokenizer_config.json")

    assert not read_folder(folder).has_chat_template


def test_the_context_is_the_one_that_engines_derive() -> None:
    assert from_config(CONFIG).context_length == 4096
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert from_config({**CONFIG, "max_position_embeddings": 40960, "rope_scaling": yarn}).context_length == 131072
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    profile = from_config({**CONFIG, "max_position_embeddings": 131072, "rope_scaling": llama3})
    assert profile.context_length == 131072
    assert profile.rope is not None
    assert (profile.rope.kind, profile.rope.factor, profile.rope.original_context) == ("llama3", 8.0, 8192)
    linear = {"type": "linear", "factor": 2.0}
    assert from_config({**CONFIG, "rope_scaling": linear}).context_length == 8192
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 5.0}, "sliding_attention": {"rope_theta": 7.0}}
    assert from_config({**CONFIG, "rope_parameters": nested}).rope.theta == 5.0  # type: ignore[union-attr]
    assert from_config({**CONFIG, "model_max_length": 9000}).context_length == 9000


POOLING = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def test_tasks_follow_from_the_architecture_and_the_files(tmp_path: Path) -> None:
    def task(name: str, architecture: str = "Qwen3ForCausalLM", labels: int = 2, **files: Any) -> tuple[str, str]:
        more = {"architectures": [architecture], "id2label": {str(number): "x" for number in range(labels)}}
        profile = read_folder(model(tmp_path / name, configuration={**CONFIG, **more}, **files))
        return profile.task, profile.pooling

    assert task("base") == ("completion", "")
    assert task("chat", tokenizer_config__json={"chat_template": "{{ messages }}"}) == ("chat", "")
    assert task("jinja", chat_template__jinja="{{ messages }}") == ("chat", "")
    assert task("rerank", "Qwen3ForSequenceClassification", labels=1) == ("rerank", "rank")
    assert task("labels", "Qwen3ForSequenceClassification", labels=3) == ("classification", "")
    assert task("tokens", "Qwen3ForTokenClassification") == ("classification", "")
    assert task("old", "GPT2LMHeadModel") == ("completion", "")
    assert task("bare", "Qwen3Model") == ("embedding", "")
    assert task("sentence", modules__json=[]) == ("embedding", "")
    (tmp_path / "pooled" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "pooled" / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))
    assert task("pooled") == ("embedding", "cls")
    assert task("vision", "Qwen3VLForConditionalGeneration", chat_template__jinja="x") == ("chat", "")


def test_licence_gate_and_length_of_embedding_models_come_from_their_small_files(tmp_path: Path) -> None:
    card = "---\nlicense: other\nlicense_name: llama3.1\nextra_gated_prompt: agree\ntags:\n- x\n---\n# Title\n"
    folder = model(
        tmp_path / "m", README__md=card, modules__json=[], sentence_bert_config__json={"max_seq_length": 512}
    )

    profile = read_folder(folder)

    assert (profile.licence, profile.gated, profile.context_length) == ("llama3.1", True, 512)
    (folder / "README.md").write_text("no front matter\n")
    assert read_folder(folder).licence == ""


def test_modalities_are_those_that_the_configuration_has_parts_for() -> None:
    vision = {"vision_config": {"depth": 1, "hidden_size": 48}, "video_token_id": 7, "model_type": "qwen3_vl"}
    assert from_config({**CONFIG, **vision}).modalities == ("text", "image", "video")
    assert from_config({**CONFIG, "audio_config": {"x": 1}}).modalities == ("text", "audio")
    assert from_config(CONFIG).modalities == ("text",)
