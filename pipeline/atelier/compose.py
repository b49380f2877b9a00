"""From a scene to shapes: the setting, the subjects with their shadows and reflections, and the weather in front of them."""

from __future__ import annotations

from pipeline.atelier.palette import COLOURS, INK, WHITE, mix, times, vary
from pipeline.atelier.pen import Pen
from pipeline.atelier.scene import Place, Scene, chance
from pipeline.atelier.settings import SETTINGS, Ground, View
from pipeline.atelier.sky import falling
from pipeline.atelier.subjects import REGISTRY


def compose(scene: Scene) -> Pen:
    """Draw a scene. The drawing has its own random generator, so that it is the same for every style."""
    pen = Pen(scene.light, scene.palette, chance(scene.seed, scene.content_id, 2), snow=scene.weather == "snow")
    place = SETTINGS[scene.setting]
    ground = place.draw(pen, View(scene.weather, scene.time_of_day, scene.horizon))
    indoors = place.indoors
    airborne = ground.shadow is None and ground.water is None
    for spot in sorted(scene.places, key=lambda p: p.nearness):
        _stand(pen, scene, spot, ground, airborne=airborne)
    pen.picture_frame()
    if not indoors and scene.setting != "under water":
        falling(pen, scene.weather)
    return pen


def _stand(pen: Pen, scene: Scene, spot: Place, ground: Ground, *, airborne: bool) -> None:
    subject = REGISTRY[scene.subject]
    near = spot.nearness if scene.number > 1 else 0.35 + 0.65 * spot.nearness
    y = ground.far + (ground.near - ground.far) * near
    top = 0.05 + 0.04 * (1 - near)
    height = min(spot.height, (y - top) / (1.0 + subject.lift))
    if airborne:  # subjects in the air have different heights
        y = max(height + top, y)
    half = height * subject.width / 2 * 0.85
    pen.picture_frame()
    if ground.shadow is not None:
        pen.thing(0.30)
        away = -pen.light.direction[0] * half * 0.45
        pen.oval(spot.x + away, y, half * 1.05, 0.022 + half * 0.09, ground.shadow, shade=0, round=0, ink=0.0, haze=0.0)
    colour = vary(COLOURS[scene.colour], pen.rng, 1.0 if scene.colour not in ("black", "white", "grey") else 0.5)
    if ground.water is not None:
        pen.thing(0.30)
        _reflection(pen, spot.x, y, half, mix(times(ground.water, 0.5), times(colour, 0.5), 0.35))
    pen.thing(0.15 + 0.15 * (1 - near), subject=True)
    pen.main = colour
    pen.subject_frame(spot.x, y - subject.lift * height, height, flip=spot.flip, stretch=spot.stretch, lean=spot.lean)
    subject.draw(pen)
    if ground.water is not None:
        pen.picture_frame()
        pen.thing(0.14)
        foam = mix(ground.water, WHITE if not pen.light.lamps else mix(WHITE, INK, 0.5), 0.55)
        for dx, w in ((-0.75, 0.35), (0.05, 0.5), (0.75, 0.3)):
            pen.line(
                [(spot.x + half * (dx - w), y + 0.006), (spot.x + half * (dx + w), y + 0.004)],
                0.010,
                foam,
                ink=0.0,
                haze=0.0,
            )


def _reflection(pen: Pen, x: float, y: float, half: float, colour: tuple[float, float, float]) -> None:
    for k in range(5):
        w = half * (0.95 - 0.15 * k) * float(pen.rng.uniform(0.8, 1.1))
        dy = 0.012 + 0.020 * k
        off = float(pen.rng.uniform(-0.02, 0.02))
        pen.line([(x + off - w, y + dy), (x + off + w, y + dy)], 0.013, colour, ink=0.0, haze=0.0)
