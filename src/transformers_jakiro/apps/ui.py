# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
`jakiro ui`: a page that shows an answer being written, what was drafted in it, the tree of every step, and the same
answer from plain `generate`.
"""

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from .. import pair as shipped_pair
from .answering import Answer, Pair
from .ui_html import panel_html, verdict_html
from .ui_tree import tree_html

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("`jakiro ui` needs Gradio: `pip install 'transformers-jakiro[ui]'`.") from error

CSS = Path(__file__).with_name("ui.css").read_text(encoding="utf-8")
SECONDS_PER_FRAME = 0.2  # drawing more often would take time from the generation
# a click on a step of the answer chooses its tree
CHOOSE_ON_CLICK = """
element.addEventListener("click", event => {
  const step = event.target.closest("[data-step]");
  if (step) trigger("select", {step: Number(step.dataset.step)});
});
"""

Updates = dict[Any, Any]  # new values of components


class _Page:
    """
    The components of the page, and what happens when they are used.

    Args:
        pair, temperature, max_new_tokens, seed: see [`build_page`].
    """

    def __init__(self, pair: Pair, temperature: float, max_new_tokens: int, seed: int):
        self._pair = pair
        self._running: dict[str, Answer] = {}  # by the browser's session
        with gr.Blocks(title="Jakiro", analytics_enabled=False) as self.blocks, gr.Column(elem_id="app"):
            gr.HTML(
                f'<h1>Jakiro</h1><p class="lead quiet">{escape(pair.names[0])} with {escape(pair.names[1])}: '
                "the target's own text, in fewer forwards.</p>"
            )
            with gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=300):
                    self._add_question(examples=pair.target.config.name_or_path == str(shipped_pair.TARGET))
                with gr.Column(scale=2, min_width=300):
                    self._add_settings(temperature, max_new_tokens, seed)
            self._add_answers()
            self._connect()

    # -- components

    def _add_question(self, examples: bool) -> None:
        self._question = gr.Textbox(
            label="Question",
            value=shipped_pair.prompts()[1] if examples else "",
            placeholder="What should the target answer?",
            max_lines=12,
        )
        self._ask_button = gr.Button("Ask", variant="primary", elem_id="ask")
        self._stop_button = gr.Button("Stop", variant="stop", elem_id="stop", visible=False)
        if examples:
            gr.Examples(shipped_pair.prompts()[1:4], self._question, label="Held-out questions")

    def _add_settings(self, temperature: float, max_new_tokens: int, seed: int) -> None:
        self._temperature = gr.Slider(
            0, max(2, temperature), temperature, step=0.05, label="Temperature (0 is greedy)"
        )
        self._max_new_tokens = gr.Slider(
            8, max(2048, max_new_tokens), max_new_tokens, step=8, label="New tokens, at most"
        )
        with gr.Row():
            self._compare = gr.Checkbox(True, label="Compare with plain generate", scale=2, min_width=190)
            self._seed = gr.Number(seed, precision=0, label="Seed", scale=1, min_width=90)

    def _add_answers(self) -> None:
        self._verdict = gr.HTML(elem_id="verdict")
        with gr.Row(equal_height=True):
            with gr.Column(min_width=300):
                self._drafted = gr.HTML(_drafted_html(None), js_on_load=CHOOSE_ON_CLICK, elem_id="drafted")
            with gr.Column(min_width=300):
                self._plain = gr.HTML(_plain_html(None), elem_id="plain")
        with gr.Column(visible=False) as self._tree_part:
            self._step = gr.Slider(1, 2, 1, step=1, label="Tree of step", elem_id="step", interactive=True)
            self._tree = gr.HTML(elem_id="tree")
        self._shown = gr.State()  # the drafted answer

    def _connect(self) -> None:
        gr.on(
            [self._ask_button.click, self._question.submit],
            self.ask,
            [self._question, self._temperature, self._max_new_tokens, self._seed, self._compare],
            [
                self._ask_button,
                self._stop_button,
                self._verdict,
                self._drafted,
                self._plain,
                self._tree_part,
                self._step,
                self._tree,
                self._shown,
            ],
            show_progress="hidden",
            concurrency_limit=1,  # other users queue
        )
        self._stop_button.click(self.stop, queue=False)
        tree = [self._tree, self._drafted]
        self._step.input(self.choose, [self._shown, self._step], tree, show_progress="hidden", queue=False)
        self._drafted.select(
            self.choose_clicked, [self._shown], [*tree, self._step], show_progress="hidden", queue=False
        )

    # -- events

    def ask(
        self, text: str, temperature: float, limit: int, seed: int | None, both: bool, request: gr.Request
    ) -> Iterator[Updates]:
        """Answers a question, and shows the answer as it is written."""
        if not text.strip():
            gr.Warning("Write a question first.")
            return
        settings = {"temperature": temperature, "max_new_tokens": limit, "seed": seed or 0}
        session = str(request.session_hash)
        try:
            yield from self._answers(text, settings, both, session)
        except (ValueError, NotImplementedError) as error:  # the request cannot be fulfilled
            yield self._buttons(busy=False)
            raise gr.Error(str(error), print_exception=False) from error
        except Exception:
            yield self._buttons(busy=False)
            raise
        finally:
            self._running.pop(session, None)

    def _answers(self, text: str, settings: dict[str, Any], both: bool, session: str) -> Iterator[Updates]:
        """The drafted answer, then the plain one: at the same time, each would slow the other down."""
        yield {
            **self._buttons(busy=True),
            self._verdict: "",
            self._shown: None,
            self._tree_part: gr.Column(visible=False),
            self._drafted: _drafted_html(None),
            self._plain: _plain_html(None, "Its turn is next." if both else "Not asked for."),
        }
        messages = [{"role": "user", "content": text}]
        drafted = self._pair.answer(messages, drafted=True, **settings)
        for _ in self._frames(drafted, session):
            yield {self._drafted: _drafted_html(drafted)}
        if num_steps := len(drafted.accept_lengths):
            best = 1 + max(range(num_steps), key=drafted.accept_lengths.__getitem__)
            yield {
                self._shown: drafted,
                self._tree_part: gr.Column(visible=True),
                self._step: gr.Slider(maximum=max(2, num_steps), value=best),
                **self.choose(drafted, best),
            }
        if both and drafted.stopped:
            yield {self._plain: _plain_html(None, "Stopped before its turn.")}
        elif both:
            plain = self._pair.answer(messages, drafted=False, **settings)
            for _ in self._frames(plain, session):
                yield {self._plain: _plain_html(plain)}
            if not plain.stopped:
                yield {self._verdict: verdict_html(drafted, plain)}
        yield self._buttons(busy=False)

    def _frames(self, answer: Answer, session: str) -> Iterator[None]:
        """Lets an answer be written, and yields when it should be drawn."""
        self._running[session] = answer
        drawn = 0.0
        for _ in answer:
            if time.perf_counter() - drawn > SECONDS_PER_FRAME:
                yield
                drawn = time.perf_counter()
        yield

    def _buttons(self, busy: bool) -> Updates:
        return {self._ask_button: gr.Button(visible=not busy), self._stop_button: gr.Button(visible=busy)}

    def stop(self, request: gr.Request) -> None:
        """Ends the answer that is being written."""
        answer = self._running.get(str(request.session_hash))
        if answer is not None:
            answer.stop()

    def choose(self, answer: Answer | None, step: int) -> Updates:
        """Shows the tree of a step."""
        if answer is None or not 0 < step <= len(answer.accept_lengths):
            return {}
        return {
            self._tree: tree_html(answer.steps[step], self._pair.tokenizer),
            self._drafted: _drafted_html(answer, chosen=step),
        }

    def choose_clicked(self, answer: Answer | None, event: gr.EventData) -> Updates:
        """Shows the tree of the step that was clicked."""
        step: int = event.step
        drawn = self.choose(answer, step)
        return {**drawn, self._step: step} if drawn else {}


def _drafted_html(answer: Answer | None, chosen: int | None = None) -> str:
    return panel_html("With the drafter", answer, chosen, "Accepted drafts will be green here.")


def _plain_html(answer: Answer | None, waiting: str = "") -> str:
    return panel_html("Plain generate", answer, waiting=waiting)


def build_page(pair: Pair, temperature: float | None = None, max_new_tokens: int = 256, seed: int = 0) -> gr.Blocks:
    """
    Builds the page.

    Args:
        pair ([`~transformers_jakiro.apps.answering.Pair`]): the models.
        temperature, max_new_tokens, seed: first values of the controls. The default of `temperature` comes from the
            target's generation config.

    Returns:
        The page, for [`launch`].
    """
    if temperature is None:
        config = pair.target.generation_config
        temperature = (config.temperature or 1.0) if config.do_sample else 0.0
    return _Page(pair, temperature, max_new_tokens, seed).blocks


def launch(page: gr.Blocks, host: str = "127.0.0.1", port: int | None = None) -> str:
    """
    Serves a page in a thread, until `page.close()`. Nothing is shared with or loaded from other machines.

    Args:
        page: one of [`build_page`].
        host, port: the address to listen on; default: on this machine only, 7860 or the next free port.

    Returns:
        The address of the page.

    Raises:
        OSError: if the port is taken.
    """
    theme = gr.themes.Default(
        primary_hue="green", neutral_hue="slate", font=("system-ui", "sans-serif"), font_mono=("monospace",)
    )
    theme.set(  # a green that white text can be read on
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
        target, draft, dtype: see [`~transformers_jakiro.apps.answering.Pair.load`].
        temperature, max_new_tokens, seed: see [`build_page`].
        host, port: see [`launch`].

    Raises:
        ValueError: if only one of `target` and `draft` is given, or the two do not fit together.
        OSError: if the port is taken.
    """
    page = build_page(Pair.load(target, draft, dtype), temperature, max_new_tokens, seed)
    print(f"Open {launch(page, host, port)} in a browser. Ctrl-C stops the server.", flush=True)
    page.block_thread()


__all__ = ["build_page", "launch", "run_ui"]
