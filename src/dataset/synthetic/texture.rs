//! The textures: they choose between two paints at each point of the plane, in units of the texture's period.

/// The fill of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Texture {
    Plain,
    Stripes,
    Checks,
    Dots,
    Speckle,
}

impl Texture {
    pub const ALL: [Texture; 5] = [Texture::Plain, Texture::Stripes, Texture::Checks, Texture::Dots, Texture::Speckle];

    pub fn name(self) -> &'static str {
        match self {
            Texture::Plain => "plain",
            Texture::Stripes => "striped",
            Texture::Checks => "checked",
            Texture::Dots => "dotted",
            Texture::Speckle => "speckled",
        }
    }

    /// Share of the second paint at (`x`, `y`), 0 to 1, with soft transitions of width `edge`. `salt` varies the random parts of
    /// a texture.
    pub fn share(self, x: f32, y: f32, edge: f32, salt: u32) -> f32 {
        let soft = |distance: f32| (0.5 - distance / edge).clamp(0.0, 1.0);
        // Signed distance to the nearest border between stripes of width 0.5: negative within every second stripe. Stripes are
        // 0.5 wide.
        let stripe = |v: f32| ((v - v.floor()) - 0.5).abs() - 0.25;
        match self {
            Texture::Plain => 0.0,
            Texture::Stripes => soft(stripe(x)),
            Texture::Checks => {
                let (a, b) = (soft(stripe(0.75 * x)), soft(stripe(0.75 * y)));
                a + b - 2.0 * a * b
            }
            Texture::Dots => {
                let (x, y) = (x - x.round(), y - y.round());
                soft((x * x + y * y).sqrt() - 0.3)
            }
            Texture::Speckle => cell(x, y, salt),
        }
    }
}

/// A random value for each square cell; a period has three cells in each direction.
fn cell(x: f32, y: f32, salt: u32) -> f32 {
    let (x, y) = ((x * 3.0).floor() as i32 as u32, (y * 3.0).floor() as i32 as u32);
    let mut hash = salt ^ x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77);
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d);
    hash = (hash ^ (hash >> 12)).wrapping_mul(0x297a_2d39);
    (hash ^ (hash >> 15)) as f32 / u32::MAX as f32
}
