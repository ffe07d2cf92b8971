# SPDX-License-Identifier: GPL-2.0-only
"""How many damaged images each of the long comparisons looks at: ``PKERNFS_FUZZ_IMAGES``.

In ``make test`` so many that each takes a minute or two; a million is a night's work.
"""

from __future__ import annotations

import os

IMAGES = int(os.environ.get("PKERNFS_FUZZ_IMAGES", "50000"))
