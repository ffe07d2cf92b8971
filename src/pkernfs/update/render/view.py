# SPDX-License-Identifier: GPL-2.0-only
"""What of a report is shown, whichever version wrote it.

Members that were added to "pkernfs-report/1" later may be missing, and the demonstration's
reports have more: what the lab saw of devices from outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pkernfs.errors import PkernfsError

#: Phases of a guest, in the order of time; as they are called in reports.
GUEST_PHASES = ("pause", "save", "start", "load state", "run")


@dataclass(frozen=True)
class Span:
    """A phase, in seconds since the update began."""

    name: str
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


def _spans(values: list[Mapping[str, Any]]) -> tuple[Span, ...]:
    return tuple(
        Span(str(value["name"]), float(value["start_s"]), float(value["end_s"])) for value in values
    )


def _optional(value: float | None) -> float | None:
    return float(value) if value is not None else None


@dataclass(frozen=True)
class GuestView:
    """A guest in the report.

    :ivar stopped_s: when it executed its last instruction; None: not known, or never.
    :ivar running_s: when it executed its next.
    :ivar error: why it does not run.
    :ivar emulated: by QEMU, without KVM.
    """

    name: str
    ram_bytes: int
    emulated: bool
    state_bytes: int | None
    survived: bool
    error: str
    blackout_s: float | None
    stopped_s: float | None
    running_s: float | None
    phases: tuple[Span, ...]

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """A member of ``vms``."""
        size = value.get("state_bytes")
        return cls(
            name=str(value["name"]),
            ram_bytes=int(value["ram_bytes"]),
            emulated=value.get("accelerator") == "tcg",
            state_bytes=int(size) if size is not None else None,
            survived=bool(value["survived"]),
            error=str(value.get("error") or ""),
            blackout_s=_optional(value.get("blackout_s")),
            stopped_s=_optional(value.get("stopped_s")),
            running_s=_optional(value.get("running_s")),
            phases=_spans(value.get("phases", [])),
        )

    def seconds(self, phase: str) -> float | None:
        """How long it was in a phase, all attempts together; None when it never was."""
        found = [span.seconds for span in self.phases if span.name == phase]
        return sum(found) if found else None


@dataclass(frozen=True)
class DeviceView:
    """A device that was handed over, or cut off.

    :ivar good: did it go through the update?
    :ivar text: what is known of it.
    """

    bdf: str
    model: str
    good: bool
    text: str


def _device(value: Mapping[str, Any]) -> DeviceView:
    bdf, model = str(value["bdf"]), str(value.get("model", ""))
    if "frames_sent" in value:  # seen from outside, in the lab
        sent, landed = int(value["frames_sent"]), int(value["frames_landed"])
        without = int(value["frames_landed_without_kernel"])
        text = f"{landed} of {sent} frames landed, {without} of them while no kernel ran"
        return DeviceView(bdf, model, sent == landed and not value.get("problems"), text)
    state = str(value.get("state", "?"))
    text = {"inherited": "inherited, not adopted yet"}.get(state, state)
    if value.get("adopted"):
        text = f"adopted, switched in {float(value['switch_us']):.0f} us"
    return DeviceView(bdf, model, state != "cut-off", str(value.get("reason") or text))


def _cut_off(value: Mapping[str, Any]) -> DeviceView:
    landed = bool(value.get("dma_landed"))
    text = "not preserved, and NOT cut off" if landed else "not preserved: cut off"
    return DeviceView(str(value["bdf"]), str(value.get("model", "")), not landed, text)


@dataclass(frozen=True)
class ReportView:
    """A whole report.

    :ivar kernel_planned: the kernel that was to be started; empty in older reports.
    :ivar cut_off: devices that were not preserved and that the lab watched.
    :ivar exact_to_s: how exact times over the whole update are, seconds.
    """

    update: str
    outcome: str
    text: str
    kernel_before: str
    kernel_after: str
    kernel_planned: str
    store: str | None
    phases: tuple[Span, ...]
    guests: tuple[GuestView, ...]
    devices: tuple[DeviceView, ...]
    cut_off: tuple[DeviceView, ...]
    clock: str
    exact_to_s: float

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Self:
        """What is shown of a report.

        :param report: of schema "pkernfs-report/1".
        :raises PkernfsError: something in it is not as that says.
        """
        try:
            return cls(
                update=str(report["update"]),
                outcome=str(report["outcome"]),
                text=str(report.get("text") or ""),
                kernel_before=str(report["host"]["kernel_before"]),
                kernel_after=str(report["host"]["kernel_after"]),
                kernel_planned=str(report.get("kernel_planned") or ""),
                store=report.get("store"),
                phases=_spans(report["phases"]),
                guests=tuple(GuestView.of(value) for value in report["vms"]),
                devices=tuple(_device(value) for value in report.get("devices", [])),
                cut_off=tuple(_cut_off(value) for value in report.get("cut_off", [])),
                clock=str(report["clock"]["meaning"]),
                exact_to_s=float(report["clock"]["exact_to_s"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PkernfsError(
                f"the report can't be shown: {error!r}", "pkernfs report --json prints it as it is"
            ) from error

    @property
    def kernels(self) -> str:
        """From which kernel to which."""
        if self.outcome == "not finished" and self.kernel_planned:
            return f"{self.kernel_before} -> {self.kernel_planned}, which has not reported yet"
        if self.kernel_before == self.kernel_after:
            return f"{self.kernel_before}, which was not replaced"
        return f"{self.kernel_before} -> {self.kernel_after}"

    @property
    def end_s(self) -> float:
        """When the last thing happened, seconds since the update began."""
        times = [span.end_s for span in self.phases]
        for guest in self.guests:
            times += [span.end_s for span in guest.phases]
            times += [time for time in (guest.stopped_s, guest.running_s) if time is not None]
        return max(times, default=0.0)
