# SPDX-License-Identifier: GPL-2.0-only
"""Ways to replace a kernel under a guest."""
