# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Word problems made from templates: prompts for training without a dataset. The target that ships answers such questions
fluently, though seldom correctly. For a target of your own, use real prompts instead.

    python examples/word_problems.py --number 400 > prompts.jsonl
"""

import argparse
import json
import random

NAMES = ("Ann", "Ben", "Carla", "Dan", "Eva", "Frank", "Grace", "Henry", "Ida", "Jack", "Lena", "Max", "Nora", "Tom")
THINGS = ("apples", "books", "pencils", "cookies", "marbles", "stamps", "cards", "eggs", "flowers", "balls", "cakes")
TEMPLATES = (
    "{a} has {x} {t}. {b} has {y} {t} more than {a}. How many {t} do they have together?",
    "{a} buys {x} boxes with {y} {t} each and gives {z} {t} to {b}. How many {t} does {a} have left?",
    "A shop sells {t} for ${x} each. {a} buys {y} and {b} buys {z}. How much do they pay altogether?",
    "{a} sells {x} {t} every day for ${y} each. How much money does {a} make in {z} days?",
    "{a} had {xy} {t}. {a} gave half of them to {b} and then bought {z} more. How many {t} does {a} have now?",
    "There are {x} tables with {y} {t} on each. {a} takes {z} {t} and {b} takes twice as many. How many are left?",
    "{a} is {x} years old. {b} is {y} times as old as {a}. How old will {b} be in {z} years?",
    "{a} runs {x} miles a day for {y} days. {b} runs {z} miles a day for as long. How far do they run in total?",
    "{a} needs {xy} {t}. {a} has {x} and gets {y} from {b}. How many more {t} does {a} need?",
    "{a} reads {x} pages in an hour. How many pages does {a} read in {y} hours and how many in {z} weeks?",
)


def make_problems(number: int, seed: int = 0) -> list[dict[str, list[dict[str, str]]]]:
    """Conversations of one question each."""
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        a, b = rng.sample(NAMES, 2)
        x, y, z = rng.randint(2, 20), rng.randint(2, 9), rng.randint(2, 6)
        question = rng.choice(TEMPLATES).format(a=a, b=b, t=rng.choice(THINGS), x=x, y=y, z=z, xy=2 * x * y)
        rows.append({"messages": [{"role": "user", "content": question}]})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=400, help="number of problems (400)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices (0)")
    args = parser.parse_args()
    for row in make_problems(args.number, args.seed):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
