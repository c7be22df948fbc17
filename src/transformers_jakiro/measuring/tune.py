# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Finds the tree that is fastest on this machine, for a target and its drafter.

1. *Text.* The target answers sample prompts with plain `generate`. One more forward per answer gives what the drafter
   reads at each position.
2. *Replay.* For each depth and width, at every position of the answers a tree with all of its candidates is grown. The
   ranks that the answer's own tokens have among the candidates tell how many of them a tree of N nodes accepts, for
   every N at once.
3. *Costs.* The median time of growing such a tree, of the target's forward by the number of nodes, and of the rest of
   a step.
4. *Choice.* Tokens per second = (tokens per step) / (time per step), as the replay and the costs predict it. The best
   few, the published tree and the drafter's own then answer the prompts, taking turns; the fastest wins.

For batches the costs are those of as many rows, and the finalists answer batches, in which the rows that are left when
others have ended get the trees found for smaller ones.

The result depends on the machine, on the precision and on what else runs: tune where the drafter will work.
"""

import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel, set_seed

from ..core import compat
from ..core.candidate_generator import JakiroCandidateGenerator
from ..core.configuration_jakiro import JakiroDraftConfig
from ..core.noise import SamplingCoupling, can_couple, random_state, set_random_state
from ..core.target import Target
from ..core.tree import DraftTree, TreeShape
from ..core.tree_attention import why_no_trees
from ..core.tree_forward import TreeForward
from ..files import write_json
from .acceptance import sampling_options, tokens_per_forward
from .benchmark import METHODS, PUBLISHED, Benchmark, Method, load_benchmark, provenance
from .profiling import calls_of, synchronize
from .prompts import gather_prompts
from .summary import Run, tokens_per_second

if TYPE_CHECKING:
    from rich.table import Table

DEPTHS = (2, 3, 4, 5, 6, 7)
WIDTHS = (2, 4, 8)
TOP_K = 32
MAX_NODES = 96
TREE_SIZES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 60, 72, 84, 97)


@dataclass(frozen=True)
class Shape:
    """What is chosen: the fields of [`JakiroDraftConfig`] of the same meaning."""

    tree_depth: int
    tree_width: int
    num_draft_tokens: int
    tree_top_k: int = TOP_K

    def __str__(self) -> str:
        return (
            f"{self.tree_depth} levels, {self.tree_width} nodes wide, {self.num_draft_tokens} nodes, "
            f"{self.tree_top_k} children per node"
        )

    @classmethod
    def of(cls, config: JakiroDraftConfig, batch_size: int = 1) -> "Shape":
        """The shape in a drafter's config for a batch size."""
        return cls(**config.tree_fields(batch_size))

    def method(self, draft: PreTrainedModel, batch_size: int = 1, smaller: Sequence["Tuning"] = ()) -> Method:
        """Generating with such trees of a drafter; `smaller`: what was found for smaller batches."""
        options: dict[str, Any] = {"assistant_model": draft}
        if batch_size == 1:
            options["num_assistant_tokens"] = self.num_draft_tokens  # else the target's config could say how many
            tree = {**asdict(self), "batch_trees": None}
        else:
            tree = with_trees({"batch_trees": draft.config.batch_trees}, smaller)
            sizes = {size: fields for size, fields in (tree["batch_trees"] or {}).items() if int(size) < batch_size}
            tree["batch_trees"] = {**sizes, str(batch_size): asdict(self)}
        return Method(str(self), METHODS["jakiro"], options, draft, tree)


@dataclass
class Answer:
    """An answer of the target and what the drafter reads of it."""

    temperature: float
    input_ids: torch.LongTensor  # [1, T], the prompt first
    prompt_length: int
    max_length: int  # that it was allowed to have
    features: torch.Tensor  # [1, T, F]
    logits_processor: LogitsProcessorList  # of its generation
    random_states: list[torch.Tensor] | None  # of the random generator before each new token's draw, if known to draft


@dataclass
class Costs:
    """Medians, in seconds."""

    draft: dict[tuple[int, int], float]  # by depth and width: growing a tree
    target: dict[int, float]  # by nodes, the root included: a forward
    rest: float  # of a step

    def target_seconds(self, num_nodes: int) -> float:
        """Linear between the measured numbers of nodes."""
        below = max(n for n in self.target if n <= num_nodes)
        above = min((n for n in self.target if n >= num_nodes), default=below)
        if above == below:
            return self.target[below]
        share = (num_nodes - below) / (above - below)
        return (1 - share) * self.target[below] + share * self.target[above]

    def step_seconds(self, depth: int, width: int, num_draft_tokens: int) -> float:
        """Of a step with such a tree."""
        return self.draft[depth, width] + self.target_seconds(num_draft_tokens + 1) + self.rest


class _RandomStates:
    """A streamer that notes the state of the random generator before each new token's draw."""

    def __init__(self, device: torch.device):
        self._device = device
        self.states: list[torch.Tensor] = []

    def put(self, value: torch.Tensor) -> None:  # the prompt first
        self.states.append(random_state(self._device))

    def end(self) -> None:
        pass


def logits_processors(target: PreTrainedModel, **options: Any) -> LogitsProcessorList:
    """What `target.generate(**options)` changes its logits with, the target's generation config considered."""
    found = LogitsProcessorList()

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        found.extend(logits_processor)
        return input_ids

    target.generate(**options, custom_generate=decode)
    return found


@torch.no_grad()
def answer_prompts(benchmark: Benchmark, prompts: Sequence[str], temperatures: Sequence[float]) -> Iterator[Answer]:
    """The target's answers to each prompt at each temperature."""
    target = Target.of(benchmark.target, benchmark.draft)
    for temperature, prompt in itertools.product(temperatures, prompts):
        inputs = benchmark.encode(prompt)
        prompt_length, device = inputs["input_ids"].shape[1], inputs["input_ids"].device
        options = {**inputs, "max_new_tokens": benchmark.max_new_tokens, **sampling_options(temperature)}
        coupled = temperature > 0 and benchmark.draft.config.couple_sampling and can_couple(device)
        streamer = _RandomStates(device) if coupled else None
        set_seed(0)
        output = benchmark.target.generate(**options, streamer=streamer)
        yield Answer(
            temperature=temperature,
            input_ids=output,
            prompt_length=prompt_length,
            max_length=prompt_length + benchmark.max_new_tokens,
            features=target.features(output),
            logits_processor=logits_processors(benchmark.target, **options),
            random_states=None if streamer is None else streamer.states,
        )


class Replay:
    """
    Trees at every position of the answers.

    Args:
        target, draft: the two models.
        answers (`Sequence[Answer]`): as [`answer_prompts`] gives them.
    """

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel, answers: Sequence[Answer]):
        self._target = Target.of(target, draft)
        self._draft, self._answers = draft, answers
        self.seconds: dict[tuple[int, int], list[float]] = {}

    @property
    def num_positions(self) -> int:
        """Trees that one depth and width take."""
        return sum(answer.input_ids.shape[1] - answer.prompt_length - 1 for answer in self._answers)

    def ranks(self, depth: int, width: int) -> Iterator[list[int]]:
        """
        Per position of each answer, in order, the ranks (from 0) of the following tokens among the tree's candidates:
        a tree of N nodes accepts those below N, up to the first that is not.
        """
        for answer in self._answers:
            yield from self._ranks(answer, depth, width)

    def _ranks(self, answer: Answer, depth: int, width: int) -> Iterator[list[int]]:
        position, device, coupling = answer.prompt_length, answer.input_ids.device, None
        if answer.random_states is not None:
            vocab_size = self._draft.config.vocab_size
            coupling = SamplingCoupling(answer.temperature, answer.logits_processor, vocab_size, device)
        sampling_temperature = answer.temperature if coupling is None else 0.0
        shape = whole_tree(self._draft.config, depth, width, sampling_temperature)
        generator = JakiroCandidateGenerator(self._draft, self._target, shape, coupling=coupling)
        embeddings = generator.target.embed(answer.input_ids)
        tokens = answer.input_ids[0].tolist()
        generator.observe(answer.features[:, :position], embeddings[:, :position])
        while position < len(tokens) - 1:
            limit = min(depth, answer.max_length - 2 - position)  # a step emits one token more than it drafts
            if coupling is not None:
                set_random_state(answer.random_states[position - answer.prompt_length + 1], device)
            synchronize(generator.device)
            start = time.perf_counter()
            tree = generator.propose(answer.input_ids[:, position], max_depth=limit)
            synchronize(generator.device)
            if limit == depth:
                self.seconds.setdefault((depth, width), []).append(time.perf_counter() - start)
            yield path_ranks(tree, tokens[position + 1 : -1])  # the last one is emitted, never accepted
            generator.observe(answer.features[:, position : position + 1], embeddings[:, position : position + 1])
            position += 1

    def accepted_lengths(self, ranks: Sequence[list[int]], num_draft_tokens: int) -> list[int]:
        """Tokens that each step accepts, when steps follow one another through the answers."""
        lengths, start = [], 0
        for answer in self._answers:
            end = start + answer.input_ids.shape[1] - answer.prompt_length - 1
            position = start
            while position < end:
                following = ranks[position]
                accepted = next((i for i, rank in enumerate(following) if rank >= num_draft_tokens), len(following))
                lengths.append(accepted)
                position += accepted + 1
            start = end
        return lengths


def whole_tree(config: JakiroDraftConfig, depth: int, width: int, sampling_temperature: float) -> TreeShape:
    """The shape of trees with all of their candidates."""
    shape = TreeShape.from_config(config, sampling_temperature=sampling_temperature)
    all_nodes = TOP_K * (1 + (depth - 1) * width)
    return replace(
        shape,
        depth=depth,
        width=width,
        top_k=TOP_K,
        num_draft_tokens=all_nodes,
        two_levels=config.head_mode == "contrastive" and depth >= 2,
        static_tree=None,
    )


def path_ranks(tree: DraftTree, following: Sequence[int]) -> list[int]:
    """The ranks of a text's tokens among a tree's candidates, as far as they are in the tree."""
    if tree.scores is None:  # the root alone
        return []
    parents, tokens = tree.parents[0].tolist(), tree.tokens[0].tolist()
    order = tree.scores[0, 1:].sort(descending=True, stable=True).indices.tolist()
    rank = {node + 1: place for place, node in enumerate(order)}
    children = {
        (parent, token): node for node, (parent, token) in enumerate(zip(parents, tokens, strict=True)) if node
    }
    node, ranks = 0, []
    for token in following:
        node = children.get((node, token))
        if node is None:
            break
        ranks.append(rank[node])
    return ranks


@torch.no_grad()
def draft_costs(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    answer: Answer,
    shapes: Sequence[tuple[int, int]],
    batch_size: int,
    rounds: int = 3,
) -> dict[tuple[int, int], float]:
    """
    Median seconds of growing greedy trees of `shapes` (depth and width) for a batch whose rows are all the same
    answer, the shapes taking turns.
    """
    view, text = Target(target, draft.config.feature_layers), answer.input_ids.expand(batch_size, -1)
    features = answer.features.expand(batch_size, -1, -1)[:, :-1]
    embeddings = view.embed(text[:, :-1])
    generators = {
        shape: JakiroCandidateGenerator(draft, view, whole_tree(draft.config, *shape, sampling_temperature=0.0))
        for shape in shapes
    }
    for generator in generators.values():
        generator.observe(features, embeddings)
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    for _ in range(rounds + 1):
        for shape, generator in generators.items():
            synchronize(generator.device)
            start = time.perf_counter()
            generator.propose(text[:, -1])
            synchronize(generator.device)
            seconds[shape].append(time.perf_counter() - start)
            generator.observe(features[:, -1:], embeddings[:, -1:])
    return {shape: statistics.median(times[1:]) for shape, times in seconds.items()}  # the first one read the answer


@torch.no_grad()
def target_costs(
    target: PreTrainedModel, input_ids: torch.LongTensor, sizes: Sequence[int], rounds: int = 7
) -> dict[int, float]:
    """
    Median seconds of the target's forward over trees of `sizes` nodes (the root included) below texts `[B, T]`, the
    sizes taking turns.
    """
    batch_size, prompt_length = input_ids.shape
    cache = DynamicCache(config=target.config)
    target(input_ids, logits_to_keep=1, **{compat.CACHE: cache})
    view, device = Target(target), input_ids.device
    chain_only = why_no_trees(target) is not None
    forward = TreeForward(view, cache, GenerationConfig(), {}, batch_size, prompt_length, chain_only=chain_only)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds + 1):
        for size in sizes:
            parents = torch.zeros((batch_size, size), dtype=torch.long, device=device)
            tree = DraftTree(input_ids[:, :1].expand(-1, size).contiguous(), parents, max_depth=1)
            synchronize(device)
            start = time.perf_counter()
            forward.run(tree)
            synchronize(device)
            seconds[size].append(time.perf_counter() - start)
            forward.keep([[]] * batch_size)
    forward.close()
    return {size: statistics.median(times[1:]) for size, times in seconds.items()}


def predictions(
    costs: Costs, replay: Replay, ranks: dict[tuple[int, int], list[list[int]]], batch_size: int = 1
) -> list[tuple[float, Shape]]:
    """Predicted tokens per second of all shapes, all rows of a batch together, the fastest first."""
    found = []
    for (depth, width), rows in ranks.items():
        most = min(MAX_NODES, TOP_K * (1 + (depth - 1) * width))
        for num_draft_tokens in range(1, most + 1):
            lengths = replay.accepted_lengths(rows, num_draft_tokens)
            seconds = costs.step_seconds(depth, width, num_draft_tokens)
            speed = batch_size * (1 + statistics.fmean(lengths)) / seconds
            found.append((speed, Shape(depth, width, num_draft_tokens)))
    return sorted(found, key=lambda pair: -pair[0])


def shortlist(ranked: Sequence[tuple[float, Shape]], count: int) -> list[Shape]:
    """The fastest shapes of different depths and widths: neighbours in the number of nodes are all alike."""
    chosen: list[Shape] = []
    for _, shape in ranked:
        if all((shape.tree_depth, shape.tree_width) != (other.tree_depth, other.tree_width) for other in chosen):
            chosen.append(shape)
        if len(chosen) == count:
            break
    return chosen


@dataclass
class Measured:
    """What a shape (None: plain `generate`) gave when it answered the prompts."""

    shape: Shape | None
    runs: list[Run] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return tokens_per_second(self.runs)

    @property
    def tokens_per_forward(self) -> float:
        return tokens_per_forward([length for run in self.runs for length in run.accept_lengths or ()])


def measure(
    benchmark: Benchmark,
    prompts: Sequence[str],
    temperatures: Sequence[float],
    shapes: Sequence[Shape],
    advance: Callable[[], None] = lambda: None,
    batch_size: int = 1,
    smaller: Sequence["Tuning"] = (),
) -> list[Measured]:
    """
    Lets plain `generate` and each shape answer each prompt, or each batch of them, at each temperature, taking turns.
    Rows of a batch that are left get the trees of `smaller` ones. The drafter's config is left as it was.
    """
    results = [Measured(shape) for shape in (None, *shapes)]
    methods = [Method("plain", METHODS["plain"])]
    methods += [shape.method(benchmark.draft, batch_size, smaller) for shape in shapes]
    batches = full_batches(prompts, batch_size)
    for number, (temperature, batch) in enumerate(itertools.product(temperatures, batches)):
        inputs = benchmark.encode_batch(batch)
        for index in range(len(results)):  # each takes its turn at being the first
            turn = (index + number) % len(results)
            run, _ = benchmark.answer(methods[turn], 0, inputs, temperature)
            results[turn].runs.append(run)
            advance()
    return results


def full_batches(prompts: Sequence[str], batch_size: int) -> list[list[str]]:
    """All prompts in batches of this size; the first ones once more to fill the last."""
    endless = itertools.cycle(prompts)
    return [list(itertools.islice(endless, batch_size)) for _ in range(math.ceil(len(prompts) / batch_size))]


def step_seconds(benchmark: Benchmark, prompts: Sequence[str], shape: Shape) -> float:
    """
    Median seconds of a step of a greedy generation for a batch of prompts, from one forward of the target to the next.
    """
    method = shape.method(benchmark.draft, len(prompts))
    with method.ready(), calls_of(TreeForward, "run") as forwards:
        benchmark.target.generate(
            **benchmark.encode_batch(prompts),
            **method.options,
            do_sample=False,
            max_new_tokens=max(benchmark.max_new_tokens, 32),
        )
    steps = [after - before for (before, _), (after, _) in itertools.pairwise(forwards)]
    return statistics.median(steps) if steps else 0.0


@dataclass
class Tuning:
    """
    Result of [`tune`] for one batch size.

    Args:
        batch_size (`int`): sequences that are generated at a time.
        best ([`Shape`]): the fastest as measured, never slower than the published one in this run, though plain
            `generate` may be faster than it.
        measured (`list[Measured]`): plain `generate`, then the shapes of the last round, the published one and the
            drafter's own among them.
        predicted (`dict[Shape, float]`): tokens per second by replay and costs, of those that could be predicted.
        costs ([`Costs`]): what the prediction is made of.
    """

    batch_size: int
    best: Shape
    measured: list[Measured]
    predicted: dict[Shape, float]
    costs: Costs

    @property
    def plain(self) -> Measured:
        return self.measured[0]

    @property
    def pays(self) -> bool:
        """Whether the fastest tree was at least as fast as plain `generate`."""
        return self.of(self.best).tokens_per_second >= self.plain.tokens_per_second

    def of(self, shape: Shape) -> Measured:
        """What a shape of the last round gave."""
        return next(result for result in self.measured if result.shape == shape)


def tune(
    benchmark: Benchmark,
    prompts: Sequence[str],
    temperatures: Sequence[float] = (0.0, 1.0),
    depths: Sequence[int] = DEPTHS,
    widths: Sequence[int] = WIDTHS,
    num_finalists: int = 4,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    *,
    batch_sizes: Sequence[int] = (1,),
) -> list[Tuning]:
    """
    Finds the fastest tree for each batch size; see the module's docstring. Changes no config.

    Args:
        benchmark ([`Benchmark`]): the models; its `max_new_tokens` limit each answer.
        prompts (`Sequence[str]`): samples of what the target will be asked.
        depths, widths: trees to replay, each with up to 96 nodes and 32 children per node.
        num_finalists (`int`): shapes to measure, besides the published and the present one.
        progress: called with the phase, what is done of it and all of it.
        batch_sizes: sequences that are generated at a time.

    Raises:
        ValueError: if a batch size is below 1, the answers are too short to tell anything, or the drafter has a fixed
            tree.
    """
    target, draft = benchmark.target, benchmark.draft
    check_batch_sizes(batch_sizes)
    if draft.config.static_tree is not None:
        raise ValueError(
            "The drafter has a fixed tree (`static_tree`), so there is nothing to choose. Set "
            "`draft.config.static_tree = None` and save it to have its trees tuned."
        )
    longest_path = benchmark.max_new_tokens - 2
    depths = [depth for depth in depths if depth <= longest_path]
    if not depths:
        raise ValueError(
            f"With `--max-new-tokens {benchmark.max_new_tokens}` no path of a tree has more than {longest_path} "
            f"tokens, which is less than any depth to be tried. Give at least {min(DEPTHS) + 2}."
        )
    answers = []
    for answer in answer_prompts(benchmark, prompts, temperatures):
        answers.append(answer)
        progress("answering", len(answers), len(prompts) * len(temperatures))
    replay = Replay(target, draft, answers)
    if replay.num_positions < 8:
        raise ValueError(
            f"The answers have {replay.num_positions} tokens to replay, which tells nothing: give more prompts or a "
            "larger `--max-new-tokens`."
        )
    shapes = list(itertools.product(depths, widths))
    ranks: dict[tuple[int, int], list[list[int]]] = {shape: [] for shape in shapes}
    replays = {shape: replay.ranks(*shape) for shape in shapes}
    for position in range(replay.num_positions):  # in turns, so that none has a quieter machine than another
        for shape, rows in replays.items():
            ranks[shape].append(next(rows))
        progress("replaying", position + 1, replay.num_positions)

    longest = max(answers, key=lambda answer: answer.input_ids.shape[1])
    results = []
    for batch_size in batch_sizes:
        costs = measure_costs(benchmark, prompts, replay, longest, shapes, batch_size)
        ranked = predictions(costs, replay, ranks, batch_size)
        finalists = [Shape(**PUBLISHED), Shape.of(draft.config, batch_size), *shortlist(ranked, num_finalists)]
        if batch_size > 1:  # where no tree may pay, the one that loses least
            finalists.append(Shape(min(depths), min(widths), num_draft_tokens=1))
        finalists = list(dict.fromkeys(finalists))
        phase = "measuring" if batch_size == 1 else f"measuring, {batch_size} at a time"
        total = len(full_batches(prompts, batch_size)) * len(temperatures) * (len(finalists) + 1)
        done = itertools.count(1)
        measured = measure(
            *(benchmark, prompts, temperatures, finalists),
            advance=lambda phase=phase, done=done, total=total: progress(phase, next(done), total),
            batch_size=batch_size,
            smaller=results,
        )
        best = max(measured[1:], key=lambda result: result.tokens_per_second).shape
        predicted = {shape: speed for speed, shape in ranked if shape in finalists}
        results.append(Tuning(batch_size, best, measured, predicted, costs))
    return results


def check_batch_sizes(batch_sizes: Sequence[int]) -> None:
    """Raises a `ValueError` for sizes that no batch has."""
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"`--batch-size` must be at least 1, got {[*batch_sizes]}. Give 1 for single sequences.")


def measure_costs(
    benchmark: Benchmark,
    prompts: Sequence[str],
    replay: Replay,
    answer: Answer,
    shapes: Sequence[tuple[int, int]],
    batch_size: int,
) -> Costs:
    """
    What steps of a batch cost.

    Args:
        prompts: to generate for.
        replay ([`Replay`]): of `shapes` (depths and widths), for what growing a tree for one sequence has cost.
        answer ([`Answer`]): the text below which forwards are timed.
    """
    sizes = [size for size in TREE_SIZES if size <= MAX_NODES + 1]
    if batch_size == 1:
        draft_seconds = {shape: statistics.median(seconds) for shape, seconds in replay.seconds.items()}
        rounds = 7
    else:
        draft_seconds = draft_costs(benchmark.target, benchmark.draft, answer, shapes, batch_size)
        rounds = 3
    texts = answer.input_ids.expand(batch_size, -1)
    costs = Costs(draft_seconds, target_costs(benchmark.target, texts, sizes, rounds), rest=0.0)
    # what a step takes besides: from one shape whose steps are timed and predicted
    reference = Shape(*max(costs.draft), num_draft_tokens=24)
    predicted_seconds = costs.step_seconds(reference.tree_depth, reference.tree_width, reference.num_draft_tokens)
    batch = full_batches(prompts, batch_size)[0]
    costs.rest = max(0.0, step_seconds(benchmark, batch, reference) - predicted_seconds)
    return costs


def run_tune(
    files: Sequence[str],
    target: str,
    draft: str,
    temperature: Sequence[float] = (0.0, 1.0),
    tasks: Sequence[str] | None = None,
    limit: int | None = 1,
    max_new_tokens: int = 48,
    dtype: str = "bfloat16",
    deepen: int | None = None,
    output: str | None = None,
    report: str | None = None,
    batch_size: Sequence[int] = (1,),
) -> list[Tuning]:
    """
    The `jakiro tune` command: finds the fastest tree for each batch size, prints what was measured, and writes it to
    the drafter's config.

    Args:
        files: prompts; default: those that ship.
        tasks, limit: which tasks, and how many prompts of each.
        deepen: layers to give the target by inserting identity layers
            ([`~transformers_jakiro.measuring.deepened.deepen`]).
        output: folder for a copy of the drafter with its new trees; default: `draft`, whose config.json is changed.
        report: JSON file for all figures.
        batch_size: sequences that are generated at a time. The tree for 1 becomes the drafter's own, those for others
            its `batch_trees`.

    Raises:
        ValueError: if a batch size is below 1, `draft` is no folder and there is no `output`, or it is a PEFT adapter.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("output", "report")}
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    check_batch_sizes(batch_size)
    if output is None and not Path(draft).is_dir():
        raise ValueError(
            f"`--draft` {draft} is no folder, so its config cannot be changed in place. Give `--output`, a folder for "
            "the drafter with its new trees."
        )
    folder = Path(draft) if Path(draft).is_dir() else Path(snapshot_download(draft))
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{draft} has no config.json to write the tree to. If it is a PEFT adapter, merge it into its drafter "
            "(`draft.merge_and_unload()`), save that and tune it."
        )
    prompts = [prompt.turns[0] for prompt in gather_prompts(files, tasks, limit)]
    benchmark, label = load_benchmark(target, draft, dtype, max_new_tokens, ("jakiro",), deepen=deepen)
    console = Console()
    if not console.is_terminal:
        console.width = 150  # a file has room for the whole table
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        phases: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in phases:
                phases[phase] = bars.add_task(phase, total=total)
            bars.update(phases[phase], completed=done)

        sizes = sorted(set(batch_size))
        results = tune(benchmark, prompts, temperature, progress=progress, batch_sizes=sizes)
    title = f"{label}, {len(prompts)} prompts, T = {', '.join(f'{value:g}' for value in temperature)}"
    for result in results:
        console.print(_table(result, title))
        if not result.pays:
            of_batch = "" if result.batch_size == 1 else f" for batches of {result.batch_size}"
            console.print(f"On this machine plain generate is faster than any tree of this drafter{of_batch}.")
    if output is not None:
        folder = Path(shutil.copytree(folder, output, dirs_exist_ok=True))
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", with_trees(content, results))
    for result in results:
        of_batch = "" if result.batch_size == 1 else f" for batches of {result.batch_size}"
        console.print(f"Saved the fastest tree{of_batch} to {output or draft}: {result.best}")
    if report is not None:
        write_json(Path(report), to_json(results, **arguments))
        console.print(f"Saved {report}")
    return results


def with_trees(config: dict[str, Any], results: Sequence[Tuning]) -> dict[str, Any]:
    """A drafter's config.json with the trees that were found; those for other batch sizes stay."""
    config = dict(config)
    batch_trees = dict(config.get("batch_trees") or {})
    for result in results:
        if result.batch_size == 1:
            config.update(asdict(result.best))
        else:
            batch_trees[str(result.batch_size)] = asdict(result.best)
    if batch_trees:
        config["batch_trees"] = dict(sorted(batch_trees.items(), key=lambda item: int(item[0])))
    return config


def _table(result: Tuning, title: str) -> "Table":
    """What was measured for one batch size, for a terminal."""
    from rich.table import Table

    table = Table(title=title if result.batch_size == 1 else f"{title}, batches of {result.batch_size}")
    table.add_column("tree", no_wrap=True)
    for column in ("tokens/s", "speed-up", "x published", "tokens/forward", "predicted tokens/s"):
        table.add_column(column, justify="right")
    published = result.of(Shape(**PUBLISHED)).tokens_per_second
    for measured in sorted(result.measured, key=lambda measured: -measured.tokens_per_second):
        shape, predicted = measured.shape, result.predicted.get(measured.shape)
        table.add_row(
            "plain generate" if shape is None else str(shape),
            f"{measured.tokens_per_second:.1f}",
            f"{measured.tokens_per_second / result.plain.tokens_per_second:.2f}",
            f"{measured.tokens_per_second / published:.2f}",
            f"{measured.tokens_per_forward:.2f}",
            "-" if predicted is None else f"{predicted:.1f}",
        )
    return table


def to_json(results: Sequence[Tuning], **arguments: Any) -> dict[str, Any]:
    """All figures with their provenance: those of the first batch size, and of further ones in `batches`."""
    first, *others = map(_figures, results)
    return {"provenance": provenance(**arguments), **first, "batches": others}


def _figures(result: Tuning) -> dict[str, Any]:
    return {
        "batch_size": result.batch_size,
        "best": asdict(result.best),
        "pays": result.pays,
        "measured": [
            {
                "tree": None if measured.shape is None else asdict(measured.shape),
                "tokens_per_second": measured.tokens_per_second,
                "tokens_per_forward": measured.tokens_per_forward,
                "predicted_tokens_per_second": result.predicted.get(measured.shape),
            }
            for measured in result.measured
        ],
        "target_seconds": result.costs.target,
        "draft_seconds": [
            {"tree_depth": depth, "tree_width": width, "seconds": seconds}
            for (depth, width), seconds in result.costs.draft.items()
        ],
        "rest_seconds": result.costs.rest,
    }


__all__ = ["Costs", "Measured", "Shape", "Tuning", "run_tune", "tune"]
