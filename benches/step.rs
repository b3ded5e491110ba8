//! Whole pretraining steps (augmentation excluded): `cargo bench --bench step [-- CASE...]`.
//!
//! `small`: ResNet-18 of width 16 on 32x32, batch 128; `resnet18`: the usual width; `resnet50`: 224x224, batch 8;
//! `vit_tiny`: patches of 4 on 32x32, batch 128.

use std::time::Instant;

use serde_json::json;
use snclr::{
    spec::Experiment,
    train::{Batch, Crop, Trainer},
};

const STEPS: usize = 5;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let precision = std::env::var("PRECISION").unwrap_or("f32".into());
    for (case, encoder, size, batch, queue, dim, hidden) in [
        ("small", json!({"arch": "resnet18", "width_multiplier": 0.25, "stem": "cifar"}), 32, 128, 16384, 128, 512),
        ("resnet18", json!({"arch": "resnet18", "stem": "cifar"}), 32, 128, 16384, 128, 512),
        ("resnet50", json!({"arch": "resnet50"}), 224, 8, 65536, 256, 4096),
        ("vit_tiny", json!({"arch": "vit_tiny", "patch_size": 4}), 32, 128, 16384, 128, 512),
    ] {
        if !asked.is_empty() && !asked.iter().any(|a| a == case) {
            continue;
        }
        let view = json!({"random_resized_crop": {}});
        let spec: Experiment = serde_json::from_value(json!({
            "name": case,
            "data": {"format": "synthetic", "classes": 2, "train_images": 1, "test_images": 1, "image_size": size},
            "augmentations": {"size": size, "view1": view, "view2": view},
            "encoder": encoder,
            "projector": {"layers": 3, "hidden": hidden, "output": dim},
            "predictor": {"layers": 2, "hidden": hidden, "output": dim},
            "method": {"name": "snclr", "k": 30, "queue_length": queue, "tau": 0.2, "exclude_self": false},
            "optimizer": {"name": "lars", "base_lr": 0.1, "weight_decay": 1e-6},
            "epochs": 100,
            "batch_size": batch,
            "health": {"every": 10},
            "precision": precision,
        }))
        .expect("the case is a spec");
        let mut trainer = Trainer::<f32>::new(&spec.pretrain(), 100, 50_000).expect("a trainer");
        let crop = |phase: f32| {
            let images = (0..batch * size * size * 3).map(|i| (i as f32 * 0.7 + phase).sin()).collect();
            Crop { images, size }
        };
        let batch_of_views =
            Batch { samples: (0..batch as i64).collect(), labels: vec![-1; batch], crops: vec![crop(0.0), crop(1.0)] };
        trainer.step(&batch_of_views).expect("a step");
        let mut seconds: Vec<f64> = (0..STEPS)
            .map(|_| {
                let start = Instant::now();
                trainer.step(&batch_of_views).expect("a step");
                start.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        let median = seconds[STEPS / 2];
        println!("{case}: {:.1} ms per step, {:.1} images/s (median of {STEPS})", median * 1e3, batch as f64 / median);
    }
}
