//! exp, ln and erf as straight-line code, so that loops over them compile to vector instructions in f32.

/// exp, ln and the error function with the same bits on every CPU. The C library chooses its code by CPU, and different C
/// libraries round differently. The f64 functions, which only checks use, are those of the crate libm.
pub trait MathFunctions {
    /// e^x within 2 units in the last place. In f32 the result is 0 below x = -87 and infinite above x = 88, near the limits of
    /// normal numbers.
    fn exp_inline(self) -> Self;
    /// The natural logarithm within 1 unit in the last place.
    fn ln_inline(self) -> Self;
    /// The error function, within 1.3e-7.
    fn erf_inline(self) -> Self;
}

impl MathFunctions for f64 {
    #[inline(always)]
    fn exp_inline(self) -> Self {
        libm::exp(self)
    }

    #[inline(always)]
    fn ln_inline(self) -> Self {
        libm::log(self)
    }

    #[inline(always)]
    fn erf_inline(self) -> Self {
        libm::erf(self)
    }
}

/// The coefficients below are our own weighted minimax fits, so that their errors are known.
///
/// (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2; error 8e-9 in exp.
const EXP: [f32; 5] = [0.5, 0.16666576, 0.041666374, 0.008363175, 0.001394111];
/// (ln(1 + f) - f + f^2 / 2) / f^3 on sqrt(1/2) <= 1 + f <= sqrt(2); relative error 4e-9 in ln.
const LN: [f32; 9] =
    [0.33333313, -0.2500001, 0.2000212, -0.16667995, 0.14219543, -0.12405597, 0.11888232, -0.11675623, 0.067464545];
/// ln 2 as the sum of two numbers. The first has few significant bits, so that its products with small whole numbers are exact.
const LN_2: [f32; 2] = [0.693_359_4, -0.000_212_194_44];
/// erf(x) / x in powers of x^2 on |x| <= 1; error 2e-9 in erf.
#[allow(clippy::approx_constant, reason = "a fitted coefficient, one unit in the last place beside 2 / sqrt(pi)")]
const ERF: [f32; 7] = [1.1283791, -0.37612626, 0.112836, -0.026854444, 0.005189535, -0.0008020841, 0.00007889119];
/// -ln(1 - erf(x)) on 1 <= x <= 4; error 2e-9 in erf.
const ERFC: [f32; 7] = [0.0003537089, 1.12704, 0.6382256, 0.10303744, -0.021805352, 0.0029396159, -0.0001855749];

#[inline(always)]
fn horner<const N: usize>(coefficients: [f32; N], x: f32) -> f32 {
    coefficients.iter().rev().fold(0.0, |sum, c| sum * x + c)
}

impl MathFunctions for f32 {
    #[inline(always)]
    fn exp_inline(self) -> Self {
        // x = n ln 2 + r; adding and subtracting 1.5 * 2^23 rounds to a whole number.
        const ROUND: f32 = 12_582_912.0;
        let x = self.clamp(-87.0, 88.0);
        let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
        let r = x - n * LN_2[0] - n * LN_2[1];
        let mantissa = 1.0 + (r + r * r * horner(EXP, r));
        // SAFETY: n is whole and within -126..=127; NaN is replaced before the cast.
        let n = unsafe { if n.is_nan() { 0.0 } else { n }.to_int_unchecked::<i32>() };
        let power = f32::from_bits(((n + 127) << 23) as u32);
        let y = mantissa * power;
        if self < -87.0 {
            0.0
        } else if self > 88.0 {
            self.max(f32::MAX) * 2.0
        } else {
            y
        }
    }

    #[inline(always)]
    fn ln_inline(self) -> Self {
        /// The bits of sqrt(1/2).
        const HALF_ROOT: u32 = 0x3f35_04f3;
        // Scales subnormal numbers to normal ones, exactly.
        let is_small = self < Self::MIN_POSITIVE;
        let x = if is_small { self * 8_388_608.0 } else { self };
        // x = 2^n (1 + f)
        let above = x.to_bits().wrapping_sub(HALF_ROOT);
        let n = (above as i32) >> 23;
        let f = Self::from_bits((above & 0x007f_ffff) + HALF_ROOT) - 1.0;
        let n = n as Self - if is_small { 23.0 } else { 0.0 };
        // Adds the smallest terms first.
        let y = f + (n * LN_2[1] + (f * f * f * horner(LN, f) - 0.5 * f * f)) + n * LN_2[0];
        let y = if self == Self::INFINITY { self } else { y };
        let y = if self == 0.0 { Self::NEG_INFINITY } else { y };
        if self >= 0.0 { y } else { Self::NAN }
    }

    #[inline(always)]
    fn erf_inline(self) -> Self {
        let x = self.abs();
        let near = x * horner(ERF, x * x);
        // Beyond 4, erf differs from 1 by less than f32 resolves.
        let far = 1.0 - (-horner(ERFC, x.min(4.0))).exp_inline();
        let y = if x < 1.0 { near } else { far };
        let y = if self.is_nan() { self } else { y };
        y.copysign(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(low: f64, high: f64) -> impl Iterator<Item = f32> {
        (0..=200_000).map(move |i| (low + (high - low) * f64::from(i) / 200_000.0) as f32)
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for x in grid(-86.9, 87.9) {
            let exact = f64::from(x).exp();
            let error = (f64::from(x.exp_inline()) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "{x}: {error:e}");
        }
        assert_eq!((0f32.exp_inline(), (-1e4f32).exp_inline(), f32::NEG_INFINITY.exp_inline()), (1.0, 0.0, 0.0));
        assert_eq!((1e4f32.exp_inline(), f32::INFINITY.exp_inline()), (f32::INFINITY, f32::INFINITY));
        assert!(f32::NAN.exp_inline().is_nan());
    }

    #[test]
    fn ln_is_within_one_unit_in_the_last_place() {
        // Numbers of all magnitudes, and more of them around 1, where the result is small.
        let bits = (1..f32::INFINITY.to_bits()).step_by(9_973).chain((0x3f00_0000..0x4000_0000).step_by(83));
        let mut worst = 0.0f64;
        for x in bits.map(f32::from_bits) {
            let exact = f64::from(x).ln();
            let unit = f64::from((exact as f32).abs().next_up() - (exact as f32).abs());
            worst = worst.max((f64::from(x.ln_inline()) - exact).abs() / unit);
        }
        assert!(worst < 1.0, "{worst}");
        assert_eq!(
            (1f32.ln_inline(), 0f32.ln_inline(), (-0f32).ln_inline()),
            (0.0, f32::NEG_INFINITY, f32::NEG_INFINITY)
        );
        assert_eq!(f32::INFINITY.ln_inline(), f32::INFINITY);
        assert!((-1f32).ln_inline().is_nan() && f32::NAN.ln_inline().is_nan());
    }

    #[test]
    fn erf_is_within_single_precision() {
        let worst = grid(-6.0, 6.0).map(|x| (f64::from(x.erf_inline()) - libm::erf(f64::from(x))).abs());
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 1.3e-7, "{worst:e}");
        assert_eq!((0f32.erf_inline(), f32::INFINITY.erf_inline(), (-9f32).erf_inline()), (0.0, 1.0, -1.0));
        assert!(f32::NAN.erf_inline().is_nan());
    }
}
