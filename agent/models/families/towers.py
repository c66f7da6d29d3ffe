"""Image towers and the projectors behind them.

Sources: the modelling files of the `transformers` library, one folder a model type (version 5.23).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType

from agent.models.config import Config
from agent.models.families.base import Kind, Weight, exact, linear, norm

#: From the tower's configuration, the whole model's and the text model's width to the weights.
Tower = Callable[[Config, Config, int], Iterator[Weight]]


def _layers(c: Config, *names: str, default: int | None = None) -> int:
    return c.whole(*(names or ("num_hidden_layers",)), default=default, most="layers")


def _block(name: str, width: int, inner: int, *, bias: bool = True, gated: bool = False) -> Iterator[Weight]:
    """Attention with four square matrices and a feed-forward."""
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from linear(f"{name}.self_attn.{part}", width, width, bias=bias)
    for part in ("gate_proj", "up_proj") if gated else ("fc1",):
        yield from linear(f"{name}.mlp.{part}", inner, width, bias=bias)
    yield from linear(f"{name}.mlp.fc2", width, inner, bias=bias)


def _projector(name: str, widths: tuple[int, ...], *, bias: bool) -> Iterator[Weight]:
    for number, (into, out) in enumerate(pairwise(widths), 1):
        yield from linear(f"{name}.linear_{number}", out, into, bias=bias)


def siglip(c: Config, whole: Config, text: int) -> Iterator[Weight]:
    """Gemma 3, PaliGemma."""
    name = "vision_tower.vision_model"
    width, inner = c.whole("hidden_size", default=768), c.whole("intermediate_size", default=3072)
    patch, image = c.whole("patch_size", default=16), c.whole("image_size", default=224)
    yield from exact(f"{name}.embeddings.patch_embedding.weight", width, 3, patch, patch)
    yield from exact(f"{name}.embeddings.patch_embedding.bias", width)
    yield Weight(f"{name}.embeddings.position_embedding.weight", ((image // patch) ** 2, width), Kind.EXACT)
    for index in range(_layers(c, default=12)):
        yield from _block(f"{name}.encoder.layers.{index}", width, inner)
        yield from norm(f"{name}.encoder.layers.{index}.layer_norm1", width, bias=True)
        yield from norm(f"{name}.encoder.layers.{index}.layer_norm2", width, bias=True)
    yield from norm(f"{name}.post_layernorm", width, bias=True)
    # Gemma's and PaliGemma's checkpoints come without the pooling head that the class would have.
    if whole.text("model_type") == "paligemma":
        yield from linear("multi_modal_projector.linear", text, width, bias=True)
    else:
        yield from exact("multi_modal_projector.mm_input_projection_weight", width, text)
        yield from norm("multi_modal_projector.mm_soft_emb_norm", width)


def clip(c: Config, whole: Config, text: int) -> Iterator[Weight]:
    """LLaVA."""
    name = "vision_tower.vision_model"
    width, inner = c.whole("hidden_size", default=1024), c.whole("intermediate_size", default=4096)
    patch, image = c.whole("patch_size", default=14), c.whole("image_size", default=336)
    yield from exact(f"{name}.embeddings.class_embedding", width)
    yield from exact(f"{name}.embeddings.patch_embedding.weight", width, 3, patch, patch)
    yield Weight(f"{name}.embeddings.position_embedding.weight", ((image // patch) ** 2 + 1, width), Kind.EXACT)
    yield from norm(f"{name}.pre_layrnorm", width, bias=True)
    for index in range(_layers(c, default=24)):
        yield from _block(f"{name}.encoder.layers.{index}", width, inner)
        yield from norm(f"{name}.encoder.layers.{index}.layer_norm1", width, bias=True)
        yield from norm(f"{name}.encoder.layers.{index}.layer_norm2", width, bias=True)
    yield from norm(f"{name}.post_layernorm", width, bias=True)
    yield from _projector(
        "multi_modal_projector", (width, text, text), bias=whole.flag("multimodal_projector_bias", default=True)
    )
    if whole.text("model_type").startswith("llava_next"):
        yield from exact("image_newline", text)


def pixtral(c: Config, whole: Config, text: int) -> Iterator[Weight]:
    """Mistral Small 3, Pixtral."""
    name, width = "vision_tower", c.whole("hidden_size", default=1024)
    patch = c.whole("patch_size", default=16)
    yield from exact(f"{name}.patch_conv.weight", width, 3, patch, patch)
    yield from norm(f"{name}.ln_pre", width)
    for index in range(_layers(c, default=24)):
        layer = f"{name}.transformer.layers.{index}"
        yield from _block(layer, width, c.whole("intermediate_size", default=4096), bias=False, gated=True)
        yield from norm(f"{layer}.attention_norm", width)
        yield from norm(f"{layer}.ffn_norm", width)
    bias = whole.flag("multimodal_projector_bias", default=whole.text("model_type") == "llava")
    if whole.text("model_type") == "mistral3":
        merge = whole.whole("spatial_merge_size", default=2, most=64) ** 2
        yield from norm("multi_modal_projector.norm", width)
        yield from linear("multi_modal_projector.patch_merger.merging_layer", width, width * merge)
    yield from _projector("multi_modal_projector", (width, text, text), bias=bias)


def qwen2(c: Config, whole: Config, text: int) -> Iterator[Weight]:  # noqa: ARG001 - a tower's signature
    """Qwen2-VL: its `hidden_size` is the text model's."""
    width, out = c.whole("embed_dim", default=1280), c.whole("hidden_size", default=text)
    inner = c.whole("mlp_ratio", default=4, most=64) * width
    yield from _qwen(c, width, inner, out, ("fc1", "fc2"))


def qwen25(c: Config, whole: Config, text: int) -> Iterator[Weight]:  # noqa: ARG001
    width, out = c.whole("hidden_size", default=1280), c.whole("out_hidden_size", default=text)
    inner = c.whole("intermediate_size", default=3420)
    yield from _qwen(c, width, inner, out, ("gate_proj", "up_proj", "down_proj"))


def qwen3(c: Config, whole: Config, text: int) -> Iterator[Weight]:  # noqa: ARG001
    """Qwen3-VL and Qwen3.5: learned positions; some layers' outputs are merged into the text model's layers too."""
    width, out = c.whole("hidden_size", default=1152), c.whole("out_hidden_size", default=text)
    inner = c.whole("intermediate_size", default=4304)
    yield from _qwen(c, width, inner, out, ("linear_fc1", "linear_fc2"))
    merged = width * c.whole("spatial_merge_size", default=2, most=64) ** 2
    for index in range(len(c.wholes("deepstack_visual_indexes"))):
        name = f"visual.deepstack_merger_list.{index}"
        yield from norm(f"{name}.norm", merged, bias=True)
        yield from linear(f"{name}.linear_fc1", merged, merged, bias=True)
        yield from linear(f"{name}.linear_fc2", out, merged, bias=True)


def _qwen(c: Config, width: int, inner: int, out: int, names: tuple[str, ...]) -> Iterator[Weight]:
    """The generations differ in their feed-forwards' names; the gated one has norms without biases, and only the newest
    has learned positions.
    """
    position, norm_bias = names[0].startswith("linear"), len(names) == 2
    size, frames = (
        c.whole("patch_size", default=16 if position else 14),
        c.whole("temporal_patch_size", default=2, most=64),
    )
    yield from exact("visual.patch_embed.proj.weight", width, 3, frames, size, size)
    if position:
        yield from exact("visual.patch_embed.proj.bias", width)
        yield Weight("visual.pos_embed.weight", (c.whole("num_position_embeddings", default=2304), width), Kind.EXACT)
    for index in range(_layers(c, "depth", default=32)):
        name = f"visual.blocks.{index}"
        yield from linear(f"{name}.attn.qkv", 3 * width, width, bias=True)
        yield from linear(f"{name}.attn.proj", width, width, bias=True)
        for part in names[:-1]:
            yield from linear(f"{name}.mlp.{part}", inner, width, bias=True)
        yield from linear(f"{name}.mlp.{names[-1]}", width, inner, bias=True)
        yield from norm(f"{name}.norm1", width, bias=norm_bias)
        yield from norm(f"{name}.norm2", width, bias=norm_bias)
    merged = width * c.whole("spatial_merge_size", default=2, most=64) ** 2
    yield from norm("visual.merger.ln_q", width, bias=norm_bias)
    yield from linear("visual.merger.mlp.0", merged, merged, bias=True)
    yield from linear("visual.merger.mlp.2", out, merged, bias=True)


def llama4(c: Config, whole: Config, text: int) -> Iterator[Weight]:  # noqa: ARG001
    name, width = "vision_model", c.whole("hidden_size", default=768)
    inner = c.whole("intermediate_size", default=5632)
    patch, image = c.whole("patch_size", default=14), c.whole("image_size", default=448)
    yield from exact(f"{name}.class_embedding", width)
    yield Weight(f"{name}.positional_embedding_vlm", ((image // patch) ** 2 + 1, width), Kind.EXACT)
    yield Weight(f"{name}.patch_embedding.linear.weight", (width, 3 * patch * patch), Kind.EXACT)
    for part in ("layernorm_pre", "layernorm_post"):
        yield from norm(f"{name}.{part}", width, bias=True)
    for index in range(_layers(c, default=34)):
        layer = f"{name}.model.layers.{index}"
        yield from _block(layer, width, inner)
        yield from norm(f"{layer}.input_layernorm", width, bias=True)
        yield from norm(f"{layer}.post_attention_layernorm", width, bias=True)
    middle, out = c.whole("projector_input_dim", default=4096), c.whole("projector_output_dim", default=4096)
    yield from linear(f"{name}.vision_adapter.mlp.fc1", middle, inner)
    yield from linear(f"{name}.vision_adapter.mlp.fc2", out, middle)
    yield from linear("multi_modal_projector.linear_1", text, c.whole("vision_output_dim", default=7680))


def gemma4(c: Config, whole: Config, text: int) -> Iterator[Weight]:  # noqa: ARG001
    name, width = "vision_tower", c.whole("hidden_size", default=768)
    inner, patch = c.whole("intermediate_size", default=3072), c.whole("patch_size", default=16)
    heads = c.whole("num_attention_heads", default=12, most="heads")
    kv_heads, head = (
        c.whole("num_key_value_heads", default=heads, most="heads"),
        c.whole("head_dim", default=width // heads),
    )
    rows = c.whole("position_embedding_size", default=10240)
    yield Weight(f"{name}.patch_embedder.position_embedding_table", (2, rows, width), Kind.EXACT)
    yield from linear(f"{name}.patch_embedder.input_proj", width, 3 * patch * patch)
    for index in range(_layers(c, default=16)):
        layer = f"{name}.encoder.layers.{index}"
        for part, rows_out, into in (
            ("q_proj", heads * head, width), ("k_proj", kv_heads * head, width), ("v_proj", kv_heads * head, width),
            ("o_proj", width, heads * head),
        ):  # fmt: skip
            yield from linear(f"{layer}.self_attn.{part}", rows_out, into)
        yield from norm(f"{layer}.self_attn.q_norm", head)
        yield from norm(f"{layer}.self_attn.k_norm", head)
        for part in ("gate_proj", "up_proj"):
            yield from linear(f"{layer}.mlp.{part}", inner, width)
        yield from linear(f"{layer}.mlp.down_proj", width, inner)
        for part in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield from norm(f"{layer}.{part}_layernorm", width)
    if c.flag("standardize"):
        yield from exact(f"{name}.std_bias", width)
        yield from exact(f"{name}.std_scale", width)
    yield from linear("embed_vision.embedding_projection", text, width)


def moonvit(c: Config, whole: Config, text: int) -> Iterator[Weight]:  # noqa: ARG001
    """Kimi-K2.5."""
    name, width = "vision_tower", c.whole("vt_hidden_size", "hidden_size", default=1152)
    inner, patch = c.whole("vt_intermediate_size", "intermediate_size", default=4304), c.whole("patch_size", default=14)
    yield from exact(f"{name}.patch_embed.proj.weight", width, 3, patch, patch)
    yield from exact(f"{name}.patch_embed.proj.bias", width)
    rows = c.whole("init_pos_emb_height", default=64) * c.whole("init_pos_emb_width", default=64)
    yield Weight(f"{name}.patch_embed.pos_emb.weight", (rows, width), Kind.EXACT)
    for index in range(_layers(c, "vt_num_hidden_layers", "num_hidden_layers", default=27)):
        layer = f"{name}.encoder.blocks.{index}"
        yield from _block(layer, width, inner)
        yield from norm(f"{layer}.norm0", width, bias=True)
        yield from norm(f"{layer}.norm1", width, bias=True)
    yield from norm(f"{name}.encoder.final_layernorm", width, bias=True)
    merged = 4 * width
    yield from norm("mm_projector.pre_norm", width, bias=True)
    yield from linear("mm_projector.proj.0", merged, merged, bias=True)
    yield from linear("mm_projector.proj.2", text, merged, bias=True)


#: By the whole model's `model_type`, or "=" and the tower's.
TOWERS: Mapping[str, Tower] = MappingProxyType(
    {
        "gemma3": siglip,
        "paligemma": siglip,
        "llava": clip,
        "llava_next": clip,
        "mistral3": pixtral,
        "=pixtral": pixtral,
        "=clip_vision_model": clip,
        "qwen2_vl": qwen2,
        "qwen2_5_vl": qwen25,
        "qwen3_vl": qwen3,
        "qwen3_vl_moe": qwen3,
        "qwen3_5": qwen3,
        "qwen3_5_moe": qwen3,
        "llama4": llama4,
        "gemma4": gemma4,
        "kimi_k25": moonvit,
    }
)


def tower_of(model_type: str, tower_type: str) -> Tower | None:
    """The tower's rules, or None where they are not known."""
    return TOWERS.get("=" + tower_type) or TOWERS.get(model_type)


def largest(c: Config, text: int) -> int:
    """Parameters that an unknown tower has at most: four attention and three feed-forward matrices a layer, with as
    much again for positions, projectors and what is not foreseen.
    """
    width = c.whole("hidden_size", "vt_hidden_size", "embed_dim", "width", default=1664)
    layers = c.whole("num_hidden_layers", "vt_num_hidden_layers", "depth", "layers", default=48, most="layers")
    inner = c.whole("intermediate_size", "vt_intermediate_size", default=6 * width)
    return 2 * (layers * (4 * width * width + 3 * width * inner) + 16 * width * text)
