//! Operations between images and a transformer's tokens: positions, class tokens, patches.

pub mod cuda;
pub mod positions;
