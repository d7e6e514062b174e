"""Compiles the small MeCab dictionary of tests/text/tiny and records how MeCab cuts texts with it.

    python -m venv venv && venv/bin/pip install fugashi==1.5.2
    venv/bin/python record_dictionary.py
"""

import json
import random
import tempfile
from pathlib import Path

import fugashi

HERE = Path(__file__).parent / "tiny"

# Where paths cost the same the order of entries decides. 山川 + 町 (its second entry) costs what 山 + 川 + 町 (its
# first) costs, likewise 村 with the entries the other way round; so does 海原 with the second kind of unknown word.
SOURCES = {
    "lex.csv": '''犬,1,1,100,名詞
犬,2,2,100,別
猫,1,1,120,名詞
犬猫,1,1,300,名詞
が,2,2,10,助詞
が,2,1,10,助詞
走る,3,3,50,動詞
走,1,1,40,名詞
る,3,3,10,動詞
"a,b",1,1,80,記号
"say""",1,1,90,記号
𠮷,1,1,60,名詞
山川,1,1,100,名詞
山,1,1,20,名詞
川,1,2,20,名詞
町,1,1,30,名詞
町,2,1,65,別
村,2,1,65,別
村,1,1,30,名詞
海原,1,2,25,名詞
海,1,1,20,名詞
原,1,1,-100,名詞
''',
    "matrix.def": """4 4
0 0 0
0 1 -20
0 2 300
0 3 -5
1 0 0
1 1 50
1 2 -40
1 3 10
2 0 7
2 1 5
2 2 500
2 3 -60
3 0 -9
3 1 5
3 2 6
3 3 0
""",
    "char.def": """DEFAULT 0 1 0
SPACE 0 1 0
KANJI 0 0 2
ALPHA 1 1 0
NEVER 0 0 0
0x0020 SPACE
0x0009..0x000A SPACE
0x0041..0x005A ALPHA
0x0061..0x007A ALPHA
0x4E00..0x9FA5 KANJI
0x3005 KANJI DEFAULT
""",
    "unk.def": """DEFAULT,1,1,900,記号
SPACE,1,1,10,記号
KANJI,1,1,700,名詞
KANJI,3,3,764,動詞
ALPHA,1,1,500,名詞
NEVER,1,1,500,名詞
""",
    "dicrc": """cost-factor = 800
bos-feature = BOS/EOS
eval-size = 1
unk-eval-size = 1
config-charset = UTF-8
""",
    "rewrite.def": "[unigram rewrite]\n*\t$1\n[left rewrite]\n*\t$1\n[right rewrite]\n*\t$1\n",
    "left-id.def": "".join(f"{i} x{i}\n" for i in range(4)),
    "right-id.def": "".join(f"{i} x{i}\n" for i in range(4)),
    "feature.def": "",
    "pos-id.def": "",
}


def main():
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as source:
        for name, text in SOURCES.items():
            (Path(source) / name).write_text(text, encoding="utf-8")
        fugashi.build_dictionary(f"x -d {source} -o {HERE} -f utf-8 -c utf-8 -t utf-8")
        (HERE / "dicrc").write_text(SOURCES["dicrc"], encoding="utf-8")
        tagger = fugashi.GenericTagger(f'-d "{HERE}" -r /dev/null')
        rng = random.Random(5)
        pieces = list("犬猫が走る山川町村海原空々aBz 　\n、") + ["a,b", 'say"', "犬猫", "𠮷", "🐕", "走る", "x" * 30]
        texts = ["", " ", "犬", "犬が走る", "犬猫が走る", "犬 猫", "a,bsay\"", "山川町", "山川村", "海原空"]
        texts += ["".join(rng.choices(pieces, k=rng.randrange(1, 12))) for _ in range(120)]
        with open(HERE / "words.jsonl", "w", encoding="utf-8", newline="\n") as out:
            for text in texts:
                line = {"text": text, "words": [w.surface for w in tagger(text)]}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
        (HERE / "dicrc").unlink()


if __name__ == "__main__":
    main()
