//! Chooses the vector unit that runs loops and matrix products: the widest one of the running CPU, or the one that an environment
//! variable names. Results have the same bits on every unit (see `docs/design.md`).

use std::sync::OnceLock;

use pulp::{Arch, Scalar, WithSimd};

/// Environment variable that forces a vector unit.
pub const VARIABLE: &str = "SNCLR_VECTOR_UNIT";

/// Why the unit that [`VARIABLE`] names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    #[error("{VARIABLE}: unknown vector unit `{found}`; {}use one of: {}", suggestion(found), known().join(", "))]
    Unknown { found: String },
    #[error("{VARIABLE}: this CPU has no `{found}`; it has: {}", available().join(", "))]
    Missing { found: String },
}

/// Names of the units that CPUs of this architecture may have, narrowest first.
fn known() -> Vec<&'static str> {
    let mut names = vec!["scalar"];
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    names.extend(["avx2", "avx512"]);
    #[cfg(target_arch = "aarch64")]
    names.push("neon");
    names
}

/// The hint `did you mean ...?` with the unit whose name is most similar to `found`, or an empty string if no name is similar.
fn suggestion(found: &str) -> String {
    let plain = found.to_ascii_lowercase();
    let distance = |name: &str| strsim::damerau_levenshtein(&plain, name);
    let nearest = known().into_iter().min_by_key(|name| distance(name)).filter(|name| distance(name) <= 2);
    nearest.map_or_else(String::new, |name| format!("did you mean `{name}`? "))
}

/// Names of the units that the running CPU has.
pub fn available() -> Vec<&'static str> {
    known().into_iter().filter(|name| by_name(name).is_some()).collect()
}

fn by_name(name: &str) -> Option<Arch> {
    match name {
        "scalar" => Some(Arch::Scalar),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "avx2" => pulp::x86::V3::try_new().map(Arch::V3),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "avx512" => pulp::x86::V4::try_new().map(Arch::V4),
        #[cfg(target_arch = "aarch64")]
        "neon" => pulp::aarch64::Neon::try_new().map(Arch::Neon),
        _ => None,
    }
}

/// The unit called `wanted`, or the widest unit if `wanted` is missing or empty.
fn choose(wanted: Option<&str>) -> Result<Arch, UnitError> {
    let Some(found) = wanted.filter(|name| !name.is_empty()) else { return Ok(Arch::new()) };
    if !known().contains(&found) {
        return Err(UnitError::Unknown { found: found.to_owned() });
    }
    by_name(found).ok_or_else(|| UnitError::Missing { found: found.to_owned() })
}

/// Checks that the unit that [`VARIABLE`] names can be used. Call this before any other work.
///
/// # Errors
/// When [`VARIABLE`] names no unit of this CPU.
pub fn check() -> Result<(), UnitError> {
    choose(std::env::var(VARIABLE).ok().as_deref()).map(|_| ())
}

/// What chose the unit in use: [`VARIABLE`] or the CPU.
pub fn chosen_by() -> &'static str {
    match std::env::var(VARIABLE) {
        Ok(name) if !name.is_empty() => VARIABLE,
        _ => "the CPU",
    }
}

/// The unit in use. It stays the same while the program runs.
///
/// # Panics
/// When [`check`] would fail.
pub fn unit() -> Arch {
    static UNIT: OnceLock<Arch> = OnceLock::new();
    *UNIT.get_or_init(|| choose(std::env::var(VARIABLE).ok().as_deref()).unwrap_or_else(|error| panic!("{error}")))
}

/// AVX2 and the other extensions of x86-64-v3 if the unit in use has them, for kernels that use their instructions directly.
#[cfg(target_arch = "x86_64")]
pub fn avx2() -> Option<pulp::x86::V3> {
    match unit() {
        Arch::V4(unit) => Some(*unit),
        Arch::V3(unit) => Some(unit),
        _ => None,
    }
}

/// Runs `work` compiled for the unit in use.
#[inline(always)]
pub fn dispatch<W: WithSimd>(work: W) -> W::Output {
    match unit() {
        Arch::Scalar => scalar(work),
        unit => unit.dispatch(work),
    }
}

/// Runs `work` without vectors, but with the CPU's fused multiply-add if it has one. The C library's fused multiply-add takes a
/// hundred times as long.
fn scalar<W: WithSimd>(work: W) -> W::Output {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        #[target_feature(enable = "fma")]
        fn fused<W: WithSimd>(work: W) -> W::Output {
            work.with_simd(Scalar::new())
        }
        if is_x86_feature_detected!("fma") {
            // SAFETY: the check above found that the CPU has the feature `fma`.
            return unsafe { fused(work) };
        }
    }
    work.with_simd(Scalar::new())
}

/// Runs `f` compiled for the unit in use. Only inlined code profits: `f` and all functions that it calls need
/// `#[inline(always)]`.
///
/// Rust neither fuses nor reorders floating-point operations, so the result does not depend on the unit.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    dispatch(f)
}

/// Name of the unit in use, as [`VARIABLE`] takes it.
pub fn vector_unit() -> &'static str {
    match unit() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V4(_) => "avx512",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V3(_) => "avx2",
        #[cfg(target_arch = "aarch64")]
        Arch::Neon(_) => "neon",
        _ => "scalar",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_chosen_by_name_or_refused_with_those_that_there_are() {
        let chosen = choose(Some("scalar")).expect("every CPU has it");
        assert!(matches!(chosen, Arch::Scalar));
        assert!(choose(Some("")).is_ok() && choose(None).is_ok());
        let unknown = choose(Some("sse9")).expect_err("there is none");
        assert_eq!(
            unknown.to_string(),
            format!("SNCLR_VECTOR_UNIT: unknown vector unit `sse9`; use one of: {}", known().join(", "))
        );
        let near = choose(Some("AVX-2")).expect_err("units are in small letters").to_string();
        let suggested = cfg!(any(target_arch = "x86", target_arch = "x86_64"));
        assert_eq!(
            near.contains("unknown vector unit `AVX-2`; did you mean `avx2`? use one of: "),
            suggested,
            "{near}"
        );
        let missing = UnitError::Missing { found: "avx512".into() };
        let expected = format!("SNCLR_VECTOR_UNIT: this CPU has no `avx512`; it has: {}", available().join(", "));
        assert_eq!(missing.to_string(), expected);
    }
}
