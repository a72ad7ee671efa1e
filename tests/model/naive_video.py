"""LookupViViT and ViViT a second time, as slowly and as literally as possible, from the method's description alone.

Loops over clips, time indices, heads and tokens in float64; shares no code with the package. Defaults of the options
(transpose, LayerNorm on the inputs, both ways); `naive.py` has the others.
"""

import torch
from naive import attend, gelu, layer_norm, linear, read, softmax, triangle


def weights(n, m, i):
    """Antialiased linear resize from n to m cells: the weights of output cell i."""
    if n == m:
        return [1.0 if j == i else 0.0 for j in range(n)]
    s = n / m
    c = (i + 0.5) * s - 0.5
    raw = [triangle((j - c) / max(s, 1.0)) for j in range(n)]
    return [r / sum(raw) for r in raw]


def resize3(tokens, old, new):
    """A list of vectors on the grid `old` (t, h, w) to the grid `new`: one three-dimensional weighted sum a cell."""
    out = []
    for a in range(new[0]):
        for b in range(new[1]):
            for c in range(new[2]):
                wt, wy, wx = (weights(old[i], new[i], k) for i, k in enumerate((a, b, c)))
                out.append(
                    sum(
                        wt[t] * wy[y] * wx[x] * tokens[(t * old[1] + y) * old[2] + x]
                        for t in range(old[0])
                        for y in range(old[1])
                        for x in range(old[2])
                    )
                )
    return out


def embed(s, clip, tubelet, pos_grid):
    """Tokens of one clip (C, T, Y, X), time index by time index, and their grid."""
    grid = tuple(n // p for n, p in zip(clip.shape[1:], tubelet, strict=True))
    pos = list(s["embed.pos_embed"][0])
    pos = resize3(pos, pos_grid or grid, grid)
    tokens = []
    for t in range(grid[0]):
        for y in range(grid[1]):
            for x in range(grid[2]):
                at = [slice(i * p, (i + 1) * p) for i, p in zip((t, y, x), tubelet, strict=True)]
                cut = clip[:, at[0], at[1], at[2]]
                value = torch.stack([(kernel * cut).sum() for kernel in s["embed.proj.weight"]])
                tokens.append(value + s["embed.proj.bias"] + pos[len(tokens)])
    return tokens, grid


def mean_norm(s, name, tokens):
    w, b = s[name + ".weight"], s[name + ".bias"]
    return sum(layer_norm(t, w, b) for t in tokens) / len(tokens)


def attention(s, p, x, H):
    """Self-attention among the vectors x, with its output projection."""
    D = len(x[0])
    qkv = [linear(t, s[p + "qkv.weight"], s[p + "qkv.bias"]) for t in x]
    q, k, v = ([t[j * D : (j + 1) * D] for t in qkv] for j in range(3))
    A = [[softmax(row) for row in head] for head in attend(q, k, H)]
    return [linear(r, s[p + "proj.weight"], s[p + "proj.bias"]) for r in read(A, v, H)]


def vit_blocks(s, prefix, depth, x, H):
    for i in range(depth):
        p = f"{prefix}blocks.{i}."
        n = [layer_norm(t, s[p + "norm1.weight"], s[p + "norm1.bias"]) for t in x]
        x = [t + r for t, r in zip(x, attention(s, p + "attn.", n, H), strict=True)]
        for j, t in enumerate(x):
            hidden = layer_norm(t, s[p + "norm2.weight"], s[p + "norm2.bias"])
            hidden = gelu(linear(hidden, s[p + "mlp.fc1.weight"], s[p + "mlp.fc1.bias"]))
            x[j] = t + linear(hidden, s[p + "mlp.fc2.weight"], s[p + "mlp.fc2.bias"])
    return x


def lookup_blocks(s, depth, fl, fp, H, last_update):
    """LookupViT blocks on lookup tokens fl and compressed tokens fp; `last_update`: the last block writes back."""
    D = len(fl[0])
    for i in range(depth):
        p = f"blocks.{i}."

        def lin(name, v, p=p):
            return linear(v, s[p + name + ".weight"], s[p + name + ".bias"])

        def ln(name, v, p=p):
            return layer_norm(v, s[p + name + ".weight"], s[p + name + ".bias"])

        def mlp(name, v, p=p, lin=lin, ln=ln):
            return v + lin(f"{name}.fc2", gelu(lin(f"{name}.fc1", ln(f"{name}.norm", v))))

        wk, wv = s[p + "cross.kv.weight"][:D], s[p + "cross.kv.weight"][D:]
        q = [lin("cross.q", ln("cross.norm_compressed", t)) for t in fp]
        nl = [ln("cross.norm_lookup", t) for t in fl]
        A = [[softmax(r) for r in head] for head in attend(q, [linear(t, wk) for t in nl], H)]
        gathered = read(A, [linear(t, wv) for t in nl], H)
        fp = [t + lin("cross.proj", r) for t, r in zip(fp, gathered, strict=True)]
        refined = attention(s, p + "attn.", [ln("norm1", t) for t in fp], H)
        fp = [mlp("mlp", t + r) for t, r in zip(fp, refined, strict=True)]
        if i < depth - 1 or last_update:
            v = [lin("cross.v_infuse", ln("cross.norm_infuse", t)) for t in fp]
            back = [[[head[m][n] for m in range(len(fp))] for n in range(len(fl))] for head in A]
            fl = [t + lin("cross.proj_infuse", r) for t, r in zip(fl, read(back, v, H), strict=True)]
            fl = [mlp("lookup_mlp", t) for t in fl]
    return fl, fp


def over_time(s, pooled, depth, H, times):
    """The class token of the temporal transformer that reads one vector a time index."""
    pos = resize3(list(s["temporal.pos_embed"][0]), (times, 1, 1), (len(pooled), 1, 1))
    x = [s["temporal.cls_token"][0, 0], *(t + q for t, q in zip(pooled, pos, strict=True))]
    x = vit_blocks(s, "temporal.", depth, x, H)
    return layer_norm(x[0], s["temporal.norm.weight"], s["temporal.norm.bias"])


def classify(s, name, pooled):
    return linear(pooled, s[f"heads.{name}.fc.weight"], s[f"heads.{name}.fc.bias"])


def by_time(tokens, grid):
    space = grid[1] * grid[2]
    return [tokens[t * space : (t + 1) * space] for t in range(grid[0])]


def lookupvivit(
    state, clips, tubelet, depth, num_heads, size, model="joint", head="both", temporal_depth=1, pos_grid=None
):
    """Logits (B, C) of the heads' mean; `size` (t', h', w'), of a factorised model (h', w')."""
    s, results = {key: value.double() for key, value in state.items()}, []
    for clip in clips.double():
        fl, grid = embed(s, clip, tubelet, pos_grid)
        if model == "factorised":
            pooled = []
            for frame in by_time(fl, grid):
                fp = resize3(frame, (1, *grid[1:]), (1, *size))
                _, fp = lookup_blocks(s, depth, frame, fp, num_heads, last_update=False)
                pooled.append(mean_norm(s, "norms.compressed", fp))
            times = (pos_grid or grid)[0]
            results.append(classify(s, "compressed", over_time(s, pooled, temporal_depth, num_heads, times)))
            continue
        fp = resize3(fl, grid, size)
        fl, fp = lookup_blocks(s, depth, fl, fp, num_heads, last_update=head != "compressed")
        named = {"compressed": fp, "lookup": fl}
        names = list(named) if head == "both" else [head]
        results.append(sum(classify(s, n, mean_norm(s, f"norms.{n}", named[n])) for n in names) / len(names))
    return torch.stack(results)


def vivit(state, clips, tubelet, depth, num_heads, model="joint", temporal_depth=1, pos_grid=None):
    """Logits (B, C)."""
    s, results = {key: value.double() for key, value in state.items()}, []
    for clip in clips.double():
        tokens, grid = embed(s, clip, tubelet, pos_grid)
        if model == "factorised":
            pooled = [
                mean_norm(s, "norm", vit_blocks(s, "", depth, frame, num_heads)) for frame in by_time(tokens, grid)
            ]
            feature = over_time(s, pooled, temporal_depth, num_heads, (pos_grid or grid)[0])
        else:
            feature = mean_norm(s, "norm", vit_blocks(s, "", depth, tokens, num_heads))
        results.append(classify(s, "pooled", feature))
    return torch.stack(results)
