# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Drafting against an obvious reference: every path of a tree in a forward of its own, without cache, mask or padding.
(Losslessness does not show whether a drafter is used well.)
"""

from types import SimpleNamespace

import pytest
import torch

from helpers.drafting import KnownNoise, LoneDrafter
from helpers.knowing import drafting_with
from helpers.prompts import make_prompt
from helpers.targets import enlarge, make_drafter, make_target
from helpers.trees import token_paths
from transformers_jakiro import JakiroCandidateGenerator
from transformers_jakiro.core.draft_cache import DraftCache
from transformers_jakiro.core.jakiro_drafter import JakiroDrafter
from transformers_jakiro.core.noise import SamplingCoupling
from transformers_jakiro.core.tree import TreeShape


class Reference:
    """Trees as sets of token paths below the root, for a text and the target's features of all but its last token."""

    def __init__(
        self, target, draft, ids: torch.LongTensor, features: torch.Tensor, noise: torch.Tensor | None = None
    ):
        self.target, self.draft, self.ids, self.features = target, draft, ids, features
        self.noise = noise  # per level, times the temperature

    def outputs(self, path: tuple[int, ...]):
        """The drafter's outputs at the end of a path, by one forward per token: each reads its parent's feature."""
        features = self.features
        ids = torch.cat((self.ids, torch.tensor([path], dtype=torch.long)), dim=1)
        mode = self.draft.config.head_mode
        for length in range(len(path) + 1):
            count = self.features.shape[1] + length
            with torch.no_grad():
                output = self.draft(
                    inputs_embeds=self.target.get_input_embeddings()(ids[:, 1 : count + 1]),
                    hidden_states=features,
                    output_contrastive_hidden_state=mode == "contrastive",
                    output_expert_hidden_states=mode == "decoupled",
                )
            features = torch.cat((features, output.last_hidden_state[:, -1:]), dim=1)
        return output

    def children(self, path: tuple[int, ...], contrastive: bool) -> list[tuple[float, int]]:
        """(log-probability, token) of a node's possible children, best first."""
        output = self.outputs(path[:-1] if contrastive else path)
        if self.draft.config.head_mode == "decoupled":
            features = output.expert_hidden_states[:, 0, -1]
        elif contrastive:
            features = output.contrastive_hidden_state[:, -1]
        else:
            features = output.last_hidden_state[:, -1]
        with torch.no_grad():
            logits = self.target.get_output_embeddings()(features)
            tree_temperature = self.draft.config.tree_temperature or 1.0
            if self.noise is None:
                log_probs = (logits / tree_temperature).log_softmax(dim=-1).amax(dim=0)
            else:
                noisy = logits.log_softmax(dim=-1).amax(dim=0) + self.noise[len(path)]
                log_probs = (noisy / tree_temperature).log_softmax(dim=-1)
        return sorted(zip(log_probs.tolist(), range(len(log_probs)), strict=True), reverse=True)

    def dynamic(
        self, depth: int, top_k: int, width: int, num_draft_tokens: int, two_levels: bool
    ) -> set[tuple[int, ...]]:
        candidates, frontier = [], [(0.0, ())]
        for level in range(1, depth + 1):
            contrastive = two_levels and level == depth
            grown = [
                (score + log_prob, (*path, token))
                for score, path in frontier
                for log_prob, token in self.children(path, contrastive)[:top_k]
            ]
            candidates += grown
            frontier = sorted(grown, key=lambda node: -node[0])[:width]
        # a stable sort: where scores tie, ancestors first
        return {path for _, path in sorted(candidates, key=lambda node: -node[0])[:num_draft_tokens]}

    def static(self, ranks: list[list[int]], two_levels: bool) -> set[tuple[int, ...]]:
        depth, paths = max(map(len, ranks)), {(): ()}
        for node in sorted(map(tuple, ranks), key=len):
            parent = paths[node[:-1]]
            children = self.children(parent, two_levels and len(node) == depth)
            paths[node] = (*parent, children[node[-1]][1])
        return set(paths.values()) - {()}


STATIC = [[0], [1], [2], [0, 0], [0, 2], [2, 1], [0, 0, 1], [0, 2, 0], [2, 1, 0], [0, 0, 1, 0], [0, 0, 1, 3]]
STAR = {"head_mode": "decoupled", "gated_experts": False, "hidden_act": "gelu"}
DRAFTERS = {
    "jakiro": {},
    "two levels": {"tree_depth": 2},
    "one level": {"tree_depth": 1},
    "sharpened": {"tree_temperature": 0.5},
    "narrow": {"tree_top_k": 5, "tree_width": 2},
    "wider than its first level": {"tree_top_k": 2, "tree_width": 3},
    "chain": {"tree_top_k": 1},
    "jakiro, 3 experts, 2 layers": {"num_experts": 3, "num_hidden_layers": 2},
    "dense": {"num_experts": 1, "head_mode": "single"},
    "star": STAR,
    "star, sharpened": {**STAR, "tree_temperature": 0.5},
    "static": {"static_tree": STATIC},
    "static, one level": {"static_tree": [[0], [3], [4]]},
    "star, static": {**STAR, "static_tree": STATIC},
    "star, static, 3 experts": {**STAR, "num_experts": 3, "static_tree": STATIC},
}


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize(("padding", "sampling_temperature"), [(0, None), (3, None), (0, 0.8)])
def test_trees_step_by_step(name, padding, sampling_temperature):
    """
    Over several steps of a generation, with the prompt read in two parts and possibly padded on the left; without and
    with the noise of coupled sampling.
    """
    target = make_target()
    draft = make_drafter(target, **{"tree_depth": 4, "tree_top_k": 3, "num_draft_tokens": 12, **DRAFTERS[name]})
    enlarge(draft, std=0.12)  # scores that differ by more than rounding
    config = draft.config
    ids = make_prompt(22)
    with torch.no_grad():
        features = target.model(ids).last_hidden_state
    junk = torch.randn(1, padding, 32, generator=torch.Generator().manual_seed(0))
    padded_features, padded_ids = torch.cat((junk, features), dim=1), torch.nn.functional.pad(ids, (padding, 0))
    mask = torch.ones(1, padding + 10, dtype=torch.long)
    mask[:, :padding] = 0

    coupling, scaled_noise = None, None
    if sampling_temperature is not None:
        noise = torch.randn(config.tree_depth, config.vocab_size, generator=torch.Generator().manual_seed(3))
        coupling = SamplingCoupling(KnownNoise(noise), sampling_temperature, [], torch.device("cpu"))
        scaled_noise = sampling_temperature * noise
    drafter = LoneDrafter(draft, target, TreeShape.from_config(config), coupling=coupling)
    for start, end in ((0, 6), (6, padding + 10)):
        drafter.observe(padded_features[:, start:end], padded_ids[:, start:end], mask[:, start:end])
    read = 10
    for accepted in (1, 4, 2, 3):
        tree = drafter.propose(ids[:, read])
        reference = Reference(target, draft, ids[:, : read + 1], features[:, :read], scaled_noise)
        two_levels = config.head_mode == "contrastive"
        if config.static_tree is not None:
            depth = max(map(len, config.static_tree))
            expected = reference.static(config.static_tree, two_levels and depth > 1)
        else:
            width = config.tree_width or config.tree_top_k
            shape = (config.tree_depth, config.tree_top_k, width, config.num_draft_tokens)
            expected = reference.dynamic(*shape, two_levels and config.tree_depth > 1)
        assert token_paths(tree) == expected
        drafter.observe(features[:, read : read + accepted], ids[:, read : read + accepted])
        read += accepted


@pytest.mark.parametrize("max_length", [None, 23])
def test_chains_for_the_loop_of_transformers(max_length):
    """`get_candidates` reads the features of accepted tokens only, and keeps within the length limit."""
    target = make_target()
    draft = make_drafter(target, tree_depth=4)
    enlarge(draft, std=0.12)
    ids = make_prompt(24)
    with torch.no_grad():
        features = target.model(ids).last_hidden_state
    generator = JakiroCandidateGenerator(draft, target, max_length=max_length)
    candidates, logits = generator.get_candidates(ids[:, :10], is_first_iteration=True)
    assert torch.equal(candidates, ids[:, :10])
    assert logits is None
    read, processed, matches = 0, 10, torch.tensor(0)
    lengths = []
    for accepted in (2, 0, 4, 3):
        # what the target processed: tokens of the text, then candidates that it did not accept
        rejected = torch.full((1, max(0, len(lengths) and lengths[-1] - int(matches)), 32), 9.0)
        states = torch.cat((features[:, read:processed], rejected), dim=1)
        candidates, logits = generator.get_candidates(
            ids[:, : processed + 1],
            model_kwargs={},
            model_outputs=SimpleNamespace(hidden_states=(None, states)),
            is_first_iteration=False,
            n_last_matches=matches,
        )
        assert logits is None
        assert torch.equal(candidates[:, : processed + 1], ids[:, : processed + 1])
        chain = tuple(candidates[0, processed + 1 :].tolist())
        depth = 4 if max_length is None else min(4, max_length - processed - 2)
        reference = Reference(target, draft, ids[:, : processed + 1], features[:, :processed])
        assert {chain[:length] for length in range(1, len(chain) + 1)} == reference.dynamic(depth, 1, 1, 4, depth == 4)
        lengths.append(len(chain))
        read, processed, matches = processed, processed + accepted + 1, torch.tensor(accepted)
    assert lengths == ([4, 4, 4, 4] if max_length is None else [4, 4, 4, 2])


def test_chains_for_texts_of_any_length():
    target = make_target()
    generator = JakiroCandidateGenerator(make_drafter(target), target)
    ids = torch.cat([make_prompt(40, seed=seed) for seed in range(10)], dim=1)
    for length in range(10, 400, 13):
        states = torch.zeros(1, 10 if length == 10 else 13, 32)
        candidates, _ = generator.get_candidates(
            ids[:, : length + 1],
            model_outputs=SimpleNamespace(hidden_states=(None, states)),
            is_first_iteration=False,
            n_last_matches=12,
        )
        assert candidates.shape[1] > length + 1


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("static_tree", [None, STATIC])
def test_trees_near_the_length_limit(depth, static_tree):
    """Cut off above, not drafted anew: no level beyond the limit, the levels above as in the whole tree."""
    target = make_target()
    draft = make_drafter(target, tree_depth=4, tree_top_k=3, num_draft_tokens=1000, static_tree=static_tree)
    ids = make_prompt(9)
    with torch.no_grad():
        features = target.model(ids).last_hidden_state[:, :-1]
    trees = []
    for max_depth in (None, depth):
        drafter = LoneDrafter(draft, target)
        drafter.observe(features, ids[:, :-1])
        trees.append(token_paths(drafter.propose(ids[:, -1], max_depth=max_depth)))
    whole, cut = trees
    assert max(map(len, whole)) == 4
    assert cut == {path for path in whole if len(path) <= depth}


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_forwards_per_tree(depth):
    """A tree of L levels costs L - 1 forwards: the last level comes from the contrastive branch."""
    target = make_target()
    for head_mode, expected in (("contrastive", max(1, depth - 1)), ("decoupled", depth)):
        draft = make_drafter(target, tree_depth=depth, head_mode=head_mode, num_draft_tokens=1000)
        calls = []
        draft.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        ids = make_prompt(9)
        drafter = LoneDrafter(draft, target)
        drafter.observe(torch.randn(1, 8, 32), ids[:, :-1])
        tree = drafter.propose(ids[:, -1])
        assert len(calls) == expected
        assert int(tree.depths.max()) == depth


def test_shapes_of_trees():
    target = make_target()
    draft = make_drafter(target, tree_depth=5, tree_top_k=3, num_draft_tokens=14, static_tree=STATIC)
    shape = TreeShape.from_config(draft.config)
    assert (shape.depth, shape.num_draft_tokens) == (4, len(STATIC))
    shape = TreeShape.from_config(draft.config, num_draft_tokens=7)  # asked for: a dynamic tree of that size
    assert (shape.depth, shape.top_k, shape.num_draft_tokens, shape.static_tree) == (5, 3, 7, None)
    assert (shape.as_chain().top_k, shape.as_chain().width) == (1, 1)
    assert shape.as_chain().num_draft_tokens == 5


@pytest.mark.parametrize(
    ("sampling", "config_value", "expected"),
    [
        ({"do_sample": False}, None, 0.65),
        ({"do_sample": False, "temperature": 3.0}, None, 0.65),
        ({"do_sample": True}, None, 1.0),
        ({"do_sample": True, "temperature": 0.8}, None, 0.8),
        ({"do_sample": True, "temperature": 0.2}, None, 0.65),
        ({"do_sample": True, "temperature": 1.7}, None, 1.7),
        ({"do_sample": False}, 1.0, 1.0),
        ({"do_sample": True, "temperature": 1.7}, 0.4, 0.4),
    ],
)
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.filterwarnings("ignore:.*do_sample.*")
def test_tree_temperature_follows_the_sampling(sampling, config_value, expected, coupled):
    target = make_target()
    draft = make_drafter(target, tree_temperature=config_value, couple_sampling=coupled)
    shapes = []

    class Recording(JakiroDrafter):
        def __init__(self, assistant, context):
            super().__init__(assistant, context)
            shapes.append(self.shape)
            assert (context.coupling is not None) == sampling["do_sample"]
            assert (self.coupling is not None) == (coupled and sampling["do_sample"])

    with drafting_with(Recording):
        target.generate(make_prompt(4), assistant_model=draft, max_new_tokens=2, **sampling)
    if coupled and config_value is None:
        expected = 0.65  # as sure as greedy decoding
    assert [shape.temperature for shape in shapes] == [expected]


def test_draft_cache_holds_what_was_written():
    """Beyond its first buffer, and with trees dropped in between."""
    cache = DraftCache(2)
    generator = torch.Generator().manual_seed(0)
    kept = [torch.zeros(1, 2, 0, 4) for _ in range(2)]
    for new, dropped in ((3, 0), (9, 4), (240, 0), (20, 5), (1, 1), (600, 2), (7, 0)):
        for layer in range(2):
            states = torch.randn(1, 2, new, 4, generator=generator)
            keys, values = cache.update(states, -states, layer)
            kept[layer] = torch.cat((kept[layer], states), dim=2)
            assert torch.equal(keys, kept[layer])
            assert torch.equal(values, -kept[layer])
            kept[layer] = kept[layer][:, :, : kept[layer].shape[2] - dropped]
        cache.lengths = [kept[0].shape[2]]
        cache.end_forward()
        assert cache.get_seq_length() == kept[0].shape[2]


def test_draft_cache_writes_in_place():
    """A draft step must not copy the context."""
    cache = DraftCache(1)
    cache.update(torch.zeros(1, 2, 100, 4), torch.zeros(1, 2, 100, 4), 0)
    memory = cache.layers[0].keys.data_ptr()
    for _ in range(20):
        cache.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 0)
    assert cache.layers[0].keys.data_ptr() == memory
