# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Write the model cards in this folder: for the two drafters in this repository, with the figures of `results/*.json`,
and for the published Jakiro drafters after `jakiro convert`.

```bash
python model_cards/make_cards.py
```

The figures are measured with these commands in the root of the repository. `T` is the 44M-parameter chat model, and
`PROMPTS` are the prompts of the published evaluation, cut to fit it.

```bash
pair=src/transformers_jakiro/pair
jakiro bench $pair/prompts.jsonl --target $pair/target --draft $pair/draft --temperature 0 1 --methods jakiro \
    --profile 0 --dtype float32 --output report
jakiro bench PROMPTS --target T --draft examples/tiny-chat-44m-jakiro --temperature 0 1 --methods jakiro \
    --num-assistant-tokens 24 59 --limit 2 --max-new-tokens 128 --profile 0 --output report
```
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from transformers_jakiro import JakiroDraftModel
from transformers_jakiro.hub.publishing import TAGS, TEMPLATE, drafter_card, read_results
from transformers_jakiro.pair import DRAFT

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
RECIPE = {
    "max_length": 512,
    "contrastive_weight": 0.1,
    "feature_noise": 0,
    "unroll_steps": 3,
    "unroll_start": 0.5,
    "learning_rate": 1.5e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 120,
    "weight_decay": 1e-3,
    "adam_beta2": 0.95,
    "max_grad_norm": 0,
    "per_device_train_batch_size": 2,
    "num_train_epochs": 2,
    "bf16": True,
}

# target, its Hub id, the kinds of drafters that were published for it
PUBLISHED = (
    ("vicuna-7b-v1.3", "lmsys/vicuna-7b-v1.3", ("jakiro", "jakiro-star")),
    ("vicuna-13b-v1.3", "lmsys/vicuna-13b-v1.3", ("jakiro", "jakiro-star")),
    ("llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", ("jakiro", "jakiro-star")),
    ("llama-2-13b-chat", "meta-llama/Llama-2-13b-chat-hf", ("jakiro", "jakiro-star")),
    ("llama-3-8b-instruct", "meta-llama/Meta-Llama-3-8B-Instruct", ("jakiro",)),
)
ARCHITECTURE = {
    "jakiro": "1 decoder layer, 2 gated experts (SiLU) as wide as the target's hidden states; a contrastive branch "
    "drafts one level of the tree more",
    "jakiro-star": "1 decoder layer, 2 experts of two layers (GELU) as wide as the target's MLP; each is a head of "
    "its own when drafting",
}
PUBLISHED_RECIPE = (
    "AdamW, learning rate 9e-5, betas 0.9 and 0.95, weight decay 1e-3, gradient values clipped at 0.5; batch 4 per "
    "device, bf16; {}; uniform noise on the input features"
)
SCHEDULES = {
    "jakiro": "cosine schedule, 2,000 warm-up steps, 20 epochs",
    "jakiro-star": "linear schedule, 30 epochs, trained on the weighted sum of the experts only",
}


def pair_card() -> ModelCard:
    draft = JakiroDraftModel.from_pretrained(DRAFT)
    return drafter_card(
        draft.config,
        "gsm8k-3.6m-jakiro",
        num_parameters=draft.num_parameters(),
        results=[read_results(HERE / "results" / "gsm8k-3.6m-jakiro.json")],
        training={
            "data": "the target's own greedy answers to 3,072 problems of the GSM8K train set (MIT licence, OpenAI), "
            "and the data's answers to 7,373; the last 100 of the set held out",
            "recipe": "losses of contrastive parallel decoding with contrastive weight 0.1, unrolled over 3 steps in "
            "the second half; AdamW, learning rate 1.5e-3 with a cosine; all tokens count, prompts too",
            "steps": "2,612 of 8 conversations (2 epochs)",
            "script": "`examples/make_pair.py` of the package, which makes target and drafter from GSM8K alone",
        },
        license="apache-2.0",
    )


def tiny_chat_card() -> ModelCard:
    draft = JakiroDraftModel.from_pretrained(EXAMPLES / "tiny-chat-44m-jakiro")
    card = drafter_card(
        draft.config,
        "tiny-chat-44m-jakiro",
        num_parameters=draft.num_parameters(),
        results=[read_results(HERE / "results" / "tiny-chat-44m-jakiro.json")],
        training={
            "data": "chat, grade-school math and code; all tokens count, prompts too. First 2.9M tokens, two epochs "
            "over 1.45M, about a fifth of them the target's own greedy answers; then 1.3M further ones. Answers of "
            "public models to public prompts that are for research use only: so is this drafter",
            "steps": "2,860, then 1,300, of 2 packed rows of 512 tokens",
            "changed_arguments": RECIPE,
            "script": "`examples/configs/tiny_chat.yaml` of the package, which names what differs in the second run",
        },
        license="other",
    )
    card.data.license_name = "research-only"
    return card


def published_card(name: str, target: str, kind: str) -> ModelCard:
    """The card of a conversion. It holds no figures: those of the authors are not of `jakiro bench`."""
    data = ModelCardData(
        base_model=target,
        base_model_relation="finetune",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*TAGS, "moe"],
    )
    star = kind == "jakiro-star"
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=f"{kind}-{name}",
        kind="Jakiro\\*" if star else "Jakiro",
        repo_id=f"{kind}-{name}",
        target=f"[{target}](https://huggingface.co/{target})",
        target_name=target,
        architecture={
            "Architecture": ARCHITECTURE[kind],
            "Made from": "the checkpoint of the authors of Jakiro, [haiduo/Jakiro](https://github.com/haiduo/Jakiro), "
            f"by `jakiro convert CHECKPOINT {kind}-{name} --target {target}`: the same weights under other names",
        },
        training={
            "Data": "ShareGPT, 68k dialogues, cut at 2,048 tokens",
            "Recipe": PUBLISHED_RECIPE.format(SCHEDULES[kind]),
        },
        limits=[
            "It drafts for the target above and no other: a fine-tuned or newer version of it accepts fewer tokens.",
            "Trees are grown by `transformers_jakiro`. `draft.config.tree_temperature = 1.0` and "
            "`draft.config.couple_sampling = False` choose their nodes as published.",
            *(
                [
                    "When sampling, the published code verifies Jakiro\\* drafts in a way that is not lossless. Here "
                    "the target itself chooses every token, so figures of that code do not apply."
                ]
                if star
                else [
                    "The published code attaches the last level of its trees to the wrong parents, and skips the "
                    "logits processors for the last token of a step. Both are corrected here, so figures of that code "
                    "do not apply."
                ]
            ),
            "The speed-up depends on the machine, the precision and the number of prompts at a time.",
            "No licence is stated here: those of the checkpoint and the target apply.",
        ],
    )


def finished_cards() -> Iterator[tuple[str, ModelCard]]:
    """The names and cards of all drafters."""
    yield "gsm8k-3.6m-jakiro", pair_card()
    yield "tiny-chat-44m-jakiro", tiny_chat_card()
    for name, target, kinds in PUBLISHED:
        for kind in kinds:
            yield f"{kind}-{name}", published_card(name, target, kind)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.strip().partition("\n\n")[0]).parse_args()
    for name, card in finished_cards():
        card.save(HERE / f"{name}.md")
        print(f"Saved {HERE / f'{name}.md'}")


if __name__ == "__main__":
    main()
