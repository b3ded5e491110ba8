//! Transposes left factors that are stored by columns into tiles.

use std::arch::x86_64::*;

use super::{BLOCK, SIDE, Strided};

/// Writes the rows of `a` [rows, k] as tiles along the sum: [k / 16 rounded up, 32, 16], zero beyond the end of `a`. The rows
/// must be neighbours in memory, and at most [`BLOCK`].
///
/// # Safety
/// The CPU must have AVX-512, and `a` the elements of its shape.
#[target_feature(enable = "avx512f")]
pub unsafe fn turn([rows, k]: [usize; 2], a: Strided<f32>, tiles: &mut [f32]) {
    assert!(a.row == 1 && rows <= BLOCK);
    for (step, tiles) in tiles.chunks_exact_mut(BLOCK * SIDE).enumerate() {
        for (i, tile) in tiles.chunks_exact_mut(SIDE * SIDE).enumerate() {
            let there = rows.saturating_sub(i * SIDE).min(SIDE);
            let mask = ((1u32 << there) - 1) as __mmask16;
            let mut lines = [_mm512_setzero_ps(); SIDE];
            for (l, line) in lines.iter_mut().enumerate().take(k.saturating_sub(step * SIDE)) {
                let at = a.data.as_ptr().wrapping_add((step * SIDE + l) * a.column + i * SIDE);
                // SAFETY: as the caller promises; the mask leaves out elements beyond the last row.
                *line = unsafe { _mm512_maskz_loadu_ps(mask, at) };
            }
            for (line, target) in transpose(lines).into_iter().zip(tile.chunks_exact_mut(SIDE)) {
                // SAFETY: `target` has 16 elements.
                unsafe { _mm512_storeu_ps(target.as_mut_ptr(), line) };
            }
        }
    }
}

/// The transpose of 16 rows of 16 elements: first within groups of four elements of each row, then of whole groups between rows.
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512; SIDE]) -> [__m512; SIDE] {
    let mut pairs = rows;
    for i in (0..SIDE).step_by(2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    let mut fours = rows;
    for i in (0..SIDE).step_by(4) {
        for j in 0..2 {
            let [upper, lower] = [i + j, i + j + 2].map(|row| _mm512_castps_pd(pairs[row]));
            fours[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(upper, lower));
            fours[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(upper, lower));
        }
    }
    let mut eights = rows;
    for i in (0..SIDE).step_by(8) {
        for j in 0..4 {
            eights[i + j] = _mm512_shuffle_f32x4::<0x88>(fours[i + j], fours[i + j + 4]);
            eights[i + j + 4] = _mm512_shuffle_f32x4::<0xdd>(fours[i + j], fours[i + j + 4]);
        }
    }
    let mut columns = rows;
    for j in 0..8 {
        columns[j] = _mm512_shuffle_f32x4::<0x88>(eights[j], eights[j + 8]);
        columns[j + 8] = _mm512_shuffle_f32x4::<0xdd>(eights[j], eights[j + 8]);
    }
    columns
}
