//! `snclr export`: writes the trained encoder as safetensors with torchvision's or timm's names.

use std::{io::Write, path::PathBuf, process::ExitCode};

use super::{Global, values};
use crate::{
    artifact::Store,
    report::{self, safetensors::Head},
};

/// Write the trained encoder as safetensors with torchvision's (ResNet) or timm's (ViT) names
///
/// In Python: `torchvision.models.resnet18(num_classes=N).load_state_dict(safetensors.torch.load_file(FILE), strict=True)`,
/// where N is the number of classes that this command prints. For an encoder with `stem: cifar`, first replace `conv1` by a 3x3
/// convolution of stride 1 and `maxpool` by nn.Identity(); the metadata of the file says so.
///
/// Vision transformers load into `timm.create_model("vit_small_patch16_224", num_classes=N, img_size=SIZE, patch_size=P)`; add
/// `num_heads=H` if the spec sets `heads`. In the other direction, `encoder.init` reads files of timm and torchvision.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run's name or its beginning, its folder, or a spec's name or path (its newest run)
    #[arg(value_name = "RUN")]
    pub run: String,
    /// File to write
    #[arg(short, long, value_name = "FILE.safetensors")]
    pub output: PathBuf,
    /// Classifier (fc, or timm's head) to write with the encoder
    #[arg(long, value_enum, default_value_t)]
    pub head: Head,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    values::ensure_ends_in("safetensors", &args.output)?;
    let run = report::find(&global.runs, &args.run)?;
    let exported = report::safetensors::export(&Store::open(&global.runs), &run, args.head)?;
    report::file::replace(&args.output, &exported.bytes)?;
    let head = match exported.head {
        None => "no classifier".to_owned(),
        Some((classes, "probe")) => format!("the linear probe as classifier of {classes} classes"),
        Some((classes, _)) => format!("zeros as classifier of {classes} classes"),
    };
    let (path, name) = (args.output.display(), &run.record.run);
    writeln!(std::io::stdout(), "wrote {path}: {} tensors of {name}, {head}", exported.tensors)?;
    Ok(ExitCode::SUCCESS)
}
