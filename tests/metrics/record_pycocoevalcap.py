"""Records what pycocoevalcap 1.2 and LAVIS say of a few captions and scores; writes metrics.json beside this file.

    pip install --no-deps pycocoevalcap==1.2 && pip install numpy
    python tests/metrics/record_pycocoevalcap.py [CASES SEED OUT]

Only the Python scorers are used (Bleu, Rouge, Cider); captions are tokens already. Plain CIDEr, which
pycocoevalcap does not have, is its definition written out (Vedantam et al. 2015, equations 1 to 3, with
pycocoevalcap's idf). Recall is LAVIS's RetrievalTask.itm_eval in its own terms: argsort, then the place of the right one.
"""

import json
import math
import pathlib
import random
import sys
from collections import Counter

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

WRITTEN = [
    ("", ["犬 が 走っ て いる"]),
    ("", [""]),
    ("犬", ["犬"]),
    ("犬", ["猫"]),
    ("犬", ["犬 が いる", "犬"]),
    ("犬 犬 犬 犬 犬", ["犬 が 犬 を 見 て いる", "大きな 犬"]),
    ("の の の の の の の", ["猫 の 写真"]),
    ("二 匹 の 犬 が 道路 で フリスビー を し て いる", ["二 匹 の 犬 が 道路 で フリスビー を し て いる"]),
    ("二 匹 の 犬 が 道路 で フリスビー を し て いる", ["犬 が 二 匹 道路 に いる", "フリスビー で 遊ぶ 犬", "道路"]),
    ("赤い バス が 走っ て いる", ["バス が 道路 を 走っ て いる", "赤い バス", "停留所 に 赤い バス が 止まっ て いる"]),
    ("人 が 馬 に 乗っ て いる", ["馬 に 乗っ た 人", "馬 に 乗っ た 人", "馬 に 乗っ た 人"]),
    ("a", ["b c d e", "b c"]),
    ("a b c", ["a b c d", "a b"]),
    ("長い " * 40, ["短い", "長い 長い 長い"]),
]
WORDS = "犬 猫 人 馬 が の に を で と いる ある 大きな 赤い 道路 公園 写真 走る 食べる 二 匹 三 人 テーブル 皿 ピザ".split()


def some_case(rng):
    references = [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(rng.randint(1, 5))]
    tokens = rng.choice(references).split()
    for _ in range(rng.randint(0, 4)):
        tokens.insert(rng.randint(0, len(tokens)), rng.choice(WORDS))
    for _ in range(rng.randint(0, min(4, len(tokens)))):
        tokens.pop(rng.randrange(len(tokens)))
    return " ".join(tokens), references


def plain_cider(cases):
    def grams(text, n):
        tokens = text.split()
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    scores = np.zeros(len(cases))
    for n in range(1, 5):
        df = Counter(g for _, refs in cases for g in set().union(*(grams(r, n) for r in refs)))
        idf = lambda g: math.log(len(cases)) - math.log(max(1, df[g]))
        for i, (hypothesis, refs) in enumerate(cases):
            h = {g: c * idf(g) for g, c in grams(hypothesis, n).items()}
            for ref in refs:
                r = {g: c * idf(g) for g, c in grams(ref, n).items()}
                norm = math.hypot(*h.values()) * math.hypot(*r.values())
                dot = sum(h[g] * r.get(g, 0) for g in h)
                scores[i] += 10 / 4 / len(refs) * (dot / norm if norm else 0)
    return scores


def lavis_recall(i2t, t2i, images, texts):
    def at(scores, rows, columns):
        ranks = []
        for row, id in zip(scores, rows):
            order = np.argsort(row)[::-1]
            ranks.append(min(np.where(order == j)[0][0] for j, c in enumerate(columns) if c == id))
        return [100.0 * sum(r < k for r in ranks) / len(ranks) for k in (1, 5, 10)]

    return at(i2t, images, texts), at(t2i, texts, images)


def main(count=40, seed=7, out=pathlib.Path(__file__).with_name("metrics.json")):
    rng = random.Random(seed)
    cases = WRITTEN + [some_case(rng) for _ in range(count - len(WRITTEN))]
    cases = [(" ".join(h.split()), refs) for h, refs in cases]
    hyps = {i: [h] for i, (h, _) in enumerate(cases)}
    refs = {i: r for i, (_, r) in enumerate(cases)}
    bleu, bleu_each = Bleu(4).compute_score(refs, hyps, verbose=0)
    rouge, rouge_each = Rouge().compute_score(refs, hyps)
    cider_d, cider_d_each = Cider().compute_score(refs, hyps)
    cider = plain_cider(cases)

    # Scores without ties, so that LAVIS's order is defined; three texts for some pictures, one for others.
    images = list(range(17))
    texts = [i for i in images for _ in range(1 + i % 3)]
    i2t = np.random.default_rng(seed).permutation(len(images) * len(texts)).reshape(len(images), -1) / 100.0
    i2t += 2.503 * (np.array(images)[:, None] == np.array(texts))
    t2i = i2t.T + np.random.default_rng(seed + 1).permutation(i2t.size).reshape(len(texts), -1) / 10007.0
    i2t, t2i = i2t.astype(np.float32), t2i.astype(np.float32)
    assert all(len(set(row)) == len(row) for m in (i2t, t2i) for row in m.tolist())
    image_to_text, text_to_image = lavis_recall(i2t, t2i, images, texts)

    record = {
        "cases": [{"hypothesis": h, "references": r} for h, r in cases],
        "bleu": bleu,
        "bleu_each": np.array(bleu_each).T.tolist(),
        "rouge_l": rouge,
        "rouge_l_each": rouge_each.tolist(),
        "cider_d": cider_d,
        "cider_d_each": cider_d_each.tolist(),
        "cider": cider.mean(),
        "cider_each": cider.tolist(),
        "recall": {
            "i2t": [[round(float(x), 6) for x in row] for row in i2t],
            "t2i": [[round(float(x), 6) for x in row] for row in t2i],
            "images": images,
            "texts": texts,
            "image_to_text": image_to_text,
            "text_to_image": text_to_image,
        },
    }
    pathlib.Path(out).write_text(json.dumps(record, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        main()
