# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
`jakiro ui`: a page that shows an answer being written, what was drafted in it, the tree of every step, and the same
answer from plain `generate`.
"""

import time
from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from transformers import PreTrainedTokenizerBase

from .. import pair as shipped_pair
from .answering import Answer, Pair, Step

if TYPE_CHECKING:
    from gradio import Blocks

_SECONDS_PER_FRAME = 0.2  # drawing more often would take time from the generation
_LONGEST_LABEL = 14  # of a node, in columns

CSS = """
.gradio-container > main { max-width: 1100px !important; margin: 0 auto !important; }
#app { --accepted: #1a7f37; --accepted-fill: #c8f2d1; --own: #0969da; --quiet: #57606a; --edge: #afb8c1; }
.dark #app { --accepted: #3fb950; --accepted-fill: #14532d; --own: #58a6ff; --quiet: #9aa4af; --edge: #444c56; }
#app .block { min-width: 0; }
#app .html-container { padding: 0; }
#app .quiet { color: var(--quiet); }
#app h1 { margin: 0; font-size: 1.7rem; }
#app .lead { margin: .1rem 0 .3rem; overflow-wrap: anywhere; }
#app mark { background: var(--accepted-fill); color: inherit; border-radius: 3px; padding: 1px 0;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
#app .panel { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .9rem 1rem;
  background: var(--block-background-fill); box-sizing: border-box; }
#app .panel h2 { margin: 0 0 .5rem; font-size: .95rem; font-weight: 600; }
#app .figures { display: grid; grid-template-columns: auto auto 1fr; column-gap: 1.5rem; margin: 0 0 .8rem; }
#app .figure { color: var(--quiet); font-size: .8rem; }
#app .figure b { display: block; font-size: 1.4rem; font-weight: 650; line-height: 1.2; color: var(--body-text-color);
  font-variant-numeric: tabular-nums; }
#app .answer { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75; min-height: 8.8rem; }
#app .answer .step { cursor: pointer; }
#app .answer .step.chosen { outline: 2px solid var(--own); outline-offset: 1px; border-radius: 3px; }
#app .verdict { font-size: 1.05rem; margin: 0; }
#app .verdict b { color: var(--accepted); }
#app .tree { overflow: auto; max-height: 34rem; margin: .6rem 0; }
#app .tree svg { display: block; font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
#app .tree text { fill: var(--body-text-color); }
#app .tree .rejected text { fill: var(--quiet); }
#app .tree rect { fill: var(--block-background-fill); stroke: var(--edge); }
#app .tree path { fill: none; stroke: var(--edge); stroke-width: 1.3; }
#app .tree .root rect { fill: var(--border-color-primary); stroke: var(--quiet); }
#app .tree .accepted rect { fill: var(--accepted-fill); stroke: var(--accepted); }
#app .tree path.accepted { stroke: var(--accepted); stroke-width: 2.5; }
#app .tree .own rect { stroke: var(--own); stroke-width: 1.5; stroke-dasharray: 4 3; }
#app .tree path.own { stroke: var(--own); stroke-width: 2; stroke-dasharray: 4 3; }
#app .key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; }
#app .key i { display: inline-block; width: .95em; height: .95em; border-radius: 3px; vertical-align: -.12em;
  margin-right: .4em; border: 1.5px solid var(--edge); box-sizing: border-box; }
#app .key .root { background: var(--border-color-primary); border-color: var(--quiet); }
#app .key .accepted { background: var(--accepted-fill); border-color: var(--accepted); }
#app .key .own { border: 1.5px dashed var(--own); }
"""

_KEY = (
    '<div class="key quiet"><span><i class="root"></i>last token of the text so far</span>'
    '<span><i class="accepted"></i>drafted and accepted</span>'
    "<span><i></i>drafted, not what the target chose</span>"
    '<span><i class="own"></i>the target\'s own next token</span></div>'
)
# a click on a step of the answer chooses its tree
_CHOOSE = """
element.addEventListener("click", event => {
  const step = event.target.closest("[data-step]");
  if (step) trigger("select", {step: Number(step.dataset.step)});
});
"""


# -- drawing ---------------------------------------------------------------------------------------------------------


def answer_html(steps: Sequence[Step], chosen: int | None = None) -> str:
    """The text of an answer: a `span` per step, in it a `mark` for what was drafted and accepted."""
    parts = []
    for index, step in enumerate(steps):
        runs = "".join(f"<mark>{escape(text)}</mark>" if accepted else escape(text) for text, accepted in step.runs)
        if step.tree is None:
            parts.append(f"<span>{runs}</span>")
        else:
            mark = " chosen" if index == chosen else ""
            parts.append(f'<span class="step{mark}" data-step="{index}" title="step {index}">{runs}</span>')
    return "".join(parts)


def panel_html(title: str, answer: Answer | None, chosen: int | None = None, waiting: str = "") -> str:
    """An answer with its figures."""
    figures = [("–", "tokens/s"), ("–", "tokens per forward"), ("–", "tokens")]
    text = f'<span class="quiet">{escape(waiting)}</span>'
    if answer is not None and answer.steps:
        values = (f"{answer.tokens_per_second:.1f}", f"{answer.tokens_per_forward:.2f}", str(answer.num_tokens))
        figures = [(value, name) for value, (_, name) in zip(values, figures, strict=True)]
        end = " (stopped)" if answer.stopped else " (the limit)" if answer.reached_limit else ""
        figures[-1] = (figures[-1][0], f"tokens in {answer.seconds:.1f} s{end}")
        text = answer_html(answer.steps, chosen)
    cells = "".join(f'<div class="figure"><b>{value}</b>{name}</div>' for value, name in figures)
    return (
        f'<section class="panel" aria-label="{escape(title)}"><h2>{escape(title)}</h2>'
        f'<div class="figures">{cells}</div><div class="answer">{text}</div></section>'
    )


def verdict_html(answer: Answer, plain: Answer) -> str:
    """How two complete answers compare."""
    speed_up = answer.tokens_per_second / plain.tokens_per_second
    if answer.tokens == plain.tokens:
        same = "the same text, token for token"
    else:
        pairs = zip(answer.tokens, plain.tokens, strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        same = f"other tokens from token {shared + 1} on, as rounding in half precision may bring"
    return f'<p class="verdict"><b>{speed_up:.2f} times</b> the speed of plain generate, {same}.</p>'


def _label(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token's text with visible blanks, not longer than a node is wide."""
    text = tokenizer.decode([token]).replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥") or "∅"
    return text if cell_len(text) <= _LONGEST_LABEL else set_cell_size(text, _LONGEST_LABEL - 1).rstrip() + "…"


def tree_html(step: Step, tokenizer: PreTrainedTokenizerBase) -> str:
    """A step's tree as an image (SVG), from left to right, the accepted path in colour."""
    tokens, parents = step.tree.tokens[0].tolist(), step.tree.parents[0].tolist()
    kinds = ["root"] + ["rejected"] * (len(tokens) - 1)
    for node in step.visited[1:]:
        kinds[node] = "accepted"
    num_drafted, num_accepted = len(tokens) - 1, len(step.visited) - 1
    # the target's own token hangs below the last accepted node, where it may have been drafted if it ends the answer
    last, own = step.visited[-1], step.tokens[-1]
    own_node = next((node for node in range(1, len(tokens)) if (parents[node], tokens[node]) == (last, own)), None)
    if own_node is None:
        own_node = len(tokens)
        tokens, parents, kinds = [*tokens, own], [*parents, last], [*kinds, "own"]
    kinds[own_node] = "own"
    children: list[list[int]] = [[] for _ in tokens]
    depths = [0] * len(tokens)
    for node in range(1, len(tokens)):
        children[parents[node]].append(node)
        depths[node] = depths[parents[node]] + 1
    children[last].sort(key=lambda node: node != own_node)
    labels = [_label(tokenizer, token) for token in tokens]
    widths = [16 + 7.3 * max(1, cell_len(label)) for label in labels]
    columns = [max(widths[node] for node in range(len(tokens)) if depths[node] == d) for d in range(max(depths) + 1)]
    lefts = list(accumulate((width + 34 for width in columns), initial=2))

    rows: dict[int, float] = {}
    num_rows = 0
    stack = [0]
    while stack:  # depth first: leaves one below the other, a node at the height of its first child
        node = stack[-1]
        missing = [child for child in children[node] if child not in rows]
        if missing:
            stack.append(missing[0])
            continue
        if not children[node]:
            rows[node], num_rows = num_rows, num_rows + 1
        else:
            rows[node] = rows[children[node][0]]
        stack.pop()

    def middle(node: int) -> float:
        return 30 * rows[node] + 16

    edges, boxes = [], []
    for node in range(len(tokens)):
        left, y = lefts[depths[node]], middle(node)
        if node:
            start, above = lefts[depths[parents[node]]] + widths[parents[node]], middle(parents[node])
            half = (start + left) / 2
            curve = f"M{start:.1f} {above:.1f}C{half:.1f} {above:.1f} {half:.1f} {y:.1f} {left:.1f} {y:.1f}"
            edge = f'<path class="{kinds[node]}" d="{curve}"/>'
            edges.insert(0 if kinds[node] == "rejected" else len(edges), edge)  # in colour above the others
        boxes.append(
            f'<g class="{kinds[node]}"><rect x="{left:.1f}" y="{y - 12:.1f}" width="{widths[node]:.1f}" height="24" '
            f'rx="6"/><text x="{left + widths[node] / 2:.1f}" y="{y + 4:.1f}" text-anchor="middle">'
            f"{escape(labels[node])}</text></g>"
        )
    width, height = lefts[-1] - 32, 30 * num_rows + 2
    text = f"{num_drafted} tokens drafted, {num_accepted} accepted"
    path = " → ".join(labels[node] for node in (*step.visited, own_node))
    return (
        f'<p class="verdict">{text}.</p><div class="tree" tabindex="0"><svg role="img" width="{width:.0f}" '
        f'height="{height}" viewBox="0 0 {width:.0f} {height}" aria-label="{escape(f"{text}: {path}")}">'
        f"{''.join(edges + boxes)}</svg></div>{_KEY}"
    )


# -- the page --------------------------------------------------------------------------------------------------------


def build_page(pair: Pair, temperature: float | None = None, max_new_tokens: int = 256, seed: int = 0) -> "Blocks":
    """
    The page, to be launched.

    Args:
        pair ([`~transformers_jakiro.apps.answering.Pair`]): the models.
        temperature, max_new_tokens, seed: what the controls begin with; `temperature` default: the target's
            generation config.

    Raises:
        OSError: without Gradio.
    """
    gr = _gradio()
    running: dict[str, Answer] = {}  # by the browser's session
    ships = pair.target.config.name_or_path == str(shipped_pair.TARGET)
    if temperature is None:
        config = pair.target.generation_config
        temperature = (config.temperature or 1.0) if config.do_sample else 0.0

    def drafted_panel(answer: Answer | None, chosen: int | None = None) -> str:
        return panel_html("With the drafter", answer, chosen, "Accepted drafts will be green here.")

    def plain_panel(answer: Answer | None, waiting: str = "") -> str:
        return panel_html("Plain generate", answer, waiting=waiting)

    with gr.Blocks(title="Jakiro", analytics_enabled=False) as page, gr.Column(elem_id="app"):
        gr.HTML(
            f'<h1>Jakiro</h1><p class="lead quiet">{escape(pair.names[0])} with {escape(pair.names[1])}: '
            "the target's own text, in fewer forwards.</p>"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                prompt = gr.Textbox(
                    label="Question",
                    value=shipped_pair.prompts()[1] if ships else "",
                    placeholder="What should the target answer?",
                    max_lines=12,
                )
                ask_button = gr.Button("Ask", variant="primary", elem_id="ask")
                stop_button = gr.Button("Stop", variant="stop", elem_id="stop", visible=False)
                if ships:
                    gr.Examples(shipped_pair.prompts()[1:4], prompt, label="Held-out questions")
            with gr.Column(scale=2, min_width=300):
                temperature_box = gr.Slider(
                    0, max(2, temperature), temperature, step=0.05, label="Temperature (0 is greedy)"
                )
                tokens_box = gr.Slider(
                    8, max(2048, max_new_tokens), max_new_tokens, step=8, label="New tokens, at most"
                )
                with gr.Row():
                    compare = gr.Checkbox(True, label="Compare with plain generate", scale=2, min_width=190)
                    seed_box = gr.Number(seed, precision=0, label="Seed", scale=1, min_width=90)
        verdict = gr.HTML(elem_id="verdict")
        with gr.Row(equal_height=True):
            with gr.Column(min_width=300):
                answer_box = gr.HTML(drafted_panel(None), js_on_load=_CHOOSE, elem_id="drafted")
            with gr.Column(min_width=300):
                plain_box = gr.HTML(plain_panel(None), elem_id="plain")
        with gr.Column(visible=False) as tree_part:
            slider = gr.Slider(1, 2, 1, step=1, label="Tree of step", elem_id="step", interactive=True)
            tree_box = gr.HTML(elem_id="tree")
        shown = gr.State()  # the steps of the answer

        def ask(text: str, temperature: float, limit: int, seed: int | None, both: bool, request: gr.Request):
            """First with the drafter, then plain: one after the other, as each would slow the other down."""
            if not text.strip():
                gr.Warning("Write a question first.")
                return
            settings = {"temperature": temperature, "max_new_tokens": limit, "seed": seed or 0}

            def write(drafted: bool) -> Iterator[Answer]:
                answer = pair.answer([{"role": "user", "content": text}], drafted, **settings)
                running[request.session_hash] = answer
                drawn = 0.0
                for _ in answer:
                    if time.perf_counter() - drawn > _SECONDS_PER_FRAME:
                        yield answer
                        drawn = time.perf_counter()
                yield answer

            def buttons(busy: bool) -> dict[Any, Any]:
                return {ask_button: gr.Button(visible=not busy), stop_button: gr.Button(visible=busy)}

            try:
                yield {
                    **buttons(busy=True),
                    verdict: "",
                    shown: None,
                    tree_part: gr.Column(visible=False),
                    answer_box: drafted_panel(None),
                    plain_box: plain_panel(None, "Its turn is next." if both else "Not asked for."),
                }
                for answer in write(drafted=True):
                    yield {answer_box: drafted_panel(answer)}
                if num_steps := len(answer.accept_lengths):
                    best = 1 + max(range(num_steps), key=answer.accept_lengths.__getitem__)
                    yield {
                        shown: answer,
                        tree_part: gr.Column(visible=True),
                        slider: gr.Slider(maximum=max(2, num_steps), value=best),
                        **choose(answer, best),
                    }
                if both and answer.stopped:
                    yield {plain_box: plain_panel(None, "Stopped before its turn.")}
                elif both:
                    for plain in write(drafted=False):
                        yield {plain_box: plain_panel(plain)}
                    if not plain.stopped:
                        yield {verdict: verdict_html(answer, plain)}
                yield buttons(busy=False)
            except Exception as error:
                yield buttons(busy=False)
                if isinstance(error, (ValueError, NotImplementedError)):  # what was asked for cannot be done
                    raise gr.Error(str(error), print_exception=False) from error
                raise
            finally:
                running.pop(request.session_hash, None)

        def stop(request: gr.Request) -> None:
            if request.session_hash in running:
                running[request.session_hash].stop()

        def choose(answer: Answer | None, step: int) -> dict[Any, Any]:
            if answer is None or not 0 < step <= len(answer.accept_lengths):
                return {}
            return {
                tree_box: tree_html(answer.steps[step], pair.tokenizer),
                answer_box: drafted_panel(answer, chosen=step),
            }

        def choose_clicked(answer: Answer | None, event: gr.EventData) -> dict[Any, Any]:
            drawn = choose(answer, event.step)
            return {**drawn, slider: event.step} if drawn else {}

        gr.on(
            [ask_button.click, prompt.submit],
            ask,
            [prompt, temperature_box, tokens_box, seed_box, compare],
            [ask_button, stop_button, verdict, answer_box, plain_box, tree_part, slider, tree_box, shown],
            show_progress="hidden",
            concurrency_limit=1,  # further users queue
        )
        stop_button.click(stop, queue=False)
        slider.input(choose, [shown, slider], [tree_box, answer_box], show_progress="hidden", queue=False)
        answer_box.select(choose_clicked, [shown], [tree_box, answer_box, slider], show_progress="hidden", queue=False)
    return page


def launch(page: "Blocks", host: str = "127.0.0.1", port: int | None = None) -> str:
    """
    Serves a page of [`build_page`] in a thread, until `page.close()`: nothing is shared, nothing comes from elsewhere.

    Returns:
        Its address.
    """
    gr = _gradio()
    theme = gr.themes.Default(
        primary_hue="green", neutral_hue="slate", font=("system-ui", "sans-serif"), font_mono=("monospace",)
    )
    theme.set(  # green on which white can be read
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        footer_links=[],
        theme=theme,
        css=CSS,
        prevent_thread_lock=True,
        quiet=True,
    )
    return address


def run_ui(
    target: str | None = None,
    draft: str | None = None,
    dtype: str | None = None,
    temperature: float | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> None:
    """
    The `jakiro ui` command: serves the page until it is stopped.

    Args:
        target, draft, dtype: of [`~transformers_jakiro.apps.answering.Pair.load`].
        temperature, max_new_tokens, seed: what the page's controls begin with.
        host, port: where to listen; default: on this machine alone, 7860 or the next free port.

    Raises:
        ValueError: if only one of `target` and `draft` is given, or the two do not fit.
        OSError: without Gradio, or where the port is taken.
    """
    _gradio()  # before models are loaded
    page = build_page(Pair.load(target, draft, dtype), temperature, max_new_tokens, seed)
    print(f"Open {launch(page, host, port)} in a browser. Ctrl-C stops the server.", flush=True)
    page.block_thread()


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise OSError("`jakiro ui` takes Gradio: `pip install 'transformers-jakiro[ui]'`.") from error
    return gradio


__all__ = ["answer_html", "build_page", "launch", "panel_html", "run_ui", "tree_html", "verdict_html"]
