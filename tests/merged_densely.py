"""Merging methods in float64 by their formulas, one entry, pair or matrix at a time: the oracle of `merging`.

Each takes the networks, the base, the weights, the options, and what else it needs: uniform numbers of random masks,
importances, or inner products of inputs, one array for each network.
"""

from __future__ import annotations

import math

import numpy as np


def linear(thetas, base, w, o, _):
    total = sum(a * theta for a, theta in zip(w, thetas, strict=True))
    return total / sum(w) if o["normalize"] else total


def task_arithmetic(thetas, base, w, o, _):
    total = sum(a * (theta - base) for a, theta in zip(w, thetas, strict=True))
    return base + o["scale"] * total / (sum(w) if o["normalize"] else 1)


def passthrough(thetas, base, w, o, _):
    return o["scale"] * thetas[0]


def nearswap(thetas, base, w, o, _):
    out = base.copy()
    for at in np.ndindex(base.shape):
        apart = abs(thetas[0][at] - base[at])
        share = 1.0 if apart == 0 else min(1.0, o["t"] / apart)
        out[at] = share * thetas[0][at] + (1 - share) * base[at]
    return out


# ------------------------------------------------------------- sparse task vectors


def ranked(tau):
    """Positions from the largest magnitude to the smallest, of equal ones the first before the others."""
    flat = np.abs(tau).ravel()
    return sorted(range(flat.size), key=lambda k: (-flat[k], k))


def only(tau, positions, rescale):
    mask = np.zeros(tau.size, bool)
    mask[positions] = True
    kept = np.where(mask.reshape(tau.shape), tau, 0.0)
    left = np.abs(kept).sum()
    return kept * (np.abs(tau).sum() / left) if rescale and left else kept


def by_magnitude(tau, o, _):
    return only(tau, ranked(tau)[: max(1, int(o["density"] * tau.size))], o["rescale"]) if tau.size else tau


def between(tau, o, _):
    if o["density"] == 1:
        return tau
    n, kept, top = tau.size, int(o["density"] * tau.size), int(o["gamma"] * tau.size)
    first = min(top, n - kept)
    return only(tau, ranked(tau)[first : first + kept], o["rescale"])


def at_random(tau, o, drawn):
    return np.where(drawn < o["density"], tau / (o["density"] if o["rescale"] else 1), 0.0)


def by_rank(tau, o, drawn):
    if o["density"] == 1:
        return tau
    rows = tau.reshape(len(tau), math.prod(tau.shape[1:])) if tau.ndim > 1 else tau.reshape(1, -1)
    out = np.zeros_like(rows)
    for i, row in enumerate(rows):
        for rank, j in enumerate(sorted(range(len(row)), key=lambda j, row=row: (abs(row[j]), j))):
            share = rank / (len(row) - 1) if len(row) > 1 else 0.5
            p = o["density"] - o["epsilon"] + 2 * o["epsilon"] * share
            if drawn.reshape(rows.shape)[i, j] < p:
                out[i, j] = row[j] / (p if o["rescale"] else 1)
    return out.reshape(tau.shape)


def voted(taus, w, normalize):
    out = np.zeros_like(taus[0])
    for at in np.ndindex(out.shape):
        given = [a * tau[at] for a, tau in zip(w, taus, strict=True)]
        sign = 1 if sum(given) >= 0 else -1
        agree = [k for k, x in enumerate(given) if x * sign > 0]
        mass = sum(w[k] for k in agree) if normalize else 1
        out[at] = sum(given[k] for k in agree) / (mass or 1)
    return out


def sparse(thin, vote):
    def merge(thetas, base, w, o, drawn):
        drawn = drawn or [None] * len(thetas)
        taus = [thin(theta - base, o, u) for theta, u in zip(thetas, drawn, strict=True)]
        if vote:
            return base + o["scale"] * voted(taus, w, o["normalize"])
        total = sum(a * tau for a, tau in zip(w, taus, strict=True))
        return base + o["scale"] * total / (sum(w) if o["normalize"] else 1)

    return merge


def sce(thetas, base, w, o, _):
    taus = [theta - base for theta in thetas]
    if o["select_topk"] < 1:
        variance = np.array(taus).var(0)
        kept = ranked(variance)[: int(o["select_topk"] * np.count_nonzero(variance))]
        taus = [only(tau, kept, 0) for tau in taus]
    energy = [float((tau**2).mean()) if tau.size else 0.0 for tau in taus]
    share = [e / sum(energy) if sum(energy) else 1 / len(taus) for e in energy]
    out = base.copy()
    for at in np.ndindex(base.shape):
        sign = 1 if sum(tau[at] for tau in taus) >= 0 else -1
        agree = [k for k, tau in enumerate(taus) if tau[at] * sign > 0]
        if mass := sum(share[k] for k in agree):
            out[at] += sum(share[k] * taus[k][at] for k in agree) / mass
    return out


def consensus(thetas, base, w, o, _):
    taus = [a * (theta - base) for a, theta in zip(w, thetas, strict=True)]
    total = sum(taus)
    out = base.copy()
    for at in np.ndindex(base.shape):
        users = sum(abs(tau[at]) >= o["mask"] * abs(total[at] - tau[at]) for tau in taus)
        if users >= o["agreement"]:
            out[at] += o["scale"] * total[at]
    return out


def arcee_fusion(thetas, base, w, o, _):
    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) + 1e-8

    if not base.size:
        return base
    theta, origin = (x.reshape(1) if x.ndim == 0 else x for x in (thetas[0], base))
    p, q = softmax(theta), softmax(origin)
    importance = np.abs(theta - origin) * np.maximum((p * np.log(p / q)).sum(-1, keepdims=True), 0)
    order = np.sort(importance.ravel())
    first, median, third = (order[int(share * (order.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (third - first), theta, origin).reshape(base.shape)


# ------------------------------------------------------------- directions


def norm(x):
    return math.sqrt(float((x**2).sum()))


def between_two(a, b, t, parallel):
    if norm(a) == 0 or norm(b) == 0:
        return (1 - t) * a + t * b
    cosine = min(1.0, max(-1.0, float((a * b).sum()) / (norm(a) * norm(b))))
    if abs(cosine) > parallel:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def slerp(thetas, base, w, o, _):
    return between_two(*thetas, w[1] / sum(w), 0.9995)


def nuslerp(thetas, base, w, o, _):
    origin = np.zeros_like(thetas[0]) if base is None else base
    a, b = (theta - origin for theta in thetas)
    t = w[1] / sum(w)
    if o["nuslerp_flatten"] or a.ndim < 2:
        return origin + between_two(a, b, t, 1 - 1e-12)
    if not a.size:
        return origin
    rows = [between_two(x, y, t, 1 - 1e-12) for x, y in zip(*(z.reshape(-1, z.shape[-1]) for z in (a, b)), strict=True)]
    return origin + np.array(rows).reshape(a.shape)


def multislerp(thetas, base, w, o, _):
    origin = np.zeros_like(thetas[0]) if base is None else base
    taus, share = [theta - origin for theta in thetas], np.array(w) / sum(w)
    mean = sum(s * (tau / norm(tau) if norm(tau) else tau) for s, tau in zip(share, taus, strict=True))
    if norm(mean) < 1e-6:
        return origin + sum(s * tau for s, tau in zip(share, taus, strict=True))
    length = sum(s * norm(tau) for s, tau in zip(share, taus, strict=True))
    return origin + length * mean / norm(mean)


def karcher(thetas, base, w, o, _):
    share = np.array(w) / sum(w)
    known = [(s, theta / norm(theta)) for s, theta in zip(share, thetas, strict=True) if norm(theta)]
    if not known:
        return thetas[0]
    mean = sum(s * u for s, u in known)
    mean = mean / norm(mean)
    for _step in range(500):
        tangent = np.zeros_like(mean)
        for s, u in known:
            dot = min(1.0, max(-1.0, float((mean * u).sum())))
            side = u - dot * mean
            if norm(side) > 1e-15:
                tangent += s * math.atan2(norm(side), dot) * side / norm(side)
        length = norm(tangent)
        if length < 1e-13:
            break
        mean = math.cos(length) * mean + math.sin(length) * tangent / length
    return sum(s * norm(theta) for s, theta in zip(share, thetas, strict=True)) * mean


def model_stock(thetas, base, w, o, _):
    taus, n = [theta - base for theta in thetas], len(thetas)
    pairs = [(a, b) for k, a in enumerate(taus) for b in taus[k + 1 :]]
    sizes = [norm(a) * norm(b) for a, b in pairs]
    cosine = np.mean([float((a * b).sum()) / size if size else 0.0 for (a, b), size in zip(pairs, sizes, strict=True)])
    t = n * cosine / (1 + (n - 1) * cosine)
    return t * sum(thetas) / n + (1 - t) * base


def orthogonal(thetas, base, w, o, _):
    out, before = base.copy(), np.zeros((0, base.size))
    for a, theta in zip(w, thetas, strict=True):
        tau = (theta - base).ravel()
        if len(before):
            fitted = np.linalg.lstsq(before.T, tau, rcond=1e-8)[0]
            own = tau - before.T @ fitted
        else:
            own = tau
        before = np.vstack([before, tau])
        out += o["scale"] * a * own.reshape(base.shape)
    return out


# ------------------------------------------------------------- matrices


def mean_task(thetas, base, w, o):
    return base + o["scale"] * sum(a * (theta - base) for a, theta in zip(w, thetas, strict=True)) / len(thetas)


def svd(matrix):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-13 * max(1.0, s.max(initial=0))).sum())
    return u[:, :rank], s[:rank], vt[:rank].T


def nearest_orthonormal(columns):
    u, _, vt = np.linalg.svd(columns, full_matrices=False)
    return u @ vt


def iso_c(thetas, base, w, o, _):
    if base.ndim != 2 or not base.size:
        return mean_task(thetas, base, w, o)
    u, s, v = svd(sum(a * (theta - base) for a, theta in zip(w, thetas, strict=True)))
    return base + o["scale"] * (s.mean() if len(s) else 0.0) * u @ v.T


def iso_cts(thetas, base, w, o, _):
    if base.ndim != 2 or not base.size:
        return mean_task(thetas, base, w, o)
    taus = [a * (theta - base) for a, theta in zip(w, thetas, strict=True)]
    rank, n = min(base.shape), len(taus)
    own = math.floor((1 - o["common_share"]) * rank / n + 1e-9)
    u, s, v = svd(sum(taus))
    common = rank - n * own
    us, ss, vs = [u[:, :common]], [s[:common]], [v[:, :common]]
    for tau in taus if own else ():
        u, s, v = svd(tau - us[0] @ us[0].T @ tau)
        us, ss, vs = [*us, u[:, :own]], [*ss, s[:own]], [*vs, v[:, :own]]
    u, v = (nearest_orthonormal(np.hstack(side)) for side in (us, vs))
    return base + o["scale"] * np.concatenate(ss).mean() * u @ v.T


def tsv_m(thetas, base, w, o, _):
    if base.ndim != 2 or not base.size:
        return mean_task(thetas, base, w, o)
    rank = max(1, min(base.shape) // len(thetas))
    parts = [svd(a * (theta - base)) for a, theta in zip(w, thetas, strict=True)]
    u, v = (nearest_orthonormal(np.hstack([part[k][:, :rank] for part in parts])) for k in (0, 2))
    return base + o["scale"] * u @ np.diag(np.concatenate([s[:rank] for _, s, _ in parts])) @ v.T


def knots_ties(thetas, base, w, o, _):
    if base.ndim != 2 or not base.size:
        return mean_task(thetas, base, w, o)
    u, s, v = svd(np.hstack([theta - base for theta in thetas]))
    rows = [by_magnitude(part, {**o, "rescale": 0}, None) for part in np.split(v, len(thetas))]
    return base + o["scale"] * u @ np.diag(s) @ voted(rows, w, o["normalize"]).T


# ------------------------------------------------------------- on data


def fisher(thetas, base, w, o, importances):
    mass = sum(a * f for a, f in zip(w, importances, strict=True))
    total = sum(a * f * theta for a, f, theta in zip(w, importances, thetas, strict=True))
    plain = sum(a * theta for a, theta in zip(w, thetas, strict=True)) / sum(w)
    return np.where(mass > 0, total / np.where(mass > 0, mass, 1), plain)


def regmean(thetas, base, w, o, products):
    if products is None:
        return sum(a * theta for a, theta in zip(w, thetas, strict=True)) / sum(w)
    scaled = [o["alpha"] * c + (1 - o["alpha"]) * np.diag(np.diag(c)) for c in products]
    rows = [theta.reshape(len(theta), math.prod(theta.shape[1:])) for theta in thetas]
    right = sum(a * row @ c for a, row, c in zip(w, rows, scaled, strict=True))
    total = sum(a * c for a, c in zip(w, scaled, strict=True))
    return np.linalg.solve(total, right.T).T.reshape(thetas[0].shape)


FORMULAS = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "passthrough": passthrough,
    "nearswap": nearswap,
    "ties": sparse(by_magnitude, vote=True),
    "breadcrumbs": sparse(between, vote=False),
    "breadcrumbs_ties": sparse(between, vote=True),
    "dare_linear": sparse(at_random, vote=False),
    "dare_ties": sparse(at_random, vote=True),
    "della_linear": sparse(by_rank, vote=False),
    "della": sparse(by_rank, vote=True),
    "sce": sce,
    "consensus": consensus,
    "arcee_fusion": arcee_fusion,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
    "orthogonal": orthogonal,
    "iso_c": iso_c,
    "iso_cts": iso_cts,
    "tsv_m": tsv_m,
    "knots_ties": knots_ties,
    "fisher": fisher,
    "regmean": regmean,
}
