"""torch_stage1.py with torch.compile layer by layer: the same code for all layers is compiled once, in a fraction of the time
that one graph of all 39 image layers takes (more than three minutes on an H200's machine).

    python3 benches/peer_gpu.py PEERS bench --mode best --batch 128 ...          everything behind PEERS as torch_stage1.py takes it
"""
import sys

import torch

peers = sys.argv.pop(1)
sys.argv[0] = f"{peers}/torch_stage1.py"
source = open(sys.argv[0]).read()
whole = 'm.vit.compile(); m.bert = torch.compile(m.bert); m.lm_logits = torch.compile(m.lm_logits)'
assert source.count(whole) == 1, "another torch_stage1.py"
source = source.replace(whole, "VitBlock.forward = torch.compile(VitBlock.forward); Layer.forward = torch.compile(Layer.forward); "
                        "m.lm_logits = torch.compile(m.lm_logits)")
# The passes differ in their shapes, and layers in having cross-attention: more variants than the default keeps.
for limit in ("recompile_limit", "cache_size_limit"):
    if hasattr(torch._dynamo.config, limit):
        setattr(torch._dynamo.config, limit, 64)
exec(compile(source, sys.argv[0], "exec"), {"__name__": "__main__"})
