"""Masks of dropout given to LAVIS: those that `qformer` draws, so that a case with dropout can be compared number by number.

A factor is named by (seed, step, site, element), as src/random.rs has it: Philox4x32-10 of the counter (element / 4, site, step), word
element % 4; an element is kept where its word is at least p 2^32, and divided by 1 - p. Sites: src/model/sites.rs. Elements are numbered
by the packed rows of a pass, all query rows first, then the real tokens of every text: row C + column in hidden states,
(row H + head) 2^16 + key in attention. Rows of padding, which only LAVIS has, are kept.
"""
import contextlib

import numpy
import torch

MERGED, PAIRS, LAYER = 0, 1 << 12, 8
KEYS = 1 << 16


def philox(elements, site, step, seed):
    """The 32-bit words of these elements."""
    low, mask = numpy.uint64(0xFFFFFFFF), numpy.uint64(32)
    block = elements // numpy.uint64(4)
    c = [block & low, block >> mask, numpy.full_like(block, site), numpy.full_like(block, step)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = c[0] * numpy.uint64(0xD2511F53), c[2] * numpy.uint64(0xCD9E8D57)
        c = [(b >> mask) ^ c[1] ^ numpy.uint64(key[0]), b & low, (a >> mask) ^ c[3] ^ numpy.uint64(key[1]), a & low]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return numpy.choose((elements % numpy.uint64(4)).astype(numpy.int64), c)


class Masks:
    """Knows which of LAVIS's four passes through the Q-Former runs, and where its rows are among the packed ones."""

    def __init__(self, plan, lengths, negatives, queries):
        self.p, self.seed, self.step = float(numpy.float32(plan["p"])), plan["seed"], plan["step"]
        n, total = len(lengths), sum(lengths)
        pairs = lengths + lengths + [lengths[i] for i in negatives]
        at = lambda first, sizes: [first + sum(sizes[:i]) for i in range(len(sizes))]
        rows, pair_rows = n * queries, 3 * n * queries
        # (site, first query row of each sequence, first text row of each, tokens of each, query rows of the pass)
        self.passes = [(MERGED, at(0, [queries] * n), None, None, rows),
                       (MERGED, None, at(rows, lengths), lengths, rows),
                       (PAIRS, at(0, [queries] * 3 * n), at(pair_rows, pairs), pairs, pair_rows),
                       (MERGED, None, at(rows + total, lengths), lengths, rows)]
        self.queries, self.number = queries, -1

    def begin(self, *_):
        self.number += 1

    def factors(self, site, element, real):
        words = philox(element, site, self.step, self.seed)
        kept = numpy.where(words >= numpy.uint64(int(self.p * 2**32)), 1 / (1 - self.p), 0.0)
        return torch.from_numpy(numpy.where(real, kept, 1.0).astype(numpy.float32))

    def rows(self, length, part):
        """The packed row of every position [B,L] and whether it is one: of query rows, of text rows, or of both."""
        _, query, text, lengths, _ = self.passes[self.number]
        found = []
        for i in range(len(query or text)):
            row = [query[i] + q for q in range(self.queries)] if query and part != "text" else []
            if text and part != "query":
                row += [text[i] + t if t < lengths[i] else -1 for t in range(length - len(row))]
            found.append(row)
        rows = numpy.array(found)
        return rows.clip(0).astype(numpy.uint64), rows >= 0

    def hidden(self, x, layer, site, part):
        rows, real = self.rows(x.shape[1], part)
        first, *_, query_rows = self.passes[self.number]
        if part == "text":
            rows = rows - numpy.uint64(query_rows)
        element = rows[..., None] * numpy.uint64(x.shape[2]) + numpy.arange(x.shape[2], dtype=numpy.uint64)
        site = first if layer is None else first + 1 + LAYER * layer + site
        return x * self.factors(site, element, real[..., None])

    def attention(self, x, layer, site):
        _, heads, length, keys = x.shape
        rows, real = self.rows(length, "all")
        head = numpy.arange(heads, dtype=numpy.uint64)[None, :, None, None]
        key = numpy.arange(keys, dtype=numpy.uint64)
        element = (rows[:, None, :, None] * numpy.uint64(heads) + head) * numpy.uint64(KEYS) + key
        return x * self.factors(self.passes[self.number][0] + 1 + LAYER * layer + site, element, real[:, None, :, None])


class Masked(torch.nn.Module):
    def __init__(self, apply):
        super().__init__()
        self.forward = apply


@contextlib.contextmanager
def given(model, plan, lengths, negatives):
    """Within it the Q-Former drops what the plan says; None: nothing."""
    if plan is None:
        yield
        return
    bert, queries = model.Qformer.bert, model.query_tokens.shape[1]
    masks = Masks(plan, lengths, negatives, queries)
    places = [(bert.embeddings, lambda x: masks.hidden(x, None, 0, "all"))]
    for i, layer in enumerate(bert.encoder.layer):
        hidden = lambda site, part, i=i: lambda x: masks.hidden(x, i, site, part)
        attention = lambda site, i=i: lambda x: masks.attention(x, i, site)
        places += [(layer.attention.self, attention(0)), (layer.attention.output, hidden(1, "all"))]
        if hasattr(layer, "crossattention"):
            places += [(layer.crossattention.self, attention(2)), (layer.crossattention.output, hidden(3, "query"))]
        places += [(layer.output_query, hidden(4, "query")), (layer.output, hidden(5, "text"))]
    before = [(at, at.dropout) for at, _ in places]
    hook = bert.register_forward_pre_hook(masks.begin)
    try:
        for at, apply in places:
            at.dropout = Masked(apply)
        yield
    finally:
        hook.remove()
        for at, dropout in before:
            at.dropout = dropout
