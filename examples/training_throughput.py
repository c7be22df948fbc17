# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Training throughput of `JakiroTrainer`, compared with a plain loop that works like the published training script. Both
train the same drafter on the same batches of precomputed features, on one device.

    python examples/training_throughput.py --target TARGET --data train.jsonl.gz

The plain loop reads one file per sample, pads to the longest sample of the batch, runs the experts one after another,
applies the target's head to the features of all positions, computes softmax and log-softmax over the whole `[B, T, V]`
in float32, and clips gradients by value. As in the published script, its attention is `eager`. It computes no metrics
and holds only the target's embeddings and head. Before anything is timed, both must compute the same loss for the same
batch (float32, no noise, within 1e-4).

The two alternate, each time in a new process, and use the same batches. The first steps are dropped. The time of a
step is the median over the rounds and includes reading the data; padding does not count as tokens. Peak memory is the
resident set of the process on a CPU, and the largest allocation on CUDA.

Hardware: a CPU or one CUDA device. Time: with a 44M-parameter target, 24 samples of at most 512 tokens and 3 rounds of
5 steps, 2 minutes on one core of an x86 server CPU (AVX-512, no AMX). There, `JakiroTrainer` reached 1.9 to 2.4 times
the tokens per second of the plain loop, at a peak of 1.0 GB instead of 1.3 GB.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, pairwise, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

from transformers_jakiro import JakiroDraftConfig, JakiroDraftModel
from transformers_jakiro.conversations import read_conversations
from transformers_jakiro.core.modeling_jakiro import JakiroExperts
from transformers_jakiro.core.target import Target
from transformers_jakiro.measuring.profiling import synchronize
from transformers_jakiro.training.data import JakiroDataCollator, prepare_dataset
from transformers_jakiro.training.features import FeatureDataset, write_features
from transformers_jakiro.training.objective import DraftingObjective
from transformers_jakiro.training.trainer import JakiroTrainer, JakiroTrainingArguments

# the published values
LEARNING_RATE, BETAS, WEIGHT_DECAY, MAX_GRAD_VALUE = 9e-5, (0.9, 0.95), 1e-3, 0.5
FEATURE_NOISE = 0.2


@dataclass(frozen=True)
class Options:
    target: str
    folder: str
    batch_size: int
    warmup: int
    steps: int
    cpu: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() and not self.cpu else "cpu")


# -- the plain loop --------------------------------------------------------------------------------------------------


class SampleFiles(Dataset):
    """One file per sample: `input_ids` and `loss_mask` `[T]`, `hidden_state` `[T, H]`."""

    def __init__(self, folder: Path, feature_noise: float):
        self.paths = sorted(folder.glob("*.pt"))
        self.feature_noise = feature_noise

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = torch.load(self.paths[index])
        features, loss_mask = sample["hidden_state"], sample["loss_mask"].clone()
        loss_mask[-1] = 0
        noise = (torch.rand_like(features) - 0.5) * self.feature_noise * 512 / len(features)
        zeros = torch.zeros_like(features[:1])
        return {
            "input_ids": torch.cat((sample["input_ids"][1:], torch.zeros(1, dtype=torch.long))),
            "features": features + noise,
            "next_features": torch.cat((features[1:], zeros)),  # for the autoregressive branch
            "later_features": torch.cat((features[2:], zeros, zeros))[: len(features)],  # for the contrastive branch
            "loss_mask": loss_mask,
            "later_loss_mask": torch.cat((loss_mask[1:], torch.zeros_like(loss_mask[:1]))),
            "attention_mask": torch.ones_like(loss_mask),
        }


def pad_batch(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pads to the longest sample, on the right: `[B, T]` and `[B, T, H]`."""
    return {name: pad_sequence([sample[name] for sample in samples], batch_first=True) for name in samples[0]}


class PlainExperts(nn.Module):
    """The experts of a layer as separate MLPs. Each is applied to all tokens, one after another."""

    def __init__(self, experts: JakiroExperts):
        super().__init__()
        inner_size, hidden_size = experts.down_proj.in_features, experts.down_proj.out_features
        width = inner_size // experts.num_experts
        self.act_fn = experts.act_fn
        self.experts = nn.ModuleList()
        for number in range(experts.num_experts):
            rows = slice(number * width, (number + 1) * width)
            expert = nn.ModuleDict(
                {
                    "gate_proj": nn.Linear(hidden_size, width, bias=False),
                    "up_proj": nn.Linear(hidden_size, width, bias=False),
                    "down_proj": nn.Linear(width, hidden_size, bias=False),
                }
            )
            with torch.no_grad():
                gate, up = experts.gate_up_proj.weight.chunk(2)
                expert["gate_proj"].weight.copy_(gate[rows])
                expert["up_proj"].weight.copy_(up[rows])
                expert["down_proj"].weight.copy_(experts.down_proj.weight[:, rows])
            self.experts.append(expert)

    def forward(self, hidden_states: torch.Tensor, mixtures: torch.Tensor) -> torch.Tensor:
        """Hidden states `[B, T, H]` and weights `[M, B, T, N]` to mixtures `[M, B, T, H]`, see [`JakiroExperts`]."""
        results = [torch.zeros_like(hidden_states) for _ in mixtures]
        for number, expert in enumerate(self.experts):
            inner = self.act_fn(expert["gate_proj"](hidden_states)) * expert["up_proj"](hidden_states)
            output = expert["down_proj"](inner)
            for index, weights in enumerate(mixtures):
                results[index] = results[index] + weights[..., number, None] * output
        return torch.stack(results)


def plain_drafter(draft: JakiroDraftModel) -> JakiroDraftModel:
    """Turns a drafter into the plain one, with the same weights."""
    draft.set_attn_implementation("eager")
    for layer in draft.layers:
        layer.mlp.experts = PlainExperts(layer.mlp.experts)
    return draft


def plain_loss(draft: nn.Module, target: Target, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The published loss, computed as its formulas say."""
    output = draft(
        inputs_embeds=target.embed(batch["input_ids"]).to(draft.dtype),
        hidden_states=batch["features"].to(draft.dtype),
        attention_mask=batch["attention_mask"],
        output_contrastive_hidden_state=True,
    )
    loss = 0
    for predicted, expected, loss_mask, weight in (
        (output.last_hidden_state, batch["next_features"], batch["loss_mask"], 1.0),
        (output.contrastive_hidden_state, batch["later_features"], batch["later_loss_mask"], 0.5),
    ):
        regression = F.smooth_l1_loss(predicted.float(), expected.float(), reduction="none").mean(dim=-1)
        with torch.no_grad():
            target_probs = target.head(expected).float().softmax(dim=-1)
        log_probs = target.head(predicted).float().log_softmax(dim=-1)
        classification = -(target_probs * log_probs).sum(dim=-1)
        loss = loss + weight * ((regression + 0.1 * classification) * loss_mask).sum() / loss_mask.sum()
    return loss


def train_plain(options: Options) -> "Measurement":
    """Measures the plain loop. Runs in a new process."""
    device = options.device
    target, draft = load_models(options)
    target.model = None  # the published script loads only the embeddings and the head
    target.embeddings.to(device)
    target.output_layer.to(device)
    draft = plain_drafter(draft).to(device).train()
    optimizer = torch.optim.AdamW(draft.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    samples = SampleFiles(Path(options.folder) / "files", FEATURE_NOISE)
    loader = DataLoader(samples, options.batch_size, collate_fn=pad_batch, drop_last=True)
    stopwatch = Stopwatch(device)
    for batch in islice(chain.from_iterable(repeat(loader)), options.warmup + options.steps):
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16):
            loss = plain_loss(draft, target, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(draft.parameters(), MAX_GRAD_VALUE)
        optimizer.step()
        stopwatch.on_step_end()
    return stopwatch.measurement(options.warmup)


# -- ours ------------------------------------------------------------------------------------------------------------


def train_ours(options: Options) -> "Measurement":
    """Measures `JakiroTrainer` on the same batches. Runs in a new process."""
    target, draft = load_models(options)
    trainer = JakiroTrainer(
        model=draft,
        target_model=target.model,
        args=JakiroTrainingArguments(
            output_dir=f"{options.folder}/output",
            per_device_train_batch_size=options.batch_size,
            max_steps=options.warmup + options.steps,
            train_sampling_strategy="sequential",
            dataloader_drop_last=True,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=WEIGHT_DECAY,
            max_grad_value=MAX_GRAD_VALUE,
            max_grad_norm=0,
            feature_noise=FEATURE_NOISE,
            unroll_steps=1,
            bf16=True,
            use_cpu=options.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=FeatureDataset(f"{options.folder}/features"),
    )
    stopwatch = Stopwatch(options.device)
    trainer.add_callback(stopwatch)
    trainer.train()
    return stopwatch.measurement(options.warmup)


# -- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Measurement:
    """Seconds of each timed step, and bytes of memory: the peak, and before the first step."""

    seconds: list[float]
    peak: int
    before: int


class Stopwatch(TrainerCallback):
    """Records the end of each step. A step lasts from one end to the next, reading the data included."""

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._before = self._memory()
        self._ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize(self._device)
        self._ends.append(time.perf_counter())

    def measurement(self, warmup: int) -> Measurement:
        """The measurement of all steps after the first `warmup`."""
        seconds = [end - start for start, end in pairwise(self._ends)]
        return Measurement(seconds[warmup - 1 :], self._memory(), self._before)

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def load_models(options: Options, dtype: str = "auto") -> tuple[Target, JakiroDraftModel]:
    """The target and an untrained drafter of the published shape."""
    target = AutoModelForCausalLM.from_pretrained(options.target, dtype=dtype)
    set_seed(0)
    return Target(target), JakiroDraftModel(JakiroDraftConfig.from_target(target.config))


def prepare(options: Options, data: str, num_rows: int, max_length: int) -> list[int]:
    """
    Writes the features for both sides, and compares their losses for the first batch.

    Returns:
        The lengths of the samples.

    Raises:
        ValueError: if there are not enough samples for a batch.
        RuntimeError: if the losses differ.
    """
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    rows = prepare_dataset(read_conversations(data, limit=num_rows), tokenizer, max_length=max_length)
    if len(rows) < options.batch_size:
        raise ValueError(f"{data} gives {len(rows)} samples, but a batch has {options.batch_size}: raise --num-rows.")
    target, _ = load_models(options)
    store = write_features(target.model.to(options.device), rows, f"{options.folder}/features")
    files = Path(options.folder) / "files"
    files.mkdir()
    for index in tqdm(range(len(store)), desc="files"):
        row = store[index]
        sample = {name: torch.tensor(row[name]) for name in ("input_ids", "loss_mask")}
        torch.save({**sample, "hidden_state": row["hidden_states"]}, files / f"{index:06d}.pt")

    target, draft = load_models(options, dtype="float32")
    batch = JakiroDataCollator(pad_token_id=0)([store[index] for index in range(options.batch_size)])
    batch["hidden_states"] = batch["hidden_states"].float()
    samples = SampleFiles(files, feature_noise=0.0)
    plain_batch = pad_batch([samples[index] for index in range(options.batch_size)])
    with torch.no_grad():
        ours = DraftingObjective(feature_noise=0.0)(draft, target, batch)[0].item()
        plain = plain_loss(plain_drafter(draft), target, plain_batch).item()
    print(f"loss of the first batch: plain {plain:.6f}, ours {ours:.6f}", flush=True)
    if abs(plain - ours) > 1e-4:
        raise RuntimeError(
            f"The plain loop and JakiroTrainer compute different losses for one batch, {plain} and {ours}. They must "
            "agree within 1e-4 for a fair comparison."
        )
    return store.lengths


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that runs in a new process, whose memory can be measured."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description="Training throughput of JakiroTrainer and of a plain loop.")
    parser.add_argument("--target", required=True, metavar="T", help="folder or Hub id")
    parser.add_argument("--data", required=True, metavar="D", help="conversations: JSON lines or Hub id")
    parser.add_argument("--num-rows", type=int, default=64, metavar="N", help="conversations to take (64)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="samples per step (4, as published)")
    parser.add_argument("--max-length", type=int, default=2048, metavar="N", help="tokens per sample (2048)")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="timed steps per round (8)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="steps to drop before them (2)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of each side (3)")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    args = parser.parse_args()
    if min(args.steps, args.warmup, args.rounds) < 1:
        parser.error("--steps, --warmup and --rounds must be at least 1")

    sides = {"plain": train_plain, "ours": train_ours}
    measurements: dict[str, list[Measurement]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        options = Options(args.target, folder, args.batch_size, args.warmup, args.steps, args.cpu)
        lengths = in_own_process(prepare, options, args.data, args.num_rows, args.max_length)
        turns = [name for _ in range(args.rounds) for name in sides]
        for name in tqdm(turns, desc="turns"):
            measurements[name].append(in_own_process(sides[name], options))

    batches = len(lengths) // args.batch_size
    tokens = [
        sum(lengths[step % batches * args.batch_size :][: args.batch_size])
        for step in range(args.warmup, args.warmup + args.steps)
    ]
    print(
        f"\n{args.rounds} rounds of {args.steps} steps, {args.warmup} before them dropped; {args.batch_size} samples "
        f"and {statistics.fmean(tokens):.0f} tokens per step; {torch.get_num_threads()} threads, device "
        f"{options.device.type}\n"
    )
    print(f"{'':8}{'tokens/s':>10}{'ms/step':>10}{'peak MB':>10}{'before the first step':>24}")
    speeds = {}
    for name, rounds in measurements.items():
        # the median over the rounds for each step
        seconds = [statistics.median(times) for times in zip(*(one.seconds for one in rounds), strict=True)]
        speeds[name] = sum(tokens) / sum(seconds)
        peak, before = (statistics.median(getattr(m, field) for m in rounds) / 1e6 for field in ("peak", "before"))
        print(f"{name:8}{speeds[name]:10.0f}{1e3 * statistics.fmean(seconds):10.0f}{peak:10.0f}{before:24.0f}")
    print(f"ours / plain: {speeds['ours'] / speeds['plain']:.2f} times the tokens per second")


if __name__ == "__main__":
    main()
