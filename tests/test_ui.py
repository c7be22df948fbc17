# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""`jakiro ui` in a browser, and its drawings of hand-made trees."""

import socket
import sys
import time
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from jakiro_cli import main
from transformers_jakiro.apps.answering import Answer, Pair, Step
from transformers_jakiro.apps.ui_html import answer_html, panel_html, verdict_html
from transformers_jakiro.apps.ui_tree import tree_html
from transformers_jakiro.core.tree import DraftTree
from transformers_jakiro.pair import prompts

QUESTION = prompts()[1]


@pytest.fixture(scope="module")
def pair():
    return Pair.load()


def plain_text(pair, question=QUESTION, **settings):
    answer = pair.answer([{"role": "user", "content": question}], drafted=False, **settings)
    for _ in answer:
        pass
    return answer.text


# -- drawing ---------------------------------------------------------------------------------------------------------


class _Letters:
    """A tokenizer whose token 0 is a, 1 is b, and so on."""

    def decode(self, tokens):
        return "".join(chr(ord("a") + token) for token in tokens)


#  a ── b ── d
#   └── c ── e
TREE = DraftTree(torch.tensor([[0, 1, 2, 3, 4]]), torch.tensor([[0, 0, 0, 1, 2]]), max_depth=2)


def drawn(step):
    """Labels of the nodes by kind, and the number of edges by kind."""
    html = tree_html(step, _Letters())
    svg = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    nodes = [(group.get("class"), group.find("text").text) for group in svg.findall("g")]
    return nodes, [path.get("class") for path in svg.findall("path")], svg.get("aria-label")


def test_a_tree_is_drawn_with_its_accepted_path():
    nodes, edges, name = drawn(Step([2, 9], [], TREE, [0, 2], 1.0))
    kinds = ["root", "rejected", "accepted", "rejected", "rejected", "own"]
    assert nodes == list(zip(kinds, "abcdej", strict=True))
    assert sorted(edges) == ["accepted", "own", "rejected", "rejected", "rejected"]
    assert name == "4 tokens drafted, 1 accepted: a → c → j"


def test_an_end_that_was_drafted_is_drawn_once():
    nodes, _, name = drawn(Step([2, 4], [], TREE, [0, 2], 1.0))
    assert nodes == list(zip(["root", "rejected", "accepted", "rejected", "own"], "abcde", strict=True))
    assert name.endswith("a → c → e")


def test_a_tree_without_drafts():
    nodes, edges, _ = drawn(Step([7], [], DraftTree.root_only(torch.tensor([3])), [0], 1.0))
    assert nodes == [("root", "d"), ("own", "h")]
    assert edges == ["own"]


def test_nodes_do_not_overlap(pair):
    answer = pair.answer([{"role": "user", "content": QUESTION}], max_new_tokens=60)
    for step in answer:
        if step.tree is None:
            continue
        html = tree_html(step, pair.tokenizer)
        svg = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
        boxes = [[float(rect.get(name)) for name in ("x", "y", "width", "height")] for rect in svg.iter("rect")]
        assert len(boxes) >= step.tree.num_nodes
        for index, (x, y, width, height) in enumerate(boxes):
            assert 0 <= x <= x + width <= float(svg.get("width"))
            assert 0 <= y <= y + height <= float(svg.get("height"))
            for other_x, other_y, other_width, other_height in boxes[:index]:
                apart = other_x >= x + width or x >= other_x + other_width
                assert apart or other_y >= y + height or y >= other_y + other_height


def answer_of(*steps):
    answer = Answer(lambda on_step, stop: [on_step(step) for step in steps], max_new_tokens=100)
    for _ in answer:
        pass
    return answer


def test_texts_are_escaped_and_steps_can_be_chosen():
    steps = [Step([1], [("<b>", False)], None, [], 0.5), Step([2, 3], [("x&", True), ("y", False)], TREE, [0, 2], 1.0)]
    assert answer_html(steps, chosen=1) == (
        '<span>&lt;b&gt;</span><span class="step chosen" data-step="1" title="step 1"><mark>x&amp;</mark>y</span>'
    )
    panel = panel_html("Drafted & more", answer_of(*steps))
    for text in ("Drafted &amp; more", "<b>3.0</b>tokens/s", "<b>2.00</b>tokens per forward", "<b>3</b>tokens in 1.0"):
        assert text in panel


def test_verdict():
    def answer(tokens, seconds):
        return answer_of(*(Step([token], [], None, [], seconds) for token in tokens))

    assert "<b>2.00 times</b> the speed of plain generate, the same text" in verdict_html(
        answer([1, 2, 3], 1.0), answer([1, 2, 3], 2.0)
    )
    assert "other tokens from token 2 on" in verdict_html(answer([1, 2, 3], 1.0), answer([1, 5], 2.0))
    assert "other tokens from token 3 on" in verdict_html(answer([1, 2, 3], 1.0), answer([1, 2], 2.0))


# -- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def connections():
    """Addresses of other machines that the server looked up or connected to."""
    seen, local = [], {"127.0.0.1", "localhost", "::1", "0.0.0.0"}
    patch = pytest.MonkeyPatch()
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def watched_connect(self, address):
        if isinstance(address, tuple) and address[0] not in local:
            seen.append(address)
        return connect(self, address)

    def watched_look_up(host, *args, **kwargs):
        if host not in local:
            seen.append(host)
        return look_up(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", watched_connect)
    patch.setattr(socket, "getaddrinfo", watched_look_up)
    yield seen
    patch.undo()


@pytest.fixture(scope="module")
def address(pair, browser, connections):
    pytest.importorskip("gradio", reason="needs Gradio (`pip install 'transformers-jakiro[ui]'`)")
    from transformers_jakiro.apps.ui import build_page, launch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build_page(pair, max_new_tokens=200)
    yield launch(page, port=port)
    page.close(verbose=False)


@pytest.fixture
def page(browser, address):
    """Function: the page in a new window. It may load nothing from elsewhere and print no warning to the console."""
    problems, contexts = [], []

    def load(**options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith(address) or problems.append(request.url))
        page.goto(address)
        page.wait_for_selector("#ask")
        return page

    yield load
    for context in contexts:
        context.close()
    assert problems == []


def ask(page, question=QUESTION):
    page.get_by_label("Question").fill(question)
    page.click("#ask")


@pytest.mark.compat
def test_answer_comparison_and_tree(page, pair, connections):
    page = page()
    ask(page)
    page.wait_for_selector("#verdict b")
    expected = plain_text(pair, max_new_tokens=200)
    for name in ("#drafted", "#plain"):
        assert page.text_content(f"{name} .answer") == expected
    assert page.locator("#drafted mark").count() > 3
    assert page.locator("#plain mark").count() == 0
    assert "the same text, token for token" in page.text_content("#verdict")
    assert page.locator("#drafted .figure b").nth(1).text_content() > "1.00"
    assert page.locator("#plain .figure b").nth(1).text_content() == "1.00"

    # the tree of the step that accepted most is shown; a click or the keyboard chooses another
    chosen = page.locator("#drafted .chosen")
    assert page.locator("#tree .accepted rect").count() >= 4
    assert int(chosen.get_attribute("data-step")) == int(page.locator("#step input[type=number]").input_value())
    page.locator("#drafted [data-step='1']").click()
    page.wait_for_selector("#drafted .chosen[data-step='1']")
    assert page.locator("#step input[type=number]").input_value() == "1"
    first = page.locator("#tree svg").get_attribute("aria-label")
    page.locator("#step input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#drafted .chosen[data-step='2']")
    page.wait_for_function("before => document.querySelector('#tree svg').ariaLabel !== before", arg=first)
    assert connections == []


@pytest.fixture
def forwards(pair, monkeypatch):
    """Times of the target's forwards. Each answer has 900 tokens, which take more than 110 forwards."""
    monkeypatch.setattr(pair.target.generation_config, "min_new_tokens", 900)
    times = []
    handle = pair.target.register_forward_hook(lambda *_: times.append(time.monotonic()))
    yield times
    handle.remove()


def ask_for_long(page):
    page.get_by_label("New tokens, at most").first.fill("1000")
    page.keyboard.press("Tab")
    ask(page, "Tell me a very long story.")
    page.wait_for_selector("#drafted mark")


def test_stop_really_stops(page, forwards):
    page = page()
    ask_for_long(page)
    page.click("#stop")
    page.wait_for_selector("#ask")
    stopped_at = len(forwards)
    assert "(stopped)" in page.text_content("#drafted .figures")
    assert page.text_content("#plain .answer") == "Stopped before its turn."
    assert page.text_content("#verdict").strip() == ""
    assert page.locator("#tree .accepted rect").count() > 0
    time.sleep(0.5)
    assert len(forwards) == stopped_at < 100


def test_closing_the_page_stops_the_answer(page, forwards):
    page = page()
    ask_for_long(page)
    page.close()
    deadline = time.monotonic() + 20
    while time.monotonic() - forwards[-1] < 0.5:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(forwards) < 100


def test_messages(page, pair):
    page = page()
    ask(page, "   ")
    page.get_by_text("Write a question first.").wait_for()
    ask(page, "3 " * pair.target.config.max_position_embeddings)
    page.get_by_text("the target reads at most 1024").wait_for()
    page.wait_for_selector("#ask")
    assert page.locator("#stop").count() == 0
    ask(page)
    page.wait_for_selector("#verdict b")


def test_several_users_queue(page, pair):
    first, second = page(), page()
    other = prompts()[4]
    ask(first)
    ask(second, other)
    second.wait_for_selector("#verdict b")
    first.wait_for_selector("#verdict b")
    assert first.text_content("#drafted .answer") == plain_text(pair, max_new_tokens=200)
    assert second.text_content("#drafted .answer") == plain_text(pair, other, max_new_tokens=200)


def contrast(page, selector):
    """WCAG's contrast of a text with the nearest background that is not transparent. Text is readable from 4.5 on."""
    foreground, background = page.evaluate(
        """selector => {
            const element = document.querySelector(selector)
            let behind = element
            while (behind && getComputedStyle(behind).backgroundColor.endsWith(", 0)")) behind = behind.parentElement
            const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true})
            return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(colour => {
                canvas.fillStyle = colour
                canvas.fillRect(0, 0, 1, 1)
                return [...canvas.getImageData(0, 0, 1, 1).data]
            })
        }""",
        selector,
    )

    def luminance(colour):
        linear = [(c / 255 / 12.92) if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(foreground), luminance(background)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone(page, scheme):
    page = page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    ask(page)
    page.wait_for_selector("#verdict b")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for selector in (
        "#ask",
        "#drafted mark",
        "#drafted .step",
        "#drafted .figure",
        "#verdict b",
        "#app .lead",
        "#tree .key",
    ):
        assert contrast(page, selector) >= 4.5, selector


def test_keyboard_alone(page):
    page = page()
    page.get_by_label("Question").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector("#verdict b")
    assert page.locator("#drafted mark").count() > 3


def test_a_port_that_is_taken(capsys):
    pytest.importorskip("gradio", reason="needs Gradio (`pip install 'transformers-jakiro[ui]'`)")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 1
    assert f"Cannot find empty port in range: {port}-{port}" in capsys.readouterr().err


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "transformers_jakiro.apps.ui", raising=False)
    assert main(["ui"]) == 1
    assert capsys.readouterr().err == (
        "jakiro: error: `jakiro ui` needs Gradio: `pip install 'transformers-jakiro[ui]'`.\n"
    )
