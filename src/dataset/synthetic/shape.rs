//! The shapes, as signed distances: negative inside, in units of the shape's radius.

/// The outline of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Disc,
    Square,
    Triangle,
    Ring,
    Cross,
}

impl Shape {
    pub const ALL: [Shape; 5] = [Shape::Disc, Shape::Square, Shape::Triangle, Shape::Ring, Shape::Cross];

    pub fn name(self) -> &'static str {
        match self {
            Shape::Disc => "disc",
            Shape::Square => "square",
            Shape::Triangle => "triangle",
            Shape::Ring => "ring",
            Shape::Cross => "cross",
        }
    }

    /// Distance of (`x`, `y`) to the outline of the shape of radius 1 around the origin (exact on the straight parts,
    /// a bound beyond the corners, which is enough for soft edges). The shapes cover about the same area.
    pub fn distance(self, x: f32, y: f32) -> f32 {
        let bar = |half_width: f32, half_height: f32| (x.abs() - half_width).max(y.abs() - half_height);
        match self {
            Shape::Disc => (x * x + y * y).sqrt() - 0.88,
            Shape::Square => bar(0.78, 0.78),
            // Equilateral, its inner circle of radius 0.6.
            Shape::Triangle => {
                let (slope_x, slope_y) = (0.866_025_4 * x.abs(), 0.5 * y);
                y.max(slope_x - slope_y) - 0.6
            }
            Shape::Ring => ((x * x + y * y).sqrt() - 0.77).abs() - 0.27,
            Shape::Cross => bar(1.0, 0.36).min(bar(0.36, 1.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_alike_so_that_brightness_tells_nothing() {
        for shape in Shape::ALL {
            let steps = -150..150;
            let inside = steps.clone().flat_map(|y| steps.clone().map(move |x| (x as f32 / 100.0, y as f32 / 100.0)));
            let area = inside.filter(|&(x, y)| shape.distance(x, y) < 0.0).count() as f32 / 10_000.0;
            assert!((1.8..3.0).contains(&area), "{shape:?} covers {area}");
        }
    }
}
