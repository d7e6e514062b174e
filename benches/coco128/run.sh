#!/usr/bin/env bash
# Learns 128 photographs with Japanese captions by heart, then captions and searches them: training recall@1 and the share
# of photographs captioned with one of their own captions. Three to four minutes on two quiet cores.
#
#   benches/coco128/run.sh DATA OUT      DATA holds train.json and images/, OUT is a new folder; DEVICE=cuda on a GPU
set -euo pipefail
data=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
place=(--device "${DEVICE:-cpu}")
qformer=${QFORMER:-"$here/../../target/release/qformer"}
"$qformer" train "$here/train.yaml" --images "$data/images" --captions "$data/train.json" --out "$out" "${place[@]}"
"$qformer" caption --model "$out/model" "$data/images/train" --out "$out/captions.json" --min-length 1 "${place[@]}"
"$qformer" report "$out" --captions "$out/captions.json" --images "$data/images/train"
"$qformer" evaluate --model "$out/model" --captions "$data/train.json" --images "$data/images" --k-test 16 --shared \
    --min-length 1 "${place[@]}" | tee "$out/evaluation.txt"
python3 - "$data/train.json" "$out/captions.json" <<'PY'
import json, sys
own = {}
for entry in json.load(open(sys.argv[1])):
    own.setdefault(entry["image"].split("/")[-1], set()).add(entry["caption"].replace(" ", ""))
said = {e["image"].split("/")[-1]: e["caption"][0].replace(" ", "") for e in json.load(open(sys.argv[2]))}
right = sum(said.get(image) in captions for image, captions in own.items())
print(f"captioned with one of their own captions: {right} of {len(own)}")
PY
