#!/usr/bin/env python3
"""Tiny random Qwen3-MoE checkpoints, written and run by Hugging Face transformers: what tests/test_hf.c compares with.

Each folder of tests/fixtures/qwen3_moe_tiny has a checkpoint as save_pretrained writes it (two with the config spelled as
older versions did) and expected.safetensors, computed in fp32 from the weights as they are stored:

    token          I32 [B, T]       random token ids, B windows of T
    router_logits  F32 [L', B*T, E] of the L' layers with experts
    logits         F32 [B*T, V]     of the head

Installing (nothing else here needs it, the tests neither):

    python3 -m venv build/venv-torch
    build/venv-torch/bin/pip install torch==2.15.0 transformers==5.24.0 safetensors==0.8.0

Usage: build/venv-torch/bin/python scripts/verify_hf.py [--out FOLDER]
       ctest --test-dir build -R test_hf
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

try:
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    from transformers.utils import logging
except ImportError as missing:
    sys.exit(f"verify_hf: {missing}; install what the head of scripts/verify_hf.py lists")

SEED = 7
WINDOWS, TOKENS = 2, 12
MARGIN = 1e-3  # between the last chosen and the first other expert: rounding must not turn the choice

UNTIED = dict(
    vocab_size=40, hidden_size=16, intermediate_size=20, moe_intermediate_size=12, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=6, num_experts_per_tok=2,
    norm_topk_prob=True, tie_word_embeddings=False, rms_norm_eps=1e-6, max_position_embeddings=64,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6})
# One dense layer before the others, gates not scaled, one key and value head, head_dim left to its default.
TIED = dict(
    vocab_size=29, hidden_size=24, intermediate_size=20, moe_intermediate_size=8, num_hidden_layers=3,
    num_attention_heads=3, num_key_value_heads=1, num_experts=5, num_experts_per_tok=3, mlp_only_layers=[0],
    norm_topk_prob=False, tie_word_embeddings=True, rms_norm_eps=1e-5, max_position_embeddings=64,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0})

# name: model, dtype, largest file, config as before transformers 5
CASES = {
    "f32": (UNTIED, torch.float32, "1GB", False),
    "bf16": (UNTIED, torch.bfloat16, "1GB", True),
    "f16_sharded": (UNTIED, torch.float16, "12KB", False),
    "tied_dense": (TIED, torch.bfloat16, "1GB", True),
}


def random_weights(model):
    """Weights of such size that every part of the model shows in its output."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(1 + 0.3 * noise)
            elif "embed_tokens" in name:
                weight.copy_(noise)
            elif name.endswith("gate.weight"):
                weight.copy_(2 * noise / weight.shape[-1] ** 0.5)
            else:
                weight.copy_(noise / weight.shape[-1] ** 0.5)


def config_as_before(folder):
    """rope_theta at the top level, torch_dtype for dtype, num_experts for num_local_experts."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    config["num_experts"] = config.pop("num_local_experts")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def run(folder):
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    config = model.config
    token = torch.randint(config.vocab_size, (WINDOWS, TOKENS), generator=torch.Generator().manual_seed(SEED + 1))
    with torch.no_grad():
        out = model(token, output_router_logits=True)
    router = torch.stack(out.router_logits).float()
    best = router.sort(dim=-1, descending=True).values
    margin = (best[..., config.num_experts_per_tok - 1] - best[..., config.num_experts_per_tok]).min().item()
    if margin < MARGIN:
        sys.exit(f"verify_hf: {folder.name}: experts {margin:.1e} apart, expected at least {MARGIN}; change SEED")
    return {"token": token.int(), "router_logits": router.contiguous(),
            "logits": out.logits.reshape(-1, config.vocab_size).float().contiguous()}


def make(folder, model, dtype, largest, before):
    if folder.exists():
        shutil.rmtree(folder)
    torch.manual_seed(SEED)
    whole = Qwen3MoeForCausalLM(Qwen3MoeConfig(**model))
    random_weights(whole)
    whole.to(dtype).save_pretrained(folder, max_shard_size=largest)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if before:
        config_as_before(folder)
    expected = run(folder)
    save_file(expected, folder / "expected.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder.name:12} {len(list(folder.glob('model*.safetensors'))):3} files of weights, {size:7} bytes, "
          f"router logits {tuple(expected['router_logits'].shape)}, logits {tuple(expected['logits'].shape)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests/fixtures/qwen3_moe_tiny")
    options = parser.parse_args()
    logging.disable_progress_bar()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        make(options.out / name, *case)


if __name__ == "__main__":
    main()
