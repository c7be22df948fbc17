# Copyright 2026 The transformers-jakiro authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Makes the small real pair that ships with the package, from scratch, on a CPU.

The `target` stage trains a byte-level BPE tokenizer (2,048 entries, each digit a token) and a 3.6M-parameter
[`LlamaForCausalLM`] (8 layers, hidden size 192) on grade-school math problems, and saves both under `OUTPUT/target`.
The `draft` stage lets that target answer the problems, trains a Jakiro drafter on its answers and on those of the
data, and saves it under `OUTPUT/draft`.

```bash
python examples/make_pair.py --data gsm8k_train.jsonl.gz --output pair
```

`--data` is a JSON-lines file, gzipped or not, with one conversation per line:

```json
{"messages": [{"role": "user", "content": "Ann has ..."}, {"role": "assistant", "content": "She ... The answer is 7"}]}
```

The shipped pair was made from the training set of GSM8K, without its calculator annotations `<<...>>` and with its
last lines `#### 7` rewritten as `The answer is 7`.

Shipped target: one thread of a busy 2-core x86 CPU with bfloat16 instructions (AVX-512), no GPU, 43 minutes with
`--max-minutes 43`. That limit shortened the schedule to 3,728 of its 5,109 steps (a little over 5 of 7 epochs). The
validation loss was 2.00 nats per token on the 100 held-out problems. The limit follows the clock, so another run gives
a similar target but not the same weights. Without `--max-minutes`, the schedule depends only on the seed.

Shipped drafter: on the same machine, 12 minutes for the target's answers and 60 minutes of training beside other work,
with the recipe of `configs/tiny_chat.yaml`. On the target's answers to the held-out problems, the drafter predicts the
target's most likely token in 81 % of the positions. Its contrastive branch does so in 36 %, two drafted tokens further
on, from the drafter's own features.
"""

import argparse
import copy
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from transformers_jakiro.conversations import read_conversations
from transformers_jakiro.training.initialization import new_drafter
from transformers_jakiro.training.regeneration import regenerate
from transformers_jakiro.training.trainer import JakiroTrainer, JakiroTrainingArguments

logger = logging.getLogger("make_pair")

Conversation = list[dict[str, str]]

SPECIAL_TOKENS = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCAB_SIZE = 2048
MAX_LENGTH = 1024
IGNORE_INDEX = -100
# smaller than the published tree: for a toy target on a CPU, every node costs time
DRAFT_TREE = {"tree_depth": 7, "tree_top_k": 16, "tree_width": 4, "num_draft_tokens": 20}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{% if m['role']=='assistant' %}{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def replace_directory(temporary: Path, final: Path) -> None:
    """Puts `temporary` in the place of `final`, so that `final` never holds a half-written checkpoint."""
    previous = final.with_name(f"{final.name}.old")
    shutil.rmtree(previous, ignore_errors=True)
    if final.exists():
        final.rename(previous)
    temporary.rename(final)
    shutil.rmtree(previous, ignore_errors=True)


def build_tokenizer(conversations: list[Conversation]) -> PreTrainedTokenizerFast:
    """Trains the byte-level BPE tokenizer on the contents of the messages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (message["content"] for conversation in conversations for message in conversation)
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD_ID],
        bos_token=SPECIAL_TOKENS[BOS_ID],
        eos_token=SPECIAL_TOKENS[EOS_ID],
        extra_special_tokens=SPECIAL_TOKENS[3:],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_target() -> LlamaForCausalLM:
    """Builds the untrained target. It is deep for its size, as a drafter helps most if the target has many layers."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    # At this size and on a CPU, plain attention trains faster than the fused kernel.
    model.set_attn_implementation("eager")
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, max_new_tokens=256
    )
    return model


def encode(tokenizer: PreTrainedTokenizerFast, conversations: list[Conversation]) -> list[list[int]]:
    """Returns the token ids of every conversation, as the chat template formats it."""
    texts = tokenizer.apply_chat_template(conversations, tokenize=False)
    return [ids[:MAX_LENGTH] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def batches(examples: list[list[int]], batch_tokens: int, rng: random.Random | None = None) -> Iterator[torch.Tensor]:
    """
    Yields right-padded tensors `[B, T]` of about `batch_tokens` tokens, each from examples of similar length. With
    `rng`, the composition of the batches and their order are random.
    """
    noise = rng.uniform if rng is not None else lambda low, high: 0.0
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]) + noise(-8.0, 8.0))
    groups: list[list[int]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, len(examples[index]))
        if groups[-1] and longest * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
            longest = len(examples[index])
        groups[-1].append(index)
    if rng is not None:
        rng.shuffle(groups)
    for group in groups:
        rows = [torch.tensor(examples[index]) for index in group]
        yield nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD_ID)


def token_losses(model: nn.Module, input_ids: torch.Tensor, bf16: bool) -> tuple[torch.Tensor, int]:
    """
    Returns the summed next-token cross-entropy of `input_ids` `[B, T]` and the number of predicted tokens. The rows
    are padded on the right, where causal attention does not see the padding. They need no attention mask, and padding
    is not counted.
    """
    labels = input_ids[:, 1:].masked_fill(input_ids[:, 1:] == PAD_ID, IGNORE_INDEX)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(input_ids=input_ids[:, :-1], use_cache=False).logits
    loss = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return loss, int((labels != IGNORE_INDEX).sum())


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, examples: list[list[int]], batch_tokens: int, bf16: bool) -> float:
    """Returns the mean cross-entropy, in nats per token, on `examples`."""
    model.eval()
    results = [token_losses(model, input_ids, bf16) for input_ids in batches(examples, batch_tokens)]
    model.train()
    return sum(loss.item() for loss, _ in results) / sum(count for _, count in results)


def save_target(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Saves the model in bfloat16 and its tokenizer, in one atomic step."""
    temporary = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    replace_directory(temporary, directory)


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up during the first part `warmup` of the training, then a cosine to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup) / (1.0 - warmup))))


def build_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Builds AdamW, with weight decay for the matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def make_target(args: argparse.Namespace) -> None:
    """Trains the tokenizer and the target, and saves them under `OUTPUT/target`."""
    set_seed(args.seed)
    conversations = [row["messages"] for row in read_conversations(args.data)]
    train, validation = conversations[: -args.validation], conversations[-args.validation :]
    tokenizer = build_tokenizer(train)
    train_ids, validation_ids = encode(tokenizer, train), encode(tokenizer, validation)
    tokens = sum(map(len, train_ids))
    logger.info(f"{len(train_ids)} conversations, {tokens} tokens ({tokens / len(train_ids):.0f} each)")

    model = build_target()
    logger.info(f"{model.num_parameters()} parameters")
    trained = torch.compile(model, dynamic=True) if args.compile else model
    optimizer = build_optimizer(model, args.learning_rate)

    rng = random.Random(args.seed)
    epochs = [list(batches(train_ids, args.batch_tokens, rng)) for _ in range(args.epochs)]
    total_steps = sum(map(len, epochs))
    limit = args.max_minutes * 60 if args.max_minutes else math.inf
    start = time.monotonic()
    step = 0
    progress = 0.0
    running_loss = None
    model.train()
    for epoch, epoch_batches in enumerate(epochs, start=1):
        for input_ids in epoch_batches:
            # If the machine is too slow for the time limit, the schedule gets shorter but still ends at zero.
            progress = max(progress, (step + 1) / total_steps, (time.monotonic() - start) / limit)
            if progress > 1.0:
                break
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * learning_rate_factor(progress, args.warmup)
            loss, count = token_losses(trained, input_ids, args.bf16)
            loss = loss / count
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            running_loss = loss.item() if running_loss is None else 0.98 * running_loss + 0.02 * loss.item()
            if step % args.log_steps == 0:
                elapsed = time.monotonic() - start
                left = elapsed / progress - elapsed
                logger.info(
                    f"epoch {epoch} step {step}/{total_steps} loss {running_loss:.3f} "
                    f"{elapsed / 60:.1f} min, about {left / 60:.1f} min left"
                )
        validation_loss = evaluate(model, validation_ids, args.batch_tokens, args.bf16)
        logger.info(f"epoch {epoch} validation loss {validation_loss:.4f}")
        save_target(model, tokenizer, args.output / "target")
        if progress > 1.0:
            logger.info("stopped at the time limit")
            break
    logger.info(f"target saved after {(time.monotonic() - start) / 60:.1f} min, {step} of {total_steps} steps")


def make_draft(args: argparse.Namespace) -> None:
    """Trains a drafter for the target under `OUTPUT/target`, on the target's own answers and on those of the data."""
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.output / "target")
    target = LlamaForCausalLM.from_pretrained(args.output / "target", dtype=torch.float32).eval()
    conversations = read_conversations(args.data)
    train, validation = conversations[: -args.validation], conversations[-args.validation :]

    def answered(name: str, conversations: list[dict]) -> list[dict]:
        path = args.output / f"{name}.jsonl"
        if not path.exists():
            regenerate(target, tokenizer, conversations, path, max_new_tokens=224, batch_size=64)
        return read_conversations(path)

    draft = new_drafter(target, target_name_or_path="gsm8k-3.6m", **DRAFT_TREE)
    logger.info(f"{draft.num_parameters()} parameters")
    folder = args.output / "draft.training"
    trainer = JakiroTrainer(
        model=draft,
        target_model=target,
        args=JakiroTrainingArguments(
            output_dir=str(folder),
            max_length=MAX_LENGTH,
            num_train_epochs=args.draft_epochs,
            per_device_train_batch_size=8,
            train_sampling_strategy="group_by_length",
            learning_rate=args.draft_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=200,
            weight_decay=1e-3,
            adam_beta2=0.95,
            max_grad_norm=0,
            assistant_only_loss=False,
            contrastive_weight=0.1,
            feature_noise=0,
            unroll_steps=3,
            unroll_start=0.5,
            bf16=args.bf16,
            use_cpu=True,
            seed=args.seed,
            logging_steps=args.log_steps,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
        ),
        train_dataset=answered("answers", train[: args.answers]) + train,
        eval_dataset=answered("validation_answers", validation),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
    temporary = args.output / "draft.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    draft.to(torch.bfloat16).save_pretrained(temporary)
    replace_directory(temporary, args.output / "draft")
    shutil.rmtree(folder, ignore_errors=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the small real pair that ships with the package.")
    parser.add_argument("--data", type=Path, required=True, help="conversations: a .jsonl or .jsonl.gz file")
    parser.add_argument("--output", type=Path, required=True, help="folder with one sub-folder per model")
    parser.add_argument("--stage", choices=["target", "draft", "all"], default="all", help="models to make (all)")
    parser.add_argument("--epochs", type=int, default=7, help="epochs of the target (7)")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens per step, padding included (2048)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="learning rate of the target (0.002)")
    parser.add_argument("--warmup", type=float, default=0.04, help="fraction of the training that is warm-up (0.04)")
    parser.add_argument(
        "--validation", type=int, default=100, help="conversations held out from the end of the data (100)"
    )
    parser.add_argument("--max-minutes", type=float, default=None, help="shorten the schedule to end after this time")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 autocast")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="use torch.compile")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--log-steps", type=int, default=50, help="steps between two lines of the log (50)")
    parser.add_argument(
        "--answers", type=int, default=3072, help="problems the target answers for the drafter's training (3072)"
    )
    parser.add_argument("--draft-epochs", type=float, default=2, help="epochs of the drafter (2)")
    parser.add_argument(
        "--draft-learning-rate", type=float, default=1.5e-3, help="learning rate of the drafter (0.0015)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of both trainings (0)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.stage in ("target", "all"):
        make_target(args)
    if args.stage in ("draft", "all"):
        make_draft(args)


if __name__ == "__main__":
    main()
