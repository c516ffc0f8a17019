"""Peak rates of devices, as their makers state them. No source, no row; no figure, no roof.

The figures are advertised ones: two "operations" make a multiply-accumulate, and the element type is noted where it is
said. A rate for 8-bit integers can be twice that for half precision, so a device's roof for another type may be lower:
what follows from the stated one stays a lower bound of the time. Where the maker's own page could not be read, the
source is a report of the announcement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UsageError

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Source:
    """Where a figure is from, and what is said there, in its words."""

    url: str
    says: str


@dataclass(frozen=True)
class Device:
    """What one unit of a chip can do at most.

    Attributes:
        name: how it is asked for.
        what: the unit, and where it is built in.
        ops: operations per second, two per multiply-accumulate; None where none is stated.
        bandwidth: bytes per second to and from memory, of all units of the chip together; None where none is stated.
        element: the type that `ops` is stated for; "" where that is not said.
        sources: for each figure, at least one.
    """

    name: str
    what: str
    ops: float | None
    bandwidth: float | None
    element: str
    sources: tuple[Source, ...]


def _table(rows: Iterable[Device]) -> dict[str, Device]:
    return {row.name: row for row in rows}


DEVICES = _table([
    Device("a14", "Apple A14 Neural Engine: iPhone 12", 11 * TERA, None, "", (
        Source("https://pocketnow.com/apple-a15-bionic-chip-5nm",
               "15.8 trillion operations per second, as opposed to 11 trillion on the A14 Bionic"),
    )),
    Device("a15", "Apple A15 Neural Engine: iPhone 13, iPhone 14", 15.8 * TERA, None, "float16", (
        Source("https://machinelearning.apple.com/research/neural-engine-transformers",
               "0.6 teraflops in half-precision (the first generation) … Fast-forward to 2021, and the "
               "fifth-generation of the 16-core ANE is capable of 26 times the processing power, or 15.8 TFlops"),
        Source("https://pocketnow.com/apple-a15-bionic-chip-5nm", "A15: 16-core, 15.8 trillion operations per second"),
    )),
    Device("a16", "Apple A16 Neural Engine: iPhone 14 Pro, iPhone 15", 17 * TERA, None, "", (
        Source("https://inverse.com/input/tech/apple-a16-bionic-chip-explained/amp",
               "The A16's Neural Engine can handle a whopping 17 trillion operations per second"),
    )),
    Device("a17-pro", "Apple A17 Pro Neural Engine: iPhone 15 Pro", 35 * TERA, None, "", (
        Source("https://www.phoneworld.com.pk/iphone-16-set-to-revolutionize-ai-with-new-neural-engine/",
               "twice as fast as the A16's, capable of processing up to 35 trillion operations per second"),
    )),
    Device("a18", "Apple A18 and A18 Pro Neural Engine: iPhone 16, iPhone 16 Pro", 35 * TERA, None, "", (
        Source("https://www.gadgets360.com/mobiles/news/apple-iphone-16-series-a18-pro-chipset-details-6530448",
               "Both chipsets … a 16-core Neural Engine onboard which is said to run AI tasks at 35 TOPS"),
    )),
    Device("m1", "Apple M1 Neural Engine", 11 * TERA, None, "", (
        Source("https://www.macrumors.com/2020/11/10/apple-announces-m1-chip-for-the-mac/",
               "neural engine that can process 11 trillion operations per second"),
    )),
    Device("m1-gpu", "Apple M1 GPU of 8 cores", 2.6 * TERA, None, "", (
        Source("https://www.macrumors.com/2020/11/10/apple-announces-m1-chip-for-the-mac/",
               "GPU containing up to eight cores, and with 2.6 teraflops of throughput"),
    )),
    Device("m1-pro", "Apple M1 Pro", None, 200 * GIGA, "", (
        Source("https://mybroadband.co.za/news/hardware/418862-apple-m1-pro-and-m1-max-new-chips-powering-the-macbook-"
               "pro.html", "M1 Pro offers up to 200GB/s of memory bandwidth"),
    )),
    Device("m1-max", "Apple M1 Max", None, 400 * GIGA, "", (
        Source("https://mybroadband.co.za/news/hardware/418862-apple-m1-pro-and-m1-max-new-chips-powering-the-macbook-"
               "pro.html", "M1 Max delivers up to 400GB/s of memory bandwidth"),
    )),
    Device("m2", "Apple M2 Neural Engine", 15.8 * TERA, 100 * GIGA, "", (
        Source("https://slashgear.com/886183/macbook-air-m2-brings-huge-update-to-apples-stunning-new-laptop",
               "a 16-core Neural Engine capable of up to 15.8 trillion operations per second … 100GB/s memory "
               "bandwidth"),
    )),
    Device("m2-pro", "Apple M2 Pro Neural Engine", 15.8 * TERA, 200 * GIGA, "", (
        Source("https://meterpreter.org/apple-announces-m2-pro-and-m2-max-chips/",
               "a unified memory bandwidth of 200GB/s … up to 15.8 trillion operations per second"),
    )),
    Device("m2-max", "Apple M2 Max Neural Engine", 15.8 * TERA, 400 * GIGA, "", (
        Source("https://meterpreter.org/apple-announces-m2-pro-and-m2-max-chips/",
               "a unified memory bandwidth of 400GB/s … up to 15.8 trillion operations per second"),
    )),
    Device("m3-pro", "Apple M3 Pro", None, 150 * GIGA, "", (
        Source("https://gigazine.net/gsc_news/en/20231101-apple-m3-pro-memory-bandwidth",
               "listed on the MacBook Pro specifications page … a memory bandwidth of 150GB/s"),
    )),
    Device("m4", "Apple M4 Neural Engine: iPad Pro, Mac", 38 * TERA, 120 * GIGA, "", (
        Source("https://www.engadget.com/apples-m4-chip-arrives-with-a-big-focus-on-ai-142448428.html",
               "up to 120GB/s … 16-core neural engine capable of delivering up to 38 trillion operations per second"),
    )),
    Device("m4-pro", "Apple M4 Pro", None, 273 * GIGA, "", (
        Source("https://techmoran.com/2024/10/31/apple-unveils-its-most-powerful-chips-the-m4-pro-and-m4-max/",
               "Supporting up to 64GB of unified memory at 273GB/s bandwidth"),
    )),
    Device("m4-max", "Apple M4 Max", None, 546 * GIGA, "", (
        Source("https://www.macrumors.com/2024/10/30/apple-announces-m4-max-chip/",
               "up to 546GB/s of memory bandwidth"),
    )),
    Device("m5", "Apple M5", None, 153 * GIGA, "", (
        Source("https://www.lowyat.net/2025/369913/apple-m5", "an almost 30% increase in memory bandwidth to 153GB/s"),
    )),
    Device("jetson-agx-orin", "NVIDIA Jetson AGX Orin 64GB, GPU and DLAs, weights 2:4 sparse", 275 * TERA, None, "int8",
    (
        Source("https://github.com/NVIDIA/Deep-Learning-Accelerator-SW/blob/main/README.md",
               "Total Orin peak INT8 DL performance, MAXN: 275 TOPs (GPU sparse INT8 171, 2x DLA sparse INT8 105)"),
    )),
    Device("hailo-8", "Hailo-8: Raspberry Pi AI HAT+, 26 TOPS", 26 * TERA, None, "int8", (
        Source("https://github.com/raspberrypi/documentation/blob/develop/documentation/asciidoc/accessories/"
               "ai-hat-plus/about.adoc", "Hailo-8L (13 TOPS, INT8) or Hailo-8 (26 TOPS, INT8)"),
    )),
    Device("hailo-8l", "Hailo-8L: Raspberry Pi AI HAT+ and AI Kit, 13 TOPS", 13 * TERA, None, "int8", (
        Source("https://github.com/raspberrypi/documentation/blob/develop/documentation/asciidoc/accessories/"
               "ai-hat-plus/about.adoc", "Hailo-8L (13 TOPS, INT8) or Hailo-8 (26 TOPS, INT8)"),
    )),
    Device("hailo-10h", "Hailo-10H: Raspberry Pi AI HAT+ 2", 40 * TERA, None, "int4", (
        Source("https://github.com/raspberrypi/documentation/blob/develop/documentation/asciidoc/accessories/"
               "ai-hat-plus/about.adoc", "Hailo-10H (40 TOPS, INT4)"),
    )),
    Device("snapdragon-x-elite", "Qualcomm Snapdragon X Elite, Hexagon NPU", 45 * TERA, 136 * GIGA, "", (
        Source("https://www.notebookcheck.net/Hexagon-NPU-6-in-the-Snapdragon-X2-Elite-Extreme-80-TOPS-performance-"
               "that-is-up-to-95-faster-than-Apple-M4-and-122-faster-than-Intel-Lunar-Lake.1166576.0.html",
               "a nearly 78% increase from the 45 TOPS we've seen with the Snapdragon X lineup"),
        Source("https://en.mashdigi.com/snapdragon-x-elite-is-qualcomms-first-pc-level-processor-built-with-nuvia-"
               "technology/", "LPDDR5x memory … data transfer bandwidth of up to 136GB per second"),
    )),
])  # fmt: skip
"""Name → device. Not in it for want of a published figure: the Neural Engines of A13, A19, M3 and M5, the bandwidth of
the A series."""


def device(name: str) -> Device:
    """The device of that name. Raises UsageError, listing all."""
    if name not in DEVICES:
        raise UsageError(f"no figures are known of the device '{name}'; those that are: {', '.join(DEVICES)}")
    return DEVICES[name]


def rows() -> list[dict[str, object]]:
    """The devices as JSON: null where a figure is not known."""
    return [
        {
            "name": d.name,
            "title": d.what,
            "ops": d.ops,
            "bandwidth": d.bandwidth,
            "element": d.element,
            "sources": [{"url": s.url, "text": s.says} for s in d.sources],
        }
        for d in DEVICES.values()
    ]


def described() -> str:
    """The table in docs/devices.md."""
    lines = ["| name | unit | TOPS | for | GB/s | sources |", "|---|---|---|---|---|---|"]
    for d in DEVICES.values():
        ops = "" if d.ops is None else f"{d.ops / TERA:g}"
        bandwidth = "" if d.bandwidth is None else f"{d.bandwidth / GIGA:g}"
        sources = "; ".join(f"“{s.says}” [{s.url.split('/')[2]}]({s.url})" for s in d.sources)
        lines.append(f"| {d.name} | {d.what} | {ops} | {d.element} | {bandwidth} | {sources} |")
    return "\n".join(lines)
