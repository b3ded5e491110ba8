//! exp and erf as straight-line code, so that loops over them compile to vector instructions in f32.

/// exp and the error function. In f64, where only checks run, they are the library's.
pub trait Elementary {
    /// e^x within 2 units in the last place. Results that f32 holds only as subnormal numbers are 0.
    fn exp_inline(self) -> Self;
    /// The error function, within 1.3e-7.
    fn erf_inline(self) -> Self;
}

impl Elementary for f64 {
    #[inline(always)]
    fn exp_inline(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn erf_inline(self) -> Self {
        libm::erf(self)
    }
}

/// The coefficients below are weighted minimax fits: ours, so that the errors are known.
///
/// (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2; error 8e-9 in exp.
const EXP: [f32; 5] = [0.5, 0.16666576, 0.041666374, 0.008363175, 0.001394111];
/// erf(x) / x in powers of x^2 on |x| <= 1; error 2e-9 in erf.
#[allow(clippy::approx_constant, reason = "a fitted coefficient, one unit in the last place beside 2 / sqrt(pi)")]
const ERF: [f32; 7] = [1.1283791, -0.37612626, 0.112836, -0.026854444, 0.005189535, -0.0008020841, 0.00007889119];
/// -ln(1 - erf(x)) on 1 <= x <= 4; error 2e-9 in erf.
const ERFC: [f32; 7] = [0.0003537089, 1.12704, 0.6382256, 0.10303744, -0.021805352, 0.0029396159, -0.0001855749];

#[inline(always)]
fn horner<const N: usize>(coefficients: [f32; N], x: f32) -> f32 {
    coefficients.iter().rev().fold(0.0, |sum, c| sum * x + c)
}

impl Elementary for f32 {
    #[inline(always)]
    fn exp_inline(self) -> Self {
        // x = n ln 2 + r; adding and subtracting 1.5 * 2^23 rounds to a whole number.
        const ROUND: f32 = 12_582_912.0;
        // ln 2 in two parts, the first of few digits, so that n times it is exact.
        const LN_2: [f32; 2] = [0.693_359_4, -0.000_212_194_44];
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
    fn erf_inline(self) -> Self {
        let x = self.abs();
        let near = x * horner(ERF, x * x);
        // Behind 4 the difference from 1 is below f32's resolution.
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
    fn erf_is_within_single_precision() {
        let worst = grid(-6.0, 6.0).map(|x| (f64::from(x.erf_inline()) - libm::erf(f64::from(x))).abs());
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 1.3e-7, "{worst:e}");
        assert_eq!((0f32.erf_inline(), f32::INFINITY.erf_inline(), (-9f32).erf_inline()), (0.0, 1.0, -1.0));
        assert!(f32::NAN.erf_inline().is_nan());
    }
}
