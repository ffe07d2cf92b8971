# SPDX-License-Identifier: GPL-2.0-only
"""User-space VFIO: a PCI device driven from Python, and two drivers written on it.

Order of the parts, each a context manager::

    with bound(bdf), Container() as container, Group.of(bdf) as group:
        group.join(container)                  # set_container, then set_iommu once
        with container.map(memory, iova), group.open_device(bdf) as device:
            ...

``uapi`` is the one module of constants and structs of the kernel's interface.
Nothing here resets or quiesces a device unless asked: a driver that adopts a running
device relies on it.
"""
