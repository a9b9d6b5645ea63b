"""The bill of an offline job: what was read, what was found, how fast, with what, and for how much."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from pipelines.evaluation.curves import render_curves_svg
from pipelines.evaluation.pages import build_environment

MAX_BINS = 120
FIRST_BIN_S = 0.5
TOTALS = ("num_documents", "num_characters", "num_words", "num_tokens", "num_windows", "num_tokens_skipped")
_MIB_PER_GIB = 1024


class Timeline:
    """Amounts over time in a bounded number of bins: where time runs out of them, each becomes twice as wide."""

    def __init__(self) -> None:
        """Begin at second 0, with narrow bins."""
        self.width = FIRST_BIN_S
        self.bins = [0.0] * MAX_BINS

    def add(self, start: float, end: float, amount: float) -> None:
        """Spread an amount evenly over the seconds from `start` to `end`."""
        start = max(0.0, start)
        end = max(end, start + 1e-3)
        while end > self.width * MAX_BINS:
            self.bins = [sum(self.bins[at : at + 2]) for at in range(0, MAX_BINS, 2)] + [0.0] * (MAX_BINS // 2)
            self.width *= 2
        rate = amount / (end - start)
        for number in range(int(start / self.width), min(MAX_BINS, int(end / self.width) + 1)):
            overlap = min(end, (number + 1) * self.width) - max(start, number * self.width)
            self.bins[number] += rate * max(0.0, overlap)

    def trace(self, end: float) -> list[tuple[float, float]]:
        """(second, amount a second) at the middle of each bin up to `end`."""
        last = min(MAX_BINS, int(end / self.width) + 1)
        spans = [(number * self.width, min(end, (number + 1) * self.width)) for number in range(last)]
        return [
            ((low + high) / 2, amount / (high - low))
            for (low, high), amount in zip(spans, self.bins, strict=False)
            if high - low > 0.1 * self.width
        ]


@dataclass
class Session:
    """One run of the driver: from its start to its end, or to the last that was heard of it."""

    started: float
    """Seconds since the epoch, as all times here."""
    first: float | None = None
    """When the first chunk was begun."""
    last: float | None = None
    """When the last chunk was done."""
    num_documents: int = 0
    num_tokens: int = 0
    timeline: Timeline = field(default_factory=Timeline)
    actors: dict[str, int] = field(default_factory=dict)
    """Actor → peak memory in MiB."""

    def add(self, part: Mapping[str, Any]) -> None:
        """Take over the counts of a chunk that this run had labelled."""
        start, end = part["started"], part["started"] + part["seconds"]
        self.first = start if self.first is None else min(self.first, start)
        self.last = end if self.last is None else max(self.last, end)
        self.num_documents += part["num_documents"]
        self.num_tokens += part["num_tokens"]
        self.timeline.add(start - self.started, end - self.started, part["num_tokens"])
        self.actors[part["actor"]] = max(self.actors.get(part["actor"], 0), part["peak_memory_mib"])

    @property
    def labelling_s(self) -> float:
        """From the beginning of the first chunk to the end of the last."""
        return 0.0 if self.first is None or self.last is None else self.last - self.first


class Bill:
    """Sums over the chunks of a job, each added once, and what follows from them.

    Args:
        starts: run of the driver → when it started, the runs in their order; the last one finishes the job.
    """

    def __init__(self, starts: Mapping[str, float]) -> None:
        self.sessions = {run: Session(started) for run, started in starts.items()}
        self.totals: Counter[str] = Counter(dict.fromkeys(TOTALS, 0))
        self.quarantined: Counter[str] = Counter()
        self.entities: Counter[str] = Counter()
        self.engines: list[dict[str, Any]] = []
        self.cpu_seconds = self.gpu_seconds = self.actor_seconds = 0.0

    def add(self, part: Mapping[str, Any]) -> None:
        """Add what a part's metadata say."""
        self.totals.update({name: part[name] for name in TOTALS})
        self.quarantined.update(part["quarantined"])
        self.entities.update(part["entities"])
        self.cpu_seconds += part["cpu_seconds"]
        self.gpu_seconds += part["gpu_seconds"]
        self.actor_seconds += part["busy_seconds"]
        self.sessions[part["run"]].add(part)
        if part["engine"] not in self.engines:
            self.engines.append(part["engine"])

    def to_dict(self, finished: float, driver_peak_memory_mib: int, price_per_hour: float | None) -> dict[str, Any]:
        """The bill as `run.json` holds it.

        Args:
            finished: when the output was in place.
            price_per_hour: of the whole cluster, in whatever currency; None for no cost.
        """
        *earlier, present = self.sessions.values()
        labelling_s = sum(session.labelling_s for session in self.sessions.values())
        earlier_s = sum((session.last or session.started) - session.started for session in earlier)
        wall_s = finished - present.started + earlier_s
        peaks = [peak for session in self.sessions.values() for peak in session.actors.values()]
        return {
            **self.totals,
            "num_quarantined": self.quarantined.total(),
            "quarantined": dict(self.quarantined.most_common()),
            "num_entities": self.entities.total(),
            "entities": dict(self.entities.most_common()),
            "seconds": _split_wall(present, finished) | {"earlier": round(earlier_s, 3), "total": round(wall_s, 3)},
            "tokens_per_s": round(self.totals["num_tokens"] / labelling_s, 1) if labelling_s else None,
            "documents_per_s": round(self.totals["num_documents"] / labelling_s, 2) if labelling_s else None,
            "throughput": self._trace(),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "gpu_seconds": round(self.gpu_seconds, 3),
            "actor_seconds": round(self.actor_seconds, 3),
            "peak_memory_mib": {
                "driver": driver_peak_memory_mib,
                "largest_actor": max(peaks, default=0),
                "driver_and_actors": driver_peak_memory_mib + sum(present.actors.values()),
            },
            "num_sessions": len(self.sessions),
            "num_actors": len(present.actors),
            "engines": self.engines,
            "cost": _find_cost(wall_s, self.totals["num_documents"], price_per_hour),
        }

    def _trace(self) -> list[tuple[float, float]]:
        """Sub-tokens a second over the seconds of all sessions, one after the other."""
        points: list[tuple[float, float]] = []
        offset = 0.0
        for session in self.sessions.values():
            end = (session.last or session.started) - session.started
            points += [(round(offset + at, 2), round(rate, 1)) for at, rate in session.timeline.trace(end)]
            offset += end
        return points


def render_bill(bill: Mapping[str, Any], title: str, facts: Mapping[str, Mapping[str, object]]) -> str:
    """The bill as one page that needs nothing else, with further facts at its end."""
    environment = build_environment()
    environment.filters["number"] = format_number
    points = [(second, rate / 1000) for second, rate in bill["throughput"]]
    curve = render_curves_svg({"sub-tokens": points}, "seconds", "thousands a second", "Sub-tokens a second")
    account = {**_list_facts(bill), **facts}
    return environment.get_template("bill.html.jinja").render(
        title=title,
        headline=_list_headline(bill),
        curve=Markup(curve),
        entities=list(bill["entities"].items()),
        quarantined=list(bill["quarantined"].items()),
        facts=[(group, [(name, str(value)) for name, value in pairs.items()]) for group, pairs in account.items()],
    )


def _list_headline(bill: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, figure, what stands below) of what matters most."""
    cost = bill["cost"]
    cpu_hours = bill["cpu_seconds"] / 3600
    price = (
        ("Cost per million documents", f"{cost['per_million_documents']:,.2f}", f"{cost['total']:,.4f} in all")
        if cost
        else ("CPU-hours", f"{cpu_hours:,.3f}", f"{bill['gpu_seconds'] / 3600:,.3f} GPU-hours")
    )
    return [
        ("Documents labelled", f"{bill['num_documents']:,}", f"{bill['num_quarantined']:,} quarantined"),
        ("Entities", f"{bill['num_entities']:,}", f"{len(bill['entities'])} labels"),
        ("Sub-tokens a second", format_number(bill["tokens_per_s"] or 0), f"{bill['num_tokens']:,} in all"),
        price,
    ]


def _list_facts(bill: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    seconds, memory, cost = bill["seconds"], bill["peak_memory_mib"], bill["cost"]
    phases = ("start_up", "labelling", "finish")
    time: dict[str, object] = {name.replace("_", "-"): f"{seconds[name]:,.1f} s" for name in phases}
    if bill["num_sessions"] > 1:
        time[f"{bill['num_sessions'] - 1} earlier sessions, cut short"] = f"{seconds['earlier']:,.1f} s"
    compute: dict[str, object] = {
        "actors": bill["num_actors"],
        "CPU time of the actors": f"{bill['cpu_seconds']:,.1f} s",
        "GPU time of the actors": f"{bill['gpu_seconds']:,.1f} s",
    }
    if cost:
        compute["cost"] = f"{cost['total']:,.4f} at {cost['price_per_hour']:,.4g} an hour"
    compute |= {f"engine {number}": describe_engine(engine) for number, engine in enumerate(bill["engines"], 1)}
    return {
        "Read": {
            "documents": f"{bill['num_documents'] + bill['num_quarantined']:,}",
            "characters": f"{bill['num_characters']:,}",
            "words": f"{bill['num_words']:,}",
            "sub-tokens": f"{bill['num_tokens']:,} in {bill['num_windows']:,} windows",
            "sub-tokens skipped": f"{bill['num_tokens_skipped']:,}",
        },
        "Time": time | {"in all": f"{seconds['total']:,.1f} s"},
        "Compute": compute,
        "Peak memory": {
            "driver": format_mib(memory["driver"]),
            "largest actor": format_mib(memory["largest_actor"]),
            "driver and actors": format_mib(memory["driver_and_actors"]),
        },
    }


def describe_engine(engine: Mapping[str, Any]) -> str:
    """`device cpu, precision fp32, …`, on one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in engine.items())


def format_number(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def format_mib(mib: int) -> str:
    """Memory in the unit that suits it."""
    return f"{mib:,} MiB" if mib < 10 * _MIB_PER_GIB else f"{mib / _MIB_PER_GIB:,.1f} GiB"


def _split_wall(session: Session, finished: float) -> dict[str, float]:
    """Where the time of the present session went; one that found every chunk done had only the finish to do."""
    first, last = session.first or session.started, session.last or session.started
    return {
        "start_up": round(max(0.0, first - session.started), 3),
        "labelling": round(last - first, 3),
        "finish": round(max(0.0, finished - last), 3),
    }


def _find_cost(wall_s: float, num_documents: int, price_per_hour: float | None) -> dict[str, float] | None:
    if price_per_hour is None:
        return None
    total = wall_s / 3600 * price_per_hour
    per_million = total / num_documents * 1e6 if num_documents else 0.0
    return {"price_per_hour": price_per_hour, "total": round(total, 6), "per_million_documents": round(per_million, 4)}
