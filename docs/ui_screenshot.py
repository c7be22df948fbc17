# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Takes `docs/ui.png`: asks `jakiro ui` a question in a headless Chromium.

```bash
python docs/ui_screenshot.py
```
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from transformers_jakiro.apps.answering import Pair
from transformers_jakiro.apps.ui import build_page, launch


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of `jakiro ui`.")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("ui.png"), metavar="PNG", help="file (docs/ui.png)"
    )
    parser.add_argument(
        "--browser",
        default=shutil.which("chromium"),
        metavar="PATH",
        help="Chromium to use (the one on the path, else Playwright's)",
    )
    parser.add_argument("--scheme", choices=("light", "dark"), default="light", help="colours of the page (light)")
    parser.add_argument("--width", type=int, default=1120, metavar="N", help="width of the picture in pixels (1120)")
    args = parser.parse_args()

    page = build_page(Pair.load())
    address = launch(page)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=args.browser, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": args.width, "height": 600}, color_scheme=args.scheme)
        view.goto(address)
        view.click("#ask")
        view.wait_for_selector("#verdict b")
        view.mouse.move(0, 0)
        view.screenshot(path=args.output, full_page=True)
        browser.close()
    page.close(verbose=False)
    print(f"Saved {args.output}")


if __name__ == "__main__":
    main()
