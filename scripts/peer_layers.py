"""The layers that scripts/bench_peers.py times beside this program's, and the data of all: see there."""
import time

import torch
import torch.nn.functional as F

from bench_torch_cpu import read_routes

BOUND = {"fp32": 1e-5, "bf16": 2e-2}  # of errors against double, norm-wise
# D, F, E, K as `bench layer` has them: for peers where this program gives no routes
SHAPES = {"small": (512, 384, 16, 4), "tiny-qwen3": (384, 344, 128, 8), "mini-qwen3": (1024, 384, 128, 8),
          "mini-ds-v2-lite": (512, 704, 64, 6), "mini-gpt-oss": (720, 720, 32, 4), "qwen3-30b-a3b": (2048, 768, 128, 8)}


# ---------------------------------------------------------------- the same data


def normal(key, n, scale, device):
    """fp32 numbers 0..n-1 of a stream: gr_bench_normal (src/bench/times.c), whose 64-bit words wrap as these do."""

    def signed(x):
        return x - (1 << 64) if x >> 63 else x

    def shifted(z, by):
        return (z >> by) & ((1 << (64 - by)) - 1)

    word, piece, out = (1 << 64) - 1, 1 << 24, torch.empty(n, dtype=torch.float32, device=device)
    for first in range(0, n, piece):
        i = torch.arange(first, min(first + piece, n), dtype=torch.int64, device=device)
        z = (i + signed(key * 0xD1342543DE82EF95 & word)) * signed(0x9E3779B97F4A7C15)
        z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
        z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
        z = z ^ shifted(z, 31)
        total = sum(shifted(z, by) & 0xFFFF for by in (0, 16, 32, 48))
        out[first:first + piece] = ((total - 131070).float() * 2.64290e-5) * scale
    return out


def uniform_routes(o, tokens, E, K):
    """Where this program made none: K different experts for every token, gates that add up to 1."""
    torch.manual_seed(o.seed)
    ids = torch.rand(tokens, E).topk(K).indices
    return ids, torch.rand(tokens, K).softmax(1).bfloat16().float()


class Layer:
    """Shape, routes (of a table, else uniform) and data. x, dy [N, D], w13 [E, 2F, D], w2 [E, D, F], ids [N, K], gates [N, K]."""

    def __init__(self, o, shape, tokens, routes):
        self.N, (self.D, self.F, self.E, self.K) = tokens, SHAPES[shape]
        if routes:
            ids, gates = read_routes(routes)
        else:
            ids, gates = uniform_routes(o, tokens, self.E, self.K)
        self.ids = ids.reshape(self.N, self.K).to(o.device)
        self.gates = gates.reshape(self.N, self.K).to(o.device)
        self.dtype = torch.float32 if o.dtype == "fp32" else torch.bfloat16
        shapes = {"x": (1, (self.N, self.D), 1.0), "dy": (2, (self.N, self.D), 1.0),
                  "w13": (3, (self.E, 2 * self.F, self.D), self.D ** -0.5),
                  "w2": (4, (self.E, self.D, self.F), self.F ** -0.5)}
        for name, (stream, dims, scale) in shapes.items():
            n = 1
            for d in dims:
                n *= d
            setattr(self, name, normal(o.seed * 8 + stream, n, scale, o.device).reshape(dims).to(self.dtype))
        self.leaves = [t.requires_grad_() for t in (self.x, self.w13, self.w2)]
        # What known routes give: pairs by expert, and where each token's pairs are.
        self.order = torch.sort(self.ids.reshape(-1), stable=True).indices
        self.token = self.order // self.K
        self.pair_gate = self.gates.reshape(-1)[self.order].unsqueeze(1)
        self.inverse = torch.empty_like(self.order)
        self.inverse[self.order] = torch.arange(self.order.numel(), device=self.order.device)
        self.counts = torch.bincount(self.ids.reshape(-1), minlength=self.E)
        self.offsets = self.counts.cumsum(0).to(torch.int32)
        self.ends = self.offsets.tolist()
        self.P = self.N * self.K

    def flops(self):
        return 18.0 * self.P * self.F * self.D

    def bytes_given(self):
        return sum(t.numel() * t.element_size() for t in (self.x, self.dy, self.w13, self.w2))

    def bytes_touched(self):
        size = torch.finfo(self.dtype).bits // 8
        return size * (6 * self.E * self.F * self.D + self.P * (2 * self.D + 3 * self.F))


def reference(layer):
    """out, dx, dw13, dw2 in double, expert by expert, on the data as it is stored."""
    with torch.no_grad():
        out, dx = (torch.zeros(layer.N, layer.D, dtype=torch.float64, device=layer.x.device) for _ in range(2))
        dw13, dw2, first = torch.zeros_like(layer.w13, dtype=torch.float64), torch.zeros_like(layer.w2, dtype=torch.float64), 0
        for e, end in enumerate(layer.ends):
            token, gate = layer.token[first:end], layer.pair_gate[first:end].double()
            w13, w2 = layer.w13[e].double(), layer.w2[e].double()
            x, dy = layer.x[token].double(), layer.dy[token].double()
            h1, h3 = (x @ w13.T).chunk(2, dim=-1)
            s = torch.sigmoid(h1)
            act = h1 * s * h3 * gate
            out.index_add_(0, token, act @ w2.T)
            dact = (dy @ w2) * gate
            dh = torch.cat((dact * h3 * s * (1 + h1 * (1 - s)), dact * h1 * s), dim=-1)
            dx.index_add_(0, token, dh @ w13)
            dw13[e], dw2[e] = dh.T @ x, dy.T @ act
            first = end
    return {"out": out, "dx": dx, "dw13": dw13, "dw2": dw2}


# ---------------------------------------------------------------- peers: layer -> out


def loop(layer):
    out, first = torch.zeros_like(layer.x), 0
    for e, end in enumerate(layer.ends):
        if end == first:
            continue
        token, gate = layer.token[first:end], layer.pair_gate[first:end].to(layer.dtype)
        h1, h3 = (layer.x[token] @ layer.w13[e].T).chunk(2, dim=-1)
        out = out.index_add(0, token, (F.silu(h1) * h3 * gate) @ layer.w2[e].T)
        first = end
    return out


def experts_of(rows, w13, w2, gate, offsets):
    h1, h3 = F.grouped_mm(rows, w13.transpose(1, 2), offs=offsets).chunk(2, dim=-1)
    return F.grouped_mm(F.silu(h1) * h3 * gate, w2.transpose(1, 2), offs=offsets)


def grouped(layer):
    y = experts_of(layer.x[layer.token], layer.w13, layer.w2, layer.pair_gate.to(layer.dtype), layer.offsets)
    return y[layer.inverse].view(layer.N, layer.K, layer.D).sum(1)


class Sort(torch.autograd.Function):
    """Rows of x in the order of experts; its backward sums the K pairs of a token."""

    @staticmethod
    def forward(ctx, x, token, inverse, K):
        ctx.save_for_backward(inverse)
        ctx.K = K
        return x[token]

    @staticmethod
    def backward(ctx, d):
        (inverse,) = ctx.saved_tensors
        return d[inverse].view(-1, ctx.K, d.shape[1]).sum(1), None, None, None


class Sum(torch.autograd.Function):
    """The sum of a token's K pairs; its backward gathers."""

    @staticmethod
    def forward(ctx, y, token, inverse, K):
        ctx.save_for_backward(token)
        return y[inverse].view(-1, K, y.shape[1]).sum(1)

    @staticmethod
    def backward(ctx, d):
        (token,) = ctx.saved_tensors
        return d[token], None, None, None


def best_of(x, w13, w2, gate, offsets, token, inverse, K):
    y = experts_of(Sort.apply(x, token, inverse, K), w13, w2, gate, offsets)
    return Sum.apply(y, token, inverse, K)


def best(layer, function=best_of):
    return function(layer.x, layer.w13, layer.w2, layer.pair_gate.to(layer.dtype), layer.offsets, layer.token, layer.inverse,
                    layer.K)


def transformers_experts(layer, implementation, o, compiled):
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(hidden_size=layer.D, moe_intermediate_size=layer.F, num_experts=layer.E,
                            num_experts_per_tok=layer.K, hidden_act="silu")
    config._experts_implementation = implementation
    with torch.device("meta"):
        module = Qwen3MoeExperts(config)
    gates = layer.gates.to(layer.dtype)
    call = torch.compile(module, mode=o.compile_mode, dynamic=False) if compiled else module
    # Not functional_call, which torch.compile does not see through: the leaves are the module's parameters.
    for name, leaf in (("gate_up_proj", 1), ("down_proj", 2)):
        setattr(module, name, torch.nn.Parameter(layer.leaves[leaf].detach()))

    def run(same):
        return call(same.x, same.ids, gates)

    return run, module


class Peer:
    """One way to compute the layer, which times itself."""

    def __init__(self, name, layer, o):
        self.name, self.o, self.made_s, self.error, self.bytes, self.leaves = name, o, 0.0, None, None, layer.leaves
        self.forward_ms, self.backward_ms, self.both_ms, self.why = [], [], [], None
        if name.startswith("hf-"):
            self.run, module = transformers_experts(layer, "eager" if name == "hf-eager" else "grouped_mm", o,
                                                    name == "hf-compiled")
            self.leaves = [layer.x, module.gate_up_proj, module.down_proj]
        elif name in ("best-compiled", "best-graph"):
            function = torch.compile(best_of, mode=o.compile_mode, dynamic=False)
            self.run = lambda same: best(same, function)
        else:
            self.run = {"loop": loop, "grouped": grouped, "best": best}[name]

    def gradients(self, layer, out):
        """Not backward(), whose sums into leaves remember the stream they were made in: a graph could not hold them."""
        return torch.autograd.grad(out, self.leaves, layer.dy)

    def step(self, layer):
        out = self.run(layer)
        return out, *self.gradients(layer, out)

    def prepare(self, layer):
        """First runs, with compiling and capturing; returns output and gradients of the last."""
        begin = time.perf_counter()
        for _ in range(3 if self.o.device == "cuda" else 1):
            results = self.step(layer)
        if self.name == "best-graph":
            del results
            results = self.capture(layer)
        if self.o.device == "cuda":
            torch.cuda.synchronize()
        self.made_s = time.perf_counter() - begin
        return dict(zip(("out", "dx", "dw13", "dw2"), results))

    def capture(self, layer):
        """The compiled form as one graph, whose results stay where they are."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(layer)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.held = [t.detach() for t in self.step(layer)]
        self.graph.replay()
        return self.held

    def time_runs(self, layer, n):
        if self.name == "best-graph":
            self.time_graph(n)
        elif self.o.device == "cuda":
            self.time_events(layer, n)
        else:
            for _ in range(n):
                begin = time.perf_counter()
                out = self.run(layer)
                middle = time.perf_counter()
                self.gradients(layer, out)
                self.keep(1e3 * (middle - begin), 1e3 * (time.perf_counter() - middle))

    def keep(self, forward, backward):
        self.forward_ms.append(forward)
        self.backward_ms.append(backward)
        self.both_ms.append(forward + backward)

    def time_events(self, layer, n):
        event = [[torch.cuda.Event(enable_timing=True) for _ in range(3)] for _ in range(n)]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for begin, middle, end in event:
            begin.record()
            out = self.run(layer)
            middle.record()
            gradients = self.gradients(layer, out)
            end.record()
            del out, gradients
        torch.cuda.synchronize()
        self.bytes = torch.cuda.max_memory_allocated() - before
        for begin, middle, end in event[1:]:  # the first follows another peer's turn
            self.keep(begin.elapsed_time(middle), middle.elapsed_time(end))

    def time_graph(self, n):
        event = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(n)]
        for begin, end in event:
            begin.record()
            self.graph.replay()
            end.record()
        torch.cuda.synchronize()
        self.both_ms += [begin.elapsed_time(end) for begin, end in event[1:]]


def check(peer, layer, expected, o):
    """Fills peer.error, or raises: the output and gradients of a first run against double."""
    peer.error = 0.0
    for name, got in peer.prepare(layer).items():
        norm = expected[name].norm()
        error = ((got.double() - expected[name]).norm() / norm).item()
        if not error <= BOUND[o.dtype]:
            raise ArithmeticError(f"{name} is off by {error:.1e} from double, more than {BOUND[o.dtype]}")
        peer.error = max(peer.error, error)


# ---------------------------------------------------------------- bounds: products alone


def median_ms(run, n, o):
    run()
    times = []
    for _ in range(n):
        if o.device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
    return times


def dense(o, m, k, n):
    dtype = torch.float32 if o.dtype == "fp32" else torch.bfloat16
    a, b = (normal(o.seed * 8 + key, r * c, 1.0, o.device).reshape(r, c).to(dtype) for key, r, c in ((5, m, k), (6, k, n)))
    out = torch.empty(m, n, device=o.device, dtype=dtype)
    times = median_ms(lambda: torch.mm(a, b, out=out), 30 if o.device == "cuda" else 6, o)
    return times, 2.0 * m * k * n


def products(layer, o):
    """Milliseconds of the six grouped products, forward and backward apart; checked against single products."""
    P, widths = layer.P, (layer.D, layer.F, layer.D, 2 * layer.F)
    rows, act, dy, dh = (normal(o.seed * 8 + 5, P * w, 1.0, o.device).reshape(P, w).to(layer.dtype) for w in widths)
    w13, w2, offs = layer.w13.detach(), layer.w2.detach(), layer.offsets

    def forward():
        return F.grouped_mm(rows, w13.transpose(1, 2), offs=offs), F.grouped_mm(act, w2.transpose(1, 2), offs=offs)

    def backward():
        return (F.grouped_mm(dy, w2, offs=offs), F.grouped_mm(dy.t(), act, offs=offs), F.grouped_mm(dh, w13, offs=offs),
                F.grouped_mm(dh.t(), rows, offs=offs))

    e = int(layer.counts.argmax())
    part = slice(layer.ends[e] - int(layer.counts[e]), layer.ends[e])
    got = [t[part] for t in forward()] + [t[part] if i % 2 == 0 else t[e] for i, t in enumerate(backward())]
    r, a, d, h = (t[part].double() for t in (rows, act, dy, dh))
    a13, a2 = w13[e].double(), w2[e].double()
    for g, x in zip(got, (r @ a13.T, a @ a2.T, d @ a2, d.T @ a, h @ a13, h.T @ r)):
        if not (g.double() - x).norm() <= BOUND[o.dtype] * x.norm():
            raise ArithmeticError("a grouped product differs from its single product")
    n = o.rounds * o.repeat
    return median_ms(forward, n, o), median_ms(backward, n, o)
