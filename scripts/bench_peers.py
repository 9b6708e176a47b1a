#!/usr/bin/env python3
"""The experts of one layer, forward and backward: this program beside PyTorch and Hugging Face transformers, on the same
shape, routes, data and dtype, in one go and one table.

  grouter-train          `bench layer`: dispatch, experts, combine and their backward
  torch, loop            index, product, SwiGLU, product, index_add for each expert
  torch, grouped_mm      rows sorted by expert with lists made ahead (it too knows the routes), grouped products, autograd
  the same, compiled     torch.compile (with --compile)
  transformers, ...      Qwen3MoeExperts as it is, "eager" and "grouped_mm"; makes its lists in every run

Rules. Results first: every peer's output and gradients are compared with the same layer in double precision, and this
program's norms of them with those of double; a mismatch ends the script. Random normal data, the same for all. Peers take
turns in every round, and between two rounds this program runs again; times are medians over all runs, with quartiles.
Route preprocessing is in the time of transformers alone, which has no other way. Weights, activations and matrix products
are of --dtype with fp32 accumulation; weight gradients are fp32 here and of --dtype in PyTorch. Nothing is compiled with
torch.compile unless asked for, and compiling is not in the times. On CUDA a time ends with a synchronisation; PyTorch's
memory is the peak while a peer runs, with weights and gradients.

Installing (5.6 GB: the wheel for x86-64 carries the CUDA libraries as well; none of it is needed to build or run ours):

    python3 -m venv build/venv-torch
    build/venv-torch/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6

Usage: build/venv-torch/bin/python scripts/bench_peers.py [--shape small] [--tokens 512] [--cv 0.3 | --hot 10]
       [--device cpu|cuda] [--dtype fp32|bf16] [--threads 2] [--rounds 3] [--repeat 10] [--compile] [--json FILE]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BOUND = {"fp32": 1e-5, "bf16": 2e-2}  # of errors against double, norm-wise


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", help="a shape of `bench layer`")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--cv", type=float, help="deviation of the experts' loads over their mean")
    parser.add_argument("--hot", type=float, help="load of one expert over the mean")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both sides")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=10, help="runs of each in a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile of the grouped layer too")
    parser.add_argument("--program", default="build/grouter-train")
    parser.add_argument("--work", default="build/bench", help="folder for the routes that both sides read")
    parser.add_argument("--json", help="the figures once more")
    return parser.parse_args()


if __name__ == "__main__":
    OPTIONS = options()
    os.environ["OMP_NUM_THREADS"] = str(OPTIONS.threads)  # before torch reads it, and for our program

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
except ImportError as missing:
    sys.exit(f"bench_peers: {missing}; install what the head of scripts/bench_peers.py lists")

from bench_torch_cpu import read_routes

# ---------------------------------------------------------------- this program


def run_ours(o, routes, save):
    """One run of `bench layer`; returns its figures. The first run makes the routes, the others read them."""
    figures = Path(o.work) / "peers.json"
    command = [o.program, "bench", "layer", "--shape", o.shape, "--tokens", str(o.tokens), "--dtype", o.dtype, "--seed",
               str(o.seed), "--repeat", str(o.repeat), "--backend", o.device, "--json", str(figures)]
    if save:
        command += ["--save-routes", str(routes)]
        command += ["--cv", str(o.cv)] if o.cv is not None else []
        command += ["--hot", str(o.hot)] if o.hot is not None else []
    else:
        command += ["--routes", str(routes)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"bench_peers: {' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    return json.loads(figures.read_text())


# ---------------------------------------------------------------- the same data


def normal(key, n, scale):
    """fp32 numbers 0..n-1 of a stream: gr_bench_normal (src/bench/times.c)."""
    word = 2 ** 64 - 1
    i = np.arange(n, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = (np.uint64(key * 0xD1342543DE82EF95 & word) + i) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    total = sum(((z >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64) for shift in (0, 16, 32, 48))
    return np.float32(scale) * ((total - 131070).astype(np.float32) * np.float32(2.64290e-5))


class Layer:
    """Shape, routes and data. x, dy [N, D], w13 [E, 2F, D], w2 [E, D, F], ids [N, K], gates [N, K]."""

    def __init__(self, o, figures, routes):
        self.N, self.D, self.F = figures["tokens_per_rank"], figures["width"], figures["expert_width"]
        self.E, self.K = figures["experts"], figures["top_k"]
        ids, gates = read_routes(routes)
        self.ids = ids.reshape(self.N, self.K).to(o.device)
        self.gates = gates.reshape(self.N, self.K).to(o.device)
        one = np.float32(1)
        shapes = {"x": (1, (self.N, self.D), one), "dy": (2, (self.N, self.D), one),
                  "w13": (3, (self.E, 2 * self.F, self.D), one / np.sqrt(np.float32(self.D))),
                  "w2": (4, (self.E, self.D, self.F), one / np.sqrt(np.float32(self.F)))}
        dtype = torch.float32 if o.dtype == "fp32" else torch.bfloat16
        for name, (stream, shape, scale) in shapes.items():
            data = torch.from_numpy(normal(o.seed * 8 + stream, int(np.prod(shape)), scale)).reshape(shape)
            setattr(self, name, data.to(o.device, dtype))
        # What known routes give: pairs by expert, and where each token's pairs are.
        order = torch.sort(self.ids.reshape(-1), stable=True).indices
        self.token = order // self.K
        self.pair_gate = self.gates.reshape(-1)[order].unsqueeze(1)
        self.inverse = torch.empty_like(order)
        self.inverse[order] = torch.arange(order.numel(), device=order.device)
        counts = torch.bincount(self.ids.reshape(-1), minlength=self.E)
        self.offsets = counts.cumsum(0).to(torch.int32)
        self.ends = self.offsets.tolist()

    def flops(self):
        return 18.0 * self.N * self.K * self.F * self.D


# ---------------------------------------------------------------- peers: x, w13, w2 -> out


def loop(layer, x, w13, w2):
    out, first = torch.zeros_like(x), 0
    for e, end in enumerate(layer.ends):
        if end == first:
            continue
        token, gate = layer.token[first:end], layer.pair_gate[first:end].to(x.dtype)
        h1, h3 = (x[token] @ w13[e].T).chunk(2, dim=-1)
        out = out.index_add(0, token, (F.silu(h1) * h3 * gate) @ w2[e].T)
        first = end
    return out


def grouped(layer, x, w13, w2):
    h1, h3 = F.grouped_mm(x[layer.token], w13.transpose(1, 2), offs=layer.offsets).chunk(2, dim=-1)
    y = F.grouped_mm(F.silu(h1) * h3 * layer.pair_gate.to(x.dtype), w2.transpose(1, 2), offs=layer.offsets)
    return y[layer.inverse].view(layer.N, layer.K, layer.D).sum(1)


def transformers_experts(layer, implementation):
    config = Qwen3MoeConfig(hidden_size=layer.D, moe_intermediate_size=layer.F, num_experts=layer.E,
                            num_experts_per_tok=layer.K, hidden_act="silu")
    config._experts_implementation = implementation
    with torch.device("meta"):
        module = Qwen3MoeExperts(config)

    def run(same, x, w13, w2):
        weights = {"gate_up_proj": w13, "down_proj": w2}
        return torch.func.functional_call(module, weights, (x, same.ids, same.gates.to(x.dtype)))

    return run


class Peer:
    def __init__(self, name, run, layer):
        self.name, self.run = name, run
        self.x, self.w13, self.w2 = (t.detach().clone().requires_grad_() for t in (layer.x, layer.w13, layer.w2))
        self.forward_ms, self.backward_ms, self.error, self.bytes = [], [], None, None

    def step(self, layer, device):
        """Seconds of forward and backward; gradients are in the leaves afterwards, the output is returned."""
        self.x.grad = self.w13.grad = self.w2.grad = None
        wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
        wait()
        begin = time.perf_counter()
        out = self.run(layer, self.x, self.w13, self.w2)
        wait()
        middle = time.perf_counter()
        out.backward(layer.dy)
        wait()
        return out, middle - begin, time.perf_counter() - middle

    def results(self, out):
        return {"out": out, "dx": self.x.grad, "dw13": self.w13.grad, "dw2": self.w2.grad}


def reference(layer):
    """The layer in double, on the data as it is stored."""
    x, w13, w2 = (t.double().requires_grad_() for t in (layer.x, layer.w13, layer.w2))
    pair_gate = layer.pair_gate
    layer.pair_gate = pair_gate.double()
    out = loop(layer, x, w13, w2)
    out.backward(layer.dy.double())
    layer.pair_gate = pair_gate
    return {"out": out.detach(), "dx": x.grad, "dw13": w13.grad, "dw2": w2.grad}


def check(peer, layer, expected, o):
    out, _, _ = peer.step(layer, o.device)
    peer.error = 0.0
    for name, got in peer.results(out).items():
        error = ((got.double() - expected[name]).norm() / expected[name].norm()).item()
        if not error <= BOUND[o.dtype]:
            sys.exit(f"bench_peers: {peer.name}: {name}: expected the result in double within {BOUND[o.dtype]}, off by {error}")
        peer.error = max(peer.error, error)


def check_ours(figures, expected, o):
    """Ours compares sampled results with double itself; here the norms of all of them."""
    worst = 0.0
    for name in ("out", "dx", "dw13", "dw2"):
        norm = expected[name].norm().item()
        error = abs(figures[f"norm_{name}"] / norm - 1)
        if not error <= BOUND[o.dtype]:
            sys.exit(f"bench_peers: grouter-train: norm of {name}: expected {norm} as in double, got {figures[f'norm_{name}']}")
        worst = max(worst, error)
    return worst


# ---------------------------------------------------------------- times


def dense_rates(layer, o):
    """GFLOP/s of a large product and of the layer's pairs as one dense product, best of some runs."""
    side = 8192 if o.device == "cuda" else 1024
    wait = torch.cuda.synchronize if o.device == "cuda" else (lambda: None)
    rates = []
    for m, k, n in ((side, side, side), (layer.N * layer.K, layer.D, 2 * layer.F)):
        a = torch.randn(m, k, device=o.device).to(layer.x.dtype)
        b = torch.randn(k, n, device=o.device).to(layer.x.dtype)
        best = float("inf")
        for _ in range(6):
            wait()
            begin = time.perf_counter()
            a @ b
            wait()
            best = min(best, time.perf_counter() - begin)
        rates.append(2.0 * m * k * n / best * 1e-9)
    return rates


def time_peers(peers, layer, o):
    """Peers take turns, forwards and backwards."""
    for i in range(o.repeat + 1):
        for peer in peers if i % 2 else reversed(peers):
            if o.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            out, forward, backward = peer.step(layer, o.device)
            del out
            if o.device == "cuda":
                peer.bytes = torch.cuda.max_memory_allocated()
            if i == 0:
                continue  # after another program's turn
            peer.forward_ms.append(1e3 * forward)
            peer.backward_ms.append(1e3 * backward)
        for peer in peers:
            peer.x.grad = peer.w13.grad = peer.w2.grad = None


def spread(values):
    values = sorted(values)
    n = len(values)
    return f"{statistics.median(values):.2f} [{values[n // 4]:.2f}, {values[n - 1 - n // 4]:.2f}]"


def row(name, forward, backward, both, layer, dense, base, note):
    """One line, and the same as a dictionary."""
    rate = layer.flops() / statistics.median(both) * 1e-6
    ratio = f"{statistics.median(both) / base:5.2f}x" if base else "     -"
    print(f"{name:30} {spread(forward):24} {spread(backward):24} {spread(both):24} {rate:9.1f} {100 * rate / dense:6.1f} % "
          f"{ratio}  {note}", flush=True)
    return {"name": name, "forward_ms": statistics.median(forward), "backward_ms": statistics.median(backward),
            "both_ms": statistics.median(both), "gflops_per_s": rate, "share": rate / dense,
            "times_ours": statistics.median(both) / base if base else None, "note": note}


def make_peers(layer, o):
    peers = [Peer("torch, loop", loop, layer), Peer("torch, grouped_mm", grouped, layer)]
    if o.compile:
        peers.append(Peer("torch, grouped_mm, compiled", torch.compile(grouped), layer))
    for implementation in ("eager", "grouped_mm"):
        peers.append(Peer(f"transformers, {implementation}", transformers_experts(layer, implementation), layer))
    return peers


def main():
    o = OPTIONS
    os.chdir(Path(__file__).resolve().parent.parent)
    Path(o.work).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(o.threads)
    routes = Path(o.work) / "peers.routes"
    ours = [run_ours(o, routes, save=True)]
    layer = Layer(o, ours[0], routes)
    expected = reference(layer)
    ours_error = max(check_ours(ours[0], expected, o), ours[0]["error"])
    peers = make_peers(layer, o)
    for peer in peers:
        check(peer, layer, expected, o)
    del expected
    for _ in range(o.rounds):
        ours.append(run_ours(o, routes, save=False))
        time_peers(peers, layer, o)
    ours.append(run_ours(o, routes, save=False))
    report(o, layer, ours[1:], ours_error, peers)


def report(o, layer, ours, ours_error, peers):
    dense, own = dense_rates(layer, o)
    first = ours[0]
    where = torch.cuda.get_device_name() if o.device == "cuda" else f"CPU, {o.threads} threads"
    print(f"{o.shape}: {layer.N} tokens, D {layer.D}, F {layer.F}, {layer.K} of {layer.E} experts, loads CV "
          f"{first['load_cv']:.3f}, fullest {first['load_max']:.2f} x mean; {o.dtype}; {where}; torch {torch.__version__}")
    print(f"dense in this process: {dense:.1f} GFLOP/s of a large product, {own:.1f} of the layer's pairs as one; ours "
          f"measured {first['peak_flops_per_s'] * 1e-9:.1f}")
    print("all results checked against double; GFLOP/s = 18 x pairs x D x F / time; share of the large product\n")
    print(f"{'':30} {'forward ms [quartiles]':24} {'backward':24} {'both':24} {'GFLOP/s':>9} {'share':>8} {'time':>6}")
    part = {name: [p["median_ms"] for run in ours for p in run["parts"] if p["part"] == name]
            for name in ("forward", "backward", "both")}
    base = statistics.median(part["both"])
    note = f"error {ours_error:.1e}; {first['bytes'] * 1e-6:.0f} MB; medians of {len(ours)} runs of {o.repeat}"
    rows = [row("grouter-train", part["forward"], part["backward"], part["both"], layer, dense, base, note)]
    for peer in peers:
        both = [a + b for a, b in zip(peer.forward_ms, peer.backward_ms)]
        note = f"error {peer.error:.1e}" + (f"; {peer.bytes * 1e-6:.0f} MB" if peer.bytes else "")
        rows.append(row(peer.name, peer.forward_ms, peer.backward_ms, both, layer, dense, base, note))
    if o.json:
        Path(o.json).write_text(json.dumps({"shape": o.shape, "tokens": layer.N, "dtype": o.dtype, "device": where,
                                            "torch": torch.__version__, "dense_gflops_per_s": dense,
                                            "pairs_gflops_per_s": own, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
