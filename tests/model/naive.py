"""LookupViT a second time, as slowly and as literally as possible, from the method's description alone.

Loops over images, heads and tokens in float64; shares no code with the package. It reads a state dict by name.
"""

import math

import torch


def layer_norm(v, w, b):
    mean = sum(v.tolist()) / len(v)
    var = sum((x - mean) ** 2 for x in v.tolist()) / len(v)
    return (v - mean) / math.sqrt(var + 1e-6) * w + b


def linear(v, w, b=None):
    out = torch.stack([(row * v).sum() for row in w])
    return out if b is None else out + b


def gelu(v):
    return torch.tensor([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in v.tolist()], dtype=torch.float64)


def softmax(values):
    top = max(values)
    e = [math.exp(x - top) for x in values]
    return [x / sum(e) for x in e]


def triangle(u):
    return max(0.0, 1.0 - abs(u))


def resize(grid, h2, w2, antialias):
    """grid: h x w nested list of vectors; a two-dimensional weighted sum, not separable, cell by cell."""
    h, w = len(grid), len(grid[0])

    def weights(n, m, i):
        if n == m:
            return [1.0 if j == i else 0.0 for j in range(n)]
        s = n / m
        c = (i + 0.5) * s - 0.5
        if antialias and s > 1:
            raw = [triangle((j - c) / s) for j in range(n)]
            return [r / sum(raw) for r in raw]
        c = min(max(c, 0.0), n - 1.0)
        return [triangle(j - c) for j in range(n)]

    out = []
    for i in range(h2):
        a = weights(h, h2, i)
        for k in range(w2):
            b = weights(w, w2, k)
            out.append(sum(a[y] * b[x] * grid[y][x] for y in range(h) for x in range(w)))
    return out


def attend(q, k, H):
    """Scores by head: lists q (M vectors), k (N vectors) -> [H][M][N]."""
    d = len(q[0]) // H
    at = [slice(h * d, (h + 1) * d) for h in range(H)]
    return [[[float((a[s] * b[s]).sum()) / math.sqrt(d) for b in k] for a in q] for s in at]


def read(A, v, H):
    """A [H][M][N], v N vectors -> M vectors."""
    d = len(v[0]) // H
    return [
        torch.cat([sum(A[h][m][n] * v[n][h * d : (h + 1) * d] for n in range(len(v))) for h in range(H)])
        for m in range(len(A[0]))
    ]


def lookupvit(
    state,
    images,
    patch,
    depth,
    num_heads,
    size,
    reuse="transpose",
    cross_norm="input",
    antialias=True,
    head="both",
    infuse=True,
    pos_grid=None,
    give_tokens=False,
):
    """Logits (B, C) of the heads' mean; or the normalised tokens of each head, (B, T, D) by its name."""
    s = {key: value.double() for key, value in state.items()}
    H = num_heads
    results = []
    for image in images.double():
        _, Y, X = image.shape
        h, w = Y // patch[0], X // patch[1]
        pw, pb, pos = s["embed.proj.weight"], s["embed.proj.bias"], s["embed.pos_embed"][0]
        gh, gw = pos_grid or (h, w)
        if (gh, gw) != (h, w):
            table = [[pos[y * gw + x] for x in range(gw)] for y in range(gh)]
            pos = resize(table, h, w, True)
        fl = []
        for y in range(h):
            for x in range(w):
                cut = image[:, y * patch[0] : (y + 1) * patch[0], x * patch[1] : (x + 1) * patch[1]]
                fl.append(torch.stack([(kernel * cut).sum() for kernel in pw]) + pb + pos[y * w + x])
        fp = resize([[fl[y * w + x] for x in range(w)] for y in range(h)], size[0], size[1], antialias)

        for i in range(depth):
            p = f"blocks.{i}."

            def lin(name, v, p=p):
                return linear(v, s[p + name + ".weight"], s.get(p + name + ".bias"))

            def ln(name, v, p=p):
                return layer_norm(v, s[p + name + ".weight"], s[p + name + ".bias"])

            D = len(fl[0])
            wk, wv = s[p + "cross.kv.weight"][:D], s[p + "cross.kv.weight"][D:]
            # 1. gather
            if cross_norm == "input":
                q = [lin("cross.q", ln("cross.norm_compressed", t)) for t in fp]
                nl = [ln("cross.norm_lookup", t) for t in fl]
                k, v = [linear(t, wk) for t in nl], [linear(t, wv) for t in nl]
            else:
                q = [ln("cross.norm_q", lin("cross.q", t)) for t in fp]
                k = [ln("cross.norm_k", linear(t, wk)) for t in fl]
                v = [linear(t, wv) for t in fl]
            scores = attend(q, k, H)
            A = [[softmax(row) for row in head_scores] for head_scores in scores]
            fp = [t + lin("cross.proj", r) for t, r in zip(fp, read(A, v, H), strict=True)]
            # 2. refine
            qkv = [lin("attn.qkv", ln("norm1", t)) for t in fp]
            q2, k2, v2 = ([t[j * D : (j + 1) * D] for t in qkv] for j in range(3))
            A2 = [[softmax(row) for row in head_scores] for head_scores in attend(q2, k2, H)]
            fp = [t + lin("attn.proj", r) for t, r in zip(fp, read(A2, v2, H), strict=True)]
            fp = [t + lin("mlp.fc2", gelu(lin("mlp.fc1", ln("mlp.norm", t)))) for t in fp]
            if head == "compressed" and i == depth - 1:
                break
            # 3. infuse
            if infuse:
                if cross_norm == "input":
                    v3 = [lin("cross.v_infuse", ln("cross.norm_infuse", t)) for t in fp]
                else:
                    v3 = [ln("cross.norm_infuse", lin("cross.v_infuse", t)) for t in fp]
                N, M = len(fl), len(fp)
                if reuse == "transpose":
                    back = [[[A[g][m][n] for m in range(M)] for n in range(N)] for g in range(H)]
                elif reuse == "fresh":
                    if cross_norm == "input":
                        q3 = [lin("cross.q_infuse", ln("cross.norm_ask", t)) for t in fl]
                        k3 = [lin("cross.k_infuse", ln("cross.norm_infuse", t)) for t in fp]
                    else:
                        q3 = [ln("cross.norm_ask", lin("cross.q_infuse", t)) for t in fl]
                        k3 = [ln("cross.norm_k_infuse", lin("cross.k_infuse", t)) for t in fp]
                    back = [[softmax(row) for row in head_scores] for head_scores in attend(q3, k3, H)]
                else:
                    back = [[softmax([scores[g][m][n] for m in range(M)]) for n in range(N)] for g in range(H)]
                fl = [t + lin("cross.proj_infuse", r) for t, r in zip(fl, read(back, v3, H), strict=True)]
            # 4. light lookup MLP
            fl = [t + lin("lookup_mlp.fc2", gelu(lin("lookup_mlp.fc1", ln("lookup_mlp.norm", t)))) for t in fl]

        logits, normed = [], {}
        for name, tokens in (("compressed", fp), ("lookup", fl)):
            if head in ("both", name):
                nw, nb = s[f"norms.{name}.weight"], s[f"norms.{name}.bias"]
                normed[name] = [layer_norm(t, nw, nb) for t in tokens]
                if give_tokens:
                    continue
                pooled = sum(normed[name]) / len(tokens)
                logits.append(linear(pooled, s[f"heads.{name}.fc.weight"], s[f"heads.{name}.fc.bias"]))
        results.append(normed if give_tokens else sum(logits) / len(logits))
    if give_tokens:
        return {name: torch.stack([torch.stack(one[name]) for one in results]) for name in results[0]}
    return torch.stack(results)
