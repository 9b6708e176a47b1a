#!/usr/bin/env python3
"""The experts of one layer, forward and backward: this program beside PyTorch and Hugging Face transformers, on the same
shapes, routes, data and dtype, in one go and one table.

  ours          `bench layer`: dispatch, experts, combine and their backward
  dense         the layer's pairs as one dense product, [P,D] x [D,2F]: no peer, a bound
  products      the six grouped products alone, rows already sorted (torch grouped_mm)
  loop          for each expert index, product, SwiGLU, product, index_add
  grouped       rows sorted by expert with lists made ahead (it too knows the routes), grouped products, autograd
  best          the same, with the backward of sorting and summing written with those lists instead of atomic sums
  best-compiled, best-graph       best under torch.compile; the same replayed as one CUDA graph
  hf-eager, hf-grouped            Qwen3MoeExperts of transformers as it is; makes its lists in every run
  hf-compiled                     hf-grouped under torch.compile

Rules. Results first: output and gradients of every peer are compared with the same layer in double precision, and the
norms of this program's with those of double; what does not agree is not timed, and says so. Random normal data, the same for
all. Peers take turns, forwards and backwards through the list, and between two rounds this program runs again; times are
medians over all runs, with quartiles. Route preprocessing is in the time of transformers alone, which has no other way.
Weights, activations and products are of --dtype with fp32 accumulation; weight gradients are fp32 here and of --dtype in
PyTorch. Compiling is not in the times and is listed. On CUDA PyTorch's times are between events in its stream, so that the
next run is launched while one computes; ours are the host's clock and end with a synchronisation. A case reads and writes more
than the caches hold, or the table says so. Memory is the most that a run takes beside weights, input and gradient of the output:
its own output and gradients are in it.

A peer that cannot run has the reason in its line and ends nothing else. What does not fit --budget is left out, and said.
With the peak of a GPU in the same process: % is of the best large product (8192 x 8192 x 8192) measured here.

Installing on a machine without PyTorch (5.6 GB: the wheel for x86-64 carries the CUDA libraries as well; none of it is needed
to build or run ours):

    python3 -m venv build/venv-torch
    build/venv-torch/bin/pip install torch==2.11.0 transformers==5.17.0 safetensors==0.8.0 numpy==2.4.6

Usage: python3 scripts/bench_peers.py [--device cuda] [--shapes paper | NAME,...] [--tokens 4096,32768] [--peers NAME,...]
       [--cv 0.3 | --hot 10] [--dtype fp32|bf16] [--budget SECONDS] [--rounds 3] [--repeat 10] [--json FILE] [--csv FILE]
       [--program 'bash run.sh grouter-train']
"""
import argparse
import csv
import json
import logging
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAPER = ("tiny-qwen3", "mini-qwen3", "mini-ds-v2-lite", "mini-gpt-oss", "qwen3-30b-a3b")
# The graph last: where its capture fails, what follows may too.
PEERS = ("dense", "products", "loop", "grouped", "best", "best-compiled", "hf-eager", "hf-grouped", "hf-compiled", "best-graph")
USUAL = {"cpu": "dense,loop,best,hf-eager,hf-grouped",
         "cuda": "dense,products,best,best-compiled,hf-grouped,hf-compiled,best-graph"}
CACHES = 120 << 20  # bytes: twice the L2 of the GPUs this is for


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="small", help="names of `bench layer`; paper: the five configs'")
    parser.add_argument("--tokens", default="512", help="one number or several")
    parser.add_argument("--peers", help=f"of {', '.join(PEERS)}; without: what is usual for the device")
    parser.add_argument("--cv", type=float, help="deviation of the experts' loads over their mean")
    parser.add_argument("--hot", type=float, help="load of one expert over the mean")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both sides")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="default: fp32 on the CPU, bf16 on a GPU")
    parser.add_argument("--threads", type=int, help="default: 2 on the CPU, 8 beside a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=10, help="runs of each in a round")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds for all of it")
    parser.add_argument("--compile-mode", default="default", help="of torch.compile, e.g. max-autotune-no-cudagraphs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--program", default=str(ROOT / "build/grouter-train"), help="ours, with words before it if need be")
    parser.add_argument("--json", help="the figures once more")
    parser.add_argument("--csv", help="likewise")
    o = parser.parse_args()
    o.shapes = PAPER if o.shapes == "paper" else tuple(o.shapes.split(","))
    o.tokens = tuple(int(t) for t in o.tokens.split(","))
    o.peers = (o.peers or USUAL[o.device]).split(",")
    o.dtype = o.dtype or ("bf16" if o.device == "cuda" else "fp32")
    o.threads = o.threads or (min(8, os.cpu_count()) if o.device == "cuda" else 2)
    for name in o.peers:
        if name not in PEERS:
            parser.error(f"--peers: expected some of {', '.join(PEERS)}, got {name}")
    return o


if __name__ == "__main__":
    OPTIONS = options()
    os.environ["OMP_NUM_THREADS"] = str(OPTIONS.threads)  # before torch reads it, and for our program

try:
    import torch

    from peer_layers import BOUND, SHAPES, Layer, Peer, check, dense, products, reference
except (ImportError, SystemExit) as missing:
    sys.exit(f"bench_peers: {missing}; install what the head of scripts/bench_peers.py lists")


def reason(error):
    """One line of why something did not run."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:200]


def note(text):
    print(f"bench_peers: {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- this program


def run_ours(o, shape, tokens, routes, save):
    """One run of `bench layer`; returns its figures. The first run makes the routes, the others read them."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "layer.json"
        command = shlex.split(o.program) + [
            "bench", "layer", "--shape", shape, "--tokens", str(tokens), "--dtype", o.dtype, "--seed", str(o.seed),
            "--repeat", str(o.repeat), "--backend", o.device, "--json", str(figures)]
        if save:
            command += ["--save-routes", str(routes)]
            command += ["--cv", str(o.cv)] if o.cv is not None else []
            command += ["--hot", str(o.hot)] if o.hot is not None else []
        else:
            command += ["--routes", str(routes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise RuntimeError(f"ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return json.loads(figures.read_text())




# ---------------------------------------------------------------- one case: a shape and a number of tokens


def spread(values):
    values = sorted(values)
    n = len(values)
    return statistics.median(values), values[n // 4], values[n - 1 - n // 4]


class Case:
    def __init__(self, o, shape, tokens, peak, deadline):
        self.o, self.shape, self.tokens, self.peak, self.deadline = o, shape, tokens, peak, deadline
        self.rows, self.layer, self.head = [], None, f"{shape}, {tokens} tokens"
        self.ours, self.error, self.why = [], None, None  # runs of this program, their error, why they are not timed

    def add(self, name, forward, backward, both, flops, error, n_byte, text):
        row = {"shape": self.shape, "tokens": self.tokens, "name": name, "note": text, "error": error,
               "megabytes": n_byte * 1e-6 if n_byte else None}
        for part, values in (("forward", forward), ("backward", backward), ("both", both)):
            if values:
                row[f"{part}_ms"], row[f"{part}_low_ms"], row[f"{part}_high_ms"] = spread(values)
        if both:
            row["tflops_per_s"] = flops / statistics.median(both) * 1e-9
            row["share_of_peak"] = row["tflops_per_s"] / self.peak
        self.rows.append(row)

    def fail(self, name, why):
        note(f"{self.head}: {name}: {why}")
        self.add(name, None, None, None, 0, None, None, f"not run: {why}")

    def end(self):
        """Lets go of memory before the next case."""
        if self.layer is not None and self.o.device == "cuda" and self.layer.bytes_touched() < CACHES:
            self.head += "; fits the caches"
        self.layer = None

    def left_s(self):
        return self.deadline - time.perf_counter()

    def run(self):
        with tempfile.TemporaryDirectory() as folder:
            routes = Path(folder) / "case.routes"
            self.run_ours(routes, save=True)
            self.layer = Layer(self.o, self.shape, self.tokens, routes if self.ours else None)
            expected = reference(self.layer)
            if self.ours:
                self.check_ours(expected)
            self.bounds()
            peers = self.make_peers(expected)
            del expected
            for i in range(self.o.rounds):
                if i and self.left_s() < 0:
                    note(f"{self.head}: {i} of {self.o.rounds} rounds fit the budget")
                    break
                if self.why is None:
                    self.run_ours(routes, save=False)
                self.time_peers(peers, forwards=i % 2 == 0)
            self.report_ours()
            for peer in peers:
                self.report_peer(peer)

    def run_ours(self, routes, save):
        """One more run of this program, or why there is none."""
        if self.o.device == "cuda":
            torch.cuda.empty_cache()
        try:
            self.ours.append(run_ours(self.o, self.shape, self.tokens, routes, save))
        except Exception as error:
            self.why = reason(error)
            note(f"{self.head}: ours: {self.why}")
        if save and self.ours:
            self.head += f", loads CV {self.ours[0]['load_cv']:.3f}, fullest {self.ours[0]['load_max']:.2f} x mean"

    def check_ours(self, expected):
        """Ours compares sampled results with double itself; here the norms of all of them."""
        self.error = self.ours[0]["error"]
        for name in ("out", "dx", "dw13", "dw2"):
            norm, got = expected[name].norm().item(), self.ours[0][f"norm_{name}"]
            if not abs(got / norm - 1) <= BOUND[self.o.dtype]:
                self.why = f"norm of {name}: expected {norm:.7g} as in double, got {got:.7g}"
                return
            self.error = max(self.error, abs(got / norm - 1))

    def make_peers(self, expected):
        peers = []
        for name in sorted(self.o.peers, key=PEERS.index):
            if name in ("dense", "products"):
                continue
            if self.left_s() < (30 if "compiled" in name else 0):
                self.fail(name, "the budget of time is spent")
                continue
            try:
                peer = Peer(name, self.layer, self.o)
                check(peer, self.layer, expected, self.o)
                peers.append(peer)
            except Exception as error:
                self.fail(name, reason(error))
        return peers

    def time_peers(self, peers, forwards):
        for peer in peers if forwards else reversed(peers):
            if peer.why:
                continue
            try:
                peer.time_runs(self.layer, self.o.repeat + 1)
            except Exception as error:
                peer.why = reason(error)

    def report_ours(self):
        if self.why is not None or len(self.ours) < 2:
            self.fail("ours", self.why or "no time")
            return
        first, timed = self.ours[0], self.ours[1:]
        part = {name: [p["median_ms"] for run in timed for p in run["parts"] if p["part"] == name]
                for name in ("forward", "backward", "both")}
        text = f"medians of {len(timed)} runs of {self.o.repeat}; its own peak {first['peak_flops_per_s'] * 1e-12:.4g} TFLOP/s"
        self.add("ours", part["forward"], part["backward"], part["both"], self.layer.flops(), self.error,
                 first["bytes"] - self.layer.bytes_given(), text)

    def bounds(self):
        layer = self.layer
        if "dense" in self.o.peers:
            try:
                times, flops = dense(self.o, layer.P, layer.D, 2 * layer.F)
                self.add("dense", times, None, times, flops, None, None, "one product, forward")
            except Exception as error:
                self.fail("dense", reason(error))
        if "products" in self.o.peers:
            try:
                forward, backward = products(layer, self.o)
                both = [a + b for a, b in zip(forward, backward)]
                self.add("products", forward, backward, both, layer.flops(), None, None, "products alone")
            except Exception as error:
                self.fail("products", reason(error))

    def report_peer(self, peer):
        if peer.why or not peer.both_ms:
            self.fail(peer.name, peer.why or "no time")
            return
        made = f"made in {peer.made_s:.1f} s" if "-compiled" in peer.name or "-graph" in peer.name else ""
        self.add(peer.name, peer.forward_ms, peer.backward_ms, peer.both_ms, self.layer.flops(), peer.error, peer.bytes, made)


# ---------------------------------------------------------------- the table


def text_of(row, part):
    if row.get(f"{part}_ms") is None:
        return "-"
    return f"{row[f'{part}_ms']:.3f} [{row[f'{part}_low_ms']:.3f}, {row[f'{part}_high_ms']:.3f}]"


def print_case(case):
    ours = next((row.get("both_ms") for row in case.rows if row["name"] == "ours"), None)
    print(f"\n{case.head}")
    print(f"{'':14} {'forward ms [quartiles]':26} {'backward':26} {'both':26} {'TFLOP/s':>8} {'% peak':>6} {'time':>6} "
          f"{'error':>7} {'MB':>7}")
    for row in case.rows:
        if row.get("both_ms") is None:
            print(f"{row['name']:14} {row['note']}")
            continue
        ratio = f"{row['both_ms'] / ours:5.2f}x" if ours and row["name"] not in ("ours", "dense", "products") else "     -"
        error = f"{row['error']:7.1e}" if row["error"] is not None else "      -"
        size = f"{row['megabytes']:7.0f}" if row["megabytes"] else "      -"
        print(f"{row['name']:14} {text_of(row, 'forward'):26} {text_of(row, 'backward'):26} {text_of(row, 'both'):26} "
              f"{row['tflops_per_s']:8.3g} {100 * row['share_of_peak']:6.1f} {ratio} {error} {size}  {row['note']}")


def versions(o):
    import transformers

    program = subprocess.run(shlex.split(o.program) + ["--version"], capture_output=True, text=True).stdout
    where = torch.cuda.get_device_name() if o.device == "cuda" else f"CPU, {o.threads} threads"
    return {"device": where, "torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__,
            "dtype": o.dtype, "ours": " / ".join(" ".join(line.split()) for line in program.splitlines())}


def write(o, about, peak, cases):
    rows = [row for case in cases for row in case.rows]
    if o.json:
        Path(o.json).write_text(json.dumps({**about, "peak_tflops_per_s": peak, "rows": rows}, indent=1) + "\n")
    if o.csv and rows:
        names = sorted({key for row in rows for key in row})
        with open(o.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, ["shape", "tokens", "name"] + [n for n in names if n not in ("shape", "tokens", "name")])
            writer.writeheader()
            writer.writerows(rows)


def main():
    o = OPTIONS
    unknown = [s for s in o.shapes if s not in SHAPES]
    if unknown:
        sys.exit(f"bench_peers: --shapes: expected some of {', '.join(SHAPES)}, got {unknown[0]}")
    torch.set_num_threads(o.threads)
    logging.disable(logging.ERROR)  # what torch.compile says of what it cannot compile: a peer's line has the reason
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    about = versions(o)
    side = 8192 if o.device == "cuda" else 1024
    times, flops = dense(o, side, side, side)
    peak = flops / min(times) * 1e-9
    todo, cases = [(shape, tokens) for tokens in o.tokens for shape in o.shapes], []
    for i, (shape, tokens) in enumerate(todo):
        # Each case may take its share of what is left.
        now = time.perf_counter()
        left = begin + o.budget - now
        case = Case(o, shape, tokens, peak, now + left / (len(todo) - i))
        cases.append(case)
        if left <= 0:
            case.fail("all", "the budget of time is spent")
            continue
        try:
            case.run()
        except Exception as error:
            case.fail("the rest", reason(error))
        case.end()
        note(f"{case.head}: {time.perf_counter() - now:.0f} s")
        write(o, about, peak, cases)
        torch._dynamo.reset()
        if o.device == "cuda":
            torch.cuda.empty_cache()
    for key, value in about.items():
        print(f"{key}: {value}")
    print(f"peak: {peak:.4g} TFLOP/s, the best of a product of {side} x {side} x {side} here\nTFLOP/s = 18 x pairs x D x F / "
          "time, without padding; results checked against double; time over ours")
    for case in cases:
        print_case(case)
    return 1 if any(case.why for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
