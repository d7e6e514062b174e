"""torch_stage1.py with torch.compile layer by layer: the same code for all layers is compiled once, in a fraction of the time
that one graph of all 39 image layers takes (more than two minutes on an H200's machine). What does not compile runs eagerly,
and the compiler's warning says so.

    python3 benches/peer_gpu.py PEERS bench --mode best --batch 128 ...          everything behind PEERS as torch_stage1.py takes it
"""
import sys

peers = sys.argv.pop(1)
sys.path.insert(0, peers)
sys.argv[0] = f"{peers}/torch_stage1.py"

import torch  # noqa: E402
import torch_stage1 as peer  # noqa: E402

config = torch._dynamo.config
config.suppress_errors = True
config.automatic_dynamic_shapes = False
# The passes differ in their shapes, and layers in having cross-attention: more variants than the default keeps.
for limit in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
    if hasattr(config, limit):
        setattr(config, limit, 256)
whole = torch.compile


def layers(what, *args, **kwargs):
    """For the passes of a model: its layers, once. Anything else as it is."""
    if getattr(what, "__name__", "") != "bert":
        return whole(what, *args, **kwargs)
    for kind in (peer.VitBlock, peer.Layer):
        if not hasattr(kind.forward, "_torchdynamo_orig_callable"):
            kind.forward = whole(kind.forward)
    return what


peer.Vit.compile = lambda vit: None
torch.compile = layers

source = open(sys.argv[0]).read()
main = source[source.index('if __name__ == "__main__":'):]
exec(compile(main, sys.argv[0], "exec"), {**vars(peer), "__name__": "__main__"})
