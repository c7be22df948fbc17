# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
The drafter and the decoding loop: everything that is published with a drafter as remote code. These files lie side by
side and import nothing else of the package.
"""
