/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What can't be preserved, and why: the only list. refuse.c has a function for each name,
 * the first that applies is told. Python reads this file for docs/handover.md: a line
 * per string, and nothing but these.
 *
 * DMA_REFUSAL(name, what it is: "it ...", why, or what to do)
 */
DMA_REFUSAL(no_iommu,
	    "is behind no IOMMU",
	    "boot with intel_iommu=on")
DMA_REFUSAL(no_vtd,
	    "is behind no VT-d IOMMU",
	    "others are not supported")
DMA_REFUSAL(is_bridge,
	    "is a bridge",
	    "it belongs to the host")
DMA_REFUSAL(is_virtual_function,
	    "is a virtual function",
	    "the next kernel takes them all away when it looks for devices")
DMA_REFUSAL(has_virtual_functions,
	    "runs virtual functions",
	    "the next kernel takes them all away when it looks for devices")
DMA_REFUSAL(shares_group,
	    "shares its IOMMU group with other devices",
	    "they can reach it, and are not preserved")
DMA_REFUSAL(has_alias,
	    "does DMA under the name of a bridge",
	    "others behind that bridge do as well")
DMA_REFUSAL(has_ats,
	    "can keep translations of its own (ATS)",
	    "boot with pci=noats")
DMA_REFUSAL(needs_firmware_memory,
	    "needs memory that firmware uses (RMRR)",
	    "nobody but the kernel may have it")
DMA_REFUSAL(is_usb_controller,
	    "is a USB controller",
	    "the next kernel stops them all when it looks for devices")
DMA_REFUSAL(is_connectx4,
	    "is a ConnectX-4",
	    "the next kernel switches it off when it looks for devices")
