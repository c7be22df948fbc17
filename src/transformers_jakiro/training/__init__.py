# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""Training a drafter: data, losses, the Trainer and the `jakiro train` command."""
