use snclr::ops::{product::Products, topk::top_k};
use std::time::Instant;
fn main() {
    let (n, m, dim, k) = (256, 131072, 256, 30);
    let mut s = 12345u32;
    let mut noise = |len: usize| -> Vec<f32> {
        (0..len)
            .map(|_| {
                s = s.wrapping_mul(1664525).wrapping_add(1013904223);
                (s >> 8) as f32 / 8388608.0 - 1.0
            })
            .collect()
    };
    let (q, b) = (noise(n * dim), noise(m * dim));
    for p in [Products::Full, Products::Bf16] {
        let mut t: Vec<f64> = (0..9)
            .map(|_| {
                let s = Instant::now();
                std::hint::black_box(top_k(&q, &b, dim, k, p, |_, _| false));
                s.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        t.sort_by(f64::total_cmp);
        println!("{p:?} min {:.1} median {:.1} ms", t[0], t[4]);
    }
}
