# SPDX-License-Identifier: GPL-2.0-only
"""Settings of the property tests: the first example also compiles the code under test."""

from hypothesis import settings

from .harness import SANITIZE

settings.register_profile("dma", deadline=None, max_examples=60 if SANITIZE == "undefined" else 20)
settings.load_profile("dma")
