# SPDX-License-Identifier: GPL-2.0-only
"""The comparison with what people use today: ``make bench``."""
