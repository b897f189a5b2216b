"""Shared by tests: tiny random checkpoints of every family, and comparisons.

The checkpoints are transformers' own models with random weights, so that the same folder serves the
oracle and Sidewinder.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any, TypeVar

import torch
from torch import Tensor

from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.collectives.base import Collectives, SingleRank
from sidewinder.collectives.threads import ThreadCollectives, ThreadGroup
from sidewinder.config import ModelConfig
from sidewinder.parallel.group import TensorParallel

Result = TypeVar("Result")

TINY: dict[str, dict[str, Any]] = {
    "mamba": {
        "model_type": "mamba", "vocab_size": 101, "hidden_size": 24, "state_size": 5,
        "num_hidden_layers": 3, "conv_kernel": 4, "expand": 2, "time_step_rank": 3,
        "use_bias": False, "use_conv_bias": True, "tie_word_embeddings": True,
    },
    "falcon_mamba": {
        "model_type": "falcon_mamba", "vocab_size": 97, "hidden_size": 20, "state_size": 4,
        "num_hidden_layers": 3, "conv_kernel": 3, "expand": 2, "time_step_rank": 5,
        "use_bias": True, "tie_word_embeddings": False,
    },
    "mamba2": {
        "model_type": "mamba2", "vocab_size": 103, "hidden_size": 24, "expand": 2, "num_heads": 8,
        "head_dim": 6, "state_size": 7, "n_groups": 2, "num_hidden_layers": 3, "conv_kernel": 4,
        "chunk_size": 8, "tie_word_embeddings": False,
    },
    "zamba": {
        "model_type": "zamba", "vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 6,
        "intermediate_size": 44, "num_attention_heads": 4, "num_key_value_heads": 4,
        "n_mamba_heads": 2, "mamba_d_state": 5, "mamba_d_conv": 4, "mamba_expand": 2,
        "mamba_dt_rank": 3, "attn_layer_period": 3, "attn_layer_offset": 2,
        "tie_word_embeddings": True,
    },
    "zamba2": {
        "model_type": "zamba2", "vocab_size": 111, "hidden_size": 24, "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid", "mamba"],
        "intermediate_size": 44, "num_attention_heads": 4, "num_mem_blocks": 2,
        "adapter_rank": 5, "use_mem_rope": True, "n_mamba_heads": 8, "mamba_ngroups": 2,
        "mamba_d_state": 7, "mamba_d_conv": 4, "mamba_expand": 2, "chunk_size": 8,
        "time_step_min": 0.05, "tie_word_embeddings": True,
    },
    "bamba": {
        "model_type": "bamba", "vocab_size": 105, "hidden_size": 48, "num_hidden_layers": 5,
        "intermediate_size": 44, "num_attention_heads": 8, "num_key_value_heads": 4,
        "attn_layer_indices": [2, 4], "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 7,
        "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 8, "tie_word_embeddings": False,
    },
    "granitemoehybrid": {
        "model_type": "granitemoehybrid", "vocab_size": 107, "hidden_size": 48,
        "num_hidden_layers": 4, "shared_intermediate_size": 36, "num_attention_heads": 8,
        "num_key_value_heads": 4, "num_local_experts": 0, "position_embedding_type": "nope",
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
        "attention_multiplier": 0.3, "embedding_multiplier": 1.5, "residual_multiplier": 0.5,
        "logits_scaling": 3.0, "mamba_n_heads": 8, "mamba_n_groups": 1, "mamba_d_state": 6,
        "mamba_chunk_size": 8, "tie_word_embeddings": True,
    },
    "nemotron_h": {
        "model_type": "nemotron_h", "vocab_size": 109, "hidden_size": 40, "num_hidden_layers": 5,
        "layers_block_type": [
            "linear_attention", "linear_attention", "mlp", "full_attention", "mlp",
        ],
        "intermediate_size": 44, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 6, "mamba_num_heads": 8, "mamba_head_dim": 6, "n_groups": 2,
        "ssm_state_size": 7, "chunk_size": 8, "time_step_min": 0.05, "tie_word_embeddings": False,
    },
    "falcon_h1": {
        "model_type": "falcon_h1", "vocab_size": 111, "hidden_size": 40, "num_hidden_layers": 3,
        "intermediate_size": 44, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 6, "mamba_d_ssm": 48, "mamba_n_heads": 8, "mamba_n_groups": 2,
        "mamba_d_state": 7, "mamba_d_conv": 4, "mamba_chunk_size": 8,
        "embedding_multiplier": 1.5, "lm_head_multiplier": 0.4, "key_multiplier": 0.6,
        "attention_in_multiplier": 1.3, "attention_out_multiplier": 0.7,
        "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.6,
        "ssm_multipliers": [0.7, 1.4, 0.8, 1.2, 0.9], "mlp_multipliers": [0.9, 0.6],
        "tie_word_embeddings": False,
    },
    "jamba": {
        "model_type": "jamba", "vocab_size": 113, "hidden_size": 40, "num_hidden_layers": 5,
        "intermediate_size": 44, "num_attention_heads": 8, "num_key_value_heads": 4,
        "num_experts": 1, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 5,
        "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 3, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Default tiny configuration of each family, as keyword arguments of transformers' config."""

TINY |= {
    "granite_experts": TINY["granitemoehybrid"] | {
        "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 18,
    },
    "nemotron_experts": TINY["nemotron_h"] | {
        "layers_block_type": [
            "linear_attention", "moe", "full_attention", "linear_attention", "moe",
        ],
        "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
        "moe_shared_expert_intermediate_size": 21, "routed_scaling_factor": 2.5,
    },
    "jamba_experts": TINY["jamba"] | {
        "num_experts": 5, "num_experts_per_tok": 2, "expert_layer_period": 2,
        "expert_layer_offset": 1, "intermediate_size": 18,
    },
}  # fmt: skip
"""Families that also come with experts, so."""


def tiny_config(family: str, **overrides: Any) -> ModelConfig:
    """The architecture of `TINY[family]`, with overrides, without any weights."""
    return parse_model_config(TINY[family] | overrides)


def tiny_oracle(family: str, seed: int = 0, **overrides: Any) -> Any:
    """transformers' model of `family` with random weights in float32, in eval mode.

    Every parameter is randomised (transformers starts several at constants: that hides errors), at
    scales that keep activations of order one and the recurrence both remembering and forgetting.

    Args:
        family: a key of `TINY`.
        seed: of the random weights.
        overrides: configuration values that replace those of `TINY`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values = TINY[family] | overrides
    config = AutoConfig.for_model(**values)
    factory: Any = AutoModelForCausalLM
    # Its grouped products of experts want sizes in sixteens of bytes.
    model = factory.from_config(config, dtype=torch.float32, experts_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random_like(name, parameter, generator))
        for name, buffer in model.named_buffers():
            if name.endswith("score_correction_bias"):
                buffer.copy_(_random_like(name, buffer, generator))
        if config.tie_word_embeddings:  # transformers has two copies of Nemotron-H's
            model.lm_head.weight.copy_(model.get_input_embeddings().weight)
    # transformers gives Zamba's layers blocks of their own where the embeddings are not tied.
    blocks = ("shared_transf", "shared_transformer")
    shared = [part for name, part in model.named_modules() if name.endswith(blocks)]
    for number, copy in enumerate(shared):
        copy.load_state_dict(shared[number % getattr(config, "num_mem_blocks", 1)].state_dict())
    return model


def _random_like(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("A_log"):
        return noise * 0.5 + 0.5
    if ("norm" in name and name.endswith("weight")) or name.endswith(".D"):
        return 1.0 + 0.2 * noise
    if ("dt_proj" in name and name.endswith("bias")) or name.endswith(("dt_bias", "dt_proj_bias")):
        return noise - 2.0
    if name.endswith("bias"):
        return 0.2 * noise
    if "embed" in name:
        return noise
    fan_in = parameter.shape[-1]
    # Adapters add a fraction to what they adapt.
    scale = 0.25 if "adapter_list" in name and name.endswith(".1.weight") else 1.0
    return noise * (0.5 if "conv1d" in name else scale * fan_in**-0.5)


def save_tiny(family: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write `tiny_oracle(...)` as a transformers checkpoint into `folder` and return it."""
    tiny_oracle(family, seed, **overrides).save_pretrained(folder)
    return folder


def authors_layout(
    source: Path, folder: Path, pad_vocab_size_multiple: int = 1, **ssm_options: Any
) -> Path:
    """Rewrite transformers' Mamba or Mamba-2 checkpoint `source` in the authors' layout.

    The result is what their own library saves: `d_model`, `n_layer`, `ssm_cfg`, and a
    `pytorch_model.bin` that holds a tied head twice.

    Args:
        source: folder with config.json and model.safetensors.
        folder: where the result goes; made if it does not exist.
        pad_vocab_size_multiple: the embedding gets rows of zeros up to a multiple of it.
        ssm_options: more entries of `ssm_cfg` (`norm_before_gate`, ...).
    """
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    renamed = {key.replace("backbone.embeddings", "backbone.embedding"): value
               for key, value in weights.items()}  # fmt: skip
    embedding = renamed["backbone.embedding.weight"]
    rows = -len(embedding) % pad_vocab_size_multiple
    renamed.setdefault("lm_head.weight", embedding)
    for key in ("backbone.embedding.weight", "lm_head.weight"):
        renamed[key] = torch.cat([renamed[key], torch.zeros(rows, embedding.shape[1])])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(renamed, folder / "pytorch_model.bin")
    values = {
        "d_model": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "ssm_cfg": _ssm_cfg(config) | ssm_options,
        "rms_norm": True,
        "residual_in_fp32": config["residual_in_fp32"],
        "fused_add_norm": True,
        "pad_vocab_size_multiple": pad_vocab_size_multiple,
        "tie_embeddings": config["tie_word_embeddings"],
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    return folder


def _ssm_cfg(config: dict[str, Any]) -> dict[str, Any]:
    """The authors' names of a transformers configuration's mixer options."""
    shared = {
        "d_state": config["state_size"],
        "d_conv": config["conv_kernel"],
        "expand": config["expand"],
        "bias": config["use_bias"],
        "conv_bias": config["use_conv_bias"],
    }
    if config["model_type"] == "mamba":
        return shared | {"layer": "Mamba1", "dt_rank": config["time_step_rank"]}
    limits = [limit["__float__"] if isinstance(limit, dict) else limit
              for limit in config["time_step_limit"]]  # fmt: skip
    return shared | {
        "layer": "Mamba2",
        "headdim": config["head_dim"],
        "ngroups": config["n_groups"],
        "dt_limit": limits,
    }


def run_ranks(
    tp: int, function: Callable[[TensorParallel, Collectives], Result], timeout_s: float = 60.0
) -> list[Result]:
    """Run `function(tp, collectives)` once per rank, each in a thread, and return their results.

    Args:
        tp: number of ranks.
        function: what a rank does; it may use `collectives` with the others.
        timeout_s: seconds after which a rank that waits for the others gives up.

    Raises:
        Exception: the first rank's that failed on its own; the others are released, so none hangs.
    """
    group = ThreadGroup(tp, timeout_s)

    def run(rank: int) -> Result:
        collectives = ThreadCollectives(group, rank) if tp > 1 else SingleRank()
        try:
            return function(collectives.tp, collectives)
        except BaseException:
            group.abort()
            raise

    with ThreadPoolExecutor(tp) as pool:
        futures = [pool.submit(run, rank) for rank in range(tp)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, BrokenBarrierError):
            raise error
    return [future.result() for future in futures]


def relative_error(result: Tensor, reference: Tensor) -> float:
    """max|difference| / max|reference|, in float64; NaN if either holds a NaN, 0 where equal."""
    difference = (result.double() - reference.double()).abs().max()
    return 0.0 if difference == 0 else float(difference / reference.double().abs().max())


def assert_close(name: str, reference: Tensor, result: Tensor, tolerance: float) -> None:
    """Fail, naming `name` and the figure, unless `relative_error` is at most `tolerance`."""
    assert result.shape == reference.shape, f"{name}: shape {result.shape} is not {reference.shape}"
    error = relative_error(result, reference)
    assert error <= tolerance, f"{name}: relative error {error:.3g} is above {tolerance:.3g}"


def save_tokenizer(folder: Path, merges: int = 30, bos: bool = False) -> Path:
    """Write a tiny byte-level BPE tokenizer into `folder` and return it.

    Its ids: 0 is `<|end|>` (end of text, and BOS where `bos`), then 256 bytes, then up to `merges`
    merges: 287 at most by default.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=257 + merges,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["def the return in self ing er on at the, the self."] * 4, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", 0)]
        )
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, eos_token="<|end|>", bos_token="<|end|>", chat_template=template
    )
    tokenizer.save_pretrained(folder)
    return folder
