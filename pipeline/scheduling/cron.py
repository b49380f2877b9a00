"""Cron expressions: parse and check one, find the latest time it fired, and convert it to systemd calendar events.

Fields: minute, hour, day of month, month, day of week, with `*`, numbers, names (jan, mon), lists, ranges and steps. As in
cron, if both day fields are given, a day that matches one of them is enough. Reads and writes nothing.
"""

from __future__ import annotations

import datetime
import zoneinfo
from dataclasses import dataclass

from pipeline.errors import ConfigError, nearest

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

LONGEST_GAP = 366 * 41  # days: a 29th of February falls on one weekday again after 28 years, or 40 around 2100

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))


@dataclass(frozen=True)
class Cron:
    """The values that match each field. Weekdays: 0 is Sunday. any_day, any_weekday: that field began with `*`."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    any_day: bool
    any_weekday: bool

    def on(self, day: datetime.date) -> bool:
        """Whether the expression fires on this date."""
        if day.month not in self.months:
            return False
        by_day, by_weekday = day.day in self.days, (day.weekday() + 1) % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return by_day and by_weekday
        return by_day or by_weekday


def parse_cron(text: str, where: str = "schedule") -> Cron:
    """The expression in `text`. Raises ConfigError if it does not have five valid fields, or never fires."""
    fields = text.split()
    if len(fields) != 5 or not (text.isascii() and len(text) <= 1000):
        raise ConfigError(
            f"{where}: {text[:200]!r} has {len(fields)} fields; a cron expression has five: minute, hour, day of month, month, "
            "day of week, such as '15 2 * * *' for 2:15 every night"
        )
    values = [_values(field, spec, where) for field, spec in zip(fields, _FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = values
    sunday_is_0 = tuple(sorted({day % 7 for day in weekdays}))
    any_day, any_weekday = fields[2].startswith("*"), fields[4].startswith("*")
    made = Cron(" ".join(fields), minutes, hours, days, months, sunday_is_0, any_day, any_weekday)
    if not any(made.on(datetime.date(2000, 1, 1) + datetime.timedelta(days=day)) for day in range(LONGEST_GAP)):
        raise ConfigError(
            f"{where}: {text!r} never fires, because its months do not have that day; change the day or the month"
        )
    return made


def _values(field: str, spec: tuple[str, int, int], where: str) -> tuple[int, ...]:
    """The sorted values that match one field. spec: the field's name, lowest and highest value. Raises ConfigError."""
    name, low, high = spec
    names = _MONTHS if name == "month" else _DAYS if name == "day of week" else ()
    found: set[int] = set()
    for part in field.lower().split(","):
        body, slash, step_text = part.partition("/")
        first, dash, last = body.partition("-")
        step = _digits(step_text) or 0
        start = _number(first, names, low)
        stop = _number(last, names, low) if dash else high if slash and first != "*" else start
        if first == "*" and not dash:
            start, stop = low, min(high, 6) if name == "day of week" else high
        if (slash and step < 1) or start is None or stop is None or not low <= start <= stop <= high:
            raise ConfigError(
                f"{where}: {name} {part[:40]!r} is not valid{nearest(part[:40], names)}; use {low} to {high}"
                f"{f' or {names[0]} to {names[-1]}' if names else ''}, as *, 5, 1-5, 1,3 or */10"
            )
        found.update(range(start, stop + 1, step or 1))
    return tuple(sorted(found))


def _number(text: str, names: tuple[str, ...], low: int) -> int | None:
    if text in names:
        return names.index(text) + low
    return _digits(text)


def _digits(text: str) -> int | None:
    """A short decimal number; None for anything else, such as ² or 5,000 digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else None


def time_zone(name: str, where: str = "schedule") -> zoneinfo.ZoneInfo:
    """The IANA time zone of that name. Raises ConfigError."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"{where}: {name!r} is not a time zone{nearest(name, zoneinfo.available_timezones())}; use a name such as "
            "Europe/Berlin or Etc/UTC"
        ) from error


def latest(cron: Cron, zone: zoneinfo.ZoneInfo, now: datetime.datetime) -> datetime.datetime:
    """The last time at or before `now` when the expression fired, in UTC.

    now: a time with a time zone. Local times that a clock change skips do not count. Raises ConfigError if there is none.
    """
    local = now.astimezone(zone)
    for back in range(LONGEST_GAP):
        day = local.date() - datetime.timedelta(days=back)
        if not cron.on(day):
            continue
        for hour in reversed(cron.hours):
            for minute in reversed(cron.minutes):
                at = datetime.datetime.combine(day, datetime.time(hour, minute), zone)
                fired = at.astimezone(datetime.UTC)
                if fired <= now and fired.astimezone(zone).replace(tzinfo=None) == at.replace(tzinfo=None):
                    return fired
    raise ConfigError(f"{cron.text!r} did not fire in the last 40 years")


def calendar_events(cron: Cron, zone: str) -> list[str]:
    """The same schedule as values of systemd's OnCalendar.

    If both day fields are given, the result has two values: cron fires if one of the fields matches, while one OnCalendar
    value needs both to match.
    """

    def listed(values: tuple[int, ...], size: int) -> str:
        return "*" if len(values) == size else ",".join(f"{value:02d}" for value in values)

    clock = f"{listed(cron.hours, 24)}:{listed(cron.minutes, 60)}:00 {zone}"
    months, days = listed(cron.months, 12), listed(cron.days, 31)
    weekdays = "" if len(cron.weekdays) == 7 else ",".join(_DAYS[day].title() for day in cron.weekdays) + " "
    if cron.any_day or cron.any_weekday:
        return [f"{weekdays}*-{months}-{days} {clock}"]
    return [f"*-{months}-{days} {clock}", f"{weekdays}*-{months}-* {clock}"]
