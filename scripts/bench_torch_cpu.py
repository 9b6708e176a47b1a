#!/usr/bin/env python3
"""Training steps of this program and of PyTorch on the CPU: the same model, weights, tokens, routes, optimizer, storage
type and threads, one after the other in one run.

PyTorch runs Hugging Face's Qwen3-MoE (QK-norm, no shared expert) with its router replaced by a lookup of the ids and
gates of our route table, once with each of its expert implementations. It starts from our initial weights, so the losses
must agree at every step. The unmodified router is timed beside it; it also computes scores and chooses experts, which is
more work. Nothing is compiled with torch.compile. With --dtype bf16 ours trains with train.dtype bf16 and PyTorch under
autocast: fp32 weights and optimizer on both sides, matrix products in bf16.

Installing (5.6 GB: the wheel for x86-64 carries the CUDA libraries as well; none of it is needed to build or run ours):

    python3 -m venv build/venv-torch
    build/venv-torch/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6

Usage: build/venv-torch/bin/python scripts/bench_torch_cpu.py [--model small] [--threads 2] [--steps 8]
       [--dtype fp32]
"""
import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

WARM = 2  # steps left out of the medians
LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2}  # relative, at any step; rounding grows from step to step


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="a config of configs/bench, without .json")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    found = parser.parse_args()
    if found.steps <= WARM:
        parser.error(f"--steps: expected more than {WARM}, got {found.steps}")
    return found


if __name__ == "__main__":
    OPTIONS = options()
    os.environ["OMP_NUM_THREADS"] = str(OPTIONS.threads)  # before torch reads it, and for our program

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
except ImportError as missing:
    sys.exit(f"bench_torch_cpu: {missing}; install what the head of scripts/bench_torch_cpu.py lists")


# ---------------------------------------------------------------- our side


def run_ours(config_path, config, name, sets):
    """Trains; returns the records of metrics.jsonl and the path of the final weights."""
    folder = Path(config["run"]["dir"]).parent / name
    shutil.rmtree(folder, ignore_errors=True)
    command = ["build/grouter-train", "train", str(config_path), "--set", f"run.dir={folder}"]
    for one in sets:
        command += ["--set", one]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"bench_torch_cpu: {' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["step"] > 0], folder / "model.safetensors"


def read_routes(path):
    """ids [window, T, K] and gates [window, T, K] of a route table (layout: src/data/routes.c, include/grouter/routes.h)."""
    raw = Path(path).read_bytes()
    E, K, T = struct.unpack_from("<3I", raw, 16)
    (n_window,) = struct.unpack_from("<Q", raw, 48)
    id_type = np.dtype("u1" if E <= 256 else "<u2")
    record = np.dtype([("ids", id_type, (T, K)), ("gates", "<u2", (T, K)), ("hashes", "<u8", 2)])
    table = np.frombuffer(raw, record, n_window, 512 + n_window * 4 * E)
    gates = (table["gates"].astype(np.uint32) << 16).view(np.float32)  # bf16 to fp32
    return torch.from_numpy(table["ids"].astype(np.int64)), torch.from_numpy(gates.copy())


def read_windows(prefix, n_window, T):
    """Inputs and targets [window, T]; the benchmark's vocabularies are stored as u16."""
    tokens = np.fromfile(f"{prefix}.bin", "<u2").astype(np.int64)
    if len(tokens) != n_window * T + 1:
        sys.exit(f"bench_torch_cpu: {prefix}.bin: expected exactly one step, {n_window * T + 1} tokens, got {len(tokens)}")
    tokens = torch.from_numpy(tokens)
    return tokens[:-1].view(n_window, T), tokens[1:].view(n_window, T)


# ---------------------------------------------------------------- PyTorch's side


class Lookup(torch.nn.Module):
    """Stands where a layer's router was; all layers use the routes of the current micro-batch."""

    ids = gates = None  # [tokens, K]

    def forward(self, hidden_states):
        return None, Lookup.gates, Lookup.ids


def state_of(weights, layers, experts):
    """Our tensors, which have the names of the checkpoints, as the model holds them: a layer's experts in two blocks."""
    state = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    for layer in range(layers):
        head = f"model.layers.{layer}.mlp.experts"
        part = {p: [weights[f"{head}.{e}.{p}_proj.weight"] for e in range(experts)] for p in ("gate", "up", "down")}
        state[f"{head}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(part["gate"], part["up"])])
        state[f"{head}.down_proj"] = torch.stack(part["down"])
    return state


def make_model(config, weights, implementation, lookup):
    m = dict(config["model"])
    m.pop("use_qk_norm")  # always on there
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
        **m, norm_topk_prob=True, use_cache=False, max_position_embeddings=config["data"]["seq_len"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attn_implementation="sdpa",
        experts_implementation=implementation))
    state = state_of(weights, m["num_hidden_layers"], m["num_experts"])
    left = model.load_state_dict(state, strict=False)
    if left.unexpected_keys or any(not name.endswith("mlp.gate.weight") for name in left.missing_keys):
        sys.exit(f"bench_torch_cpu: weights do not fit: {left}")
    if lookup:
        for layer in model.model.layers:
            layer.mlp.gate = Lookup()
    return model.train()


def make_optimizer(model, o):
    norms = [p for p in model.parameters() if p.dim() == 1]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o["lr"], betas=(0.9, o["beta2"]), eps=1e-8, fused=True)


def run_torch(config, model, data, steps):
    """Losses and seconds of each step."""
    inputs, targets, ids, gates = data
    n_window, K, B = len(inputs), ids.shape[-1], config["train"]["micro_batch_windows"]
    optimizer = make_optimizer(model, config["optimizer"])
    losses, seconds = [], []
    for _ in range(steps):
        start, total = time.perf_counter(), 0.0
        for first in range(0, n_window, B):
            part = slice(first, first + B)
            Lookup.ids, Lookup.gates = ids[part].reshape(-1, K), gates[part].reshape(-1, K)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=OPTIONS.dtype == "bf16"):
                logits = model(input_ids=inputs[part]).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets[part].flatten(), reduction="sum") / targets.numel()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        seconds.append(time.perf_counter() - start)
    return losses, seconds


# ---------------------------------------------------------------- both


def print_row(name, tokens, seconds, base, note):
    speed = tokens / statistics.median(seconds[WARM:])
    ratio = f"{base / speed:5.2f}x" if base else "     -"
    print(f"{name:44} {speed:9.0f}   {ratio}   {note}", flush=True)
    return speed


def loss_note(ours, theirs):
    first = abs(theirs[0] / ours[0] - 1)
    worst = max(abs(b / a - 1) for a, b in zip(ours, theirs))
    if worst > LOSS_TOLERANCE[OPTIONS.dtype]:
        sys.exit(f"bench_torch_cpu: expected equal losses, got {ours} and {theirs}")
    return f"loss of step 1 {theirs[0]:.6f}, off by {first:.1e}; by {worst:.1e} at most in {len(ours)} steps"


def main():
    o = OPTIONS
    os.chdir(Path(__file__).resolve().parent.parent)
    config_path = Path("configs/bench") / f"{o.model}.json"
    config = json.loads(config_path.read_text())
    subprocess.run(["scripts/bench_data.sh", str(config_path)], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    torch.set_num_threads(o.threads)
    n_window, T = config["train"]["global_batch_windows"], config["data"]["seq_len"]
    files = config["data"]["train"][0]
    data = (*read_windows(files["tokens"], n_window, T), *read_routes(files["routes"]))

    # So small a rate changes no fp32 weight: what one step leaves is what it started from.
    _, initial = run_ours(config_path, config, "initial", ["train.steps=1", "optimizer.lr=1e-30"])
    weights = load_file(initial)
    print(f"{o.model}: {o.dtype}, 1 process, {o.threads} threads, torch {torch.__version__}")
    print(f"{'':44} {'tokens/s':>9}   ours/it   loss")
    records, _ = run_ours(config_path, config, "ours", [f"train.steps={o.steps}", f"train.dtype={o.dtype}"])
    ours = [r["loss"] for r in records]
    base = print_row("grouter-train", n_window * T, [r["step_ms"] / 1e3 for r in records], None,
                     f"loss of step 1 {ours[0]:.6f}")
    speed = {}
    for implementation in ("eager", "grouped_mm"):
        model = make_model(config, weights, implementation, lookup=True)
        losses, seconds = run_torch(config, model, data, o.steps)
        speed[implementation] = print_row(f"PyTorch, {implementation} experts, looked-up routes", n_window * T, seconds,
                                          base, loss_note(ours, losses))
    faster = max(speed, key=speed.get)
    model = make_model(config, weights, faster, lookup=False)
    _, seconds = run_torch(config, model, data, o.steps)
    print_row(f"PyTorch, {faster} experts, its own router", n_window * T, seconds, base, "more work: routes anew")


if __name__ == "__main__":
    main()
