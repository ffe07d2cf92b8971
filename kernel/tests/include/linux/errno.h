/* SPDX-License-Identifier: GPL-2.0-only */
#pragma once
#include_next <linux/errno.h>
#ifndef PKERNFS_SHIM_SYSTEM	/* not when the C library's own headers ask */
#include "../shim.h"
#endif
