"""Settings on land. One short function each; see `settings`."""

from __future__ import annotations

from pipeline.atelier.backdrop import far_hills, flowers, shadow_on, tree, tufts
from pipeline.atelier.palette import SNOW, STONE, WHITE, Colour, mix, mute, times, vary
from pipeline.atelier.pen import Pen
from pipeline.atelier.settings import Ground, View, setting
from pipeline.atelier.sky import lamp_or_dark, land, ridge, sky


@setting("meadow", "in a meadow", "in a flowery meadow", "in a green meadow")
def meadow(pen: Pen, view: View) -> Ground:
    p, h = pen.palette, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    far_hills(pen, h, 2, mix(p.foliage, p.grass, 0.4))
    pen.thing(0.45)
    land(pen, ridge(pen.rng, h + 0.03, 0.04, 0.5), p.grass)
    pen.thing(0.3)
    tufts(pen, h + 0.06, times(p.grass, 0.72))
    if view.weather != "snow":
        flowers(pen, h + 0.08, 11)
    return Ground(h + 0.10, 0.93, shadow_on(pen, p.grass))


@setting("hill", "on a hill", "on top of a hill", "on a grassy hill")
def hill(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, min(0.86, view.horizon + 0.12)
    sky(pen, h, view.weather, view.time_of_day)
    far_hills(pen, h + 0.02, 2, mix(p.foliage, p.rock, 0.4), 0.18)
    pen.thing(0.4)
    top = h - float(rng.uniform(0.02, 0.06))
    line = [
        (-0.02, top + 0.16),
        (0.18, top + 0.06),
        (0.38, top + 0.005),
        (0.62, top),
        (0.84, top + 0.05),
        (1.02, top + 0.17),
    ]
    pen.blob([*line, (1.1, 1.1), (0.5, 1.12), (-0.1, 1.1)], p.grass, to=times(p.grass, 0.6), grain=0.6)
    pen.thing(0.3)
    tufts(pen, top + 0.1, times(p.grass, 0.7), 8)
    return Ground(top + 0.035, top + 0.07, shadow_on(pen, p.grass))


@setting("mountains", "in the mountains", "below the mountains", "in front of snowy mountains")
def mountains(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    for k, (x, s) in enumerate(
        ((float(rng.uniform(0.1, 0.4)), 0.42), (float(rng.uniform(0.55, 0.95)), 0.36), (0.5, 0.24))
    ):
        pen.thing(0.9 - 0.12 * k)
        x, top = x + float(rng.uniform(-0.08, 0.08)), h - s * float(rng.uniform(0.8, 1.1))
        colour = mix(p.rock, p.sky, 0.30 - 0.1 * k)
        foot = h + 0.04
        pen.poly([(x - s, foot), (x, top), (x + s, foot)], colour, shade=0, grain=0.6, flow=0.7)
        side = s if pen.light.direction[0] < 0 else -s
        pen.poly([(x, top), (x + side, foot), (x + side * 0.25, foot)], times(colour, 0.72), shade=0, ink=0.3, flow=0.7)
        c = 0.36
        rim = top + (foot - top) * c
        pen.poly(
            [
                (x, top),
                (x + s * c, rim),
                (x + s * 0.12, rim - 0.03),
                (x - s * 0.06, rim + 0.02),
                (x - s * 0.2, rim - 0.025),
                (x - s * c, rim),
            ],
            SNOW,
            shade=0.9,
            ink=0.5,
        )
    pen.thing(0.45)
    land(pen, ridge(rng, h + 0.04, 0.04, 0.5), mix(p.grass, p.foliage, 0.3))
    pen.thing(0.55)
    for _ in range(int(rng.integers(2, 6))):
        tree(pen, float(rng.random()), h + 0.05, float(rng.uniform(0.10, 0.17)), p.foliage, conifer=True)
    return Ground(h + 0.12, 0.93, shadow_on(pen, p.grass))


@setting("desert", "in the desert", "among sand dunes", "in a sandy desert")
def desert(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    far_hills(pen, h, 1, mix(p.sand, p.rock, 0.6), 0.09)
    for k in range(3):
        pen.thing(0.7 - 0.2 * k)
        crest = float(rng.uniform(0.15, 0.85))
        y = h + 0.02 + 0.07 * k
        line = [
            (-0.02, y + 0.02),
            (crest * 0.6, y - 0.01),
            (crest, y - 0.05),
            (crest + 0.2, y - 0.005),
            (1.02, y + 0.03),
        ]
        land(pen, line, vary(p.sand, rng), mix(p.sand, p.earth, 0.45), grain=0.35)
        foot = crest + float(rng.uniform(-0.10, 0.10))
        pen.line(
            [(crest, y - 0.045), (crest + 0.05, y), (foot, y + 0.05), (foot + 0.08, y + 0.10)],
            0.010,
            times(p.sand, 0.72),
            curve=True,
            ink=0.1,
        )
    return Ground(h + 0.17, 0.93, shadow_on(pen, p.sand))


@setting("forest", "in a forest", "at the edge of a forest", "among the trees")
def forest(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    conifer = bool(rng.random() < 0.5)
    for k, n in enumerate((5, 4)):
        pen.thing(0.8 - 0.22 * k)
        land(pen, ridge(rng, h + 0.01 + 0.04 * k, 0.05), mix(p.foliage, p.haze, 0.35 - 0.2 * k))
        for j in range(n):
            x = (j + float(rng.uniform(0.1, 0.9))) / n
            tree(
                pen,
                x,
                h + 0.04 + 0.04 * k,
                float(rng.uniform(0.26, 0.42)),
                mix(vary(p.foliage, rng, 1.5), p.haze, 0.25 - 0.15 * k),
                conifer=conifer,
            )
    pen.thing(0.4)
    land(pen, ridge(rng, h + 0.10, 0.03, 0.4), mix(p.grass, p.foliage, 0.35))
    tufts(pen, h + 0.14, times(p.foliage, 0.8), 8)
    return Ground(h + 0.15, 0.93, shadow_on(pen, p.grass))


@setting("field", "in a wheat field", "in a golden field", "in a field of wheat")
def field(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    far_hills(pen, h, 2, p.foliage, 0.10)
    gold = mix(vary((0.86, 0.68, 0.26), rng), SNOW, 0.6 if view.weather == "snow" else 0.0)
    pen.thing(0.45)
    land(pen, [(-0.02, h + 0.02), (0.5, h + 0.01), (1.02, h + 0.02)], gold, times(gold, 0.75), grain=0.9)
    x = float(rng.uniform(0.2, 0.8))
    for k in range(-7, 8):  # furrows run to one vanishing point
        pen.line([(x + 0.035 * k, h + 0.03), (x + 0.28 * k, 1.0)], 0.010, times(gold, 0.80), ink=0.0)
    pen.thing(0.5)
    for _ in range(2):
        tree(pen, float(rng.random()), h + 0.03, float(rng.uniform(0.09, 0.15)), p.foliage, conifer=False)
    return Ground(h + 0.12, 0.93, shadow_on(pen, gold))


@setting("village", "in a village", "in a small village", "on a village green")
def village(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    far_hills(pen, h, 1, p.foliage, 0.16)
    pen.thing(0.6)
    land(pen, [(-0.02, h), (0.5, h - 0.01), (1.02, h)], p.grass)
    roofs: tuple[Colour, ...] = ((0.66, 0.33, 0.24), (0.45, 0.36, 0.36), (0.58, 0.42, 0.26))
    x = -0.06
    while x < 1.0:
        w, t = float(rng.uniform(0.13, 0.20)), float(rng.uniform(0.10, 0.17))
        pen.thing(0.6)
        wall = vary(mix((0.90, 0.84, 0.72), p.wall, float(rng.random()) * 0.5), rng)
        roof = SNOW if view.weather == "snow" else vary(roofs[int(rng.integers(3))], rng)
        pen.box(x, h + 0.03 - t, x + w, h + 0.05, wall, grain=0.4, flow=1.57)
        pen.poly([(x - 0.02, h + 0.035 - t), (x + w / 2, h - t - w * 0.45), (x + w + 0.02, h + 0.035 - t)], roof)
        pane, glow = lamp_or_dark(pen)
        pen.box(x + w * 0.22, h + 0.055 - t, x + w * 0.42, h + 0.10 - t, pane, shade=0, glow=glow)
        pen.box(x + w * 0.60, h + 0.055 - t, x + w * 0.80, h + 0.10 - t, pane, shade=0, glow=glow)
        x += w + float(rng.uniform(0.03, 0.12))
    pen.thing(0.45)
    land(pen, [(-0.02, h + 0.05), (0.5, h + 0.04), (1.02, h + 0.05)], p.grass)
    a = float(rng.uniform(0.3, 0.7))
    pen.poly(
        [(a - 0.03, h + 0.045), (a + 0.03, h + 0.045), (a + 0.22, 1.02), (a - 0.22, 1.02)],
        p.earth,
        shade=0,
        ink=0.3,
        flow=1.5,
    )
    return Ground(h + 0.14, 0.93, shadow_on(pen, mix(p.grass, p.earth, 0.4)))


@setting("city", "in the city", "in front of the city skyline", "in a city street")
def city(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    for k in range(2):
        pen.thing(0.85 - 0.2 * k)
        x = -0.05
        while x < 1.0:
            w, t = float(rng.uniform(0.09, 0.17)), float(rng.uniform(0.16, 0.40)) * (1.1 - 0.35 * k)
            wall = mix(mix(mute(p.wall, 0.4), times(STONE, 0.8), float(rng.random())), p.haze, 0.35 - 0.2 * k)
            pen.box(x, h - t, x + w, h + 0.06, wall, shade=0.8, flow=1.57, grain=0.3)
            if k == 1 or w > 0.13:
                pane, glow = lamp_or_dark(pen, times(wall, 0.62))
                rows = int(t / 0.07)
                for r in range(rows):
                    y = h - t + 0.03 + r * 0.065
                    for c in range(2):
                        if rng.random() < 0.75:
                            pen.box(
                                x + w * (0.18 + 0.4 * c),
                                y,
                                x + w * (0.40 + 0.4 * c),
                                y + 0.03,
                                pane,
                                shade=0,
                                glow=glow,
                                ink=0.3,
                            )
            x += w + 0.01
    pen.thing(0.4)
    street = mix(SNOW, STONE, 0.3) if view.weather == "snow" else vary(mute(mix(STONE, p.earth, 0.2), 0.3), rng)
    land(pen, [(-0.02, h + 0.05), (1.02, h + 0.05)], street, times(street, 0.8))
    pen.line([(-0.02, h + 0.085), (1.02, h + 0.085)], 0.014, times(street, 0.7), ink=0.2)
    for k in range(-4, 5):
        pen.line([(0.5 + 0.16 * k, h + 0.09), (0.5 + 0.42 * k, 1.0)], 0.006, times(street, 0.75), ink=0.0)
    return Ground(h + 0.14, 0.93, shadow_on(pen, street))


@setting("garden", "in a garden", "in the garden", "in front of a garden fence")
def garden(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    pen.thing(0.7)
    for j in range(4):
        tree(
            pen,
            (j + float(rng.uniform(0.2, 0.8))) / 4,
            h + 0.05,
            float(rng.uniform(0.2, 0.34)),
            mix(vary(p.foliage, rng, 2), p.haze, 0.2),
            conifer=False,
        )
    pen.thing(0.5)
    land(pen, [(-0.02, h + 0.04), (1.02, h + 0.04)], p.grass)
    fence = vary(WHITE, rng) if rng.random() < 0.6 else p.wood
    pen.thing(0.5)
    for y in (h - 0.03, h + 0.03):
        pen.box(-0.02, y, 1.02, y + 0.018, fence, shade=0, ink=0.5)
    for j in range(12):
        x = (j + 0.3) / 12
        pen.poly(
            [(x, h + 0.06), (x, h - 0.06), (x + 0.018, h - 0.085), (x + 0.036, h - 0.06), (x + 0.036, h + 0.06)],
            fence,
            shade=0,
            ink=0.5,
            flow=1.57,
        )
    pen.thing(0.4)
    if view.weather != "snow":
        flowers(pen, h + 0.07, 12)
    tufts(pen, h + 0.1, times(p.grass, 0.75), 6)
    return Ground(h + 0.13, 0.93, shadow_on(pen, p.grass))
