# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""What several test files share. Test files import from here, never from one another or from conftest.py."""

import pytest

# their assertions report values, as those of test files do
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in ("comparing", "processes", "trees")))
