# SPDX-License-Identifier: GPL-2.0-only
"""The live update: plan, quiesce, hand over, resume; its timeline and its report."""
